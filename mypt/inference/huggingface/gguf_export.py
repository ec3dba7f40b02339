"""A GGUF that llama.cpp loads, and the Modelfile that opens it in Ollama; nothing is run.

What the file says of model and tokenizer is what the exported folder would say
(:mod:`mypt.inference.huggingface.exports`), in llama.cpp's words.
"""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mypt import files
from mypt.config import GPTConfig
from mypt.data.conversations import Form
from mypt.data.rendering.base_template import BaseTemplate
from mypt.data.template import Template
from mypt.data.tokenizer import Tokenizer
from mypt.errors import ConfigError
from mypt.inference.huggingface.exports import tokenizer_config, tokenizer_json
from mypt.inference.huggingface.gguf_layouts import FACTORS, gguf_values
from mypt.inference.huggingface.gguf_pieces import pieces_of
from mypt.inference.huggingface.weights import Weights, to_theirs
from mypt.references import BaseRecord

if TYPE_CHECKING:
    from gguf import GGUFWriter

Quant = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]
_FILE_TYPES: Final = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "bf16": 32}
"""What ``general.file_type`` calls them (gguf's ``LlamaFileType``)."""
_BLOCK: Final = 32
"""Numbers that share a scale in q8_0 and q4_0."""
_EMBEDDINGS: Final = ("token_embd.weight", "output.weight")
"""Kept at 8 bits where the rest has 4: a coarse head costs most and saves little."""


def export_gguf(
    path: Path,
    config: GPTConfig,
    weights: Weights,
    tokenizer: Tokenizer,
    *,
    name: str,
    quant: Quant = "f16",
    form: Form = "chat",
    base: BaseRecord | None = None,
    lineage: str = "",
) -> Path:
    """Write a model as one file, and beside it ``FILE.Modelfile``, whose path is returned.

    Args:
        path: A new file.
        config: The model's.
        weights: Its parameters by name; a tied one once.
        tokenizer: The model's own.
        name: What the model is called.
        quant: Type of the matrices' numbers, not of vectors; embedding and head never ``q4_0``.
        form: What it has learned to end: a turn, or, as a base model, a text.
        base: What the model came from, if it did.
        lineage: Digest of the checkpoint's lineage, kept as ``mypt.lineage``.

    Raises:
        ConfigError: If llama.cpp has no architecture, or no name for the way in which the
            tokenizer cuts text, for this model; or the extra is not installed.
        FileExistsError: If ``path`` exists.
    """
    try:
        from gguf import GGUFWriter
    except ImportError:
        raise ConfigError("--to gguf needs the package gguf: pip install 'mypt[gguf]'") from None
    if config.base == "transformers":
        raise ConfigError(
            "--to gguf: a model of base transformers is that package's module; export it --to hf"
        )
    architecture, family, values, factors = gguf_values(config)
    words = _tokenizer_values(tokenizer, config, form, base)
    if path.exists():
        raise FileExistsError(f"{path} exists and is never overwritten")
    files.make_folder(path.parent)
    said = {"general.name": name, "general.file_type": _FILE_TYPES[quant]}
    said |= {"general.quantization_version": 2} | ({"mypt.lineage": lineage} if lineage else {})
    tensors = to_theirs(family, config, weights, torch.float32)
    if factors:
        tensors[FACTORS] = torch.tensor(factors)
    modelfile = path.with_name(f"{path.name}.Modelfile")
    temporary = path.with_name(f"{files.TEMPORARY_PREFIX}{os.getpid()}-{path.name}")
    try:
        _write(GGUFWriter(str(temporary), architecture), said | values | words, tensors, quant)
        files.write_bytes(modelfile, _modelfile(path.name, tokenizer, form).encode())
        files.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return modelfile


