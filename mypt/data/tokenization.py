"""From raw files to shards of tokens and spans, as a stream: a batch of rows at a time."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from mypt import files
from mypt.config import PrepareConfig
from mypt.data.conversations import Document, Row
from mypt.data.encoding import encode_rows
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
from mypt.data.shard_writer import ShardWriter
from mypt.data.sources import SourceReader, open_source
from mypt.data.spans import ROLE
from mypt.data.splitting import RowSplit, select_rows
from mypt.data.template import load_template
from mypt.data.tokenizer import Tokenizer, is_trained, load_tokenizer, train_tokenizer
from mypt.errors import ConfigError, DataError

Progress = Callable[[int, int, int, int], None]
"""Called with bytes read, bytes to read, rows and tokens written so far."""

_BATCH_ROWS: Final = 1 << 14
_BATCH_CHARACTERS: Final = 1 << 21
"""What a batch may hold; tokens, spans and Python's own objects stay below 100 MB."""


def write_tokens(folder: Path, config: PrepareConfig, progress: Progress | None = None) -> Manifest:
    """Write shards, spans and the tokenizer's state into ``folder``.

    The same sources and config give the same bytes, however the reading is batched.

    Returns:
        The metadata, not sealed and without masks.

    Raises:
        DataError: If a source cannot be read, a row cannot be encoded, or all rows say the
            same although a share of them is to go to val.
        ConfigError: If there is no such tokenizer, template or format.
    """
    readers = _open(config)
    _check_prompts(config, readers)
    meter = _Meter(readers, progress, passes=1 + _trains(config))
    tokenizer = _tokenizer(config, readers, meter)
    tokenizer.write(folder)
    split = RowSplit(config.val_fraction)
    manifest = _write_shards(folder, config, readers, tokenizer, split, meter)
    if split.empty is not None:
        for name in SPLITS:
            shutil.rmtree(folder / name, ignore_errors=True)
        repaired = split.repaired(", ".join(reader.name for reader in readers))
        manifest = _write_shards(folder, config, readers, tokenizer, repaired, meter)
        manifest = _note_repair(manifest, split.empty)
    return manifest


def _check_prompts(config: PrepareConfig, readers: Sequence[SourceReader]) -> None:
    """Refuse what would write Alpaca's prompt twice."""
    name = next((reader.name for reader in readers if reader.format == "alpaca"), None)
    if name is None:
        return
    inherited = config.tokenizer_from
    template = load_tokenizer(inherited).template if inherited else load_template(config.template)
    if "### Instruction:" in template.turns["user"].header:
        raise ConfigError(
            f"{name}: format alpaca holds the prompt that template {template.name} writes; choose"
            " template mypt, plain, chatml or llama3"
        )


def recipe(config: PrepareConfig) -> str:
    """Return a digest of all that decides a dataset's content; equal recipes, equal datasets.

    It covers what the raw files hold and not where they lie.

    Raises:
        DataError: If a source cannot be read.
    """
    return _recipe(config, _open(config))


def _recipe(config: PrepareConfig, readers: Sequence[SourceReader]) -> str:
    sources = [
        source.model_dump(mode="json", exclude={"path"})
        | {"name": reader.name, "format": reader.format}
        | {"files": [file.sha256 for file in reader.files]}
        for source, reader in zip(config.sources, readers, strict=True)
    ]
    values = config.model_dump(mode="json", exclude={"sources", "tokenizer_from", "template"})
    if config.tokenizer_from is not None:
        values["tokenization"] = load_tokenizer(config.tokenizer_from).digest
    else:
        values["template"] = load_template(config.template).digest
    return files.digest_json({"version": VERSION, "sources": sources} | values)


def _write_shards(
    folder: Path,
    config: PrepareConfig,
    readers: Sequence[SourceReader],
    tokenizer: Tokenizer,
    split: RowSplit,
    meter: "_Meter",
) -> Manifest:
    is_chat = False
    meter.rows = 0
    with ShardWriter(folder, config.shard_tokens, tokenizer.n_vocab) as writer:
        for index, reader in enumerate(readers):
            for batch in meter.batches(reader):
                encoded = encode_rows(batch, tokenizer)
                is_chat = is_chat or bool((encoded.spans["role"] != ROLE["text"]).any())
                in_val = split.in_val(encoded.rows)
                writer.append("train", index, select_rows(encoded, ~in_val))
                writer.append("val", index, select_rows(encoded, in_val))
                meter.rows += len(batch)
                meter.tokens = writer.n_tokens
        shards = writer.close()
    return Manifest(
        kind="chat" if is_chat else "text",
        recipe=_recipe(config, readers),
        tokenizer=record_file(folder, TOKENIZER_STATE),
        tokenizer_name=tokenizer.name,
        n_vocab=tokenizer.n_vocab,
        template=tokenizer.template.digest,
        sources=_account(readers, shards),
        shards=shards,
        making=Making(config=config, policies=(None,)),
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


def _note_repair(manifest: Manifest, empty: Split) -> Manifest:
    """Note in each source how many rows its other split gave away."""
    sources = list(manifest.sources)
    for index, source in enumerate(sources):
        rows = sum(s.n_rows for s in manifest.split(empty) if s.source == index)
        if rows:
            count = Count(reason=f"put into {empty}, which would have been empty", rows=rows)
            sources[index] = source.model_copy(update={"notes": (*source.notes, count)})
    return manifest.model_copy(update={"sources": tuple(sources)})


def _trains(config: PrepareConfig) -> bool:
    return config.tokenizer_from is None and is_trained(config.tokenization)


def _tokenizer(
    config: PrepareConfig, readers: Sequence[SourceReader], meter: "_Meter"
) -> Tokenizer:
    if config.tokenizer_from is not None:
        return load_tokenizer(config.tokenizer_from)
    if not is_trained(config.tokenization):
        return load_tokenizer(config.tokenization, config.template)
    batches = (batch for reader in readers for batch in meter.batches(reader))
    texts = (text for batch in batches for text in _texts(batch))
    return train_tokenizer(config.tokenization, texts, config.template)


def _texts(rows: Iterable[Row]) -> Iterator[str]:
    for row in rows:
        if isinstance(row, Document):
            yield row.text
        else:
            yield from (part.text for message in row.messages for part in message.parts)


def _open(config: PrepareConfig) -> list[SourceReader]:
    return [open_source(source, index) for index, source in enumerate(config.sources)]


class _Meter:
    """Reads sources in batches and tells how far it is."""

    def __init__(
        self, readers: Sequence[SourceReader], progress: Progress | None, passes: int
    ) -> None:
        self.rows = self.tokens = 0
        self._progress = progress
        self._total = passes * sum(reader.bytes_total for reader in readers)
        self._done = 0

    def batches(self, reader: SourceReader) -> Iterator[list[Row]]:
        """Yield a source's rows, in lists of a bounded size; report when one is used up."""
        for batch in _batches(reader):
            yield batch
            self._report(reader.bytes_done)
        self._done += reader.bytes_total

    def _report(self, more: int) -> None:
        if self._progress is not None:
            done = self._done + more
            self._progress(done, max(done, self._total), self.rows, self.tokens)


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += sum(len(text) for text in _texts((row,)))
        if len(batch) >= _BATCH_ROWS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
