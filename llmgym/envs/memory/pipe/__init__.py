"""MemPipe: which device a stage goes to when requests queue."""
