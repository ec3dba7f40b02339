"""How weights are learned, and the preset: a file that holds this and the architecture."""

import math
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from mypt.config.architecture import Architecture, GPTConfig
from mypt.config.data import later
from mypt.parsing import Frozen, read_config

Normalisation = Literal["token", "conversation", "source"] | dict[str, float]
"""What weighs the same in a loss; numbers by source: each source as much as it is given."""

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj")
"""The matrices of a block, as Llama calls them in transformers."""


class Lora(Frozen):
    """Adapters: a frozen matrix W computes as W + s B A, and only A and B are learned."""

    rank: int = Field(default=16, ge=1, le=100_000)
    """Rows of A and columns of B."""
    alpha: float = Field(default=32.0, gt=0.0, le=1e6)
    """Numerator of s."""
    targets: str | tuple[str, ...] = "all-linear"
    """Which matrices of the blocks: all-linear, or a list of q_proj, k_proj, v_proj, o_proj,
    up_proj, gate_proj and down_proj."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of what A reads that is left out while it is trained."""
    tokens: tuple[int, ...] | None = None
    """Ids of tokens whose rows of the embedding, and of a head of its own, are learned too. Left
    out: those of the chat template, unless that is the base's own or the base has read chats."""
    rslora: bool = False
    """Divide alpha by the root of the rank, not by the rank (arXiv 2312.03732)."""

    @property
    def scale(self) -> float:
        """By what B A is multiplied."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @model_validator(mode="after")
    def _targets_are_matrices(self) -> Self:
        said = self.targets
        if said != "all-linear" and (isinstance(said, str) or not said or {*said} - {*TARGETS}):
            raise ValueError(
                f"targets {said}: expected all-linear, or a list of {', '.join(TARGETS)}"
            )
        if self.tokens and (len(set(self.tokens)) < len(self.tokens) or min(self.tokens) < 0):
            raise ValueError(f"tokens {self.tokens}: expected distinct ids from 0 on")
        return self


class TrainConfig(Frozen):
    """How a model is trained; nothing here changes which weights exist."""

    use_loss_mask: bool | None = None
    """Learn only what the dataset's masks supervise, or every token. Left out, a fine-tuning in
    a flow uses the masks, and any other training on data that have some is refused."""
    batching: Literal["windows", "packed"] = "windows"
    """Random windows, or whole conversations packed into rows, each once an epoch."""
    length_policy: Literal["split", "keep_system", "drop", "keep_last_turns", "error"] | None = None
    """Packed only: what becomes of a conversation longer than block_size; keep_system splits it
    and lets each piece begin with its system message, which is read and not learned. Left out:
    keep_system where that repeats a message, else split, which then is the same."""
    max_lost: float = Field(default=0.05, ge=0.0, le=1.0)
    """Packed only: largest share of supervised tokens that length_policy may lose. A validation
    warns where more answers than this share lose their question."""
    normalisation: Normalisation = "token"
    """What weighs the same: each token as its mask says; or, packed only, each conversation, or
    each source, where an object such as {"web": 1, "books": 3} gives shares."""
    objective: Literal["nll", "dft", "eaft", "dpo", "ipo", "simpo"] = "nll"
    """What a token's loss is: its negative log-likelihood, or that times its probability (dft), or
    times the entropy of the prediction (eaft), of which evaluations report nll. Of preference
    pairs, packed: by how much the chosen side is to be likelier (dpo, ipo, simpo)."""
    beta: float = later(0.1, gt=0.0, le=1000.0)
    """Pairs only: how strongly a log-ratio counts; the higher, the nearer to the reference."""
    label_smoothing: float = later(0.0, ge=0.0, lt=0.5)
    """dpo and simpo: share of pairs whose sides are taken to be swapped."""
    gamma: float = later(0.5, ge=0.0, le=1000.0)
    """simpo only: the margin by which the chosen side is to be ahead."""
    reference: Literal["base", "none"] = later("base")
    """dpo and ipo: what likelihoods are compared with: the model that training began with, whose
    weights are then kept beside, or nothing."""
    z_loss: float = Field(default=0.0, ge=0.0, le=1.0)
    """Added to each token's loss: so many times the squared logarithm of its normaliser."""
    kl_base: float = Field(default=0.0, ge=0.0, le=1000.0)
    """Added: so many times the divergence from the base model's predictions, whose weights are then
    kept beside."""
    lora: Lora | None = later(None)
    """Adapters to learn beside a base model's weights, which stay as they are."""
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
    warmup: float | None = later(None, ge=0.0, le=1.0)
    """Share of max_iters that they take, instead of warmup_iters."""
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
    """Micro-batches an evaluation scores, of each split; of random weights at most five."""
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
    weight_dtype: Literal["float32", "bfloat16", "nf4"] = later("float32")
    """What the matrices of products are kept in. bfloat16 takes half of their memory and rounds
    each update up or down by chance; gradients, moments and all else stay float32. nf4, by
    bitsandbytes and for lora alone, keeps those of the blocks, frozen, in four bits."""
    optimizer: Literal["adamw", "adamw8bit"] = later("adamw")
    """AdamW with moments in float32; or, by bitsandbytes, those of large matrices but embeddings in
    eight bits, a quarter of the memory."""
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

    @property
    def of_pairs(self) -> bool:
        """Whether it learns from preference pairs."""
        return self.objective in ("dpo", "ipo", "simpo")

    @property
    def keeps_base(self) -> str:
        """Which knob keeps the weights that training began with beside the model's; or none."""
        if self.objective in ("dpo", "ipo") and self.reference == "base":
            return f"objective {self.objective} with reference base"
        return f"kl_base {self.kl_base:g}" if self.kl_base else ""

    def with_steps(self, steps: int) -> Self:
        """Return this config for so many steps, with what it says as a share of them as steps."""
        update: dict[str, object] = {}
        if self.epochs is not None:
            update = {"epochs": None, "max_iters": steps}
        if self.warmup is not None:
            update |= {"warmup": None, "warmup_iters": round(self.warmup * steps)}
        return self.model_copy(update=update)

    @model_validator(mode="after")
    def _lengths_are_said_once(self) -> Self:
        for one, other in (("epochs", "max_iters"), ("warmup", "warmup_iters")):
            default = type(self).model_fields[other].default  # what a form sends along
            said = getattr(self, other)
            if getattr(self, one) is not None and said != default:
                raise ValueError(f"{one} and {other} {said} are both given; leave one out")
        return self

    @model_validator(mode="after")
    def _weights_fit_products(self) -> Self:
        if self.weight_dtype == "nf4" and not self.lora:
            raise ValueError("weight_dtype nf4 learns nothing itself; set lora, or bfloat16")
        if self.weight_dtype == "bfloat16" and self.dtype == "float32":
            raise ValueError("weight_dtype bfloat16 wants dtype bfloat16 or auto; dtype is float32")
        if self.weight_dtype == "bfloat16" and self.parallel != "none" and not self.lora:
            raise ValueError(
                f"weight_dtype bfloat16 with parallel {self.parallel}, whose processes add up"
                " gradients in that type; set parallel none, or weight_dtype float32"
            )
        return self

    @model_validator(mode="after")
    def _ranks_have_work(self) -> Self:
        if self.parallel == "none" and self.processes > 1:
            raise ValueError(f"processes {self.processes} with parallel none; set ddp or fsdp")
        if self.parallel == "fsdp" and self.reduction == "tree":
            raise ValueError("reduction tree wants whole gradients, which fsdp has not; set ddp")
        if self.parallel == "fsdp" and self.sample_prompts:
            raise ValueError("sample_prompts want a whole model, which fsdp has not; leave out")
        if self.parallel == "fsdp" and self.lora and self.weight_dtype != "float32":
            raise ValueError(
                f"weight_dtype {self.weight_dtype} with parallel fsdp, which parts float32 alone;"
                " set ddp, or weight_dtype float32"
            )
        if self.parallel == "fsdp" and self.optimizer != "adamw":
            raise ValueError(f"optimizer {self.optimizer} with parallel fsdp; set ddp, or adamw")
        if self.parallel == "fsdp" and self.keeps_base:
            raise ValueError(f"{self.keeps_base} wants a whole base, which fsdp has not; set ddp")
        return self

    @model_validator(mode="after")
    def _pairs_are_compared(self) -> Self:
        if not self.of_pairs:
            return self
        expected = {"batching": "packed", "normalisation": "token", "z_loss": 0.0, "kl_base": 0.0}
        if self.objective == "ipo":
            expected["label_smoothing"] = 0.0
        for name, value in expected.items():
            if (found := getattr(self, name)) != value:
                raise ValueError(
                    f"objective {self.objective} with {name} {found}; set {name} {value}"
                )
        if self.use_loss_mask is False:
            raise ValueError(f"objective {self.objective} compares answers; set use_loss_mask true")
        return self

    @model_validator(mode="after")
    def _normalisation_is_sound(self) -> Self:
        if self.normalisation != "token" and self.batching != "packed":
            raise ValueError(f"normalisation {self.normalisation} wants batching packed; set it")
        shares = self.normalisation
        if isinstance(shares, dict) and (not shares or min(shares.values()) <= 0):
            raise ValueError("normalisation: expected a share above 0 for a source, or more")
        return self


