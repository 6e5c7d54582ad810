"""KVQueue, version 1: the same queue on the engine as vLLM runs it, request by request and victim by victim."""
