"""Signatures of checkpoints and datasets: who publishes a model can be believed, not only asked.

What is signed is the file that holds the digest of everything else: the lineage of a checkpoint,
whose digests reach down to its parents, its dataset and the raw files, or the metadata of a
dataset. The signature is an in-toto statement in a DSSE envelope, which other tools check, too.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mypt import files
from mypt.data.manifest import METADATA, changed_files, read_manifest
from mypt.errors import ConfigError, DataError, MissingFileError
from mypt.home import find_checkpoint
from mypt.provenance.trace import Link, trace
from mypt.training.lineage import LINEAGE, read_lineage

if TYPE_CHECKING:
    from securesystemslib.dsse import Envelope

SIGNATURE: Final = "attestation.intoto.jsonl"
PASSWORD: Final = "MYPT_KEY_PASSWORD"
"""Environment variable with the password of a private key that has one."""
_PAYLOAD: Final = "application/vnd.in-toto+json"
_STATEMENT: Final = "https://in-toto.io/Statement/v1"
_PREDICATE: Final = "urn:mypt:provenance:v1"
_MOST_BYTES: Final = 1 << 20


def place_of(name_or_path: str | Path) -> Path:
    """Return the folder that is signed: a dataset's, or a checkpoint's by whatever names it.

    Raises:
        CheckpointError: If it is neither.
    """
    given = Path(name_or_path)
    return given if (given / METADATA).is_file() else find_checkpoint(name_or_path)


def sign(folder: Path, key: Path) -> Path:
    """Sign a checkpoint or dataset, every file of which is hashed first; return the signature.

    Who signed it before keeps his signature.

    Args:
        folder: As :func:`place_of` returns it.
        key: A private key as PEM: Ed25519, ECDSA or RSA.

    Raises:
        ConfigError: If the key is none, or the library is not installed.
        DataError: If a file is not as it was written, or other bytes were signed before.
    """
    signer = _signer(key)
    from securesystemslib.dsse import Envelope

    if problems := _problems(folder):
        raise DataError(f"{problems[0]}; only what is whole is signed")
    payload = files.canonical_json(_statement(folder))
    path = folder / SIGNATURE
    envelope = _read(path) if path.exists() else Envelope(payload, _PAYLOAD, {})
    if envelope.payload != payload:
        raise DataError(f"{path}: signs other bytes than those that lie beside it; remove it")
    envelope.sign(signer)
    files.write_bytes(path, files.canonical_json(envelope.to_dict()) + b"\n")
    return path


def verify(folder: Path, key: Path) -> tuple[str, ...]:
    """Check the signature of a checkpoint or dataset, and hash all of its chain that is here.

    Args:
        folder: As :func:`place_of` returns it.
        key: The signer's public key as PEM.

    Returns:
        A line for each thing of the chain that does not lie here and so was not hashed; what it
        must be is signed nevertheless.

    Raises:
        ConfigError: If the key is none, or the library is not installed.
        DataError: If there is no signature by this key, or anything is not as it was signed.
    """
    known = _public(key)
    envelope = _read(folder / SIGNATURE)
    from securesystemslib.exceptions import VerificationError

    try:
        envelope.verify([known], 1)
    except VerificationError:
        raise DataError(
            f"{folder / SIGNATURE}: not signed with the key of {key}; do not believe it, or name"
            " the key of whoever signed it"
        ) from None
    if envelope.payload_type != _PAYLOAD or envelope.payload != files.canonical_json(
        _statement(folder)
    ):
        raise DataError(f"{folder / SIGNATURE}: signs other bytes than those that lie beside it")
    if problems := _problems(folder):
        raise DataError(problems[0])
    return _absent(trace(folder, verify=True)) if (folder / LINEAGE).is_file() else ()


def _statement(folder: Path) -> dict[str, Any]:
    record = LINEAGE if (folder / LINEAGE).is_file() else METADATA
    read = read_lineage if record == LINEAGE else read_manifest
    subject = {"name": record, "digest": {"sha256": files.sha256_file(folder / record)}}
    predicate = {"digest": read(folder).digest}
    return {
        "_type": _STATEMENT,
        "subject": [subject],
        "predicateType": _PREDICATE,
        "predicate": predicate,
    }


def _problems(folder: Path) -> tuple[str, ...]:
    """Return a line for each thing here or in the chain that is there and not as recorded."""
    if (folder / LINEAGE).is_file():
        return _changed(trace(folder, verify=True))
    return tuple(changed_files(folder, read_manifest(folder).files(), METADATA))


def _changed(link: Link) -> tuple[str, ...]:
    here = link.problems if link.path is not None else ()
    return sum(map(_changed, link.links), here)


def _absent(link: Link) -> tuple[str, ...]:
    here = link.problems if link.path is None else ()
    return sum(map(_absent, link.links), here)


def _read(path: Path) -> "Envelope":
    try:
        from securesystemslib.dsse import Envelope

        found: Envelope = Envelope.from_dict(json.loads(files.read_bytes(path, _MOST_BYTES)))
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file; nobody has signed this") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: no DSSE envelope ({error!r:.80}); get it again") from None
    return found


def _signer(path: Path) -> Any:
    _check_installed()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from securesystemslib.signer import CryptoSigner

    password = os.environ.get(PASSWORD, "").encode() or None
    try:
        return CryptoSigner(load_pem_private_key(files.read_bytes(path, _MOST_BYTES), password))
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"--key {path}: no private key ({said!s:.80}); expected PEM, as 'openssl genpkey"
            f" -algorithm ed25519' writes it, its password in {PASSWORD}"
        ) from None


def _public(path: Path) -> Any:
    _check_installed()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.signer import SSlibKey

    try:
        return SSlibKey.from_crypto(load_pem_public_key(files.read_bytes(path, _MOST_BYTES)))
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"--key {path}: no public key ({said!s:.80}); expected PEM, as 'openssl pkey -pubout'"
            " writes it"
        ) from None


def _check_installed() -> None:
    try:
        import securesystemslib  # noqa: F401
    except ImportError:
        raise ConfigError(
            "signatures need the package securesystemslib; get it with 'pip install"
            " securesystemslib'"
        ) from None
