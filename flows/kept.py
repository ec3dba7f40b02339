"""A run that has nothing to do says so before Prefect, MLflow or torch is loaded (D131)."""

import time
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

import mypt
from mypt import files
from mypt.config import PipelineConfig, PrepareConfig
from mypt.data.manifest import read_manifest, verify_files
from mypt.data.preparation.tokenization import DatasetPlan
from mypt.errors import MyptError
from mypt.evaluation.scores import CHAMPION, Summary, read_summary, whole_evaluation
from mypt.home import home, models_dir
from mypt.parsing import Frozen
from mypt.provenance.trace import Link, trace
from mypt.references import CheckpointRef, DatasetRef, HomePath
from mypt.training.checkpoints.folder import checkpoint_ref
from mypt.training.lineage import verify_folder

_ROOMS = [Path(mypt.__file__).parents[1] / room for room in ("mypt", "tasks", "flows")]
_DIGITS = 12


class KeptRun(Frozen):
    """What a run of the pipeline came to, for the same run again."""

    ended: int
    """Seconds since 1970."""
    home: str
    """Where it lay: from another place, what MLflow holds of it is to be moved too."""
    raw: tuple[tuple[str, ...], ...]
    """The sha256 of each raw file, by stage."""
    evaluations: tuple[HomePath, ...]
    """Folders, the run's own first."""
    datasets: tuple[DatasetRef, ...]
    checkpoints: tuple[CheckpointRef, ...]
    champions: str
    """Digest of the file that names them, since the gate hangs on it; empty where there is none."""

    @property
    def when(self) -> str:
        """Its end, in the time of this machine."""
        return time.strftime("%d %B %Y at %H:%M", time.localtime(self.ended))


def keep_run(config: PipelineConfig, summary: Summary) -> None:
    """Write down what a run came to, beside all that it made.

    Args:
        config: All that was asked for.
        summary: What the run returned.
    """
    if not _is_covered(config):
        return
    ends, stages = [summary, *summary.others.values()], _evaluated(config)
    if len(ends) < len(stages):  # the gate that ended it says so again
        return
    links = [link for end in ends for link in _links(trace(Path(end.checkpoint)))]
    datasets = {
        link.digest: DatasetRef(path=at, digest=link.digest)
        for link, at in links
        if link.kind == "dataset"
    }
    checkpoints = {link.digest: at for link, at in links if link.kind == "checkpoint"}
    run = KeptRun(
        ended=int(time.time()),
        home=str(home()),
        raw=tuple(_read(config, dict(zip(stages, ends, strict=True)), datasets)),
        evaluations=tuple(str(end.path.parent) for end in ends),
        datasets=tuple(datasets.values()),
        checkpoints=tuple(checkpoint_ref(Path(at)) for at in checkpoints.values()),
        champions=_champions(),
    )
    path = _place(config)
    files.make_folder(path.parent)
    files.write_sealed(path, run.model_dump(mode="json"))


def find_run(config: PipelineConfig) -> tuple[KeptRun, Summary] | None:
    """Return a run of before by the same config, code and raw files, if all of it is still whole.

    Every file that it made is hashed, as each stage would do it. None if anything differs: then
    the stages look one by one, and say what is made anew.
    """
    if not _is_covered(config) or not (path := _place(config)).is_file():
        return None
    try:
        said = files.read_sealed(path)
        run = KeptRun.model_validate({k: v for k, v in said.items() if k != "digest"})
        for found in run.datasets:
            verify_files(Path(found.path), read_manifest(Path(found.path), found.digest))
        whole = all(verify_folder(Path(at.path)).digest == at.digest for at in run.checkpoints)
        for folder in run.evaluations:
            whole_evaluation(Path(folder))
        first, *others = (read_summary(Path(folder)) for folder in run.evaluations)
    except (MyptError, OSError, ValueError, KeyError, ValidationError):
        return None
    if not whole or (run.home, run.champions, run.raw) != (str(home()), _champions(), _raw(config)):
        return None
    named = dict(zip(_evaluated(config)[1:], others, strict=True))
    return run, first.model_copy(update={"others": named})


def _is_covered(config: PipelineConfig) -> bool:
    """Whether digests of config, code and raw files are all that decides a run."""
    asked = config.evaluate
    elsewhere = asked.sets or asked.harness or asked.questions or asked.gate == "ask"
    plans = [DatasetPlan(prepared) for prepared in _prepared(config)]
    bases = any(plan.config.tokenizer_from or plan.begins_with_base for plan in plans)
    return not elsewhere and not bases and not config.init_from_model


def _evaluated(config: PipelineConfig) -> list[str]:
    """Return the stages that begin with another's model, first the one that a run is known by."""
    later = config.chain[1:]
    last = [stage.name for stage in later if not stage.train.of_pairs] or [later[-1].name]
    return sorted((stage.name for stage in later), key=lambda name: name != last[-1])


def _read(
    config: PipelineConfig, ends: dict[str, Summary], datasets: dict[str, DatasetRef]
) -> Iterator[tuple[str, ...]]:
    """Yield the sha256 of each raw file that a run read, by stage; what is replayed is another's.

    Args:
        config: Of the run.
        ends: What each stage but the first came to.
        datasets: What they were trained on, by digest.
    """
    first, *later = config.chain
    digests = [ends[later[0].name].digests["base_dataset"]]
    digests += [
        ends[stage.name].digests["pair_dataset" if stage.train.of_pairs else "chat_dataset"]
        for stage in later
    ]
    for stage, digest in zip((first, *later), digests, strict=True):
        sources = read_manifest(Path(datasets[digest].path), digest).sources
        own = sources[: len(stage.data.sources)]
        yield tuple(file.sha256 for source in own for file in source.files)


def _place(config: PipelineConfig) -> Path:
    """Return the file that holds a run, named by its config and by our code."""
    code = {
        str(path.relative_to(room.parent)): files.digest_file(path)
        for room in _ROOMS
        for path in sorted(room.rglob("*"))
        if path.is_file() and path.parent.name != "__pycache__"
    }
    key = files.digest_json([code, config.model_dump(mode="json")])
    return home() / "pipelines" / f"{config.name}-{key[:_DIGITS]}.json"


def _raw(config: PipelineConfig) -> tuple[tuple[str, ...], ...]:
    """Return the sha256 of each raw file of today, by what reads it."""
    plans = (DatasetPlan(prepared) for prepared in _prepared(config))
    return tuple(tuple(f.sha256 for one in plan.readers for f in one.files) for plan in plans)


def _prepared(config: PipelineConfig) -> list[PrepareConfig]:
    """Return what raw files a run reads, and how."""
    return [stage.data for stage in config.chain]


def _links(link: Link) -> Iterator[tuple[Link, str]]:
    """Yield what a chain is made of, where it lies."""
    if link.path is not None:
        yield link, link.path
    for below in link.links:
        yield from _links(below)


def _champions() -> str:
    path = models_dir() / CHAMPION
    return files.digest_file(path) if path.is_file() else ""
