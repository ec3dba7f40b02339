"""Every knob on one page: frozen models, and the two files that hold them."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from mypt.parsing import Frozen, override, parse_config, read_config, read_json

MAX_BLOCK = 10_000_000
"""Longest context that a config may ask for, in tokens; bounds here catch slips of the pen."""


# Architecture: which weights there are.
class Architecture(Frozen):
    """What a model is; a fine-tuned model keeps its base model's (DESIGN.md D12)."""

    block_size: int = Field(default=256, ge=1, le=MAX_BLOCK)
    """Longest context, in tokens."""
    vocab_size: int = Field(default=50304, ge=1, le=10_000_000)
    """Rows of the embedding; at least the tokenizer's vocabulary."""
    n_layer: int = Field(default=6, ge=1, le=1000)
    """Transformer blocks."""
    n_head: int = Field(default=6, ge=1, le=1000)
    """Attention heads; divides n_embd."""
    n_embd: int = Field(default=384, ge=1, le=100_000)
    """Width of the residual stream."""
    bias: bool = False
    """Bias terms in linear layers and layer norms, as GPT-2 has them."""
    pos_encoding: Literal["learned", "rope"] = "learned"
    """A learned vector a place, as GPT-2, or queries and keys turned by their place."""
    norm_type: Literal["layernorm", "rmsnorm"] = "layernorm"
    """RMSNorm neither centres nor has a bias."""
    mlp_type: Literal["gelu", "swiglu", "relu2"] = "gelu"
    """What the MLP does between its two products; SwiGLU's is gated and two thirds as wide."""
    qk_norm: bool = False
    """RMSNorm of each head's queries and keys."""
    n_kv_head: int | None = Field(default=None, ge=1)
    """Heads of keys and values, shared by groups of queries; divides n_head, null is n_head."""
    tie_weights: bool = True
    """One matrix for token embedding and vocabulary projection."""
    mlp_width: int | None = Field(default=None, ge=1)
    """Numbers between the MLP's two products; null is 4 times n_embd, of SwiGLU 8/3 times."""
    norm_eps: float | None = Field(default=None, gt=0.0)
    """What norms add to a variance; null is 1e-5, of RMSNorm 1e-6."""
    rope_base: float = Field(default=10_000.0, gt=0.0)
    """Longest wavelength of rotary positions, over 2 pi."""

    @property
    def eps(self) -> float:
        """What the residual stream's norms add to a variance."""
        return self.norm_eps or (1e-6 if self.norm_type == "rmsnorm" else 1e-5)

    @property
    def inner_width(self) -> int:
        """Numbers between the MLP's two products."""
        gated = self.mlp_type == "swiglu"
        return self.mlp_width or (8 * -(-self.n_embd // 3) if gated else 4 * self.n_embd)

    @property
    def head_width(self) -> int:
        """Numbers of a query."""
        return self.n_embd // self.n_head

    @property
    def key_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_kv_head or self.n_head

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.n_embd % self.n_head:
            raise ValueError(
                f"n_head {self.n_head} does not divide n_embd {self.n_embd}; set n_head to one that"
                " does"
            )
        if self.n_head % self.key_heads:
            raise ValueError(
                f"n_kv_head {self.n_kv_head} does not divide n_head {self.n_head}; set n_kv_head to"
                " one that does"
            )
        if self.pos_encoding == "rope" and self.head_width % 2:
            raise ValueError(f"n_embd / n_head is {self.head_width}; rope wants an even width")
        return self


class GPTConfig(Architecture):
    """What :class:`mypt.model.gpt.GPT` is built from."""

    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of activations dropped in training; not architecture, so fine-tuning sets its own."""
    zero_init: bool = False
    """Random weights begin with residual projections of 0, so that each block begins as nothing."""
    scaled_init: bool = False
    """Random matrices are drawn by what they read, the blocks' by 1 / sqrt(inputs), embeddings and
    head by half of 1 / sqrt(n_embd), instead of GPT-2's 0.02 whatever the width."""


# Training: how the weights are learned.
class TrainConfig(Frozen):
    """How a model is trained; nothing here changes which weights exist."""

    use_loss_mask: bool | None = None
    """Learn only what the dataset's masks supervise, or every token. Left out, a fine-tuning in
    a flow uses the masks, and any other training on data that have some is refused."""
    batching: Literal["windows", "packed"] = "windows"
    """Random windows, or whole conversations packed into rows, each once an epoch."""
    length_policy: Literal["split", "drop", "keep_last_turns", "error"] = "split"
    """Packed only: what becomes of a conversation longer than block_size."""
    max_lost: float = Field(default=0.05, ge=0.0, le=1.0)
    """Packed only: largest share of supervised tokens that length_policy may lose. A validation
    warns where more answers than this share lose their question."""
    batch_size: int = Field(default=32, ge=1, le=1_000_000)
    """Rows a micro-batch."""
    grad_accumulation: int = Field(default=1, ge=1, le=1_000_000)
    """Micro-batches an optimizer step."""
    max_iters: int = Field(default=5000, ge=1, le=10**12)
    """Optimizer steps."""
    epochs: float | None = Field(default=None, gt=0.0, le=1e6)
    """Passes over the training rows, instead of max_iters; the dataset says how many steps."""
    learning_rate: float = Field(default=3e-4, gt=0.0)
    """Peak learning rate of AdamW."""
    schedule: Literal["cosine", "trapezoid"] = "cosine"
    """How the rate falls: along half a cosine, or not at all until the last cooldown of steps."""
    cooldown: float = Field(default=0.5, gt=0.0, le=1.0)
    """Trapezoid only: share of max_iters in which the rate falls linearly."""
    min_lr_ratio: float = Field(default=0.1, ge=0.0, le=1.0)
    """Share of the peak at which the schedule ends."""
    warmup_iters: int = Field(default=100, ge=0)
    """Steps of linear warm-up."""
    weight_decay: float = Field(default=0.1, ge=0.0)
    """Decay of matrices; vectors have none."""
    beta1: float = Field(default=0.9, ge=0.0, lt=1.0)
    """AdamW's first-moment decay."""
    beta2: float = Field(default=0.95, ge=0.0, lt=1.0)
    """AdamW's second-moment decay."""
    grad_clip: float = Field(default=1.0, ge=0.0)
    """Largest gradient norm; 0 turns clipping off."""
    eval_interval: int = Field(default=250, ge=1)
    """Steps between evaluations."""
    eval_iters: int = Field(default=20, ge=1)
    """Micro-batches an evaluation scores, of each split."""
    checkpoint_interval: int = Field(default=500, ge=1)
    """Steps between checkpoints; the last step always has one."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints kept; the best is kept besides."""
    patience: int = Field(default=0, ge=0)
    """Evaluations without a better validation loss before training stops; 0 never stops."""
    sample_prompts: tuple[str, ...] = ()
    """Prompts answered at each evaluation, to watch the model learn."""
    seed: int = Field(default=1337, ge=0, lt=2**63)
    """Seed of weights, order and dropout."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes CUDA, then MPS, then the CPU, and says which."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of matrix products; auto takes bfloat16 where it is quicker."""
    threads: int = Field(default=0, ge=0)
    """CPU threads; 0 leaves torch's choice. Recorded, since it can change the last bit."""
    compile: bool = False
    """torch.compile around attention: some seconds at the start, then quicker modern blocks; the
    commands that answer compile what each new token needs."""
    prune_last_block: bool = True
    """Let the last block compute queries, projection and MLP of supervised targets only."""
    reduction: Literal["allreduce", "tree"] = "allreduce"
    """How the gradients of a step's micro-batches add up: as is quickest, or as one binary tree,
    which gives the same bits in any number of processes."""
    parallel: Literal["none", "ddp", "fsdp"] = "none"
    """One process, or several: each with the whole model, or each with a part of it."""
    processes: int = Field(default=1, ge=1, le=1024)
    """Processes on each machine that share a step's micro-batches; one a GPU."""
    activation_checkpointing: bool = False
    """Keep one state a block for the backward pass and compute the others again."""
    max_restarts: int = Field(default=3, ge=0)
    """How often processes that died are started again, from the last checkpoint."""
    step_timeout: float = Field(default=600.0, gt=0.0)
    """Seconds after which a process that waits for others, or that makes no step, is ended."""

    @model_validator(mode="after")
    def _length_is_said_once(self) -> Self:
        default = type(self).model_fields["max_iters"].default  # what a form sends along
        if self.epochs is not None and self.max_iters != default:
            raise ValueError(f"epochs and max_iters {self.max_iters} are both given; leave one out")
        return self

    @model_validator(mode="after")
    def _ranks_have_work(self) -> Self:
        if self.parallel == "none" and self.processes > 1:
            raise ValueError(f"processes {self.processes} with parallel none; set ddp or fsdp")
        if self.parallel == "fsdp" and self.reduction == "tree":
            raise ValueError("reduction tree wants whole gradients, which fsdp has not; set ddp")
        if self.parallel == "fsdp" and self.sample_prompts:
            raise ValueError("sample_prompts want a whole model, which fsdp has not; leave out")
        return self


class Preset(GPTConfig, TrainConfig):
    """One flat file as the seed shows it: a name, an architecture, training values."""

    name: str = "custom"
    """What people call this preset."""

    def architecture(self) -> Architecture:
        """Return the part that decides which weights exist."""
        return Architecture(**{k: getattr(self, k) for k in Architecture.model_fields})

    def gpt(self, architecture: Architecture | None = None) -> GPTConfig:
        """Return what the model is built from: ``architecture`` (default: own), own dropout."""
        own = {key: getattr(self, key) for key in GPTConfig.model_fields}
        return GPTConfig(**own | (architecture or self.architecture()).model_dump())


# Data: what is read, how it is written down, and which of its tokens are learned.
Role = Literal["system", "user", "assistant", "tool"]
Format = Literal[
    "auto", "chat", "messages", "alpaca", "tagged", "text",
    "prompt_completion", "sharegpt", "tree", "mapping",
]  # fmt: skip


class MaskPolicy(Frozen):
    """Whose tokens the model learns to write; a pure rule over spans (law 1)."""

    roles: tuple[Role, ...] = ("assistant",)
    """Roles whose content is supervised; tool results never are."""
    last_turn_only: bool = False
    """Supervise only the last turn of the roles in each conversation; a turn that leaves no token
    is none."""
    end_of_turn: bool = True
    """Supervise the token that ends such a turn; without it the model never stops."""
    reasoning: bool = True
    """Supervise reasoning parts."""
    tool_calls: bool = True
    """Supervise tool calls."""
    text: bool = True
    """Supervise plain-text documents (pretraining text replayed in a chat mix)."""

    @model_validator(mode="after")
    def _roles_are_sound(self) -> Self:
        if "tool" in self.roles:
            raise ValueError("role 'tool' is never supervised; a tool's result is not written")
        if len(set(self.roles)) < len(self.roles):
            raise ValueError(f"roles {', '.join(self.roles)}: expected each role once")
        return self


class FieldMapping(Frozen):
    """Where an unknown file keeps its turns; paths use dots, ``a.b`` is row["a"]["b"]."""

    turns: str = "messages"
    """Field that holds the list of turns (nested lists are flattened)."""
    role: str = "role"
    """Field of a turn that says who speaks."""
    text: str = "content"
    """Field of a turn that holds the text."""
    roles: dict[str, Role] = Field(default_factory=dict)
    """What each found role means; empty: the roles are already named as here."""
    by_order: bool = False
    """Roles are speakers' ids: first to speak is the user, second the assistant."""
    join: str | None = "\n"
    """Text between consecutive turns of one role when joined; null refuses such turns."""


class Source(Frozen):
    """One kind of raw input: a file, folder, glob, or the project's generated exercises."""

    path: str = ""
    """File, folder or glob; inside ``package`` where that is given."""
    package: str | None = None
    """Installed Python package that holds the files; located, never imported."""
    exercises: Literal["text", "chat"] | None = None
    """Generated exercises, as plain-text lines or as conversations, instead of files."""
    count: int = Field(default=0, ge=0)
    """How many exercises to generate."""
    seed: int = 0
    """Seed of the generated exercises."""
    format: Format = "auto"
    """Input format; auto decides by content and says what it decided."""
    mapping: FieldMapping | None = None
    """Where the turns are, for format "mapping"."""
    name: str = ""
    """Name in statistics; default: the file's or package's name."""
    weight: float = Field(default=1.0, gt=0.0, le=1e6)
    """How often each token is seen relative to the other sources; 1 is natural."""
    licence: str = ""
    """Licence of the data, kept in the lineage."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if bool(self.path) == bool(self.exercises):
            raise ValueError("a source has either a path or exercises")
        return self


class PrepareConfig(Frozen):
    """How raw files become a dataset."""

    sources: tuple[Source, ...] = Field(min_length=1)
    """What to read, in order."""
    tokenization: str = "gpt2"
    """gpt2, byte, char, cl100k_base, o200k_base or bpe:N (trained on the corpus)."""
    tokenizer_from: str | None = None
    """Dataset or model folder whose tokenizer and template are used instead."""
    template: str = "mypt"
    """mypt, chatml, llama3, alpaca, plain, or a template file."""
    val_fraction: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of rows that go to val, by the hash of their content, so twins never cross."""
    shard_tokens: int = Field(default=10_000_000, ge=1, le=10**12)
    """Tokens after which a new shard begins."""


class Preparation(Frozen):
    """Who prepares data: no digest depends on it (DESIGN.md D94)."""

    engine: Literal["serial", "process", "dask"] = "process"
    """This process; processes of this machine, for inputs that are worth it; or Dask's workers."""
    workers: int = Field(default=0, ge=0, le=1024)
    """How many processes; 0 is one a core."""
    address: str = ""
    """Dask only: the scheduler's, such as tcp://host:8786; empty starts workers here."""

    @model_validator(mode="after")
    def _address_is_of_dask(self) -> Self:
        if self.address and self.engine != "dask":
            raise ValueError(f"address {self.address!r} with engine {self.engine}; expected dask")
        return self


# Pipeline: the stages together, what both models are asked, and the files that say it all.
class EvaluateConfig(Frozen):
    """How checkpoints are compared."""

    exercises: int = Field(default=200, ge=0)
    """Held-out generated questions asked of each model, over all tasks; 0 asks none."""
    exercises_seed: int = 0
    """Seed of the exercises; the same as the sources'."""
    max_tokens: int = Field(default=32, ge=1)
    """Longest answer."""
    prompts: tuple[str, ...] = ()
    """Prompts whose answers are shown."""
    eval_iters: int = Field(default=50, ge=0)
    """Batches of 32 rows of the validation split to score; 0 scores all of it."""
    sets: dict[str, str] = Field(default_factory=dict)
    """Further datasets whose validation splits both models are scored on: folders by name."""
    harness: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness that each model is asked: names, or YAML files of tasks."""
    gate: bool = False
    """Flows only: let the fine-tuned model become the champion where the gate finds it better."""
    gate_first: Literal["promote", "refuse"] = "promote"
    """What becomes of a model whose pipeline has champions, but none that reads its tokenizer."""


class PipelineConfig(Frozen):
    """One whole run: base corpus, chat data, two trainings, an evaluation."""

    name: str = Field(default="pipeline", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$")
    """Prefix of the datasets' and models' names, which are names of folders."""
    base: PrepareConfig
    """Plain text for pretraining."""
    chat: PrepareConfig
    """Conversations for fine-tuning; its tokenizer is always the base's."""
    mask: MaskPolicy = MaskPolicy()
    """Whose tokens the fine-tuning learns."""
    pretrain: Preset
    """Architecture and training of the base model."""
    sft: Preset
    """Training of the chat model; the architecture is the base model's."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """What is asked of both models."""
    preparation: Preparation = Preparation()
    """Who prepares the data of both."""

    def tuning(self) -> Preset:
        """Return what fine-tuning has: own values, the base's architecture, masks by default."""
        masked = {"use_loss_mask": self.sft.use_loss_mask is not False}
        return self.sft.model_copy(update=dict(self.pretrain.architecture()) | masked)


def load_config(path: str | Path) -> Preset:
    """Read a preset such as ``configs/tiny_sft.json``; JSON with ``//`` comments.

    Raises:
        ConfigError: If the file is missing, is no JSON, or holds an unknown or wrong value.
    """
    return read_config(Path(path), Preset, "configs/tiny_sft.json")


def load_pipeline(path: str | Path) -> PipelineConfig:
    """Read a pipeline config; ``"preset": "FILE"`` in a stage starts from that preset.

    Raises:
        ConfigError: As :func:`load_config`.
    """
    path = Path(path)
    values = read_json(path, "configs/demo.json")
    for stage in ("pretrain", "sft"):
        inner = values.get(stage)
        if isinstance(inner, dict) and "preset" in inner:
            base = read_json(path.parent / str(inner["preset"]), "configs/tiny_sft.json")
            values[stage] = override(base, {k: v for k, v in inner.items() if k != "preset"})
    return parse_config(values, PipelineConfig, str(path))
