"""One optimizer step of supervised fine-tuning, end to end, against TRL's trainer."""

import tempfile
from collections.abc import Iterator

import torch
from harness import Line, interleave, judge, ratio
from masked_step import GPT2, SMALL, Setting, Step, spans

from mypt.config import GPTConfig


def lines(*, quick: bool) -> Iterator[Line]:
    """Yield the lines of this area."""
    if quick:
        yield from _against_trl(Setting("small", SMALL, 8, 0.3, bf16=True), 2, 3.0)
        return
    for density, reach in ((0.1, 2.5), (0.3, 3.0), (1.0, 2.5)):
        yield from _against_trl(Setting("small", SMALL, 8, density, bf16=True), 3, reach)
    yield from _against_trl(Setting("124M", GPT2, 2, 0.3, bf16=True), 2, 1.8)


def _against_trl(setting: Setting, rounds: int, reach: float) -> Iterator[Line]:
    variants = {"ours": Step(setting)}
    for recompute in (True, False):
        variants[f"trl {recompute}"] = TrlStep(setting, recompute=recompute)
    seconds = interleave(variants, rounds)
    for recompute in (True, False):
        found = ratio(seconds, "ours", f"trl {recompute}")
        yield Line(
            work=f"masked SFT step, {setting}",
            against="TRL SFTTrainer, " + ("its defaults" if recompute else "no checkpointing"),
            reach=f">= {reach}" if recompute else "beside",
            measured=str(found),
            met=judge(found.median, reach) if recompute else "-",
        )


class TrlStep:
    """The trainer's own forward, loss and backward pass, its optimizer, its clipping."""

    def __init__(self, setting: Setting, *, recompute: bool) -> None:
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        torch.manual_seed(0)
        shape = (setting.rows, setting.model.block_size)
        ids = torch.randint(setting.model.vocab_size - 1, shape)
        labels = torch.where(spans(shape, setting.density).bool(), ids, -100)
        rows = {"input_ids": ids.tolist(), "labels": labels.tolist()}
        config = SFTConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=setting.rows,
            max_length=setting.model.block_size,
            gradient_checkpointing=recompute,
            bf16=setting.bf16,
            use_cpu=True,
            report_to=[],
        )
        self.trainer = SFTTrainer(
            model=peer(setting.model),
            args=config,
            train_dataset=Dataset.from_dict(rows),
            processing_class=_tokenizer(setting.model.vocab_size),
        )
        self.trainer.create_optimizer()
        self.trainer.current_gradient_accumulation_steps = 1  # its loop would say so
        self.trainer.model.train()
        self.batch = next(iter(self.trainer.get_train_dataloader()))

    def __call__(self) -> None:
        trainer = self.trainer
        trainer.training_step(trainer.model, dict(self.batch))
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)


def peer(config: GPTConfig) -> torch.nn.Module:
    """Return transformers' GPT-2 of the same sizes."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = GPT2Config(
        vocab_size=config.vocab_size,
        n_positions=config.block_size,
        n_embd=config.n_embd,
        n_layer=config.n_layer,
        n_head=config.n_head,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(sizes)


def _tokenizer(size: int) -> object:
    """Return a tokenizer of as many words as the model has; the rows are ids already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w1", eos_token="w2")
