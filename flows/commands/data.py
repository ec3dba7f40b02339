"""Commands over raw files and datasets; none of them starts torch, Prefect or MLflow."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from flows.commands.flags import (
    EngineFlags,
    FileFlags,
    MappingFlags,
    MaybeWhole,
    PrepareFile,
    ReadingFlags,
    Whole,
    parse_engine,
    parse_reading,
)
from flows.commands.names import full_name
from flows.console import Console, check_new, print_json
from mypt.config import MAX_BLOCK, Format, MaskPolicy, Preparation, PrepareConfig
from mypt.data.policies import parse_policy
from mypt.data.vocabularies.base_files import PEFT
from mypt.errors import ConfigError
from mypt.parsing import parse_config, read_config

Split = Literal["train", "val"]
LengthPolicy = Literal["split", "keep_system", "drop", "keep_last_turns", "error"]
Files = Annotated[list[str] | None, Parameter(consume_multiple=True)]


def prepare(
    *,
    out_dir: Path | None = None,
    input_files: Files = None,
    look: Files = None,
    config: Path | None = None,
    tokenization: str = "gpt2",
    format: Format = "auto",
    mask_role: str = "assistant",
    template: str = "mypt",
    train_as: Literal["whole", "inference"] = "whole",
    base: Literal["mypt", "transformers"] = "mypt",
    tokenizer_from: str | None = None,
    val_fraction: float = 0.1,
    shard_tokens: Whole = 10_000_000,
    mapping: Annotated[MappingFlags | None, Parameter(name="*")] = None,
    rows: Annotated[ReadingFlags | None, Parameter(name="*")] = None,
    held: Annotated[FileFlags | None, Parameter(name="*")] = None,
    engine: Annotated[EngineFlags | None, Parameter(name="*")] = None,
    json: bool = False,
) -> int:
    """Turn raw files into a dataset of token shards and loss masks.

    Args:
        out_dir: The new dataset's folder; an existing one is never overwritten.
        look: Files, folders or globs to look at instead: how they are read, which fields are not,
            two rows with their mask. Nothing is written.
        input_files: Files, folders or globs; .gz, .xz and .zst are unpacked on the way.
        config: A JSON file of the same knobs with sources, weights and mappings, instead.
        tokenization: gpt2, byte, char, cl100k_base, o200k_base, bpe:N, hf:FOLDER or gguf:FILE.
        format: What the files are; auto decides by content and says so.
        mask_role: Whose tokens are learned: roles joined by commas, a policy, or none.
        template: mypt, chatml, llama3, alpaca, plain, documents, base (of hf: or gguf:), or a file.
        train_as: Of template base: conversations whole, or each turn as inference sees it.
        base: Whose module will train the base that hf: names; of a model that is none of ours, only
            transformers has one.
        tokenizer_from: Dataset or model whose tokenizer is used instead.
        val_fraction: Share of rows for validation, by the hash of their content.
        shard_tokens: Tokens after which a new shard begins.
        mapping: Where the turns are, for --format mapping.
        rows: How the rows are understood.
        held: How the files hold their rows.
        engine: Who prepares.
        json: Print the result as JSON.
    """
    knobs = {
        "tokenization": tokenization, "val_fraction": val_fraction, "shard_tokens": shard_tokens,
        "tokenizer_from": tokenizer_from and full_name(tokenizer_from), "template": template,
        "train_as": train_as,
    }  # fmt: skip
    how = parse_reading(format, mapping, rows, held)
    asked = _asked({"--input_files": input_files, "--look": look}, config, how, knobs)
    preparation = parse_engine(asked.preparation, engine or EngineFlags())
    policy = None if mask_role == "none" else parse_policy(mask_role, "--mask_role")
    if look:
        return _look(asked.data(), policy)
    if out_dir is None:
        raise ConfigError("--out_dir is missing; see 'mypt prepare --help'")
    return _make(asked.data(), policy, out_dir, preparation, base, json)


def _make(
    data: PrepareConfig,
    policy: MaskPolicy | None,
    out_dir: Path,
    preparation: Preparation,
    base: str,
    json: bool,
) -> int:
    from mypt.data import dataset
    from mypt.data.preparation.tokenization import DatasetPlan
    from tasks.progress import reading

    if DatasetPlan(data).begins_with_base:
        from mypt.inference.huggingface.imports import check_base  # loads torch

        check_base(data.tokenization, base)
    with reading("prepare") as progress:
        if policy is None:
            made = dataset.tokenize(data, out_dir, progress=progress, preparation=preparation)
        else:
            made = dataset.prepare(data, policy, out_dir, progress, preparation=preparation)
    return _print_dataset(Path(made.path), json)


def _look(data: PrepareConfig, policy: MaskPolicy | None) -> int:
    from mypt.data.preparation.tokenization import DatasetPlan
    from mypt.data.tokenizer import is_trained, load_tokenizer
    from mypt.inspection.look import look_at, render_look

    plan = DatasetPlan(data)
    # What is trained on all rows is not there yet; bytes show the same text and mask.
    name = "byte" if is_trained(data.tokenization) else data.tokenization
    tokenizer = plan.inherited or load_tokenizer(name, plan.template)
    for source in data.sources:
        for block in render_look(look_at(source, tokenizer, policy), tokenizer, policy):
            Console().print(block)
    return 0


def _asked(
    named: dict[str, Files], config: Path | None, how: dict[str, Any], knobs: dict[str, Any]
) -> PrepareFile:
    """Return what a file asks for, or what the flags do."""
    given = [flag for flag, files in named.items() if files] + ["--config"] * bool(config)
    if len(given) != 1:
        said = f"{' and '.join(given)} were given" if given else "none was given"
        raise ConfigError(f"prepare wants one of {', '.join(named)} and --config; {said}")
    if config:
        return read_config(config, PrepareFile)
    sources = [{"path": path} | how for files in named.values() for path in files or ()]
    return parse_config({"sources": sources} | knobs, PrepareFile, "the command line")


def _who(asked: PrepareFile, flags: dict[str, Any]) -> Preparation:
    """Return who prepares: what a file says, but for the flags that were given."""
    who = asked.preparation.model_dump()
    who |= {flag: value for flag, value in flags.items() if value is not None}
    return parse_config(who, Preparation, "the command line")


def mask(dataset: Path, *, out_dir: Path, policy: str = "assistant", json: bool = False) -> int:
    """Mask a dataset under another policy, without tokenizing again.

    Args:
        dataset: A dataset that mypt prepared.
        out_dir: The new dataset's folder; tokens are hard-linked, not copied.
        policy: E.g. assistant, or user,assistant,last,no_stop; a JSON object; or its file.
        json: Print the result as JSON.
    """
    from mypt.data import dataset as datasets

    made = datasets.mask(dataset, parse_policy(policy), out_dir)
    return _print_dataset(Path(made.path), json)


def adopt(
    directory: Path,
    *,
    out_dir: Path | None = None,
    tokenization: str | None = None,
    template: str | None = None,
    expect_single_role: bool = False,
    base: str | None = None,
    model_name: str | None = None,
    json: bool = False,
) -> int:
    """Take shards made by hand, or an adapter of peft's; validate them, exit 1 if broken.

    Args:
        directory: Holds train/ and val/ with shard_000.bin and shard_000_mask.bin; with
            --out_dir, train.parquet and validation.parquet of input_ids and labels, or what
            save_to_disk of datasets wrote. Or adapter_config.json and safetensors of peft, which
            become a model.
        out_dir: The new dataset's folder, for such tables.
        tokenization: What the ids mean; default: the tokenizer_state.json beside them, else gpt2.
        template: What wrote the turns: a name, base (that of hf:FOLDER), or a file.
        expect_single_role: All of it is to be learned; else a mask of nothing but 1 is an error.
        base: Of an adapter: the model it stands beside, hf:FOLDER or gguf:FILE; default: the one
            that it names by digest or name.
        model_name: Of an adapter: what the model is called; default: by its content.
        json: Print the result as JSON.
    """
    if (directory / PEFT).exists():
        if out_dir or tokenization or template or expect_single_role:
            raise ConfigError(f"{directory}: an adapter, which --base and --model_name go with")
        return _adopt_adapter(directory, base, model_name, json)
    if base or model_name:
        raise ConfigError(f"{directory}: no {PEFT}, and --base and --model_name are an adapter's")
    from mypt.data.exchange import adoption

    if out_dir is None:
        made = adoption.adopt(directory, tokenization, template)
    elif out_dir.exists():
        raise ConfigError(f"{out_dir} exists and is never overwritten; name another")
    else:
        from mypt.data.exchange import labels

        made = labels.adopt_labels(directory, out_dir, tokenization, template)
    _print_dataset(Path(made.path), json)
    from mypt.inspection import terminal, validation

    report = validation.validate(Path(made.path), expect_single_role=expect_single_role)
    if not report.ok and not json:
        Console().print(terminal.render_report(report))
    return 0 if report.ok else 1


def _adopt_adapter(directory: Path, base: str | None, model_name: str | None, json: bool) -> int:
    from mypt.training.base_import import adopt_adapter  # loads torch
    from mypt.training.lineage import read_lineage

    place = adopt_adapter(directory, base and full_name(base), model_name)
    found = read_lineage(place)
    if json:
        print_json({"path": str(place), "model": found.model_name, "digest": found.digest})
    else:
        lora, base_model = found.config.lora, found.parent
        said = f"rank {lora.rank} beside {base_model.model_name}" if lora and base_model else ""
        Console().print(f"{found.model_name}: {said}, at {place}", markup=False, soft_wrap=True)
    return 0


def validate(
    dataset: Path,
    *,
    block_size: MaybeWhole = None,
    length_policy: LengthPolicy = "keep_system",
    prove: bool = False,
    expect_single_role: bool = False,
    json: bool = False,
) -> int:
    """Check a dataset; exit 1 on a broken contract, print everything else with its count.

    Args:
        dataset: The dataset's folder.
        block_size: Preview what a context of this many tokens would drop or cut.
        length_policy: For the preview.
        prove: Prove the mask on a real batch with a small random model (starts torch).
        expect_single_role: All of it is to be learned; else a mask of nothing but 1 is an error.
        json: Print the report as JSON.
    """
    if block_size is not None and not 0 < block_size <= MAX_BLOCK:
        raise ConfigError(f"--block_size {block_size}: expected 1 to {MAX_BLOCK}")
    from mypt.inspection import terminal, validation

    report = validation.validate(
        dataset,
        block_size=block_size,
        length_policy=length_policy,
        expect_single_role=expect_single_role,
    )
    validation.keep_report(dataset, report)
    if not json:
        Console().print(terminal.render_report(report))
    proved = None
    if report.ok and prove:
        from mypt.evaluation.proof import checks, proof

        proved = proof.prove_mask(dataset)
        if not json:
            Console().print(checks.render(proved))
    if json:
        values = report.model_dump(mode="json")
        print_json(values | ({"proof": proved.model_dump(mode="json")} if proved else {}))
    return 0 if report.ok and (proved is None or proved.ok) else 1


def show(
    dataset: Path,
    *,
    split: Split = "train",
    row: MaybeWhole = None,
    rows: Whole = 3,
    search: str | None = None,
    why: bool = False,
    html: Path | None = None,
) -> int:
    """Print conversations with their supervised tokens in colour.

    Args:
        dataset: The dataset's folder.
        split: train or val.
        row: Print this row only, counted from 0.
        rows: How many rows to print.
        search: Only rows whose text holds this.
        why: Give id, role, kind and the deciding rule for every token.
        html: Write one self-contained page instead.
    """
    if row is not None and search is not None:
        raise ConfigError("--row and --search choose rows in two ways; give one of them")
    if html is not None:
        if why or row is not None or search is not None:
            raise ConfigError("--html writes all of it into one page; leave --row, --search, --why")
        check_new(html)
        from mypt.inspection import preview

        preview.write_preview(dataset, html)
        Console().print(f"preview: {html}", markup=False)
        return 0
    if rows < 1:
        raise ConfigError(f"--rows {rows}: expected 1 or more")
    from mypt.inspection import terminal

    for block in terminal.render_rows(
        dataset, split=split, row=row, rows=rows, search=search, why=why
    ):
        Console().print(block)
    return 0


def _print_dataset(folder: Path, json: bool) -> int:
    from mypt.data import manifest
    from mypt.inspection import terminal

    found = manifest.read_manifest(folder)
    if json:
        print_json({"path": str(folder), **found.model_dump(mode="json")})
    else:
        Console().print(terminal.render_manifest(folder, found))
    return 0
