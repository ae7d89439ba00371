"""Signs the manifest of a bundle, and checks the signature: Ed25519 (RFC 8032) with keys in PEM files.

The signature of the bytes of ``manifest.json``, which has the SHA-256 of every file, is in ``manifest.json.sig``.
Without kdedge: ``openssl pkeyutl -verify -pubin -inkey PUB -rawin -in manifest.json -sigfile manifest.json.sig``.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from kdedge.errors import InputError, StageError
from kdedge.files import write_atomic
from kdedge.ownership import MANIFEST, SIGNATURE

__all__ = ["check_signature", "load_private_key", "sign_bundle"]


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """Read the key that signs.

    Raises:
        InputError: It is missing, or not a private Ed25519 key in PEM without a password.
    """
    key: Any = _load(path, lambda data: load_pem_private_key(data, password=None))
    if not isinstance(key, Ed25519PrivateKey):
        raise _not_a_key(path, "private", "openssl genpkey -algorithm ed25519 -out KEY")
    return key


def sign_bundle(bundle: Path, key: Ed25519PrivateKey) -> str:
    """Write ``manifest.json.sig`` and return the fingerprint of the key, see `check_signature`."""
    write_atomic(bundle / SIGNATURE, key.sign((bundle / MANIFEST).read_bytes()))
    return _fingerprint(key.public_key())


def check_signature(bundle: Path, path: Path) -> str:
    """Check that the holder of a key signed the manifest of a bundle.

    Args:
        bundle: The bundle.
        path: The public key.

    Returns:
        The fingerprint of the key: the SHA-256 of its DER encoding, in hexadecimal digits.

    Raises:
        InputError: The key is missing, or not a public Ed25519 key in PEM.
        StageError: The manifest is not signed, or not with this key.
    """
    key: Any = _load(path, load_pem_public_key)
    if not isinstance(key, Ed25519PublicKey):
        raise _not_a_key(path, "public", "openssl pkey -in KEY -pubout -out PUB")
    fingerprint = _fingerprint(key)
    try:
        key.verify((bundle / SIGNATURE).read_bytes(), (bundle / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise StageError(f"{bundle} is not signed: {SIGNATURE} is missing", "ask its maker for a signed copy") from None
    except InvalidSignature:
        raise StageError(
            f"{bundle} is not signed with the key {fingerprint}, or {MANIFEST} was altered since", "do not use it"
        ) from None
    return fingerprint


def _load(path: Path, parse: Callable[[bytes], Any]) -> Any:
    """Return the key in a file; None: it is not a key, or needs a password."""
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read the key {path}: {error.strerror}", "check the path") from error
    except (TypeError, ValueError, UnsupportedAlgorithm):
        return None


def _not_a_key(path: Path, kind: str, command: str) -> InputError:
    return InputError(f"{path} is not a {kind} Ed25519 key in PEM without a password", f"make one: `{command}`")


def _fingerprint(key: Ed25519PublicKey) -> str:
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
