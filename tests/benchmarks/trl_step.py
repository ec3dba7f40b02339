"""One optimizer step of supervised fine-tuning, end to end, against TRL's trainer."""

import os
import statistics
import tempfile
import threading
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Line, interleave, judge, ratio
from masked_step import GPT2, SMALL, Setting, spans

from mypt.config import GPTConfig, Preset
from mypt.data.exchange.adoption import adopt
from mypt.training.events import StepReport
from mypt.training.loop import train
from mypt.training.plan import plan_run


def lines(*, quick: bool) -> Iterator[Line]:
    """Yield the lines of this area."""
    if quick:
        yield from _against_trl(Setting("small", SMALL, 8, 0.3, bf16=True), 2, 3.0, (True,))
        return
    for density, reach in ((0.1, 2.5), (0.3, 3.0), (1.0, 2.5)):
        yield from _against_trl(Setting("small", SMALL, 8, density, bf16=True), 5, reach)
    yield from _against_trl(Setting("124M", GPT2, 2, 0.3, bf16=True), 3, 1.8)


def _against_trl(
    setting: Setting, rounds: int, reach: float, recomputing: Sequence[bool] = (True, False)
) -> Iterator[Line]:
    loops = {str(recompute): TrlLoop(setting, recompute=recompute) for recompute in recomputing}
    seconds = interleave({"ours": OurLoop(setting)} | loops, rounds)
    tokens = setting.rows * setting.model.block_size
    for recompute in recomputing:
        found = ratio(seconds, "ours", str(recompute))
        rates = [tokens / statistics.median(seconds[name]) for name in ("ours", str(recompute))]
        yield Line(
            work=f"masked SFT step, {setting}",
            against=f"SFTTrainer of TRL {version('trl')}, "
            + ("its defaults" if recompute else "no checkpointing"),
            reach=f">= {reach}" if recompute else "beside",
            measured=str(found),
            met=judge(found.median, reach) if recompute else "-",
            note=f"{rates[0]:.0f} and {rates[1]:.0f} tokens a processor second, each in its loop",
        )


class OurLoop:
    """One step of ``mypt train`` a call: loader, step, schedule, and the event that tells of it."""

    def __init__(self, setting: Setting) -> None:
        place = Path(tempfile.mkdtemp())
        os.environ["MYPT_HOME"] = str(place / "home")
        shape = (64 * setting.rows, setting.model.block_size)
        ids, mask = rows_of(setting, shape)
        (place / "data/train").mkdir(parents=True)
        (place / "data/val").mkdir()
        ids.numpy().astype(np.uint32).tofile(place / "data/train/shard_000.bin")
        mask.numpy().tofile(place / "data/train/shard_000_mask.bin")
        adopt(place / "data", "gpt2")
        preset = Preset(
            **setting.model.model_dump(),
            use_loss_mask=True,
            batch_size=setting.rows,
            max_iters=1_000_000,
            eval_interval=1_000_000,
            checkpoint_interval=1_000_000,
            device="cpu",
            dtype="bfloat16" if setting.bf16 else "float32",
            threads=1,
        )
        self.events = train(plan_run(preset, "benchmark", place / "data"))

    def __call__(self) -> None:
        while not isinstance(next(self.events), StepReport):
            pass


class TrlLoop:
    """One step of ``SFTTrainer.train()`` a call: its loop runs in a thread and is held between."""

    def __init__(self, setting: Setting, *, recompute: bool) -> None:
        self.trainer = trainer(setting, recompute=recompute)
        dtype = torch.bfloat16 if setting.bf16 else torch.float32
        self.asked, self.made = threading.Semaphore(0), threading.Semaphore(0)
        self.error: BaseException | None = None
        self.trainer.add_callback(_held(self.asked, self.made))
        model = self.trainer.model
        block, head = _watched(model.transformer.h[0].mlp.c_fc), _watched(model.lm_head)
        threading.Thread(target=self._train, daemon=True).start()
        self()  # its first step shows whether the settings took effect
        assert model.is_gradient_checkpointing == recompute
        assert block == [dtype] * (1 + recompute)  # a block that keeps nothing is read twice
        assert not head  # its loss, by default, makes no logits of all positions

    def __call__(self) -> None:
        self.asked.release()
        self.made.acquire()
        if self.error is not None:
            raise self.error

    def _train(self) -> None:
        self.asked.acquire()
        try:
            self.trainer.train()
        except BaseException as error:
            self.error = error
        self.made.release()


def _watched(part: torch.nn.Module) -> list[torch.dtype]:
    """Return what the types of a part's results are put into."""
    seen: list[torch.dtype] = []
    part.register_forward_hook(lambda _module, _given, out: seen.append(out.dtype))
    return seen


def _held(asked: threading.Semaphore, made: threading.Semaphore) -> object:
    """Return a callback that ends each step by waiting until the next one is asked for."""
    from transformers import TrainerCallback

    class Held(TrainerCallback):
        def on_step_end(self, *_arguments: object, **_named: object) -> None:
            made.release()
            asked.acquire()

    return Held()


def trainer(setting: Setting, *, recompute: bool) -> Any:
    """Return TRL's trainer on the same rows, all but checkpointing left as its defaults are."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    shape = (64 * setting.rows, setting.model.block_size)
    ids, mask = rows_of(setting, shape)
    labels = torch.where(mask.bool(), ids, -100)
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=setting.rows,
        max_length=setting.model.block_size,
        max_steps=1_000_000,
        **({} if recompute else {"gradient_checkpointing": False}),
        bf16=setting.bf16,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    made = SFTTrainer(
        model=peer(setting.model),
        args=config,
        train_dataset=Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()}),
        processing_class=_tokenizer(setting.model.vocab_size),
    )
    kept = [row for row in labels.tolist() if max(row) >= 0]  # it leaves out what teaches nothing
    assert made.train_dataset["labels"][:] == kept
    batch = next(iter(made.get_train_dataloader()))
    assert batch["labels"].shape == (setting.rows, setting.model.block_size)
    assert next(made.model.parameters()).dtype == torch.float32  # mixed precision, as ours
    return made


def rows_of(setting: Setting, shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random ids of gpt2's vocabulary and masks of stretches, the same on either side."""
    torch.manual_seed(0)
    return torch.randint(50257, shape), spans(shape, setting.density)


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
