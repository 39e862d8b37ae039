"""One domain and what Xen keeps for it: vCPUs, event channels, grants, time."""
