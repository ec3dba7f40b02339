"""A checkpoint made again from its raw files, and compared stage by stage with what it was."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, Literal

from mypt.data.dataset import open_dataset
from mypt.data.manifest import read_manifest, verify_files
from mypt.data.vocabularies.base_files import base_name
from mypt.errors import CheckpointError, ConfigError, DataError
from mypt.home import models_dir, moved_home, step_folder
from mypt.parsing import Frozen
from mypt.provenance.remaking import differences, make_again, missing_files
from mypt.provenance.search import Search, ancestry
from mypt.text import counted
from mypt.training.base_import import GGUF_FORMAT, adopt_adapter, import_base
from mypt.training.checkpoints.state import History, read_history
from mypt.training.circumstances import changes, preset_of_then
from mypt.training.claim import extend
from mypt.training.events import Event, StepReport
from mypt.training.lineage import IMPORTED, DatasetRecord, Extension, Lineage, read_lineage
from mypt.training.loop import train
from mypt.training.plan import RunPlan, plan_run

SAME: Final = "same"
DIFFERS: Final = "differs"
TAKEN: Final = "taken"
Outcome = Literal["same", "differs", "taken"]
Watch = Callable[[Iterable[Event], RunPlan], Iterable[Event]]


class Parting:
    """Compares steps with those of then until they part or the recorded step is reached."""

    def __init__(self, then: History) -> None:
        """Begin before the first step of what was recorded."""
        self.step = 0
        self.line: str | None = None
        """At which step the two part, and by what."""
        self._then = then

    @property
    def over(self) -> bool:
        """Whether they have parted, or every recorded step was made."""
        return self.line is not None or self.step == len(self._then.loss)

    def compare(self, now: StepReport) -> None:
        """Take in one more step."""
        self.step = now.step
        for name in History._fields:
            old, new = getattr(self._then, name)[now.step - 1], getattr(now, name)
            recorded = not math.isnan(self._then.grad_norm[now.step - 1])
            if recorded and self.line is None and repr(old) != repr(new):
                self.line = f"they part at step {now.step}: {name} {old!r} then, {new!r} now"

    def details(self, found: bool) -> tuple[str, ...]:
        """Return where the two part, as far as it was recorded."""
        if self.line is not None:
            return (self.line,)
        if all(map(math.isnan, self._then.grad_norm)):
            why = "an older mypt wrote it" if found else "its folder is gone"
            return (f"at which step they part is not known: {why}",)
        return (
            f"every loss and gradient is the same; they part in the update of step {self.step}",
        )


class Stage(Frozen):
    """One dataset or one training, then and now."""

    name: str
    outcome: Outcome
    """``taken``: it could not be made again and was used as it lies there, verified."""
    recorded: str
    """Digest of the dataset, or of the weights."""
    found: str | None
    """The same of what was made now; None if nothing was."""
    details: tuple[str, ...] = ()
    """Where and how the two part, a line each."""


class Reproduction(Frozen):
    """What came of making a checkpoint again."""

    checkpoint: str
    folder: str
    """Where everything that was made again lies."""
    stages: tuple[Stage, ...]
    """In the order in which they were made; nothing is made after the first that differs."""
    notes: tuple[str, ...] = ()
    """How program and machine differ from those of then, a line each: why bits may part."""

    @property
    def ok(self) -> bool:
        """Whether everything that was made again is the same, bit for bit."""
        return all(stage.outcome != DIFFERS for stage in self.stages)


def reproduce(
    checkpoint: Path,
    folder: Path,
    *,
    tell: Callable[[Stage], None] = lambda _: None,
    watch: Watch = lambda events, _: events,
) -> Reproduction:
    """Make a checkpoint again: its datasets, its parents, its own steps.

    Datasets come first, since they are quick to compare. A training ends at the first step
    whose loss or gradient is not to the bit what it was.

    Args:
        checkpoint: The step folder.
        folder: A new folder, in which all is made.
        tell: Called with each stage as it is done.
        watch: Passes on the events of a training, so that its progress can be shown.

    Raises:
        ConfigError: If ``folder`` exists.
        CheckpointError: If a lineage is missing or damaged.
        MyptError: If a stage cannot be made at all.
    """
    found = ancestry(checkpoint)
    if found.lost is not None:
        raise CheckpointError(
            f"{found.lost.path}: the lineage of the parent is gone, so nobody knows how to make it"
            " again; expected its folder at that place"
        )
    if folder.exists():
        raise ConfigError(f"{folder} exists; expected a new folder, name one with --out_dir")
    again = _Again(checkpoint.absolute(), folder.absolute(), found.lineages[::-1], tell, watch)
    with moved_home(folder):
        again.run()
    return Reproduction(
        checkpoint=str(checkpoint),
        folder=str(folder),
        stages=tuple(again.stages),
        notes=tuple(dict.fromkeys(n for lineage in found.lineages for n in changes(lineage))),
    )


class _Again:
    """One reproduction at work; ``lineages`` begin with the oldest."""

    def __init__(
        self,
        checkpoint: Path,
        folder: Path,
        lineages: tuple[Lineage, ...],
        tell: Callable[[Stage], None],
        watch: Watch,
    ) -> None:
        self.stages: list[Stage] = []
        self._checkpoint, self._folder, self._lineages = checkpoint, folder, lineages
        self._tell, self._watch = tell, watch
        self._search = Search(checkpoint)
        self._datasets: dict[str, Path] = {}

    def run(self) -> None:
        """Make everything again, until something differs."""
        for lineage in self._lineages:
            known = lineage.dataset.digest in self._datasets or lineage.dataset.kind == IMPORTED
            if not known and not self._dataset(lineage.dataset):
                return
        parent = None
        for number, lineage in enumerate(self._lineages):
            if lineage.dataset.kind == IMPORTED:
                parent = self._import(lineage, number, parent)
            else:
                parent = self._training(lineage, number, parent)
            if parent is None:
                return

    def _done(self, stage: Stage) -> bool:
        self.stages.append(stage)
        self._tell(stage)
        return stage.outcome != DIFFERS

    def _dataset(self, record: DatasetRecord) -> bool:
        """Make a dataset again; return whether it is what it was."""
        found = self._search.dataset(record.path, record.digest)

        def stage(outcome: Outcome, made: str | None, *details: str) -> bool:
            name, then = f"dataset {Path(record.path).name}", record.digest
            return self._done(
                Stage(name=name, outcome=outcome, recorded=then, found=made, details=details)
            )

        if record.making is None:
            if found is None:
                raise DataError(
                    f"{record.path}: nobody recorded how it was made, and no dataset of digest"
                    f" {record.digest[:12]} is there any more; put it back"
                )
            verify_files(*found)
            self._datasets[record.digest] = found[0]
            how = "nobody recorded how it was made; used as it is, every byte verified"
            return stage(TAKEN, record.digest, how)
        if missing := missing_files(record, self._search):
            return stage(DIFFERS, None, *missing)
        place = self._folder / "datasets" / f"{len(self._datasets)}-{Path(record.path).name}"
        tokenizers = (*self._datasets.values(), self._checkpoint)
        made = make_again(record, place, self._search, tokenizers)
        self._datasets[record.digest] = made
        digest = read_manifest(made).digest
        if digest == record.digest:
            return stage(SAME, digest)
        return stage(DIFFERS, digest, *differences(record, made, found and found[1]))

    def _import(self, lineage: Lineage, number: int, parent: Path | None) -> Path | None:
        """Read a base, or an adapter on its parent, again, for the dataset trained on then."""
        record, made, found = lineage.dataset, None, None
        later = [one.dataset for one in self._lineages[number:] if one.dataset.kind != IMPORTED]
        if not later:
            raise ConfigError(
                f"{self._checkpoint}: read from the files of {record.path}, not trained; expected a"
                " checkpoint that began with it"
            )
        places = {
            file.path: self._search.unchanged_file(file)
            for source in record.sources
            for file in source.files
        }
        one = record.sources[0].format == GGUF_FORMAT
        bases = {p if p is None or one else p.parent for p in places.values()}
        base = bases.pop()
        details = tuple(
            f"{path}: gone, or its bytes changed since they were read"
            for path, place in places.items()
            if place is None or bases
        )
        if not details:
            assert base is not None, "no file is missing"
            if parent is not None:
                made = adopt_adapter(base, parent)
            else:
                opened = open_dataset(self._datasets[later[0].digest], verify=False)
                made, _ = import_base(base_name(base), opened, lineage.config.base)
            found = read_lineage(made).weights
        stage = Stage(
            name=f"{'adapter' if parent else 'base'} {Path(record.path).name}",
            outcome=SAME if found == lineage.weights else DIFFERS,
            recorded=lineage.weights,
            found=found,
            details=details,
        )
        return made if self._done(stage) else None

    def _training(self, lineage: Lineage, number: int, parent: Path | None) -> Path | None:
        """Train again up to the recorded step; return the step folder if it is the same."""
        original = self._original(number)
        history = read_history(original, lineage.step) if original else None
        dataset = self._datasets[lineage.dataset.digest]
        name = f"{number}-{lineage.model_name}"[:64].rstrip(".")
        parting = Parting(history or History.unknown(lineage.step))
        until = Extension(step=lineage.step, max_iters=lineage.config.max_iters)
        for part in (*lineage.extended, until):
            preset = preset_of_then(lineage).model_copy(update={"max_iters": part.max_iters})
            plan = plan_run(preset, name, dataset, init_from=parent)
            if parting.step:
                extend(plan)
            self._steps(plan, parting, part.step)
        made = models_dir() / name / step_folder(parting.step)
        weights = read_lineage(made).weights
        same = parting.line is None and weights == lineage.weights
        stage = Stage(
            name=f"training {lineage.model_name}, {counted(lineage.step, 'step')}",
            outcome=SAME if same else DIFFERS,
            recorded=lineage.weights,
            found=weights,
            details=() if same else parting.details(original is not None),
        )
        return made if self._done(stage) else None

    def _steps(self, plan: RunPlan, parting: Parting, last: int) -> None:
        """Train on to a step, or to where the two part."""
        events = train(plan, should_stop=lambda: parting.over or parting.step >= last)
        for event in self._watch(events, plan):
            if isinstance(event, StepReport):
                parting.compare(event)

    def _original(self, number: int) -> Path | None:
        """Return the step folder of a lineage as it was, where it still lies somewhere."""
        if number + 1 == len(self._lineages):
            return self._checkpoint
        record = self._lineages[number + 1].parent
        assert record is not None, "every lineage but the first has a parent"
        return self._search.checkpoint(record.path, record.digest)
