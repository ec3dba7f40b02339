"""The whole pipeline in miniature, by the core's own functions, and what it leaves on disk."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mypt import files
from mypt.config import EvaluateConfig, MaskPolicy, PrepareConfig, Preset, Source
from mypt.data.dataset import mask, open_dataset, tokenize
from mypt.errors import DataError
from mypt.evaluation import report_page
from mypt.evaluation.report import EVALUATION, compare, write_report
from mypt.inspection.validation import REPORT, validate
from mypt.references import CheckpointRef, DatasetRef
from mypt.training.checkpoints.folder import BEST, LATEST
from mypt.training.events import Finished
from mypt.training.lineage import verify_folder
from mypt.training.loop import train
from mypt.training.plan import RunPlan, plan_run

STAGES = ("tokenize", "mask", "validate", "pretrain", "fine-tune", "evaluate")
TINY = {
    "block_size": 64, "vocab_size": 272, "n_layer": 1, "n_head": 2, "n_embd": 16, "dropout": 0.1,
    "batch_size": 4, "grad_accumulation": 2, "max_iters": 8, "learning_rate": 1e-2,
    "warmup_iters": 2, "eval_interval": 4, "eval_iters": 2, "checkpoint_interval": 3,
    "keep_checkpoints": 1, "threads": 1, "device": "cpu", "dtype": "float32",
}  # fmt: skip
PRETRAIN = Preset.model_validate(TINY)
SFT = Preset.model_validate(TINY | {"use_loss_mask": True, "batching": "packed"})
Datasets = tuple[DatasetRef, DatasetRef]
EVALUATE = EvaluateConfig(exercises=3, max_tokens=2, eval_iters=2)


@dataclass
class House:
    """One ``MYPT_HOME`` that trials ruin and find empty again, and the raw files beside it."""

    root: Path
    home: Path = field(init=False)

    def __post_init__(self) -> None:
        self.home = self.root / "home"
        write_raw_files(self.root)

    def clear(self) -> None:
        """Remove whatever the trial before left."""
        shutil.rmtree(self.home, ignore_errors=True)

    def run(self, before: Callable[[str], object] = lambda _: None) -> None:
        """Run all stages, or go on where they stopped.

        Args:
            before: Called with the name of each stage as it begins.
        """
        draw_nothing()
        base, chat = self.make_datasets(before)
        before("validate")
        report = validate(Path(chat.path), block_size=SFT.block_size)
        if not report.ok:
            raise DataError(f"{chat.path}: {'; '.join(str(found) for found in report.findings)}")
        files.write_sealed(Path(chat.path) / REPORT, report.model_dump(mode="json"))
        before("pretrain")
        base_model = finish(plan_pretrain(base))
        before("fine-tune")
        chat_model = finish(plan_sft(chat, base_model))
        before("evaluate")
        write_report(compare(base_model, chat_model, chat, EVALUATE), self.home / "evaluation")

    def make_datasets(self, before: Callable[[str], object] = lambda _: None) -> Datasets:
        """Make the datasets of texts and of masked conversations."""
        os.environ["MYPT_HOME"] = str(self.home)
        before("tokenize")
        base, talk = (self._tokenize(name) for name in ("texts", "chats"))
        before("mask")
        return base, mask(talk.path, MaskPolicy(), self.home / "datasets/chat", reuse=True)

    def _tokenize(self, name: str) -> DatasetRef:
        config = PrepareConfig(
            sources=(Source(path=str(self.root / f"{name}.jsonl")),),
            tokenization="byte",
            val_fraction=0.25,
            shard_tokens=500,
        )
        return tokenize(config, self.home / "datasets" / name, reuse=True)

    def print_of(self) -> dict[str, str]:
        """Return the digest of every file under a final name, by its path."""
        return {
            str(path.relative_to(self.home)): files.digest_file(path)
            for path in sorted(self.home.rglob("*"))
            if path.is_file() and is_final(path.relative_to(self.home))
        }

    def check_whole(self) -> None:
        """Check that nothing under a final name is half-written."""
        for folder in final_folders(self.home / "datasets"):
            open_dataset(folder)
            if (folder / REPORT).exists():
                files.read_sealed(folder / REPORT)
        for model in final_folders(self.home / "models"):
            for step in model.glob("step_*"):
                verify_folder(step)
            for pointer in (LATEST, BEST):
                if (model / pointer).exists():
                    verify_folder(model / (model / pointer).read_text().strip())
        report = self.home / "evaluation" / EVALUATION
        if report.exists():
            json.loads(report.read_bytes())


def draw_nothing() -> None:
    """Leave the plots out, for the rest of this process's life.

    Drawing takes half of a pipeline this small, and neither reads nor writes what a fault meets.
    """
    report_page.plots = lambda _report: {}  # type: ignore[assignment]


def write_raw_files(root: Path) -> None:
    """Write a corpus of texts and one of conversations."""
    texts = [{"text": f"The number {i} follows {i - 1}."} for i in range(60)]
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"say {i:02d}"},
                {"role": "assistant", "content": f"{i:02d} it is"},
            ]
        }
        for i in range(60)
    ]
    for name, rows in (("texts", texts), ("chats", chats)):
        path = root / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def plan_pretrain(base: DatasetRef) -> RunPlan:
    """Plan the base model."""
    return plan_run(PRETRAIN, "base", base.path, dataset_digest=base.digest)


def plan_sft(chat: DatasetRef, base: CheckpointRef) -> RunPlan:
    """Plan the chat model."""
    return plan_run(SFT, "chat", chat.path, init_from=base.path, dataset_digest=chat.digest)


def finish(plan: RunPlan) -> CheckpointRef:
    """Train to the end."""
    *_, last = train(plan)
    assert isinstance(last, Finished)
    return last.checkpoint


def is_final(path: Path) -> bool:
    """Return whether a path, counted from the home, is a result: no lock and nothing temporary."""
    return not any(part.startswith(".") for part in path.parts)


def final_folders(folder: Path) -> list[Path]:
    """Return the folders in ``folder`` under final names."""
    if not folder.is_dir():
        return []
    return [
        path for path in sorted(folder.iterdir()) if path.is_dir() and is_final(Path(path.name))
    ]
