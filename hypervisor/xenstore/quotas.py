"""Limits on what one unprivileged domain may make the store keep or do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quotas:
    """State the limits of each unprivileged domain; the control domain has none of them.

    The numbers are the defaults of C xenstored (tools/xenstored/domain.c), but `transaction_requests`, which is
    oxenstored's, and the four last ones, which bound buffers that C xenstored bounds by one sum of memory (2.5 MB).
    """

    nodes: int = 1000
    value_bytes: int = 2048
    permissions: int = 5
    watches: int = 128
    transactions: int = 10
    transaction_nodes: int = 1024
    requests_in_flight: int = 20
    transaction_requests: int = 1024
    transaction_bytes: int = 256 * 1024
    reply_bytes: int = 64 * 1024
    event_bytes: int = 128 * 1024
    input_bytes: int = 16 * 1024
