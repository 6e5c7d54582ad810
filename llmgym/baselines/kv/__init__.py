"""Rules and closed forms of a serving queue under a KV-cache limit, and the sizing of its replicas."""
