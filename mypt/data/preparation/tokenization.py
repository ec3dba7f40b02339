"""From raw files to shards of tokens and spans, as a stream: a batch of rows at a time."""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mypt import files
from mypt.config import Preparation, PrepareConfig, Reading, Source
from mypt.data.manifest import (
    SPLITS,
    TOKENIZER_STATE,
    VERSION,
    Count,
    Making,
    Manifest,
    Shard,
    SourceRecord,
    Split,
    record_file,
)
from mypt.data.pairs import SIDES
from mypt.data.preparation.encoding import Encoded
from mypt.data.preparation.parallel import encode_sources
from mypt.data.preparation.row_batches import Meter, Progress, texts_of
from mypt.data.preparation.shard_writer import RowSplit, ShardWriter, select_rows
from mypt.data.reading.sources import SourceReader, open_source
from mypt.data.rendering.base_template import BASE, AnyTemplate, BaseTemplate
from mypt.data.spans import ROLE, RowWeights
from mypt.data.template import Template
from mypt.data.tokenizer import (
    Tokenizer,
    find_template,
    is_trained,
    load_tokenizer,
    train_tokenizer,
)
from mypt.data.vocabularies.base_files import PREFIXES, base_path, find_source
from mypt.errors import ConfigError, DataError

_LATER = frozenset(Reading.model_fields) - {"format", "mapping"}
"""Knobs that came after datasets were made; unsaid, they leave a recipe as it was."""


def _unsaid(source: Source) -> set[str]:
    return {key for key in _LATER if getattr(source, key) == Source.model_fields[key].default}


@dataclass(frozen=True)
class DatasetPlan:
    """What a dataset will be made of; each part is read when it is first asked for, and once."""

    config: PrepareConfig

    @cached_property
    def readers(self) -> tuple[SourceReader, ...]:
        """The sources, their files found and hashed; whoever reads them compares."""
        return tuple(open_source(source, i) for i, source in enumerate(self.config.sources))

    @cached_property
    def inherited(self) -> Tokenizer | None:
        """The tokenizer that comes from elsewhere with its template, if one is to be used."""
        origin = self.config.tokenizer_from
        return None if origin is None else load_tokenizer(origin)

    @cached_property
    def template(self) -> AnyTemplate:
        """What renders the conversations."""
        inherited, asked = self.inherited, self.config.train_as == "inference"
        if inherited is None:
            found = find_template(self.config.template, self.config.tokenization)
        else:
            found = inherited.template
        if not asked or (isinstance(found, BaseTemplate) and found.each_turn):
            return found
        if inherited is not None or not isinstance(found, BaseTemplate):
            raise ConfigError(
                f"train_as inference with template {found.name}: expected --template base with"
                " --tokenization hf:FOLDER, whose own chat template feeds other than it writes"
            )
        return BaseTemplate(**found.model_dump() | {"each_turn": True})

    @property
    def begins_with_base(self) -> bool:
        """Whether the tokenizer is one that lies beside a base's weights."""
        return self.inherited is None and self.config.tokenization.startswith(PREFIXES)

    @cached_property
    def passed_over(self) -> bool:
        """Whether the base has a chat template of its own, and another is used."""
        if not self.begins_with_base or self.config.template == BASE:
            return False
        return find_source(base_path(self.config.tokenization)) is not None

    @property
    def trains(self) -> bool:
        """Whether the tokenizer is made from the sources."""
        return self.inherited is None and is_trained(self.config.tokenization)

    @cached_property
    def recipe(self) -> str:
        """Digest of all that decides the content, which where the raw files lie does not."""
        sources = [
            source.model_dump(mode="json", exclude={"path", *_unsaid(source)})
            | {"name": reader.name, "format": reader.format}
            | {"files": [file.sha256 for file in reader.files]}
            for source, reader in zip(self.config.sources, self.readers, strict=True)
        ]
        without = {"sources", "tokenizer_from", "template"}
        values = self.config.model_dump(mode="json", exclude=without)
        if self.inherited is not None:
            values["tokenization"] = self.inherited.digest
        else:
            values["template"] = self.template.digest
        if self.begins_with_base:
            # A folder keeps its name when its files change.
            values["tokenization"] = load_tokenizer(self.config.tokenization, self.template).digest
        return files.digest_json({"version": VERSION, "sources": sources} | values)


def write_tokens(
    folder: Path,
    plan: DatasetPlan,
    progress: Progress | None = None,
    preparation: Preparation = Preparation(),
) -> Manifest:
    """Write shards, spans and the tokenizer's state into ``folder``.

    Equal plans give the same bytes, whoever reads and encodes the rows and however that is
    batched.

    Returns:
        The metadata, not sealed and without masks.

    Raises:
        DataError: If a source cannot be read, a row cannot be encoded, or all rows say the
            same although a share of them is to go to val.
        ConfigError: If there is no such tokenizer, template or format.
    """
    readers = plan.readers
    _check_prompts(plan)
    meter = Meter(readers, progress, passes=1 + plan.trains)
    tokenizer = _tokenizer(plan, meter)
    tokenizer.write(folder)
    split = RowSplit(plan.config.val_fraction)

    def write(split: RowSplit) -> Manifest:
        rows = encode_sources(folder, readers, tokenizer, meter, preparation)
        return _write_shards(folder, plan, tokenizer, split, meter, rows)

    manifest = write(split)
    if split.empty is not None:
        for name in SPLITS:
            shutil.rmtree(folder / name, ignore_errors=True)
        repaired = split.repaired(", ".join(reader.name for reader in readers))
        manifest = write(repaired)
        manifest = _note_repair(manifest, split.empty)
    return manifest


