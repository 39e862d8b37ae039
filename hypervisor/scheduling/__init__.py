"""Who runs when, on which pCPU."""
