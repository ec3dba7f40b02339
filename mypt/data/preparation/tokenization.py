"""From raw files to shards of tokens and spans, as a stream: a batch of rows at a time."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from mypt import files
from mypt.config import Preparation, PrepareConfig
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
from mypt.data.preparation.batches import Meter, Progress, texts_of
from mypt.data.preparation.encoding import Encoded
from mypt.data.preparation.parallel import encode_sources
from mypt.data.preparation.shard_writer import RowSplit, ShardWriter, select_rows
from mypt.data.reading.sources import SourceReader, open_source
from mypt.data.spans import ROLE
from mypt.data.template import load_template
from mypt.data.tokenizer import Tokenizer, is_trained, load_tokenizer, train_tokenizer
from mypt.errors import ConfigError, DataError


def write_tokens(
    folder: Path,
    config: PrepareConfig,
    progress: Progress | None = None,
    preparation: Preparation = Preparation(),
) -> Manifest:
    """Write shards, spans and the tokenizer's state into ``folder``.

    The same sources and config give the same bytes, whoever reads and encodes the rows and
    however that is batched.

    Returns:
        The metadata, not sealed and without masks.

    Raises:
        DataError: If a source cannot be read, a row cannot be encoded, or all rows say the
            same although a share of them is to go to val.
        ConfigError: If there is no such tokenizer, template or format.
    """
    readers = _open(config)
    _check_prompts(config, readers)
    meter = Meter(readers, progress, passes=1 + _trains(config))
    tokenizer = _tokenizer(config, readers, meter)
    tokenizer.write(folder)
    split = RowSplit(config.val_fraction)

    def write(split: RowSplit) -> Manifest:
        rows = encode_sources(folder, readers, tokenizer, meter, preparation)
        return _write_shards(folder, config, readers, tokenizer, split, meter, rows)

    manifest = write(split)
    if split.empty is not None:
        for name in SPLITS:
            shutil.rmtree(folder / name, ignore_errors=True)
        repaired = split.repaired(", ".join(reader.name for reader in readers))
        manifest = write(repaired)
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
    meter: Meter,
    rows: Iterable[tuple[int, Encoded]],
) -> Manifest:
    is_chat = False
    meter.rows = 0
    with ShardWriter(folder, config.shard_tokens, tokenizer.n_vocab) as writer:
        for index, encoded in rows:
            is_chat = is_chat or bool((encoded.spans["role"] != ROLE["text"]).any())
            in_val = split.in_val(encoded.rows)
            writer.append("train", index, select_rows(encoded, ~in_val))
            writer.append("val", index, select_rows(encoded, in_val))
            meter.rows += len(encoded.rows)
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


def _tokenizer(config: PrepareConfig, readers: Sequence[SourceReader], meter: Meter) -> Tokenizer:
    if config.tokenizer_from is not None:
        return load_tokenizer(config.tokenizer_from)
    if not is_trained(config.tokenization):
        return load_tokenizer(config.tokenization, config.template)
    batches = (batch for reader in readers for batch in meter.batches(reader))
    texts = (text for batch in batches for text in texts_of(batch))
    return train_tokenizer(config.tokenization, texts, config.template)


def _open(config: PrepareConfig) -> list[SourceReader]:
    return [open_source(source, index) for index, source in enumerate(config.sources)]
