"""A model from elsewhere as a checkpoint of ours, with a lineage down to its files."""

import re
from pathlib import Path

from mypt import files, home
from mypt.config import Preset
from mypt.data.dataset import Dataset
from mypt.data.manifest import TOKENIZER_STATE, SourceFile, SourceRecord
from mypt.data.template import Template
from mypt.data.tokenizer import Tokenizer
from mypt.data.vocabularies.base_files import TOKENIZER, base_path
from mypt.data.vocabularies.gguf_header import read_header
from mypt.data.vocabularies.huggingface import hf_vocabulary
from mypt.data.vocabularies.vocabulary import Vocabulary
from mypt.errors import ConfigError
from mypt.inference.huggingface.imports import read_base, read_foreign, with_new_tokens
from mypt.inference.huggingface.tensors import inside
from mypt.references import BaseRecord
from mypt.training.checkpoints.checkpoint import Snapshot, save_checkpoint
from mypt.training.checkpoints.folder import point
from mypt.training.checkpoints.state import History, TrainerState
from mypt.training.circumstances import record_code
from mypt.training.compute import resolve
from mypt.training.lineage import IMPORTED, DatasetRecord, Lineage

GGUF_FORMAT = "gguf"
"""What a lineage calls the format of a base that is one file."""
_CARD = "README.md"
_CARD_BEGINS = 1 << 16
"""Most characters of a card that are read."""


def import_base(name: str, dataset: Dataset, whose: str = "mypt") -> tuple[Path, tuple[str, ...]]:
    """Return the step folder of a model read from its files, made where it is not there yet.

    Args:
        name: ``hf:`` and a folder, or a name in huggingface's cache; or ``gguf:`` and a file.
        dataset: What will be trained on; its tokenizer is the model's with a template's tokens.
        whose: Whose arithmetic it becomes: mypt's, by its family, or that of transformers' module.

    Returns:
        The step folder, and a line about the tokens that are new to the model.

    Raises:
        ConfigError: If the dataset was made with another tokenizer, or transformers has no such
            model or is not installed.
        CheckpointError: If its files cannot be read.
        DataError: If its tokenizer cannot be read here.
    """
    base = base_path(name)
    known, tokenizer = hf_vocabulary(base), dataset.tokenizer
    if Tokenizer(known, tokenizer.template).digest != tokenizer.digest:
        raise ConfigError(
            f"{name} reads tokenizer {known.name}, dataset {dataset.path} was made with"
            f" {tokenizer.name}; prepare the dataset again with --tokenization {name}"
        )
    found = read_base(base) if whose == "mypt" else read_foreign(base)
    read = with_new_tokens(found, known, tokenizer)
    sources = tuple(
        SourceFile(path=str(p.absolute()), size=p.stat().st_size, sha256=files.sha256_file(p))
        for p in (*read.files, *([] if base.is_file() else [base / TOKENIZER]))
    )
    made_of = [tokenizer.digest, *(source.sha256 for source in sources)]
    digest = files.digest_json(made_of if whose == "mypt" else [*made_of, whose])
    model_name = f"{'gguf' if base.is_file() else 'hf'}-{digest[:12]}"
    config = Preset(
        **dict(read.architecture), name=name, use_loss_mask=False, length_policy="split"
    )
    snapshot = Snapshot(
        state=TrainerState(),
        weights={n: tensor.contiguous() for n, tensor in read.weights.items()},
        moments={},
        history=History.unknown(0),
        tokenizer_state=(dataset.path / TOKENIZER_STATE).read_bytes(),
        lineage=Lineage(
            model_name=model_name,
            step=0,
            tokens=0,
            supervised=0,
            parent=None,
            base=read.base,
            dataset=_record(base, digest, tokenizer, dataset, sources),
            config=config,
            code=record_code(config),
            compute=resolve(config, config.gpt()).record(),
        ),
    )
    place = home.models_dir() / model_name
    if not (place / home.step_folder(0)).is_dir():
        save_checkpoint(place, snapshot)
        point(place, 0, None)
    return place / home.step_folder(0), _news(known, tokenizer, dataset)


