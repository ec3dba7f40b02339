"""What made a checkpoint, written beside it: readable offline, years later, without torch."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from mypt import files
from mypt.config import Preset, later
from mypt.data.manifest import FileRecord, Making, MaskRecord, SourceRecord, changed_files
from mypt.data.packing.accounts import LengthAccount
from mypt.data.policies import policy_in_force
from mypt.errors import CheckpointError, ConfigError
from mypt.home import PLAIN_NAME
from mypt.parsing import Frozen
from mypt.references import BaseRecord

LINEAGE = "lineage.json"
WEIGHTS = "model.safetensors"
ADAPTER = "adapter.safetensors"
"""In its place where a base's weights stayed as they are."""
IMPORTED = "import"
"""Kind of what stands where a dataset would, in the lineage of a model that came from elsewhere."""
VERSION = 1
MOST_PARENTS = 64
"""Trainings, each on top of the one before; a lineage holds those of all its parents."""
PICKLES = frozenset({
    ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".bin", ".npy", ".distcp", ".metadata",
})  # fmt: skip
"""Endings, or whole names, that no checkpoint's files have; such a folder is refused, not read."""

ModelName = Annotated[str, Field(pattern=f"^{PLAIN_NAME}$")]
"""Folders are named by it, so one that is read may leave none."""


class RunContext(Frozen):
    """Who asked for the training: ids by which services know it."""

    prefect_flow_run_id: str | None = None
    """Prefect flow run, if one started it."""
    mlflow_run_id: str | None = None
    """MLflow run that the metrics go to; a resumed training goes on with it."""


class ParentRecord(Frozen):
    """The checkpoint whose weights a training began with."""

    path: str
    """Step folder at that time; where it lies later changes nothing."""
    model_name: ModelName
    step: int
    digest: str
    """Digest of its lineage."""
    weights: str
    """Digest of its weights; by this one a parent is the same or another."""
    lineage: "Lineage | None" = None
    """All of it, so that a checkpoint speaks for its parents when their folders are gone."""


class DatasetRecord(Frozen):
    """The dataset as it was trained on: from its masks down to the raw files."""

    path: str
    """Folder at that time."""
    digest: str
    parent: str | None
    """Digest of the dataset that it re-masks."""
    kind: str
    tokens: dict[str, int]
    """Tokens by split."""
    tokenizer_name: str
    tokenizer: str
    """Digest of ``tokenizer_state.json``."""
    template: str
    """Digest of the chat template."""
    mask: MaskRecord | None
    """Policy and statistics, used or not; None has no masks."""
    sources: tuple[SourceRecord, ...]
    pairs: int = later(0)
    """Preference pairs of both splits, two rows each."""
    making: Making | None = None
    """What was asked for, so that it can be made again; None for shards made by hand."""


class EpochRecord(Frozen):
    """What once through the training rows is, and what of them is never read."""

    steps: int
    """Optimizer steps; of windows, as many as read as many tokens as there are."""
    tokens: int
    """Tokens that are read, or may be drawn."""
    skipped: int = 0
    """Tokens of shards that are shorter than a window and are never drawn."""
    accounts: tuple[LengthAccount, ...] = ()
    """Packed only: rows that the block size keeps, drops and cuts, by source and reason."""


class CodeRecord(Frozen):
    """Which program trained."""

    version: str
    digest: str
    """Digest of every Python file of the package ``mypt``."""
    commit: str | None
    """Git commit, where the package lies in a checkout."""
    dirty: bool | None
    """Whether the checkout held uncommitted changes."""
    libraries: dict[str, str]
    """Versions of what can change a bit of the result."""


class ComputeRecord(Frozen):
    """Where it trained; another machine or thread count can change the last bit."""

    machine: str
    device: str
    device_name: str
    dtype: str
    threads: int
    processes: int = 1
    """How many shared each step; of reduction tree, any number gives the same bits."""
    parallel: str = "none"
    """What they hold: "none" and "ddp" the whole model, "fsdp" a part."""
    isa: str = ""
    """Widest instructions of the processor that torch uses; empty where an older mypt wrote it."""


class EarlierSteps(Frozen):
    """Steps that another program, machine or flow run made, before this one went on."""

    until: int
    """The last of them."""
    code: CodeRecord
    compute: ComputeRecord
    context: RunContext

    def made_by(self, code: CodeRecord, compute: ComputeRecord, context: RunContext) -> bool:
        """Whether it was this program on this machine for this run."""
        return (self.code, self.compute, self.context) == (code, compute, context)


class Extension(Frozen):
    """The training was made longer: its schedule from then on is that of the new length."""

    step: int
    """Steps made with the length of before."""
    max_iters: int
    """That length."""


