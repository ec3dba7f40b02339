"""Models that are none of ours, by the module that `transformers` itself has for them.

Its states go through our own masked head; so loss, loop, checkpoints and lineage are those of any
model. No code of a base is ever run: the classes are those of the installed package.
"""

import inspect
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from mypt.config import MAX_BLOCK, Architecture, GPTConfig
from mypt.errors import CheckpointError, ConfigError
from mypt.model.attention import run_numbers
from mypt.model.cache import KVCache, RowCache, RowCaches
from mypt.model.gpt import GPT
from mypt.model.linear_loss import TiedGradient
from mypt.model.transformer import Head
from mypt.parsing import parse_config

_NEVER: Final = (
    "auto_map", "attn_implementation", "experts_implementation", "transformers_weights",
)  # fmt: skip
"""How keys of a config begin that could lead to code or files from elsewhere, at any depth."""
_PARTS: Final = re.compile("layer|expert|depth|block|head|stage|group")
_MOST_PARTS: Final = 4096
"""Most of what a module makes one by one."""
_CACHES: Final = ("past_key_values", "cache_params")
"""What the modules call what they have read."""
_BESIDE: Final = ("token_type_ids", "mm_token_type_ids")
"""Inputs in which 0 says that a token is text."""
_ODD: Final = (
    RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
)  # fmt: skip
"""What modules raise of configs that no model has."""
_CLOSE: Final = 1e-4
"""Of the largest state: how far one read beside another may lie from one read alone."""


