"""How servers work: batching under a KV budget. Compiled mechanics that environments share."""
