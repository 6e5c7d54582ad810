"""Distillation programmes under an energy budget; see `llmgym.envs.distill.env`."""
