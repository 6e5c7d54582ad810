"""Rules for AttentionBudget: crossover, deadlines first, a price of loss; and two that see the future."""
