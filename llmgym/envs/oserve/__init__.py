"""OServe: replica shapes of a cluster, minute by minute, and the routing of request types."""
