"""KVQueue: which waiting requests enter the batch of an engine whose KV cache is full."""
