"""Numbers of domains that are no domain's own (public/xen.h)."""

DOMID_FIRST_RESERVED = 0x7FF0
"""Domids are below."""
DOMID_SELF = 0x7FF0
"""Whoever calls."""
