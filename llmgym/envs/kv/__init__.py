"""Serving under a KV-cache limit: `queue` decides who enters the batch, `provision` how many replicas run."""
