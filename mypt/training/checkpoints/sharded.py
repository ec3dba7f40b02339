"""A checkpoint in parts, one file a rank, as torch.distributed.checkpoint writes and reads it.

The files are safetensors: where parts lie is said in their headers, not in a pickle, so that a
sharded checkpoint can no more run code than any other (law 11). ``shards.json`` is written last
and holds the digest of every other file; nothing is read before all of them are as written.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from pydantic import ValidationError
from safetensors import safe_open
from torch import Tensor

from mypt import files
from mypt.data.manifest import TOKENIZER_STATE, FileRecord, changed_files
from mypt.errors import CheckpointError
from mypt.parsing import Frozen
from mypt.references import CheckpointRef
from mypt.training.checkpoints.checkpoint import Snapshot, kept_of, save_checkpoint
from mypt.training.checkpoints.state import HISTORY, TrainerState, read_history, write_history
from mypt.training.distributed import Ranks
from mypt.training.lineage import Lineage
from mypt.training.optim import put_moments

if TYPE_CHECKING:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

SHARDS = "shards.json"
PARTS = "parts"
"""Folder of the tensors' files: torch's reader opens every file of a folder."""
PREFIX = "shards_"


class ShardRecord(Frozen):
    """``shards.json``: all of a checkpoint but its tensors."""

    state: TrainerState
    lineage: Lineage
    """Without the digests of a step folder's files."""
    files: tuple[FileRecord, ...] = ()
    digest: str = ""


def folder_of(model: Path, step: int) -> Path:
    """Return where the shards of a step lie."""
    return model / f"{PREFIX}{step:06d}"


def newest_parts(model: Path) -> tuple[Path | None, int, tuple[str, ...]]:
    """Return the newest whole shards and their step; damaged ones are renamed and named."""
    notes: list[str] = []
    for path in sorted(model.glob(f"{PREFIX}*"), reverse=True):
        try:
            return path, verify_shards(path).state.step, tuple(notes)
        except CheckpointError as error:
            aside = files.set_aside(path)
            notes.append(f"not used, renamed {aside.name}: {error}")
    return None, -1, tuple(notes)


def write_shards(
    model: Path, parts: Snapshot, ranks: Ranks, token: str, group: dist.ProcessGroup
) -> Path:
    """Write this rank's parts; with rank 0's last file the checkpoint is there.

    Args:
        model: The model's folder.
        parts: Weights and moments as this rank's parts, on the CPU.
        ranks: Who writes together.
        token: The same on every rank, and another one at every start.
        group: Ranks' own line for checkpoints, beside the one that training uses.

    Raises:
        CheckpointError: If a disk refuses.
        FileExistsError: If there are shards of that step.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    final = folder_of(model, parts.state.step)
    with ExitStack() as writing:
        if ranks.leads:
            writing.enter_context(files.new_folder(final, token))
        dist.barrier(group)
        folder = files.temporary_folder(final, token)
        try:
            writer = HuggingFaceStorageWriter(str(folder / PARTS), save_distributed=True)
            tensors = parts.weights | parts.moments
            save(tensors, storage_writer=writer, process_group=group)
        except CheckpointException as error:  # no Exception, but a BaseException
            raise CheckpointError(f"{final}: cannot be written: {error}; make room") from None
        paths = (folder / PARTS).glob(f"shard-{ranks.rank + 1:05d}-*")
        own = [_record(path, folder) for path in paths]
        found = [own] * ranks.size
        dist.all_gather_object(found, own, group)
        if ranks.leads:
            _commit(folder, parts, [record for some in found for record in some])
    dist.barrier(group)
    return final


def verify_shards(folder: Path) -> ShardRecord:
    """Hash every file of a sharded checkpoint, before anything is read from one.

    Raises:
        CheckpointError: For the first file that is missing, changed, or not named in
            ``shards.json``, such as a pickle that another program would load.
    """
    path = folder / SHARDS
    try:
        record = ShardRecord.model_validate(files.read_sealed(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing, so {folder.name} is no checkpoint") from None
    except ValidationError:
        raise CheckpointError(f"{path}: not what this mypt writes; use another step") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged: {error}; use another step") from None
    known = {PARTS, SHARDS, *(one.name for one in record.files)}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    if odd := sorted(found - known):
        raise CheckpointError(
            f"{folder / odd[0]}: {SHARDS} does not list it, and nothing that mypt did not write is"
            " read; remove it"
        )
    for problem in changed_files(folder, record.files, SHARDS):
        raise CheckpointError(f"{problem}; use another step")
    return record


def load_shards(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Read verified shards into a model and its optimizer, on any number of ranks.

    Each rank reads what it needs of whichever files hold it; bits stay as they were.
    """
    from torch.distributed.checkpoint.state_dict_loader import load

    weights: dict[str, Tensor] = {n: w.detach() for n, w in kept_of(model).items()}
    moments: dict[str, Tensor] = {}
    for name, size in _sizes(folder).items():
        if name not in weights:
            parameter = weights[name.rpartition(".")[0]]
            moments[name] = torch.zeros_like(parameter) if size else torch.zeros(())
    load(weights | moments, storage_reader=_reader(folder))
    put_moments(moments, folder, model, optimizer)


