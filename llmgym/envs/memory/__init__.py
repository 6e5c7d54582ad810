"""Memory pipelines on a GPU and an FPGA: `place` decides request by request, `pipe` stage by stage while others queue."""
