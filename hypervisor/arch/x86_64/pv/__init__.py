"""PV domains of 64 bits: kernels that know that they have no machine to themselves, only Xen's calls."""
