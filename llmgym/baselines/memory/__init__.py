"""Static mappings, bands and searches for memory pipelines on a GPU and an FPGA."""
