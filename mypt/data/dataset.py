"""Datasets: made from raw files, masked again under another policy, opened and checked."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mypt import files
from mypt.config import UNWEIGHED, MaskPolicy, Preparation, PrepareConfig
from mypt.data.building import build
from mypt.data.manifest import (
    METADATA,
    SPLITS,
    TOKENIZER_STATE,
    Making,
    Manifest,
    Split,
    read_manifest,
    verify_files,
)
from mypt.data.mask_files import write_masks
from mypt.data.preparation.row_batches import Progress
from mypt.data.preparation.tokenization import DatasetPlan, write_tokens
from mypt.data.shards import ShardView, check_ids, view_shard
from mypt.data.tokenizer import Tokenizer, load_tokenizer
from mypt.errors import ManifestError
from mypt.references import DatasetRef

__all__ = [
    "Dataset",
    "ShardView",
    "mask",
    "open_dataset",
    "prepare",
    "tokenize",
]


@dataclass(frozen=True)
class Dataset:
    """A dataset on disk; its arrays are mapped, so that opening one reads next to nothing."""

    path: Path
    manifest: Manifest

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the tokens.

        Raises:
            ManifestError: If it is not the one that the metadata describes.
        """
        tokenizer = load_tokenizer(self.path / TOKENIZER_STATE)
        found = (tokenizer.n_vocab, tokenizer.template.digest)
        if found != (self.manifest.n_vocab, self.manifest.template):
            raise ManifestError(
                f"{self.path / TOKENIZER_STATE}: {tokenizer.n_vocab} ids found,"
                f" {self.manifest.n_vocab} expected, or another template; prepare again"
            )
        return tokenizer

    @cached_property
    def _views(self) -> dict[Split, tuple[ShardView, ...]]:
        return {
            split: tuple(view_shard(self.path, shard) for shard in self.manifest.split(split))
            for split in SPLITS
        }

    @cached_property
    def _opened(self) -> tuple[tuple[int, int], ...]:
        return self._stamps()

    def _stamps(self) -> tuple[tuple[int, int], ...]:
        """Return size and time of each file, zeros of one that is gone."""
        places = (self.path / record.name for record in self.manifest.files())
        found = (place.stat() if place.exists() else None for place in places)
        return tuple((s.st_size, s.st_mtime_ns) if s else (0, 0) for s in found)

    def check_unchanged(self) -> None:
        """Refuse files that were written to since they were opened: what is mapped is what is read.

        Raises:
            ManifestError: If one holds other bytes; where they were only touched, all are hashed.
        """
        if self._stamps() != self._opened:
            verify_files(self.path, self.manifest)

    @property
    def paired(self) -> bool:
        """Whether its rows are the sides of preference pairs, two and two."""
        return self.manifest.pairs > 0

    @property
    def together(self) -> int:
        """How many rows stand side by side wherever they are read."""
        return 2 if self.paired else 1

    @cached_property
    def weights(self) -> NDArray[np.float32] | None:
        """What each byte of a mask weighs, (W,); None where that is no more than 0 and 1."""
        record = self.manifest.mask
        if record is None or record.weights == UNWEIGHED:
            return None
        return np.array(record.weights, np.float32)

    def shards(self, split: Split) -> tuple[ShardView, ...]:
        """Return the shards of one split, in order.

        Raises:
            ManifestError: If a file is missing or does not have the length it must have.
        """
        return self._views[split]


def open_dataset(path: str | Path, *, digest: str | None = None, verify: bool = True) -> Dataset:
    """Open a dataset for reading.

    Args:
        path: Its folder.
        digest: The digest that a reference carries; None takes whatever is there.
        verify: Hash every file and look at every token id; without it only the metadata and
            the files' lengths are checked.

    Raises:
        ManifestError: If anything is missing, damaged or not what was referred to.
        DataError: If a token id is not in the vocabulary.
    """
    folder = Path(path)
    dataset = Dataset(folder, read_manifest(folder, digest))
    if dataset.manifest.tokenizer.name != TOKENIZER_STATE:
        raise ManifestError(
            f"{folder / METADATA}: file {dataset.manifest.tokenizer.name!r}, expected"
            f" {TOKENIZER_STATE!r}"
        )
    dataset._opened  # noqa: B018 - before the files are hashed
    shards = [shard for split in SPLITS for shard in dataset.shards(split)]
    if verify:
        verify_files(folder, dataset.manifest)
        for shard in shards:
            check_ids(folder, shard, dataset.manifest.n_vocab)
    return dataset


