"""KVProvision: how many replicas run in the next epoch."""
