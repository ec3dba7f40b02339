"""`mypt lineage`: from a checkpoint back to the raw files, with no server up, wherever they are."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mypt import files
from mypt.data.manifest import METADATA, SourceFile, SourceRecord, changed_files
from mypt.data.policies import policy_words
from mypt.parsing import Frozen
from mypt.provenance.search import Search
from mypt.text import counted, visible
from mypt.training.lineage import (
    IMPORTED,
    DatasetRecord,
    EarlierSteps,
    Lineage,
    ParentRecord,
    problems,
    read_lineage,
)

if TYPE_CHECKING:
    from rich.tree import Tree


class Link(Frozen):
    """One link of the chain: what it was, where it lies now, and whether it is still that."""

    kind: Literal["checkpoint", "dataset", "source", "file"]
    name: str
    digest: str
    """Of the lineage or metadata; of a raw file its sha256."""
    path: str | None = None
    """Where it lies now; None for a source, which is several files, and for what is gone."""
    facts: tuple[str, ...] = ()
    """What the records say of it, a line each."""
    verified: bool | None = None
    """Whether every byte is as recorded; None if nobody looked."""
    problems: tuple[str, ...] = ()
    """What is missing or changed, a line each."""
    links: tuple["Link", ...] = ()
    """What it was made from."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong here or below."""
        return not self.problems and all(link.ok for link in self.links)


def trace(step_folder: Path, *, verify: bool = False) -> Link:
    """Return the chain of a checkpoint: dataset, masks, raw files, parent checkpoint.

    What was moved is found by its digest: where it was, beside the checkpoint, under
    ``MYPT_HOME`` or below the working folder.

    Args:
        step_folder: The checkpoint.
        verify: Hash every file again and name what is missing or changed.

    Raises:
        CheckpointError: If its own lineage cannot be read.
    """
    folder = step_folder.absolute()
    return _traced(folder, Search(folder), verify)


def _traced(folder: Path, search: Search, verify: bool) -> Link:
    lineage = read_lineage(folder)
    link = _checkpoint(lineage, search, verify)
    link = link.model_copy(update={"path": str(folder)})
    return _judged(link, problems(folder, lineage)) if verify else link


def render(link: Link) -> "Tree":
    """Return the chain as a tree for the terminal."""
    from rich.text import Text
    from rich.tree import Tree

    mark = {None: "", True: " verified", False: " NOT AS RECORDED"}[link.verified]
    label = Text(f"{link.kind} {visible(link.name)} {link.digest[:12]}{mark}", style="bold")
    where = () if link.kind == "source" else (link.path or "not found",)
    for line in (*where, *link.facts):
        label.append(f"\n{visible(line)}", style="not bold")
    for problem in link.problems:
        label.append(f"\n{visible(problem)}", style="not bold red")
    tree = Tree(label)
    tree.children.extend(render(below) for below in link.links)
    return tree


def _checkpoint(lineage: Lineage, search: Search, verify: bool) -> Link:
    data = lineage.dataset
    links = [_dataset(data, bool(lineage.config.use_loss_mask), search, verify)]
    if data.kind == IMPORTED:
        links = [_source(source, search, verify) for source in data.sources]
    if lineage.parent is not None:
        links.append(_parent(lineage.parent, search, verify))
    return Link(
        kind="checkpoint",
        name=f"{lineage.model_name} step {lineage.step}",
        digest=lineage.digest,
        facts=_checkpoint_facts(lineage),
        links=tuple(links),
    )


def _parent(parent: ParentRecord, search: Search, verify: bool) -> Link:
    place = search.checkpoint(parent.path, parent.digest)
    if place is not None:
        return _traced(place, Search(place, search.depth + 1), verify)
    if parent.lineage is not None:
        link = _checkpoint(parent.lineage, search, verify)
    else:
        link = Link(
            kind="checkpoint",
            name=f"{parent.model_name} step {parent.step}",
            digest=parent.digest,
            facts=(f"weights {parent.weights[:12]}",),
        )
    gone = f"{parent.path}: no checkpoint of lineage {parent.digest[:12]} is there any more"
    return _judged(link, (gone,)) if verify else link


def _dataset(record: DatasetRecord, masked: bool, search: Search, verify: bool) -> Link:
    links = [_source(source, search, verify) for source in record.sources]
    if record.parent is not None:
        before = Link(kind="dataset", name="before masking", digest=record.parent)
        links.insert(0, _found_dataset(before, record.path, search, verify))
    link = Link(
        kind="dataset",
        name=Path(record.path).name,
        digest=record.digest,
        facts=_dataset_facts(record, masked),
        links=tuple(links),
    )
    return _found_dataset(link, record.path, search, verify)


