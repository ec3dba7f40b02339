"""A dataset's metadata: the commit mark of its folder and the root of its digests."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from mypt import files
from mypt.config import UNWEIGHED, MaskPolicy, PrepareConfig, Source, later
from mypt.data.spans import ROLE
from mypt.errors import ManifestError, MissingDatasetError
from mypt.parsing import Frozen
from mypt.references import DatasetRef

METADATA = "dataset_metadata.json"
TOKENIZER_STATE = "tokenizer_state.json"
VERSION = 1
Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")


class FileRecord(Frozen):
    """One file of the dataset."""

    name: str
    """Path below the dataset's folder, such as ``train/shard_000.bin``."""
    size: int
    """Bytes."""
    digest: str
    """blake3 of its bytes."""


class Count(Frozen):
    """How many rows something happened to, and why."""

    reason: str
    rows: int


class SourceFile(Frozen):
    """One raw file."""

    path: str
    """Where it was read; where it lies later does not change the dataset's digest."""
    size: int
    sha256: str


class SourceRecord(Frozen):
    """One source as it was read."""

    name: str
    format: str
    weight: float
    licence: str = ""
    files: tuple[SourceFile, ...]
    rows_read: int
    """Rows found in the files; rows_read = rows kept in train and val + dropped."""
    dropped: tuple[Count, ...] = ()
    notes: tuple[Count, ...] = ()
    """What was changed without being dropped, such as turns joined."""


class Shard(Frozen):
    """One shard: tokens, spans, rows and, once masked, the mask; all of one source."""

    split: Split
    index: int
    source: int
    """Index into the manifest's sources."""
    n_tokens: int
    n_rows: int
    tokens: FileRecord
    spans: FileRecord | None
    """None for shards made by hand, whose masks came with them."""
    rows: FileRecord | None
    mask: FileRecord | None = None


class Density(Frozen):
    """Tokens of one group, and how many of them are supervised."""

    tokens: int = 0
    supervised: int = 0

    @property
    def density(self) -> float:
        """Supervised share, 0 where there is no token."""
        return self.supervised / self.tokens if self.tokens else 0.0


def _as_in_the_table(found: dict[str, Density]) -> dict[str, Density]:
    return dict(sorted(found.items(), key=lambda item: ROLE.get(item[0], len(ROLE))))


ByRole = Annotated[dict[str, Density], AfterValidator(_as_in_the_table)]
"""In the order of :data:`mypt.data.spans.ROLES`, whatever was met first."""


class MaskStats(Frozen):
    """What a mask selects, over both splits unless the name says otherwise."""

    total: Density
    by_split: dict[str, Density]
    by_role: ByRole
    by_source: dict[str, Density]
    rows: int
    rows_unsupervised: int
    """Rows without any supervised token."""


class MaskRecord(Frozen):
    """By which rule the masks were made, and what they select."""

    policy: MaskPolicy | None
    """None where masks were made by hand."""
    stats: MaskStats
    weights: tuple[float, ...] = later(UNWEIGHED)
    """What each byte of a mask means, by index; the first is 0."""


class Replay(Frozen):
    """An earlier dataset of which some rows stand beside a dataset's own."""

    name: str
    """What it was called."""
    config: PrepareConfig
    """By which its tokens were made."""
    share: float
    """Its part of the training tokens."""


class Making(Frozen):
    """What was asked for when a dataset was made, so that it can be made again."""

    config: PrepareConfig
    """With paths as they were given."""
    policies: tuple[MaskPolicy | None, ...]
    """First the policy that came with the tokens, None where they got no masks; then that of
    each masking after it, in order."""
    replays: tuple[Replay, ...] = later(())
    """What was put beside the tokens before they were masked."""

    @property
    def sources(self) -> tuple[Source, ...]:
        """What was asked of each source of the dataset, in order."""
        return sum((one.config.sources for one in self.replays), self.config.sources)


