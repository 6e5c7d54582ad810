"""Rules for distillation programmes; see `llmgym.baselines.distill.programme`."""
