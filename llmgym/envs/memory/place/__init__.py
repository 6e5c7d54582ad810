"""MemPlace: which stages of a memory pipeline run on the FPGA."""
