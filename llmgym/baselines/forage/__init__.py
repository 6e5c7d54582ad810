"""Scout and its ablations, retrieval, sequential and whole reading, corroboration, and an oracle."""
