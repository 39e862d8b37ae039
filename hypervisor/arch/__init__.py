"""Instruction sets, a folder each, and what the rest of the program knows of all of them: `vcpu`, `kind`, `clock`.

Nothing outside of here imports an engine, names a register, or imports of an architecture more than `PROVIDED` and,
for what only x86 has, `X86_ONLY`. Whoever adds one adds these modules, and nothing outside but the loader of its
kernels; a test looks that they are there, and that nobody reaches past them.
"""

PROVIDED = {
    "kinds": "its kinds of guests, each a `kind.Kind`: what makes the vCPUs of a domain",
    "clock": "`Clock`, a `clock.Clock` by the counter that guests read",
    "entry": "the first registers of a vCPU, a function for each way into a kernel",
    "cpu.context": "`read` and `load` of the registers of a vCPU as a value, which `encode` and `decode` carry",
    "cpu.support": "`why_no_guests`: whether its guests can run on this machine; to be imported anywhere",
    "processor": "`processor`: what a host tells of the CPUs that guests find; to be imported anywhere",
}
"""Modules of each architecture, by their names below its folder."""

X86_ONLY = {
    "pv": "the CPU of guests that know of Xen only, and their hypercalls for page tables and descriptors",
    "cpu.hypercall_page": "the page of calls that a PV kernel finds where it wants it",
    "cpu.apic": "where the ACPI tables of a PVH guest say that local APICs are",
}
"""Modules of x86 that are of use to the loaders and hypercalls of its own kinds of guests."""
