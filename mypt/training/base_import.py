"""A model or an adapter from elsewhere as a checkpoint of ours, with a lineage to its files."""

import re
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from mypt import files, home
from mypt.config import Preset
from mypt.data.dataset import Dataset
from mypt.data.manifest import TOKENIZER_STATE, SourceFile, SourceRecord
from mypt.data.rendering.base_template import BASE
from mypt.data.template import Template
from mypt.data.tokenizer import Tokenizer, load_tokenizer
from mypt.data.vocabularies.base_files import (
    HF,
    PEFT,
    PREFIXES,
    TOKENIZER,
    base_name,
    base_path,
    find_source,
)
from mypt.data.vocabularies.gguf_header import read_header
from mypt.data.vocabularies.huggingface import hf_vocabulary
from mypt.data.vocabularies.vocabulary import Vocabulary
from mypt.errors import CheckpointError, ConfigError
from mypt.inference.huggingface.adapters import PeftAdapter, from_peft, open_peft
from mypt.inference.huggingface.imports import CONFIG, read_base, read_foreign, with_new_tokens
from mypt.inference.huggingface.tensors import inside
from mypt.references import BaseRecord
from mypt.text import shown
from mypt.training.checkpoints.checkpoint import Snapshot, save_checkpoint
from mypt.training.checkpoints.folder import point
from mypt.training.checkpoints.state import History, TrainerState
from mypt.training.circumstances import record_code
from mypt.training.compute import resolve
from mypt.training.lineage import (
    IMPORTED,
    LINEAGE,
    DatasetRecord,
    Lineage,
    ParentRecord,
    parent_of,
    read_lineage,
    verify_folder,
)

GGUF_FORMAT = "gguf"
"""What a lineage calls the format of a base that is one file."""
_CARD = "README.md"
_CARD_BEGINS = 1 << 16
"""Most characters of a card that are read."""
_LONGEST_NAME = 4096
_HUB = re.compile(r"\w[\w.-]{0,95}(/\w[\w.-]{0,95})?", re.ASCII)
"""What a model is called in huggingface's cache."""


def import_base(
    name: str, dataset: Dataset | None, whose: str = "mypt"
) -> tuple[Path, tuple[str, ...]]:
    """Return the step folder of a model read from its files, made where it is not there yet.

    Args:
        name: ``hf:`` and a folder, or a name in huggingface's cache; or ``gguf:`` and a file.
        dataset: What will be trained on; its tokenizer is the model's with a template's tokens.
            None keeps the model's own template.
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
    known = hf_vocabulary(base)
    if dataset is None:
        tokenizer = load_tokenizer(name, BASE if find_source(base) else "plain")
        state = tokenizer.state.written
    else:
        tokenizer, state = dataset.tokenizer, (dataset.path / TOKENIZER_STATE).read_bytes()
    if dataset and Tokenizer(known, tokenizer.template).digest != tokenizer.digest:
        raise ConfigError(
            f"{name} reads tokenizer {known.name}, dataset {dataset.path} was made with"
            f" {tokenizer.name}; prepare the dataset again with --tokenization {name}"
        )
    news = _news(known, tokenizer, dataset) if dataset else ()
    if base.is_file():  # of which alone the model is made, and whose unpacking takes longest
        place = _place(base, _digest(tokenizer, _hashed([base]), whose))
        if (place / home.step_folder(0)).is_dir():
            return place / home.step_folder(0), news
    found = read_base(base) if whose == "mypt" else read_foreign(base)
    read = with_new_tokens(found, known, tokenizer)
    sources = _hashed(read.files if base.is_file() else (*read.files, base / TOKENIZER))
    digest = _digest(tokenizer, sources, whose)
    config = Preset(
        **dict(read.architecture), name=name, use_loss_mask=False, length_policy="split"
    )
    record = _record(base, digest, tokenizer, state, sources)
    made = _keep(_place(base, digest).name, config, record, read.weights, state, base=read.base)
    return made, news


def adopt_adapter(folder: Path, base: str | Path | None, model_name: str | None = None) -> Path:
    """Return the step folder of an adapter of peft's on its base, made where it is not there yet.

    Args:
        folder: What peft's ``save_pretrained`` wrote.
        base: A model of ours, ``hf:`` and a folder, or ``gguf:`` and a file. None looks for the
            weights that the folder names by digest, then for what it names as its base: a model
            of ours, a whole path, or a name in huggingface's cache. A relative path, which means
            another base wherever one stands, is not followed, nor a name that is one here too.
        model_name: The model's name; None takes one by content.

    Raises:
        CheckpointError: If the adapter cannot be read, is none that is computed here, does not fit
            the base, or another base is meant.
        ConfigError: If there is no such base, the folder names none, or the name is another
            model's.
    """
    opened = open_peft(folder)
    beneath = _base_beneath(opened, folder, base)
    parent = verify_folder(beneath)
    if opened.base_digest not in ("", parent.weights):
        raise CheckpointError(
            f"{folder}: an adapter of weights {opened.base_digest[:12]}, and {beneath} holds"
            f" {parent.weights[:12]}; name its own base with --base"
        )
    lora, weights = from_peft(opened, parent.config.gpt(), base_of(parent))
    sources = _hashed(opened.files)
    digest = files.digest_json([parent.weights, *(source.sha256 for source in sources)])
    name = model_name or f"peft-{digest[:12]}"
    home.check_name(name, "model name")
    place = home.models_dir() / name
    if place.exists() and read_lineage(home.checkpoint_to_use(place)).dataset.digest != digest:
        raise ConfigError(f"{place}: another model; name a new one with --model_name")
    config = Preset(
        **dict(parent.config.architecture()),
        name=folder.name or name,
        use_loss_mask=False,
        length_policy="split",
        lora=lora,
    )
    state = (beneath / TOKENIZER_STATE).read_bytes()
    record = _record(folder, digest, load_tokenizer(beneath), state, sources)
    return _keep(name, config, record, weights, state, parent=parent_of(beneath, parent))


def on_base(adapter: str | Path, base: str) -> Path:
    """Return the step folder of an adapter, be it a model of ours or a folder of peft's.

    Args:
        adapter: Its name or folder.
        base: The model that it must be beside, as for :func:`adopt_adapter`.

    Raises:
        MyptError: As :func:`adopt_adapter`; or if the model holds no adapter, or one of another
            base.
    """
    if (Path(adapter) / PEFT).exists():
        return adopt_adapter(Path(adapter), base)
    found = home.checkpoint_to_use(adapter)
    lineage, beneath = read_lineage(found), read_lineage(home.checkpoint_to_use(base))
    if lineage.config.lora is None or lineage.parent is None:
        raise ConfigError(f"{found}: whole weights and no adapter; leave the other model out")
    if lineage.parent.weights != beneath.weights:
        raise ConfigError(
            f"{found}: an adapter of {lineage.parent.model_name} step {lineage.parent.step},"
            f" weights {lineage.parent.weights[:12]}; {base} holds {beneath.weights[:12]}"
        )
    return found


def _base_beneath(opened: PeftAdapter, folder: Path, said: str | Path | None) -> Path:
    """Return the step folder of an adapter's base: as said, by its digest, or by its name."""
    if said is not None:
        return _step_of(str(said))
    if opened.base_digest:
        for lineage in sorted(home.models_dir().glob(f"*/step_*/{LINEAGE}")):
            if read_lineage(lineage.parent).weights == opened.base_digest:
                return lineage.parent
    name = _named_base(opened, folder)
    try:
        return _step_of(name)
    except ConfigError as error:
        raise ConfigError(f"{folder}: its base: {error}; or name it with --base") from None