def _found_dataset(link: Link, recorded: str, search: Search, verify: bool) -> Link:
    found = search.dataset(recorded, link.digest)
    if found is None:
        gone = f"{recorded}: no dataset of digest {link.digest[:12]} is there any more"
        return _judged(link, (gone,)) if verify else link
    path, manifest = found
    link = link.model_copy(update={"path": str(path)})
    return _judged(link, tuple(changed_files(path, manifest.files(), METADATA))) if verify else link


def _source(source: SourceRecord, search: Search, verify: bool) -> Link:
    reasons = "".join(f", {count.rows} {count.reason}" for count in source.dropped)
    return Link(
        kind="source",
        name=source.name,
        digest=files.digest_json([file.sha256 for file in source.files]),
        facts=(
            f"format {source.format}, weight {source.weight:g},"
            f" licence {source.licence or 'not stated'}",
            f"{counted(source.rows_read, 'row')} read{reasons}",
        ),
        links=tuple(_file(file, search, verify) for file in source.files),
    )


def _file(file: SourceFile, search: Search, verify: bool) -> Link:
    places = search.source_files(file)
    link = Link(
        kind="file",
        name=Path(file.path).name,
        digest=file.sha256,
        path=str(places[0]) if places else None,
        facts=(f"{file.size} bytes",),
    )
    if not verify:
        return link
    if (found := search.unchanged_file(file)) is not None:
        return _judged(link.model_copy(update={"path": str(found)}), ())
    what = f"{places[0]}: its bytes changed" if places else f"{file.path}: not there any more"
    return _judged(link, (what,))


def _judged(link: Link, problems: tuple[str, ...]) -> Link:
    return link.model_copy(update={"verified": not problems, "problems": problems})


def _checkpoint_facts(lineage: Lineage) -> tuple[str, ...]:
    ids = ", ".join(f"{k} {v}" for k, v in lineage.context.model_dump().items() if v)
    lines = (
        f"weights {lineage.weights[:12]}",
        f"{lineage.tokens} tokens read, {learned(lineage)}, in {counted(lineage.step, 'step')}",
        *_epoch_facts(lineage),
        f"config {lineage.config.name}, seed {lineage.config.seed}",
        _made_by(lineage),
        *(f"until step {before.until}: {_made_by(before)}" for before in lineage.earlier),
        *(
            f"extended at step {made.step}: planned for {made.max_iters} steps until then"
            for made in lineage.extended
        ),
        ids,
        "" if lineage.parent else "parent: none",
    )
    return tuple(line for line in lines if line)


def learned(lineage: Lineage) -> str:
    """Return what a training learned of the tokens that it read, as its loader counted them."""
    return f"{lineage.supervised} supervised ({lineage.density:.1%}: {lineage.policy})"


def _made_by(maker: Lineage | EarlierSteps) -> str:
    code, compute = maker.code, maker.compute
    state = {None: "", True: ", with uncommitted changes", False: ""}[code.dirty]
    commit = f"commit {code.commit[:12]}{state}" if code.commit else "no checkout"
    return (
        f"mypt {code.version} ({commit}), torch {code.libraries.get('torch', 'unknown')},"
        f" {compute.device_name}, {compute.device} {compute.dtype}, {compute.threads} threads"
    )


def _epoch_facts(lineage: Lineage) -> Iterator[str]:
    epoch = lineage.epoch
    if epoch is None:
        return
    passes = f", {lineage.step / epoch.steps:.1f} times" if epoch.steps else ""
    skipped = f"; {epoch.skipped} tokens in shards too short to draw from" * (epoch.skipped > 0)
    yield f"once through is {counted(epoch.steps, 'step')}{passes}{skipped}"
    for found in epoch.accounts:
        for what, entries in (("dropped", found.dropped), ("cut", found.cut)):
            for lost in entries:
                yield (
                    f"{found.source}: {what} {lost.tokens} tokens, {lost.supervised} supervised,"
                    f" of {lost.stretches} stretches: {lost.reason}"
                )


def _dataset_facts(record: DatasetRecord, masked: bool) -> tuple[str, ...]:
    facts = [
        f"{record.kind}, tokens: " + ", ".join(f"{k} {v}" for k, v in record.tokens.items()),
        f"tokenizer {record.tokenizer_name} {record.tokenizer[:12]},"
        f" template {record.template[:12]}",
    ]
    if record.mask is None:
        return (*facts, "no masks")
    if not masked:
        return (*facts, "its masks were not used")
    stats = record.mask.stats
    facts.append(f"mask: {policy_words(record.mask.policy)}")
    shares = {"all": stats.total} | stats.by_role | stats.by_source
    facts.append("supervised: " + ", ".join(f"{k} {v.density:.1%}" for k, v in shares.items()))
    rows = counted(stats.rows, "row")
    facts.append(f"{rows}, {stats.rows_unsupervised} without a supervised token")
    return tuple(facts)
