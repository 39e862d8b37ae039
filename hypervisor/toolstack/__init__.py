"""What libxl does on a real host: domains built from descriptions, joined to devices, saved and ended."""
