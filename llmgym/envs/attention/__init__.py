"""AttentionBudget: attention kernel and feature budget of every batch, under deadlines and a quality ledger."""
