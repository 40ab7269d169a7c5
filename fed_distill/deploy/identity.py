"""Identities of server and sites: a certificate authority, the server's TLS certificate, and a key pair per site.

Certificates are X.509 version 3 (RFC 5280), created with ``cryptography``. Site keys are those of Flower's SuperNode
authentication: elliptic curve keys on P-384 in OpenSSH's format. Private keys have mode 0600, and each is created on
the machine that uses it: those of authority and server at the operator, a site's at the site.
"""

import base64
import binascii
import hashlib
import ipaddress
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fed_distill.errors import ConfigError
from fed_distill.privacy.secret import write_private

AUTHORITY_DAYS = 3650
SERVER_DAYS = 397
"""Browsers and many TLS libraries reject longer validity (CA/Browser Forum, ballot SC31)."""
_SKEW = timedelta(hours=1)
"""Tolerated delay of a site's clock relative to the one that created a certificate."""
_KIND = "ecdsa-sha2-nistp384"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True)
class SiteKey:
    """The public key and the name of a site.

    Its text form, the join line, is a public key in OpenSSH's format with the name as comment. encoded: the key in
    base64, as in the line.
    """

    name: str
    encoded: str

    @classmethod
    def parse(cls, line: str) -> Self:
        """Parse a join line; raise ConfigError unless it contains a P-384 key and a name."""
        kind, encoded, name, *more = [*line.split(), "", "", ""]
        if "PRIVATE KEY" in line:
            raise ConfigError(
                "this is a private key, which must stay at the site: delete it, and run "
                "`fed-distill sites join FOLDER --new-keys` at the site"
            )
        if kind != _KIND or any(more) or not name:
            raise ConfigError(
                f"a join line is `{_KIND} KEY NAME`, as printed by `fed-distill sites join`, not {_shortened(line)}"
            )
        check_site_name(name)
        return cls(name, _canonical(encoded, f"the join line of site {name}"))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the key from a file named after the site; the comment in the file is ignored."""
        try:
            kind, encoded, *_ = path.read_text(encoding="ascii").split()
        except OSError as error:
            raise ConfigError(f"cannot read the key {path}: {error.strerror}") from error
        except ValueError:
            kind, encoded = "", ""
        return cls(path.stem, _canonical(encoded if kind == _KIND else "", str(path)))

    @property
    def line(self) -> str:
        """The join line, without a newline."""
        return f"{_KIND} {self.encoded} {self.name}"

    @property
    def pem(self) -> bytes:
        """The key in the format of Flower's server."""
        key = serialization.load_ssh_public_key(f"{_KIND} {self.encoded}".encode())
        return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    @property
    def fingerprint(self) -> str:
        """The fingerprint, as in ``ssh-keygen -l``."""
        digest = hashlib.sha256(base64.b64decode(self.encoded)).digest()
        return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def check_site_name(name: str) -> None:
    """Raise ConfigError for a name that is not a valid file name on every system."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"the name of a site consists of letters, digits, dots, - and _, not {_shortened(name)}")


def make_authority(folder: Path, now: datetime | None = None) -> None:
    """Write ``ca.key``, which stays with the operator, and ``ca.crt``, which is public, into ``folder``."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fed-distill operator")])
    builder = (
        _dated(now, AUTHORITY_DAYS)
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    certificate = builder.sign(key, hashes.SHA384())
    write_private(folder / "ca.key", _pem(key))
    (folder / "ca.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def make_server_certificate(authority: Path, folder: Path, host: str, now: datetime | None = None) -> None:
    """Write ``server.key`` and ``server.crt`` into ``folder``, for ``host`` and for localhost, which the server's own
    processes use. ``authority``: the folder of ``make_authority``."""
    issuer_key = serialization.load_pem_private_key((authority / "ca.key").read_bytes(), password=None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    issuer = read_certificate(authority / "ca.crt")
    key = ec.generate_private_key(ec.SECP384R1())
    names = dict.fromkeys([host, "localhost", "127.0.0.1", "::1"])
    builder = (
        _dated(now, SERVER_DAYS)
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fed-distill server")]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    certificate = builder.sign(issuer_key, hashes.SHA384())
    write_private(folder / "server.key", _pem(key))
    (folder / "server.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def make_site_key(folder: Path) -> bytes:
    """Write ``site.key`` into ``folder`` and return its public key, one line in OpenSSH's format."""
    key = ec.generate_private_key(ec.SECP384R1())
    write_private(
        folder / "site.key",
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        ),
    )
    return _public_line(key)


def belongs(key: Path, certificate: Path) -> bool:
    """Whether a private key (PEM) matches a certificate; raise ConfigError if one of them cannot be read."""
    try:
        private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    except OSError as error:
        raise ConfigError(f"cannot read the key {key}: {error.strerror}") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key} is not a private key in PEM format: {error}") from error
    return private.public_key() == read_certificate(certificate).public_key()


def certificate_fingerprint(path: Path) -> str:
    """Return the SHA-256 of a certificate, as in ``openssl x509 -fingerprint -sha256``."""
    return read_certificate(path).fingerprint(hashes.SHA256()).hex(":").upper()


def public_half(path: Path) -> bytes:
    """Return the public key of a private key, see ``make_site_key``; raise ConfigError if that is not a P-384 key."""
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise ConfigError(f"cannot read the key {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not a private key in OpenSSH's format: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ConfigError(f"{path} is not an elliptic curve key on P-384, which Flower requires")
    return _public_line(key)


def read_certificate(path: Path) -> x509.Certificate:
    """Read a certificate in PEM; raise ConfigError, naming the file, if it is invalid."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read the certificate {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not a certificate in PEM: {error}") from error


def is_signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether the key of ``issuer`` signed ``certificate``."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _dated(now: datetime | None, days: int) -> x509.CertificateBuilder:
    begin = (datetime.now(UTC) if now is None else now) - _SKEW
    return (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=days))
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _public_line(key: ec.EllipticCurvePrivateKey) -> bytes:
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return public + b"\n"


def _canonical(encoded: str, where: str) -> str:
    """Return a P-384 key in OpenSSH's base64; raise ConfigError, naming its origin ``where``, if it is invalid."""
    try:
        base64.b64decode(encoded, validate=True)
        key = serialization.load_ssh_public_key(f"{_KIND} {encoded}".encode())
    except (ValueError, UnsupportedAlgorithm, binascii.Error) as error:
        raise ConfigError(f"{where} has no elliptic curve key on P-384 in OpenSSH's format") from error
    assert isinstance(key, ec.EllipticCurvePublicKey)  # follows from its type
    written = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return written.split()[1].decode()


def _shortened(text: str) -> str:
    """Return user input on one line, without control characters."""
    return ascii(text if len(text) <= 60 else f"{text[:57]}...")