class Preset(GPTConfig, TrainConfig):
    """One flat file as the seed shows it: a name, an architecture, training values."""

    name: str = "custom"
    """What people call this preset."""

    @model_validator(mode="after")
    def _module_can(self) -> Self:
        if self.base == "transformers":
            only = {"compile": False, "weight_dtype": "float32", "dropout": 0.0, "lora": None}
            if self.parallel == "fsdp":
                only |= {"parallel": "ddp"}
            for key, value in only.items():
                if getattr(self, key) != value:
                    raise ValueError(
                        f"base transformers with {key} {getattr(self, key)}; expected {value},"
                        " since its module is trained as it is"
                    )
        return self

    def architecture(self) -> Architecture:
        """Return the part that decides which weights exist."""
        return Architecture(**{k: getattr(self, k) for k in Architecture.model_fields})

    def gpt(self, architecture: Architecture | None = None) -> GPTConfig:
        """Return what the model is built from: ``architecture`` (default: own), own dropout."""
        own = {key: getattr(self, key) for key in GPTConfig.model_fields}
        return GPTConfig(**own | (architecture or self.architecture()).model_dump())


def load_config(path: str | Path) -> Preset:
    """Read a preset such as ``configs/tiny_sft.json``; JSON with ``//`` comments.

    Raises:
        ConfigError: If the file is missing, is no JSON, or holds an unknown or wrong value.
    """
    return read_config(Path(path), Preset, "configs/tiny_sft.json")
