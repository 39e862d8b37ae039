"""The certificate that hosts show to who connects by TLS."""

from __future__ import annotations


class Certificate:
    """What TLS is served with now, in PEM; "" while none is."""

    def __init__(self) -> None:
        self.pem = ""