def _check_prompts(plan: DatasetPlan) -> None:
    """Refuse what would write Alpaca's prompt twice."""
    name = next((reader.name for reader in plan.readers if reader.format == "alpaca"), None)
    template = plan.template
    if name is None or not isinstance(template, Template):
        return
    if "### Instruction:" in template.turns["user"].header:
        raise ConfigError(
            f"{name}: format alpaca holds the prompt that template {template.name} writes;"
            " choose template mypt, plain, chatml or llama3"
        )


def _write_shards(
    folder: Path,
    plan: DatasetPlan,
    tokenizer: Tokenizer,
    split: RowSplit,
    meter: Meter,
    rows: Iterable[tuple[int, Encoded]],
) -> Manifest:
    is_chat, weights = False, RowWeights()
    meter.rows = 0
    together = len(SIDES) if plan.config.pairs else 1
    with ShardWriter(folder, plan.config.shard_tokens, tokenizer.n_vocab, together) as writer:
        for index, encoded in rows:
            weights.add(encoded.spans, encoded.weights.tolist())
            is_chat = is_chat or bool((encoded.spans["role"] != ROLE["text"]).any())
            in_val = split.in_val(encoded.rows)
            writer.append("train", index, select_rows(encoded, ~in_val))
            writer.append("val", index, select_rows(encoded, in_val))
            meter.rows += len(encoded.rows)
            meter.tokens = writer.n_tokens
        shards = writer.close()
    sources = _account(plan.readers, shards)
    if is_chat and plan.passed_over:
        sources = _note_template(sources, plan.template.name, shards)
    return Manifest(
        kind="chat" if is_chat else "text",
        recipe=plan.recipe,
        tokenizer=record_file(folder, TOKENIZER_STATE),
        tokenizer_name=tokenizer.name,
        n_vocab=tokenizer.n_vocab,
        template=tokenizer.template.digest,
        sources=sources,
        shards=shards,
        row_weights=weights.table,
        pairs=meter.rows // together if plan.config.pairs else 0,
        making=Making(config=plan.config, policies=(None,)),
    )


def _account(readers: Sequence[SourceReader], shards: Sequence[Shard]) -> tuple[SourceRecord, ...]:
    """Return the sources' records, each name once, after checking that no row was lost."""
    records: list[SourceRecord] = []
    for index, record in enumerate(reader.record() for reader in readers):
        kept = sum(shard.n_rows for shard in shards if shard.source == index)
        dropped = sum(count.rows for count in record.dropped)
        if record.rows_read != kept + dropped:
            raise DataError(
                f"{record.name}: {record.rows_read} rows read, but {kept} kept and {dropped}"
                " dropped; rows were lost, which is a fault of mypt: please report it"
            )
        if any(record.name == other.name for other in records):
            record = record.model_copy(update={"name": f"{record.name} #{index + 1}"})
        records.append(record)
    return tuple(records)


def _note_template(
    sources: Sequence[SourceRecord], used: str, shards: Sequence[Shard]
) -> tuple[SourceRecord, ...]:
    """Note in each source that its rows are not in the form that the base knows."""
    reason = f"written with template {used}, though the base has its own (--template base)"
    noted = []
    for index, source in enumerate(sources):
        rows = sum(shard.n_rows for shard in shards if shard.source == index)
        notes = (*source.notes, Count(reason=reason, rows=rows))
        noted.append(source.model_copy(update={"notes": notes}))
    return tuple(noted)


def _note_repair(manifest: Manifest, empty: Split) -> Manifest:
    """Note in each source how many rows its other split gave away."""
    sources = list(manifest.sources)
    for index, source in enumerate(sources):
        rows = sum(s.n_rows for s in manifest.split(empty) if s.source == index)
        if rows:
            count = Count(reason=f"put into {empty}, which would have been empty", rows=rows)
            sources[index] = source.model_copy(update={"notes": (*source.notes, count)})
    return manifest.model_copy(update={"sources": tuple(sources)})


def _tokenizer(plan: DatasetPlan, meter: Meter) -> Tokenizer:
    if plan.inherited is not None:
        return plan.inherited
    if not plan.trains:
        return load_tokenizer(plan.config.tokenization, plan.template)
    batches = (batch for reader in plan.readers for batch in meter.batches(reader))
    texts = (text for batch in batches for text in texts_of(batch))
    return train_tokenizer(plan.config.tokenization, texts, plan.template)