def _record(
    base: Path,
    digest: str,
    tokenizer: Tokenizer,
    dataset: Dataset,
    sources: tuple[SourceFile, ...],
) -> DatasetRecord:
    """Return what stands where a training has its dataset: the files, and no rows."""
    source = SourceRecord(
        name=base.absolute().name,
        format=GGUF_FORMAT if base.is_file() else "transformers",
        weight=1.0,
        licence=licence_of(base),
        files=sources,
        rows_read=0,
    )
    return DatasetRecord(
        path=str(base.absolute()),
        digest=digest,
        parent=None,
        kind=IMPORTED,
        tokens={},
        tokenizer_name=tokenizer.name,
        tokenizer=dataset.manifest.tokenizer.digest,
        template=tokenizer.template.digest,
        mask=None,
        sources=(source,),
    )


def licence_of(base: Path) -> str:
    """Return the licence that a base states: its card's, or a GGUF's own; empty if none."""
    if base.is_file():
        said = read_header(base).values.get("general.license")
        return said if isinstance(said, str) else ""
    if not (base / _CARD).is_file():
        return ""
    with inside(base, _CARD).open(encoding="utf-8", errors="replace") as card:
        front = re.match(r"---\n(.*?)\n---", card.read(_CARD_BEGINS), re.DOTALL)
    found = re.search(r"^license:[ ]*(\S.*?)\s*$", front[1], re.MULTILINE) if front else None
    return found[1].strip("'\"") if found else ""


def _news(known: Vocabulary, tokenizer: Tokenizer, dataset: Dataset) -> tuple[str, ...]:
    """Say how often training reads and learns each token that the model has not seen before."""
    new = {t: i for t, i in tokenizer.special_tokens.items() if t not in known.special_tokens}
    seen, learned = dict.fromkeys(new, 0), dict.fromkeys(new, 0)
    for shard in dataset.shards("train"):
        for token, number in new.items():
            here = shard.tokens == number
            seen[token] += int(here.sum())
            learned[token] += int(
                here.sum() if shard.mask is None else (shard.mask[here] != 0).sum()
            )
    if not new:
        return ()
    counts = ", ".join(f"{t} read {seen[t]}, learned {learned[t]}" for t in new if seen[t])
    never = ", ".join(t for t in new if not seen[t])
    line = f"new tokens begin at the mean of the others: {counts or 'none is ever read'}"
    return (line, *([f"new tokens that training never reads: {never}"] if never else ()))


def with_tokens(preset: Preset, base: Lineage, dataset: Dataset) -> Preset:
    """Return a preset whose adapter says which rows of tokens are learned too.

    They are those of our chat template, where no training before has read chats; a base's own
    template has tokens that it knows.
    """
    if preset.lora is None or preset.lora.tokens is not None:
        return preset
    tokenizer, before = dataset.tokenizer, [base]
    while (parent := before[-1].parent) is not None and parent.lineage is not None:
        before.append(parent.lineage)
    new = dataset.manifest.kind == "chat" and all(one.dataset.kind != "chat" for one in before)
    ids: tuple[int, ...] = ()
    if new and isinstance(tokenizer.template, Template):
        ids = tuple(tokenizer.special_tokens[token] for token in tokenizer.template.special_tokens)
    lora = preset.lora.model_copy(update={"tokens": tuple(sorted(ids))})
    return preset.model_copy(update={"lora": lora})


def base_of(lineage: Lineage) -> BaseRecord | None:
    """Return what the first of a checkpoint's parents was elsewhere, if it came from there."""
    while lineage.parent is not None and lineage.parent.lineage is not None:
        lineage = lineage.parent.lineage
    return lineage.base
