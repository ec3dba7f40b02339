"""A pair of keys for signing."""

from functools import cache

from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@cache
def key_pair(number=0):
    """Return the PEM of a private key and of its public one, the same for each number."""
    key = Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)
    return (
        key.private_bytes(
            form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()
        ),
        key.public_key().public_bytes(
            form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo
        ),
    )  # fmt: skip