def tokenize(
    config: PrepareConfig | DatasetPlan,
    out_dir: Path,
    *,
    progress: Progress | None = None,
    reuse: bool = False,
    preparation: Preparation = Preparation(),
) -> DatasetRef:
    """Turn raw files into a dataset of tokens and spans, without masks.

    Args:
        config: What to read and how; or that, with what of it was resolved already.
        out_dir: The new dataset's folder.
        progress: Called with bytes read, bytes to read, rows and tokens so far.
        reuse: Return a dataset that is already there if the same sources and settings made it.
        preparation: Who reads and encodes; the dataset is the same.

    Raises:
        ConfigError: If ``out_dir`` exists and may not be reused, or a name means nothing.
        DataError: If a source or row cannot be used, or the disk refuses.
    """
    plan = config if isinstance(config, DatasetPlan) else DatasetPlan(config)
    return build(
        out_dir,
        lambda folder: write_tokens(folder, plan, progress, preparation),
        plan.recipe if reuse else None,
    )


def prepare(
    config: PrepareConfig,
    policy: MaskPolicy,
    out_dir: Path,
    progress: Progress | None = None,
    *,
    preparation: Preparation = Preparation(),
    as_asked: bool = False,
) -> DatasetRef:
    """Turn raw files into a dataset of tokens, spans and masks in one folder.

    Its ``parent`` is None: tokens without masks never lay on disk, so there is nothing to
    name. :func:`mask` makes other masks from it all the same.

    Args:
        config: What to read and how.
        policy: Whose tokens are supervised.
        out_dir: The new dataset's folder.
        progress: As for :func:`tokenize`.
        preparation: As for :func:`tokenize`.
        as_asked: As for :func:`mypt.data.mask_files.write_masks`.

    Raises:
        ConfigError: As :func:`tokenize`.
        DataError: As :func:`tokenize`; a MaskError if nothing is supervised.
    """

    def make(folder: Path) -> Manifest:
        manifest = write_tokens(folder, DatasetPlan(config), progress, preparation)
        update = {
            "recipe": masked_recipe(manifest.recipe, policy),
            "making": Making(config=config, policies=(policy,)),
        }
        return write_masks(folder, manifest.model_copy(update=update), policy, as_asked=as_asked)

    return build(out_dir, make)


def mask(
    dataset: str | Path,
    policy: MaskPolicy,
    out_dir: Path,
    *,
    digest: str | None = None,
    reuse: bool = False,
    as_asked: bool = False,
) -> DatasetRef:
    """Mask a dataset under a policy, in a new folder that shares its token shards.

    Args:
        dataset: The folder of a dataset with spans, masked or not.
        policy: Whose tokens are supervised.
        out_dir: The new dataset's folder.
        digest: The digest that ``dataset`` must have.
        reuse: As for :func:`tokenize`.
        as_asked: As for :func:`mypt.data.mask_files.write_masks`.

    Raises:
        ConfigError: If ``out_dir`` exists and may not be reused.
        MaskError: If the dataset has no spans, or nothing is supervised.
        ManifestError: If the dataset is damaged or not the one that was meant.
    """
    parent = open_dataset(dataset, digest=digest)

    def make(folder: Path) -> Manifest:
        return write_masks(folder, _link(parent, folder, policy), policy, as_asked=as_asked)

    recipe = masked_recipe(parent.manifest.digest, policy) if reuse else None
    return build(out_dir, make, recipe)


def masked_recipe(tokens: str, policy: MaskPolicy) -> str:
    """Return the recipe of masks over tokens.

    Args:
        tokens: The recipe of the tokens, or the digest of the dataset that holds them.
        policy: Whose tokens are supervised.
    """
    return files.digest_json([tokens, policy.model_dump(mode="json")])


def _link(parent: Dataset, folder: Path, policy: MaskPolicy) -> Manifest:
    """Share the parent's files but for its masks, and return the metadata without them."""
    manifest = parent.manifest
    shards = tuple(shard.model_copy(update={"mask": None}) for shard in manifest.shards)
    before = manifest.making
    update = {
        "making": before and before.model_copy(update={"policies": (*before.policies, policy)}),
        "parent": manifest.digest,
        "recipe": masked_recipe(manifest.digest, policy),
        "shards": shards,
        "mask": None,
    }
    linked = manifest.model_copy(update=update)
    for record in linked.files():
        (folder / record.name).parent.mkdir(exist_ok=True)
        files.link_or_copy(parent.path / record.name, folder / record.name)
    return linked