def read_whole(folder: Path) -> dict[str, Tensor]:
    """Read verified shards as whole tensors, in one process and without any other."""
    metadata = _reader(folder).read_metadata()
    found = {name: torch.empty(size) for name, size in _sizes(folder).items()}
    for index, stored in metadata.storage_data.items():
        with safe_open(stored.relative_path, "pt") as file:
            part = file.get_tensor(index.fqn)
        starts = zip(index.offset, part.shape, strict=True)
        found[index.fqn][tuple(slice(start, start + n) for start, n in starts)] = part
    return found


def consolidate(folder: Path) -> CheckpointRef:
    """Write the step folder that shards stand for, beside them, as one file of safetensors.

    Raises:
        CheckpointError: If a shard is missing or changed, or the disk refuses.
        FileExistsError: If the step folder is there.
    """
    record = verify_shards(folder)
    found = read_whole(folder)
    moments = {name: found.pop(name) for name in list(found) if _is_moment(name)}
    snapshot = Snapshot(
        state=record.state,
        weights=found,
        moments=moments,
        history=read_history(folder, record.state.step),
        tokenizer_state=(folder / TOKENIZER_STATE).read_bytes(),
        lineage=record.lineage,
    )
    return save_checkpoint(folder.parent, snapshot)


def _commit(folder: Path, parts: Snapshot, records: list[FileRecord]) -> None:
    write_history(folder / HISTORY, parts.history)
    files.write_bytes(folder / TOKENIZER_STATE, parts.tokenizer_state)
    records += [_record(folder / name, folder) for name in (HISTORY, TOKENIZER_STATE)]
    record = ShardRecord(state=parts.state, lineage=parts.lineage, files=tuple(records))
    files.write_sealed(folder / SHARDS, record.model_dump(mode="json", exclude={"digest"}))


def _record(path: Path, folder: Path) -> FileRecord:
    name = path.relative_to(folder).as_posix()
    return FileRecord(name=name, size=path.stat().st_size, digest=files.digest_file(path))


def _sizes(folder: Path) -> dict[str, torch.Size]:
    """Return the whole size of every tensor, as the headers of the files say."""
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    found = _reader(folder).read_metadata().state_dict_metadata
    return {n: one.size for n, one in found.items() if isinstance(one, TensorStorageMetadata)}


def _reader(folder: Path) -> "HuggingFaceStorageReader":
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    return HuggingFaceStorageReader(str(folder / PARTS))


def _is_moment(name: str) -> bool:
    return name.rpartition(".")[2] in ("exp_avg", "exp_avg_sq", "step")
