"""Rules for Unmask: the dilated schedule, its rivals, samplers with a budget, and privileged ones."""
