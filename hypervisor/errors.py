"""Errors of hypercalls, by Xen's numbers (public/errno.h)."""

from __future__ import annotations

EPERM, ENOENT, ESRCH, EIO, E2BIG, ENOMEM, EACCES, EFAULT, EBUSY, EEXIST = 1, 2, 3, 5, 7, 12, 13, 14, 16, 17
ENODEV, EINVAL, ENOSPC, ERANGE, ENOSYS, EOPNOTSUPP = 19, 22, 28, 34, 38, 95


class XenError(Exception):
    """A hypercall fails with this number; the guest sees it negated."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
