"""One step that learns an adapter, against our own full step and against peft's."""

import os
from collections.abc import Iterator
from importlib.metadata import version

import torch
from generating import SMOLLM2
from harness import Line, Work, extra_bytes, interleave, judge, ratio
from masked_step import spans

from mypt.config import GPTConfig, Lora, TrainConfig
from mypt.model.gpt import GPT
from mypt.model.lora import adapt
from mypt.training.optim import make_optimizer, narrow

ROWS, TOKENS, DENSITY = 2, 512, 0.3
LORA = Lora()


def lines(*, quick: bool) -> Iterator[Line]:
    """Yield the lines of this area."""
    for bf16 in (True,) if quick else (False, True):
        steps: dict[str, Work] = {"ours": OurStep(LORA, bf16), "full": OurStep(None, bf16)}
        steps["peft"] = PeftStep(bf16)
        memory = {name: extra_bytes(step) / 2**20 for name, step in steps.items() if not step()}
        seconds = interleave(steps, 1 if quick else 3)
        kept = "bfloat16, frozen weights too" if bf16 else "float32"
        for peer, named, reach in (
            ("full", "our own full step", 1 / 0.75),
            ("peft", f"transformers with peft {version('peft')}", 1.5),
        ):
            found = ratio(seconds, "ours", peer)
            yield Line(
                work=f"LoRA step, rank {LORA.rank}, SmolLM2-135M's sizes, {ROWS} x {TOKENS},"
                f" density {DENSITY}, {kept}",
                against=named,
                reach=f">= {reach:.3g}",
                measured=str(found),
                met=judge(found.median, reach),
                note=f"{min(seconds['ours']):.3g} processor seconds; {memory['ours']:.0f} and"
                f" {memory[peer]:.0f} MiB beside weights and moments",
            )


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and the mask of supervised targets, the same on either side."""
    torch.manual_seed(0)
    return torch.randint(SMOLLM2.vocab_size, (ROWS, TOKENS)), spans((ROWS, TOKENS), DENSITY)


class OurStep:
    """Forward, backward, clipping and AdamW of what is learned."""

    def __init__(self, lora: Lora | None, bf16: bool) -> None:
        config = GPTConfig(**SMOLLM2.model_dump(), dropout=0.0)
        self.bf16, self.model = bf16, GPT(config)
        if lora:
            adapt(self.model, config, lora)
            narrow(self.model, "bfloat16" if bf16 else "float32")
        self.optimizer = make_optimizer(self.model, TrainConfig())
        self.ids, self.mask = rows()

    def to(self, device: str) -> "OurStep":
        """Move model and rows; the optimizer has no state yet."""
        self.model, self.ids, self.mask = (
            one.to(device) for one in (self.model, self.ids, self.mask)
        )
        return self

    def __call__(self) -> None:
        with torch.autocast(self.ids.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            loss = self.model.loss(self.ids, self.ids.roll(-1, 1), self.mask).mean
        loss.backward()
        learned = [weight for weight in self.model.parameters() if weight.requires_grad]
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class PeftStep:
    """The same in transformers, whose adapters are peft's."""

    def __init__(self, bf16: bool) -> None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        from peft import LoraConfig, get_peft_model
        from transformers import LlamaConfig, LlamaForCausalLM

        from mypt.inference.huggingface.layouts import write_layout

        base = LlamaForCausalLM(LlamaConfig(**write_layout("llama", SMOLLM2)))
        if bf16:
            base = base.to(torch.bfloat16)
        config = LoraConfig(
            r=LORA.rank, lora_alpha=LORA.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        self.bf16, self.model = bf16, get_peft_model(base, config).train()
        self.learned = [weight for weight in self.model.parameters() if weight.requires_grad]
        ours = sum(
            w.numel() for w in OurStep(LORA, bf16=False).model.parameters() if w.requires_grad
        )
        assert sum(weight.numel() for weight in self.learned) == ours
        assert {weight.dtype for weight in self.learned} == {torch.float32}
        self.optimizer = torch.optim.AdamW(self.learned, lr=3e-4, fused=True)
        ids, mask = rows()
        self.ids = ids
        self.labels = torch.where(mask.roll(1, 1).bool(), ids, -100)

    def to(self, device: str) -> "PeftStep":
        """Move model and rows; the optimizer has no state yet."""
        self.model, self.ids, self.labels = (
            one.to(device) for one in (self.model, self.ids, self.labels)
        )
        return self

    def __call__(self) -> None:
        with torch.autocast(self.ids.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            loss = self.model(input_ids=self.ids, labels=self.labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.learned, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