def _write(writer: "GGUFWriter", values: dict[str, Any], tensors: Weights, quant: Quant) -> None:
    with closing(writer):
        for key, value in values.items():
            _add(writer, key, value)
        for name, tensor in tensors.items():
            _add_tensor(writer, name, tensor.detach().numpy(), quant)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def _add(writer: "GGUFWriter", key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _add_tensor(writer: "GGUFWriter", name: str, values: NDArray[np.float32], quant: Quant) -> None:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import quantize

    kind = quant
    if values.ndim == 1:
        kind = "f32"
    elif quant == "q4_0" and name in _EMBEDDINGS:
        kind = "q8_0"
    if kind in ("q8_0", "q4_0") and values.shape[-1] % _BLOCK:
        kind = "f16"
    known = GGMLQuantizationType[kind.upper()]
    writer.add_tensor(name, quantize(values, known), raw_dtype=known)


def _tokenizer_values(
    tokenizer: Tokenizer, config: GPTConfig, form: Form, base: BaseRecord | None
) -> dict[str, Any]:
    """Return the keys of ``tokenizer.ggml`` and the chat template."""
    own = tokenizer.template
    run = tokenizer_json(tokenizer, form, base)
    settings = tokenizer_config(tokenizer, config.longest, form, base)
    found = pieces_of(run, settings, config.vocab_size)
    template = own.source if isinstance(own, BaseTemplate) else jinja_of(own)
    return {f"tokenizer.ggml.{key}": value for key, value in found.items()} | {
        "tokenizer.chat_template": template
    }


def jinja_of(template: Template) -> str:
    """Return a declarative template as plain Jinja: roles and texts, as llama.cpp renders it.

    Reasoning and tool calls are refused in it by name; the exported folder writes those.
    """
    begin, between = _literal(template.start), _literal(template.separator)
    turns = "".join(
        f"{{%- {'elif' if number else 'if'} message.role == {_literal(role)} -%}}"
        f"{{{{- {_literal(form.header)} ~ message.content ~ {_literal(form.end)} -}}}}"
        for number, (role, form) in enumerate(template.turns.items())
    )
    return (
        "{%- for message in messages -%}"
        f"{{{{- {begin} if loop.first else {between} -}}}}"
        "{%- if message.tool_calls or message.reasoning_content -%}"
        "{{- raise_exception('no form for tool calls and reasoning here') -}}{%- endif -%}"
        f"{turns}{{%- else -%}}{{{{- raise_exception('no form for role ' ~ message.role) -}}}}"
        "{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}"
        f"{{{{- ({between} if messages else {begin})"
        f" ~ {_literal(template.turns['assistant'].header)} -}}}}{{%- endif -%}}"
    )


def _literal(text: str) -> str:
    return files.canonical_json(text).decode()


def _modelfile(name: str, tokenizer: Tokenizer, form: Form) -> str:
    return "\n".join(_modelfile_lines(name, tokenizer, form)) + "\n"


def _modelfile_lines(name: str, tokenizer: Tokenizer, form: Form) -> Iterator[str]:
    yield f"FROM ./{name}"
    if form != "chat":
        return
    own = tokenizer.template
    if isinstance(own, Template):  # of a base's own, Ollama reads what the file says
        yield f'TEMPLATE """{go_of(own)}"""'
    for stop in own.stops:
        yield f"PARAMETER stop {_literal(stop)}"


def go_of(template: Template) -> str:
    """Return a declarative template in the language of Go, which Ollama takes.

    The last turn is left open where the assistant is to go on with it.
    """
    turns = "".join(
        f'{{{{ {"else if" if number else "if"} eq .Role "{role}" }}}}'
        f"{form.header}{{{{ .Content }}}}"
        + (f"{{{{ if not $last }}}}{form.end}{{{{ end }}}}" if role == "assistant" else form.end)
        for number, (role, form) in enumerate(template.turns.items())
    )
    opening = f"{template.separator}{template.turns['assistant'].header}"
    between = f"{{{{ if $i }}}}{template.separator}{{{{ end }}}}" if template.separator else ""
    return (
        f"{template.start}{{{{ range $i, $_ := .Messages }}}}"
        "{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        f"{between}{turns}{{{{ end }}}}"
        f'{{{{ if and $last (ne .Role "assistant") }}}}{opening}{{{{ end }}}}'
        "{{ end }}"
    )
