"""The command that hands models and datasets to other programs; it starts no Prefect or MLflow.

Exported weights carry a card: what made them, read from the lineage alone.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flows.commands.names import full_name
from flows.console import Console
from mypt.config import MaskPolicy
from mypt.data.conversations import Form
from mypt.data.policies import policy_words
from mypt.errors import ConfigError

if TYPE_CHECKING:
    from mypt.inference.huggingface.gguf_export import Quant
    from mypt.training.checkpoints.checkpoint import Checkpoint
    from mypt.training.lineage import Lineage, ParentRecord

_ASKED = {
    "chat": (
        'messages = [{"role": "user", "content": "..."}]',
        "inputs = tokenizer.apply_chat_template(",
        '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
        ")",
    ),
    "plain": ('inputs = tokenizer("...", return_tensors="pt")',),
}
"""How a card shows what a model reads."""


def export(
    source: str,
    out: Path,
    *,
    to: Literal["hf", "gguf", "peft", "mlflow", "parquet"],
    quant: Literal["f32", "f16", "bf16", "q8_0", "q4_0"] | None = None,
) -> int:
    """Write a model or a dataset for other programs.

    Args:
        source: For hf, gguf, peft and mlflow a model: a name or its beginning, a model folder or a
            step folder. For parquet a dataset.
        out: A new folder; for gguf a new file, beside which OUT.Modelfile is written.
        to: hf: what transformers loads. gguf: what llama.cpp and Ollama load. peft: an adapter
            alone, without its base. mlflow: what 'mlflow models serve' loads. parquet: input_ids
            and labels, -100 where unsupervised.
        quant: Type of numbers in a gguf; f16 where it is not said.
    """
    if quant and to != "gguf":
        raise ConfigError(f"--quant {quant} goes with --to gguf; leave it out for --to {to}")
    if out.exists():
        raise ConfigError(f"{out} exists and is never overwritten; name another")
    if to == "parquet":
        from mypt.data.exchange.labels import export_labels

        export_labels(Path(source), out)
    elif to == "mlflow":
        from mypt.home import checkpoint_to_use
        from mypt.training.checkpoints.folder import checkpoint_ref
        from mypt.training.lineage import verify_folder
        from tasks.tracking.models import export_mlflow

        step = checkpoint_to_use(full_name(source))
        name = verify_folder(step).model_name
        export_mlflow(step, out, checkpoint_ref(step), name, weights=True)
    elif to == "peft":
        _export_adapter(source, out)
    elif to == "gguf":
        _export_gguf(source, out, quant or "f16")
    else:
        _export_model(source, out)
    Console().print(f"written: {out}", markup=False)
    return 0


def _export_model(source: str, out: Path) -> None:
    from mypt.home import checkpoint_to_use
    from mypt.inference.huggingface.exports import export_hf
    from mypt.training.base_import import base_of
    from mypt.training.checkpoints.checkpoint import load_checkpoint

    found = load_checkpoint(checkpoint_to_use(full_name(source)))
    export_hf(
        out,
        found.config,
        found.weights,
        found.tokenizer,
        form=_form(found),
        policy=_marked(found.lineage),
        base=base_of(found.lineage),
        card=_card(found),
    )


def _form(found: "Checkpoint") -> Form:
    return "chat" if found.lineage.dataset.kind == "chat" else "plain"


def _card(found: "Checkpoint", beside: str = "") -> str:
    own, form = found.tokenizer, _form(found)
    end = own.template.stop if form == "chat" else own.vocabulary.end
    return model_card(found.lineage, form=form, end=end, beside=beside)


def _export_adapter(source: str, out: Path) -> None:
    from mypt.home import checkpoint_to_use
    from mypt.inference.huggingface.adapters import export_peft
    from mypt.training.base_import import base_of
    from mypt.training.checkpoints.checkpoint import load_checkpoint
    from mypt.training.lineage import IMPORTED

    found = load_checkpoint(checkpoint_to_use(full_name(source)), merge=False)
    lora, parent = found.preset.lora, found.lineage.parent
    if lora is None or parent is None:
        raise ConfigError(
            f"{found.path}: no adapter but whole weights; expected what was trained with lora;"
            " export it --to hf"
        )
    if lora.tokens:
        raise ConfigError(
            f"{found.path}: its adapter learned rows of {len(lora.tokens)} tokens that its base has"
            " not, which an exported adapter does not hold; export the merged model --to hf, or"
            " train with tokens: [] in lora"
        )
    base = parent.lineage
    imported = base is not None and base.dataset.kind == IMPORTED
    export_peft(
        out,
        found.config,
        lora,
        found.weights,
        base=base_of(found.lineage),
        base_name=base.dataset.path if base and imported else parent.model_name,
        base_digest=parent.weights,
        card=_card(found, beside=f"{parent.model_name} step {parent.step}"),
    )


def _export_gguf(source: str, out: Path, quant: "Quant") -> None:
    from mypt.home import checkpoint_to_use
    from mypt.inference.huggingface.gguf_export import export_gguf
    from mypt.training.base_import import base_of
    from mypt.training.checkpoints.checkpoint import load_checkpoint

    found = load_checkpoint(checkpoint_to_use(full_name(source)))
    modelfile = export_gguf(
        out,
        found.config,
        found.weights,
        found.tokenizer,
        name=found.lineage.model_name,
        quant=quant,
        form=_form(found),
        base=base_of(found.lineage),
        lineage=found.lineage.digest,
    )
    Console().print(
        f"in Ollama: ollama create {found.lineage.model_name} -f {modelfile}", markup=False
    )


def _marked(lineage: "Lineage") -> MaskPolicy:
    """Return what an exported template marks: what was learned, or what a chat model would."""
    mask = lineage.dataset.mask if lineage.config.use_loss_mask else None
    return (mask and mask.policy) or MaskPolicy()


def model_card(lineage: "Lineage", *, form: Form, end: str, beside: str = "") -> str:
    """Return ``README.md`` for a model's exported folder.

    Args:
        lineage: The checkpoint's.
        form: What it has learned to end: a turn, or, as a base model, a text.
        end: The token that does.
        beside: The model that the folder's adapter is learned beside; empty: it is a whole model.
    """
    return "\n".join(_lines(lineage, form, end, beside)) + "\n"


def _lines(lineage: "Lineage", form: Form, end: str, beside: str) -> Iterator[str]:
    library = "peft" if beside else "transformers"
    yield from ("---", f"library_name: {library}", "pipeline_tag: text-generation", "---", "")
    yield from (f"# {lineage.model_name}", "")
    yield f"Step {lineage.step}, written by mypt {lineage.code.version}. Every digest is blake3;"
    yield f"the checkpoint's lineage is `{lineage.digest}`, its weights `{lineage.weights}`."
    yield from ("", "## Use", "", "```python")
    yield "from transformers import AutoModelForCausalLM, AutoTokenizer"
    if beside:
        yield from ("from peft import PeftModel", "")
        yield f'base = "base"  # the folder of {beside}; of mypt\'s own, what export --to hf writes'
        yield "tokenizer = AutoTokenizer.from_pretrained(base)"
        yield 'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), ".")'
    else:
        yield from ("", 'tokenizer = AutoTokenizer.from_pretrained(".")')
        yield 'model = AutoModelForCausalLM.from_pretrained(".")'
    yield from _ASKED[form]
    yield "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=100)[0]))"
    yield from ("```", "")
    if form == "chat":
        yield f"The model ends a turn with `{end}`. The tokenizer's template marks with"
        yield f"`{{% generation %}}` what the policy `{policy_words(_marked(lineage))}` supervises."
    else:
        yield f"The model goes on with a text, and ends it with `{end}`."
    yield from ("", "## Training", "")
    yield from _training(lineage)
    parent = lineage.parent
    while parent is not None:
        yield from ("", f"## Began with {parent.model_name}, step {parent.step}", "")
        yield from _before(parent)
        parent = parent.lineage.parent if parent.lineage else None


def _before(parent: "ParentRecord") -> Iterator[str]:
    if parent.lineage is None:
        yield f"- nothing is known of it but the digest of its weights, `{parent.weights}`"
    else:
        yield from _training(parent.lineage)


def _training(lineage: "Lineage") -> Iterator[str]:
    from mypt.provenance.trace import learned

    data, config = lineage.dataset, lineage.config
    shape = f"{config.n_layer} layers, width {config.n_embd}, context {config.longest}"
    parts = f"{config.pos_encoding}, {config.norm_type}, {config.mlp_type}"
    if config.base == "transformers":
        parts = f"the module of transformers for `{json.loads(config.base_config)['model_type']}`"
    yield f"- architecture: {shape}, {parts}"
    yield f"- {lineage.tokens} tokens read, {learned(lineage)}, seed {config.seed}"
    yield f"- {data.kind} `{data.digest}`, tokenizer {data.tokenizer_name}"
    for source in data.sources:
        yield f"- source {source.name}: licence {source.licence or 'not stated'}"
        yield from (f"  - `{file.sha256}` (sha256)" for file in source.files)
