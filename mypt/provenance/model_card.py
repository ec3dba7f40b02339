"""The card beside exported weights: what made them, read from the lineage alone."""

from collections.abc import Iterator

from mypt.provenance.trace import policy_rule
from mypt.training.lineage import Lineage, ParentRecord


def model_card(lineage: Lineage, *, stop: str) -> str:
    """Return ``README.md`` for a model's exported folder.

    Args:
        lineage: The checkpoint's.
        stop: The token that ends its turns.
    """
    return "\n".join(_lines(lineage, stop)) + "\n"


def _lines(lineage: Lineage, stop: str) -> Iterator[str]:
    yield from ("---", "library_name: transformers", "pipeline_tag: text-generation", "---", "")
    yield from (f"# {lineage.model_name}", "")
    yield f"Step {lineage.step}, written by mypt {lineage.code.version}. Every digest is blake3;"
    yield f"the checkpoint's lineage is `{lineage.digest}`, its weights `{lineage.weights}`."
    yield from ("", "## Use", "", "```python")
    yield "from transformers import AutoModelForCausalLM, AutoTokenizer"
    yield ""
    yield 'tokenizer = AutoTokenizer.from_pretrained(".")'
    yield 'model = AutoModelForCausalLM.from_pretrained(".")'
    yield 'messages = [{"role": "user", "content": "..."}]'
    yield "inputs = tokenizer.apply_chat_template("
    yield '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"'
    yield ")"
    yield "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=100)[0]))"
    yield from (
        "```",
        "",
        f"The model ends a turn with `{stop}`. The tokenizer's template marks what",
    )
    yield from ("was supervised with `{% generation %}`.", "", "## Training", "")
    yield from _training(lineage)
    parent = lineage.parent
    while parent is not None:
        yield from ("", f"## Began with {parent.model_name}, step {parent.step}", "")
        yield from _before(parent)
        parent = parent.lineage.parent if parent.lineage else None


def _before(parent: ParentRecord) -> Iterator[str]:
    if parent.lineage is None:
        yield f"- nothing is known of it but the digest of its weights, `{parent.weights}`"
    else:
        yield from _training(parent.lineage)


def _training(lineage: Lineage) -> Iterator[str]:
    data, config = lineage.dataset, lineage.config
    shape = f"{config.n_layer} layers, width {config.n_embd}, context {config.block_size}"
    yield f"- architecture: {shape}, {config.pos_encoding}, {config.norm_type}, {config.mlp_type}"
    yield f"- {lineage.tokens} tokens read, {lineage.supervised} supervised, seed {config.seed}"
    yield f"- {data.kind} `{data.digest}`, tokenizer {data.tokenizer_name}"
    if data.mask is not None:
        rule = policy_rule(data.mask.policy) if data.mask.policy else "made by hand"
        yield f"- loss mask: {rule}; {data.mask.stats.total.density:.1%} of all tokens"
    for source in data.sources:
        yield f"- source {source.name}: licence {source.licence or 'not stated'}"
        yield from (f"  - `{file.sha256}` (sha256)" for file in source.files)
