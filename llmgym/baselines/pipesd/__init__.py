"""Rules of cloud-edge speculation: the paper's, its ablations, and tuners of its thresholds."""