def _step_of(name: str) -> Path:
    return import_base(name, None)[0] if name.startswith(PREFIXES) else home.checkpoint_to_use(name)


def _named_base(opened: PeftAdapter, folder: Path) -> str:
    """Return what an adapter names as its base, as a model of ours or with one of PREFIXES.

    Raises:
        ConfigError: If that is no name, or means one thing here and another elsewhere.
    """
    said = opened.config.base_model_name_or_path
    name = said if isinstance(said, str) and len(said) <= _LONGEST_NAME else ""
    if name in home.model_names():
        return name
    try:
        path = Path(name)
        if path.is_absolute() and (path.is_file() or (path / CONFIG).is_file()):
            return base_name(path)
        if _HUB.fullmatch(name) and not path.exists():
            return f"{HF}{name}"
    except (OSError, ValueError):  # longer than a path may be
        pass
    raise ConfigError(
        f"{folder / PEFT}: base_model_name_or_path {shown(said)}; expected a model of ours, a name"
        f" in huggingface's cache or a whole path with {CONFIG}; name its base with --base"
    )


def _keep(
    model_name: str,
    config: Preset,
    record: DatasetRecord,
    weights: dict[str, Tensor],
    tokenizer_state: bytes,
    *,
    base: BaseRecord | None = None,
    parent: ParentRecord | None = None,
) -> Path:
    """Return the step folder of a model that no step made, written where it is not there yet."""
    place = home.models_dir() / model_name
    if (place / home.step_folder(0)).is_dir():
        return place / home.step_folder(0)
    snapshot = Snapshot(
        state=TrainerState(),
        weights={n: tensor.contiguous() for n, tensor in weights.items()},
        moments={},
        history=History.unknown(0),
        tokenizer_state=tokenizer_state,
        lineage=Lineage(
            model_name=place.name,
            step=0,
            tokens=0,
            supervised=0,
            parent=parent,
            base=base,
            dataset=record,
            config=config,
            code=record_code(config),
            compute=resolve(config, config.gpt()).record(),
        ),
    )
    save_checkpoint(place, snapshot)
    point(place, 0, None)
    return place / home.step_folder(0)


def _hashed(paths: Iterable[Path]) -> tuple[SourceFile, ...]:
    return tuple(
        SourceFile(path=str(p.absolute()), size=p.stat().st_size, sha256=files.sha256_file(p))
        for p in paths
    )


def _digest(tokenizer: Tokenizer, sources: Iterable[SourceFile], whose: str) -> str:
    made_of = [tokenizer.digest, *(source.sha256 for source in sources)]
    return files.digest_json(made_of if whose == "mypt" else [*made_of, whose])


def _place(base: Path, digest: str) -> Path:
    return home.models_dir() / f"{'gguf' if base.is_file() else 'hf'}-{digest[:12]}"


def _record(
    base: Path,
    digest: str,
    tokenizer: Tokenizer,
    state: bytes,
    sources: tuple[SourceFile, ...],
) -> DatasetRecord:
    """Return what stands where a training has its dataset: the files, and no rows."""
    source = SourceRecord(
        name=base.absolute().name,
        format=_format(base),
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
        tokenizer=files.digest_bytes(state),
        template=tokenizer.template.digest,
        mask=None,
        sources=(source,),
    )


def _format(base: Path) -> str:
    if (base / PEFT).is_file():
        return "peft"
    return GGUF_FORMAT if base.is_file() else "transformers"


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