class Lineage(Frozen):
    """``lineage.json``: the last file of a checkpoint, holding the digest of every other."""

    version: int = VERSION
    model_name: ModelName
    step: int
    """Optimizer steps that made these weights."""
    tokens: int
    """Tokens read in them."""
    supervised: int
    """Tokens learned from in them."""
    parent: ParentRecord | None
    """None: the weights began at random."""
    base: BaseRecord | None = None
    """Of a model that came from elsewhere: what it was there."""
    dataset: DatasetRecord
    epoch: EpochRecord | None = None
    """None where an older mypt wrote it."""
    config: Preset
    """Resolved: architecture, training values, seed."""
    code: CodeRecord
    compute: ComputeRecord
    context: RunContext = RunContext()
    earlier: tuple[EarlierSteps, ...] = ()
    """Who made the steps before the last change of code, machine or flow run, oldest first."""
    extended: tuple[Extension, ...] = ()
    """Lengths of before, oldest first; ``config`` says the last one."""
    files: tuple[FileRecord, ...] = ()
    digest: str = Field(default="", repr=False)

    @property
    def parents(self) -> int:
        """How many trainings lie before this one, as far as it says itself."""
        parent, n = self.parent, 0
        while parent is not None:
            n, parent = n + 1, None if parent.lineage is None else parent.lineage.parent
        return n

    @property
    def policy(self) -> str:
        """Whose tokens were learned, in words, whatever masks the dataset has."""
        return policy_in_force(self.config.use_loss_mask, self.dataset.mask)

    @property
    def density(self) -> float:
        """Share of the tokens read that were learned, as they were counted."""
        return self.supervised / self.tokens if self.tokens else 0.0

    @property
    def weights(self) -> str:
        """Digest of the weights' file; of an adapter, with its base's."""
        own = next((f.digest for f in self.files if f.name == self.weights_file), "")
        beside = self.parent.weights if self.config.lora and self.parent else ""
        return files.digest_json([own, beside]) if beside else own

    @property
    def weights_file(self) -> str:
        """Name of the file that holds what was learned."""
        return ADAPTER if self.config.lora else WEIGHTS


ParentRecord.model_rebuild()


def parent_of(folder: Path, base: Lineage) -> ParentRecord:
    """Return what a lineage keeps of the checkpoint that its training began with.

    Raises:
        ConfigError: If too many trainings lie before it.
    """
    if base.parents >= MOST_PARENTS:
        raise ConfigError(
            f"{folder}: {base.parents} trainings lie before it, expected fewer than {MOST_PARENTS};"
            " begin with one nearer to the first"
        )
    return ParentRecord(
        path=str(folder.absolute()),
        model_name=base.model_name,
        step=base.step,
        digest=base.digest,
        weights=base.weights,
        lineage=base,
    )


def write_lineage(folder: Path, lineage: Lineage) -> str:
    """Add the digest of every file in ``folder`` and write ``lineage.json``; return its digest."""
    records = tuple(
        FileRecord(name=path.name, size=path.stat().st_size, digest=files.digest_file(path))
        for path in sorted(folder.iterdir())
    )
    values = lineage.model_copy(update={"files": records}).model_dump(
        mode="json", exclude={"digest"}
    )
    return files.write_sealed(folder / LINEAGE, values)


def read_lineage(folder: Path) -> Lineage:
    """Read a step folder's lineage, refusing one that changed since it was written.

    Raises:
        CheckpointError: If it is missing, damaged or of another version.
    """
    path = folder / LINEAGE
    try:
        values = files.read_sealed(path)
        if values.get("version") != VERSION:
            found = values.get("version")
            raise CheckpointError(f"{path}: version {found}, this mypt reads {VERSION}")
        return Lineage.model_validate(values)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing, so {folder.name} is no complete checkpoint; use an earlier step"
        ) from None
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise CheckpointError(
            f"{path}: {where} is not what mypt writes; the file is damaged"
        ) from None
    except (ValueError, OSError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(
            f"{path}: damaged: {said}; use an earlier step or a copy of this one"
        ) from None


def verify_folder(folder: Path) -> Lineage:
    """Hash every file of a checkpoint and return its lineage.

    Raises:
        CheckpointError: For the first file that is missing, changed or could be a pickle.
    """
    lineage = read_lineage(folder)
    for problem in problems(folder, lineage):
        raise CheckpointError(f"{problem}; use an earlier step or a copy of this one")
    return lineage


def problems(folder: Path, lineage: Lineage) -> tuple[str, ...]:
    """Hash every file of a checkpoint and return a line for each that is not as written."""
    strangers = (
        f"{path}: no checkpoint holds such a file and mypt reads no pickle; remove it"
        for path in sorted(folder.iterdir())
        if {path.suffix.lower(), path.name} & PICKLES
    )
    return (*changed_files(folder, lineage.files, LINEAGE), *strangers)