class ForeignGPT(GPT):
    """A causal language model of `transformers` with the interface of ours.

    Parameters have the module's own names. What it keeps in its files and never learns (buffers)
    is a parameter without gradient. A conversation is read by itself, one a call, unless
    :meth:`prove_packing` has shown that those of a row may be read together.
    """

    def __init__(self, config: GPTConfig, module: Any = None) -> None:
        """Take ``module``, or make one with random weights.

        Raises:
            ConfigError: If `transformers` is not installed, or has no such model.
        """
        nn.Module.__init__(self)
        self.config = config
        self.module: Any = _make_module(config.base_config) if module is None else module
        _keep_buffers(self.module)
        self.lm_head = Head(config, self.module.get_output_embeddings().weight)
        own = self.module.config.get_text_config()
        if own is not self.module.config:  # what sees or hears stays as it is
            text = {*self.module.get_decoder().parameters(), self.lm_head.weight}
            for weight in {*self.module.parameters()} - text:
                weight.requires_grad_(False)
        divisor = getattr(own, "logits_scaling", None) or 1.0
        self._scale = getattr(own, "logit_scale", None) or 1.0 / divisor
        self.packs = False
        """Whether conversations of a row are read in one call."""
        inputs = inspect.signature(self.module.base_model.forward).parameters
        self._beside = [name for name in _BESIDE if name in inputs]
        self._placed = "position_ids" in inputs

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the weights with a row for each token."""
        ends = self.module.get_input_embeddings().weight, self.lm_head.weight
        return tuple(n for n, p in self.named_parameters() if any(p is end for end in ends))

    def named_parameters(self, *args: Any, **named: Any) -> Any:
        """Yield the module's, by its own names."""
        return self.module.named_parameters(*args, **named)

    def checkpoint_blocks(self, wanted: bool) -> None:
        """Let the module compute activations again.

        Raises:
            ConfigError: If it cannot.
        """
        if wanted and not self.module.supports_gradient_checkpointing:
            raise ConfigError(
                f"activation_checkpointing: {type(self.module).__name__} has none; set it to false"
            )
        if wanted:
            self.module.gradient_checkpointing_enable()

    @torch.no_grad()
    def prove_packing(self, length: int) -> bool:
        """Read two conversations in one row, change each: does any bit of the other change?

        Several cuts of a row are tried on the model as it is, in the arithmetic of the caller, and
        what is read second must be what it is alone. Only then are rows read whole from now on.

        Args:
            length: Tokens of the row.
        """
        self.packs = self._placed and length >= 4 and self._keeps_apart(length)
        return self.packs

    def _keeps_apart(self, length: int) -> bool:
        chance = torch.Generator().manual_seed(0)
        device = self.lm_head.weight.device
        training = self.module.training
        self.module.eval()
        try:
            for cut in sorted({length // 4, length // 3, length // 2, length - length // 5 - 1}):
                draw = torch.randint(self.config.vocab_size, (3, length), generator=chance)
                first, *others = draw[:, None].to(device)
                positions = torch.cat([torch.arange(cut), torch.arange(length - cut)])
                places = positions[None].to(device)
                read = self._call(first, places)
                alone = self._call(first[:, cut:])
                if (read[:, cut:] - alone).abs().max() > _CLOSE * alone.abs().max():
                    return False
                for part, new in zip((slice(cut), slice(cut, None)), others, strict=True):
                    row = first.clone()
                    row[:, part] = new[:, part]
                    same = torch.ones(length, dtype=torch.bool)
                    same[part] = False
                    if not torch.equal(self._call(row, places)[:, same], read[:, same]):
                        return False
        finally:
            self.module.train(training)
        return True

    def _read(
        self,
        idx: Tensor,
        positions: Tensor | None,
        segments: Tensor | None,
        rows: Tensor | None = None,
        shared: TiedGradient | None = None,  # noqa: ARG002  (autograd adds up)
    ) -> Tensor:
        self.config.check_row(idx.shape[1])
        if segments is None:
            states = self._call(idx)
        elif self.packs:
            states = self._call(idx, positions)
        else:
            states = self._one_by_one(idx, segments)
        return states if rows is None else states.flatten(0, 1).index_select(0, rows)

    def _one_by_one(self, idx: Tensor, segments: Tensor) -> Tensor:
        """Read each conversation in a call of its own; states of padding are 0."""
        runs = run_numbers(segments).flatten()
        lengths = torch.unique_consecutive(runs, return_counts=True)[1].tolist()
        pieces = torch.split(idx.flatten(), lengths)
        firsts = segments.flatten()[torch.tensor([0, *lengths[:-1]]).cumsum(0)].tolist()
        found: list[Tensor] = []
        width = self.lm_head.weight.shape[1]
        for piece, number in zip(pieces, firsts, strict=True):
            if number < 0:
                found.append(self.lm_head.weight.new_zeros(len(piece), width))
            else:
                found.append(self._call(piece[None])[0])
        return torch.cat([part.to(found[0].dtype) for part in found]).view(*idx.shape, width)

    def _call(self, idx: Tensor, positions: Tensor | None = None) -> Tensor:
        where = {} if positions is None else {"position_ids": positions}
        beside = {name: torch.zeros_like(idx) for name in self._beside}
        out = self.module.base_model(input_ids=idx, use_cache=False, **where, **beside)
        return self._scaled(out.last_hidden_state)

    def _scaled(self, states: Tensor) -> Tensor:
        return states if self._scale == 1.0 else states * self._scale  # the product is linear

    @torch.no_grad()
    def step(
        self, ids: Tensor, cache: KVCache, positions: Tensor, *, last: Tensor | None = None
    ) -> Tensor:
        """Read new tokens row by row, as :meth:`mypt.model.gpt.GPT.step` does together."""
        assert isinstance(cache, RowCaches), "another model's cache"
        for n, (row, starts) in enumerate(zip(cache.rows, positions[:, 0].tolist(), strict=True)):
            stop = ids.shape[1] if last is None else int(last[n]) + 1
            if starts == len(row.read):  # an ended row is asked for its last place again
                self._add(row, ids[n, :stop])
        logits: Tensor = self.lm_head(torch.stack([row.state for row in cache.rows]))
        return logits

    def _add(self, row: RowCache, new: Tensor) -> None:
        row.read = torch.cat([row.read.to(new.device), new])
        idx = (new if row.kept else row.read)[None]
        beside = {name: torch.zeros_like(idx) for name in self._beside}
        out = self.module.base_model(input_ids=idx, use_cache=True, **row.kept, **beside)
        found = {name: getattr(out, name, None) for name in _CACHES}
        row.kept = {name: one for name, one in found.items() if one is not None}
        row.state = self._scaled(out.last_hidden_state[0, -1])

    def new_cache(self, batch_size: int, max_length: int) -> RowCaches:
        """Return an empty cache for :meth:`step`."""
        return RowCaches(batch_size, max_length)

    def _shared(self) -> None:
        return None


def read_module(text: str, weights: Mapping[str, Tensor], where: Path) -> ForeignGPT:
    """Return the model that a ``config.json`` and the tensors of its files are, in float32.

    Raises:
        ConfigError: If `transformers` is not installed, or has no such model.
        CheckpointError: If tensors are missing, left over or of another shape, or its logits are
            not the product of its states and its head, which alone is learned here.
    """
    kind, config = _kind(text)
    with torch.device("meta"):
        claimed = sum(weight.numel() for weight in _make_module(text).parameters())
    if claimed > (held := sum(weight.numel() for weight in weights.values())):
        raise CheckpointError(
            f"{where}: tensors of {held:,} numbers; the config says {claimed:,}, expected the"
            f" tensors of {kind.__name__}"
        )
    try:
        module, found = kind.from_pretrained(
            None, config=config, state_dict=dict(weights), dtype=torch.float32,
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    except _ODD as error:
        raise CheckpointError(f"{where}: {_first(error)}; expected {kind.__name__}") from None
    odd = {key: sorted(map(str, names)) for key, names in found.items() if names}
    if odd:
        key, names = next(iter(odd.items()))
        raise CheckpointError(
            f"{where}: {key.replace('_', ' ')}: {names[0]} (and {len(names) - 1} more); expected"
            f" the tensors of {kind.__name__}"
        )
    model = ForeignGPT(GPTConfig(**_architecture(text, module).model_dump()), module.eval())
    _check_head(model, where)
    return model


def read_architecture(text: str) -> Architecture:
    """Return the architecture that a ``config.json`` says; no memory is taken.

    Raises:
        ConfigError: If `transformers` is not installed, or has no such model.
    """
    with torch.device("meta"):
        return _architecture(text, _make_module(text))


def with_rows(base: Architecture, rows: int, weights: Mapping[str, torch.Size]) -> Architecture:
    """Return a base whose embeddings have been made ``rows`` long.

    Raises:
        CheckpointError: If its module has then other shapes than ``weights``.
    """
    values = json.loads(base.base_config)
    values.get("text_config", values)["vocab_size"] = rows
    grown = base.model_copy(update={"vocab_size": rows, "base_config": json.dumps(values)})
    with torch.device("meta"):
        model = ForeignGPT(GPTConfig(**grown.model_dump()))
    odd = [name for name, p in model.named_parameters() if weights.get(name) != p.shape]
    if odd:
        raise CheckpointError(
            f"{type(model.module).__name__}: {odd[0]} would have to grow with {rows} tokens; take"
            " --template base, whose tokens it has"
        )
    return grown


def write_module(
    config: GPTConfig, weights: Mapping[str, Tensor], dtype: torch.dtype, to: Path
) -> None:
    """Write weights as `transformers` does, under the names that the base's files have."""
    model = ForeignGPT(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    model.module.to(dtype).save_pretrained(to)


def _library() -> Any:
    os.environ.setdefault("USE_HUB_KERNELS", "0")  # or code would come from elsewhere
    try:
        import transformers
    except ImportError:
        raise ConfigError(
            "base transformers: the package is not installed; pip install 'mypt[transformers]'"
        ) from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _kind(text: str) -> tuple[Any, Any]:
    """Return class and config; the class is that which the config names, if it is a causal one."""
    library, values = _library(), _plain(json.loads(text))
    name = values.get("model_type")
    if not isinstance(name, str) or name not in library.CONFIG_MAPPING:
        raise ConfigError(
            f"model_type {name!r:.60}: transformers {library.__version__} has no such model"
        )
    try:
        config = library.CONFIG_MAPPING[name].from_dict(values)
    except Exception as error:  # whatever its many validators raise
        raise ConfigError(f"model_type {name!r}: {_first(error)}") from None
    autos = library.AutoModelForCausalLM, library.AutoModelForImageTextToText
    kinds = [auto._model_mapping.get(type(config), None) for auto in autos]
    said = values.get("architectures") or [None]
    there = [kind for kind in kinds if kind is not None]
    if not there:
        raise ConfigError(f"model_type {name!r}: transformers has no causal language model of it")
    return next((kind for kind in there if kind.__name__ == said[0]), there[0]), config


def _plain(values: Any) -> Any:
    """Return a config without what names code; a number of parts that no model has is an error."""
    if isinstance(values, dict):
        kept = {key: _plain(value) for key, value in values.items()}
        for key, value in kept.items():
            if isinstance(value, int) and value > _MOST_PARTS and _PARTS.search(key):
                raise ConfigError(f"{key} {value}: expected at most {_MOST_PARTS}")
        return {k: value for k, value in kept.items() if not k.lstrip("_").startswith(_NEVER)}
    return values


def _make_module(text: str) -> Any:
    kind, config = _kind(text)
    try:
        return kind._from_config(config, dtype=torch.float32)
    except _ODD as error:
        raise ConfigError(f"{kind.__name__}: {_first(error)}") from None


def _keep_buffers(module: nn.Module) -> None:
    """Make parameters without gradient of what files hold beside parameters."""
    for part in module.modules():
        for name, held in list(part._buffers.items()):
            if held is not None and name not in part._non_persistent_buffers_set:
                del part._buffers[name]
                part.register_parameter(name, nn.Parameter(held, requires_grad=False))


def _architecture(text: str, module: Any) -> Architecture:
    own = module.config.get_text_config()
    head = module.get_output_embeddings()
    if head is None:
        raise ConfigError(f"{type(module).__name__}: no head; expected a causal language model")
    rows, width = head.weight.shape
    heads = getattr(own, "num_attention_heads", 1)
    longest = getattr(own, "max_position_embeddings", None) or MAX_BLOCK
    values = {
        "base": "transformers",
        "base_config": text,
        "block_size": longest,
        "vocab_size": rows,
        "n_layer": getattr(own, "num_hidden_layers", 1),
        "n_head": heads if isinstance(heads, int) and width % heads == 0 else 1,
        "n_embd": width,
        "logit_softcap": getattr(own, "final_logit_softcapping", None),
        "tie_weights": bool(getattr(own, "tie_word_embeddings", False)),
    }
    return parse_config(values, Architecture, type(module).__name__)


@torch.no_grad()
def _check_head(model: ForeignGPT, where: Path) -> None:
    ids = torch.arange(16).remainder(model.config.vocab_size)[None]
    theirs = model.module(input_ids=ids, use_cache=False).logits
    ours = model(ids)[0]
    apart = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    if not apart <= 1e-5:
        raise CheckpointError(
            f"{where}: logits differ by {apart:.2g} of the largest from states times head; expected"
            " no more than a scale and a softcap beyond that product"
        )


def _first(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
