"""TLS in which both ends show who they are."""

from __future__ import annotations

import warnings
from pathlib import Path

from OpenSSL.SSL import Error
from twisted.internet.ssl import Certificate, CertificateOptions, PrivateCertificate


def mutual(certificate: Path, authority: Path) -> CertificateOptions:
    """Return a context for either end: each shows a certificate, and both are signed by the same authority.

    The first file has a key and its certificate, the other the authority's certificate, in PEM. Raises OSError,
    ValueError.
    """
    try:
        options: CertificateOptions = PrivateCertificate.loadPEM(certificate.read_bytes()).options(
            Certificate.loadPEM(authority.read_bytes())
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of how Twisted uses pyOpenSSL; tests make it an error
            options.getContext()
    except Error as error:
        raise ValueError(f"{certificate}, {authority}: {error}") from error
    return options
