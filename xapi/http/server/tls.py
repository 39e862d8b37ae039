"""What is agreed on with clients of HTTPS."""

from __future__ import annotations

import warnings

from twisted.internet.ssl import AcceptableCiphers, CertificateOptions, PrivateCertificate, TLSVersion

SUITES = "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-AES128-GCM-SHA256"
"""What xapi takes with TLS 1.2; those of TLS 1.3 are all as good."""


def options(pem: bytes) -> CertificateOptions:
    """Return how to serve with a key and its certificate, and those that it stands on."""
    certificate = PrivateCertificate.loadPEM(pem)
    made = CertificateOptions(
        privateKey=certificate.privateKey.original,
        certificate=certificate.original,
        raiseMinimumTo=TLSVersion.TLSv1_2,
        acceptableCiphers=AcceptableCiphers.fromOpenSSLCipherString(SUITES),
        acceptableProtocols=[b"http/1.1", b"http/1.0"],  # without any, who offers some is refused
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of how Twisted uses pyOpenSSL; tests make it an error
        made.getContext()
    return made