class Manifest(Frozen):
    """Everything that a dataset's folder holds; ``digest`` covers all of it but paths."""

    version: int = VERSION
    kind: Literal["text", "chat"]
    """Whether any row is a conversation."""
    tokenizer: FileRecord
    tokenizer_name: str
    n_vocab: int
    template: str
    """Digest of the template that rendered the conversations."""
    parent: str | None = None
    """Digest of the dataset that this one re-masks."""
    recipe: str = ""
    """Digest of all that decided the content; empty for shards made by hand."""
    sources: tuple[SourceRecord, ...]
    shards: tuple[Shard, ...]
    row_weights: tuple[float, ...] = later(())
    """What rows, messages and parts say of themselves beside 0 and 1; spans count from 2 on."""
    pairs: int = later(0)
    """Preference pairs: rows stand in twos, the chosen one first, whose digests begin alike."""
    mask: MaskRecord | None = None
    making: Making | None = None
    """None for shards made by hand. It names paths and so is no part of the digest, which
    covers all that it decides through ``recipe``."""
    digest: str = Field(default="", repr=False)
    seal: str = Field(default="", repr=False)
    """Digest of all of it, paths too, so that no byte of the metadata changes unseen."""

    def sealed(self) -> "Manifest":
        """Return this manifest with its digest and its seal filled in."""
        named = self.model_copy(update={"digest": self.compute_digest()})
        seal = _seal_of(named.model_dump(mode="json"))
        return named.model_copy(update={"seal": seal})

    def compute_digest(self) -> str:
        """Return the digest of everything but paths, itself and the seal."""
        return _digest_of(self.model_dump(mode="json"))

    def split(self, name: Split) -> tuple[Shard, ...]:
        """Return the shards of one split, in order."""
        return tuple(shard for shard in self.shards if shard.split == name)

    def tokens(self, name: Split) -> int:
        """Return the number of tokens of one split."""
        return sum(shard.n_tokens for shard in self.split(name))

    def files(self) -> tuple[FileRecord, ...]:
        """Return every file of the dataset except the metadata itself."""
        found = [self.tokenizer]
        for shard in self.shards:
            parts = (shard.tokens, shard.spans, shard.rows, shard.mask)
            found += [part for part in parts if part is not None]
        return tuple(found)


def _digest_of(values: dict[str, Any]) -> str:
    """Return the digest of metadata as they stand in their file, which may be an older mypt's."""
    without = {key: values[key] for key in values.keys() - {"digest", "seal", "making"}}
    sources = [
        source
        | {"files": [{k: file[k] for k in file.keys() - {"path"}} for file in source["files"]]}
        for source in values["sources"]
    ]
    return files.digest_json(without | {"sources": sources})


def _seal_of(values: dict[str, Any]) -> str:
    # Metadata that was written before there was a ``making`` was sealed without it.
    absent = {"seal"} if values.get("making") else {"seal", "making"}
    return files.digest_json({key: values[key] for key in values.keys() - absent})


def record_file(folder: Path, name: str) -> FileRecord:
    """Return the record of a file that was just written below ``folder``."""
    path = folder / name
    return FileRecord(name=name, size=path.stat().st_size, digest=files.digest_file(path))


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Seal ``manifest`` and write it as the last file of ``folder``."""
    sealed = manifest.sealed()
    files.write_json(folder / METADATA, sealed.model_dump(mode="json"))
    return sealed


def read_manifest(folder: Path, digest: str | None = None) -> Manifest:
    """Read a dataset's metadata and check that it is whole and the one that was meant.

    Args:
        folder: The dataset.
        digest: The digest a reference carries; None takes whatever is there.

    Raises:
        ManifestError: If it is missing, damaged, of another version or of another digest.
    """
    path = folder / METADATA
    try:
        data = files.read_bytes(path)
        manifest = Manifest.model_validate_json(data)
    except FileNotFoundError:
        raise MissingDatasetError(
            f"{path} is missing, so {folder.name} is no complete dataset; make it with"
            " 'mypt prepare', or with 'mypt adopt' from shards made by hand"
        ) from None
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}); prepare again") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ManifestError(f"{path}: {where} {first['msg']}; the file is damaged") from None
    if manifest.version != VERSION:
        raise ManifestError(f"{path}: version {manifest.version}, this mypt reads {VERSION}")
    values = json.loads(data)
    sealed = (manifest.digest, manifest.seal) == (_digest_of(values), _seal_of(values))
    # Some bytes change no value, such as 1E-05 for 1e-05; whoever changed them changed the file.
    if not sealed or files.indented_json(values) != data:
        raise ManifestError(f"{path}: its digest does not match its content; it was changed")
    if digest is not None and manifest.digest != digest:
        raise ManifestError(
            f"{path}: digest {manifest.digest[:12]} found, {digest[:12]} expected; the dataset is"
            " not the one that was referred to"
        )
    return manifest


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Hash every file of a dataset.

    Raises:
        ManifestError: For the first file that is missing, short or changed.
    """
    for problem in changed_files(folder, manifest.files(), METADATA):
        raise ManifestError(f"{problem}; prepare again")


def changed_files(folder: Path, records: Iterable[FileRecord], listed_in: str) -> Iterator[str]:
    """Hash files of ``folder`` one by one; yield a line for each that is missing or changed."""
    for record in records:
        path = folder / record.name
        if ".." in path.parts or Path(record.name).is_absolute():
            yield f"{path}: lies outside {folder}, though {listed_in} lists it"
        elif not path.is_file():
            yield f"{path}: missing, though {listed_in} lists it"
        elif path.stat().st_size != record.size:
            yield f"{path}: {path.stat().st_size} bytes found, {record.size} expected"
        elif files.digest_file(path) != record.digest:
            yield f"{path}: its bytes changed since it was written"


def reference(folder: Path) -> DatasetRef:
    """Return the reference that stages hand on for a dataset."""
    return DatasetRef(path=str(folder), digest=read_manifest(folder).digest)
