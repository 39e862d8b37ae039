"""Certificates for TLS that the daemon makes for itself, and what can be seen of those that others made."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CERTIFICATE_DAYS = 3650
_LIFE = timedelta(days=CERTIFICATE_DAYS)
ALWAYS = ("localhost", "127.0.0.1", "::1")
"""What each of ours is for, beside the host's name."""


def self_signed(hostname: str, now: datetime, names: Iterable[str] = ()) -> str:
    """Return a new key and a certificate for this host, loopback and other names or addresses, in PEM.

    RSA of 2048 bits: the oldest clients know nothing newer.
    """
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hostname[:64])])
    start = now.astimezone(UTC) - timedelta(days=1)
    alternatives = [_general_name(each) for each in dict.fromkeys([hostname, *ALWAYS, *names])]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + _LIFE)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    return private.decode() + pem(certificate)


def pem(certificate: x509.Certificate) -> str:
    """Return a certificate as text."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def unnamed(certificate: x509.Certificate, names: Iterable[str]) -> list[str]:
    """Return those of some names and addresses that a certificate is not for."""
    alternatives = _alternatives(certificate)
    return [name for name in names if name not in alternatives]


def _alternatives(certificate: x509.Certificate) -> set[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    addresses = {str(each) for each in found.get_values_for_type(x509.IPAddress)}
    return addresses | set(found.get_values_for_type(x509.DNSName))


def is_own(certificate: x509.Certificate) -> bool:
    """Tell whether a certificate is one that `self_signed` made, which may be made anew.

    Nothing marks them, so that those of older versions are known too: what they share is enough.
    """
    try:
        certificate.verify_directly_issued_by(certificate)
    except (ValueError, TypeError, InvalidSignature):
        return False
    subject = certificate.subject
    kinds = [type(each.value) for each in certificate.extensions]
    return (
        len(subject) == 1
        and len(subject.get_attributes_for_oid(NameOID.COMMON_NAME)) == 1
        and certificate.not_valid_after_utc - certificate.not_valid_before_utc == _LIFE
        and kinds == [x509.SubjectAlternativeName, x509.BasicConstraints, x509.ExtendedKeyUsage]
        and not unnamed(certificate, ALWAYS)
    )
