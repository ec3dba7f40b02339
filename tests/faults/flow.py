"""The Prefect flow in miniature, run in children, and what it leaves."""

import json
import os
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.states import AwaitingRetry, Crashed

from flows import pipeline
from mypt import files, home
from mypt.data.manifest import METADATA
from mypt.inspection.validation import REPORT
from tests.faults import children
from tests.faults.pipeline import EVALUATE, TINY, draw_nothing, write_raw_files

_KINDS = ("base", "chat")
_WITH_IDS = ("lineage.json", "trainer_state.json")
_DATA = {"tokenization": "byte", "val_fraction": 0.25, "shard_tokens": 500}


@dataclass
class Flow:
    """One pipeline config over raw files of its own, and its home."""

    root: Path

    def __post_init__(self) -> None:
        self.home = self.root / "home"
        self.config = self.root / "small.json"
        write_raw_files(self.root)
        texts, chats = ([{"path": str(self.root / f"{n}.jsonl")}] for n in ("texts", "chats"))
        values = {
            "name": "small",
            "base": _DATA | {"sources": texts},
            "chat": _DATA | {"sources": chats},
            "pretrain": TINY,
            "sft": TINY | {"use_loss_mask": True, "batching": "packed"},
            "evaluate": EVALUATE.model_dump(mode="json"),
        }
        files.write_json(self.config, values)

    def run(self) -> Path:
        """Run the flow in a child; return where its summary lies."""
        return self.tell()[0]

    def tell(self, before: Callable[[], object] = lambda: None) -> tuple[Path, list[str]]:
        """Run the flow in a child; return where its summary lies, and the lines it printed.

        Args:
            before: Called in the child first.
        """
        summary, printed = children.ask(lambda: self.work(before))
        return Path(summary), printed.splitlines()

    def work(self, before: Callable[[], object] = lambda: None) -> tuple[str, str]:
        """Run the flow in this process."""
        os.environ["MYPT_HOME"] = str(self.home)
        draw_nothing()
        before()
        with redirect_stdout(StringIO()) as out:
            path = pipeline.run_pipeline(self.config).path
        return str(path), out.getvalue()

    def begin(self) -> str:
        """Return the id of a new flow run that nobody has begun, as a deployment makes one."""
        parameters = {"config": str(self.config)}
        with get_client(sync_client=True) as client:
            return str(client.create_flow_run(pipeline.sft_pipeline, parameters=parameters).id)

    def go_on(self, run_id: str) -> str:
        """Do a flow run in this process, as Prefect's runner does; return its summary's path."""
        os.environ["MYPT_HOME"] = str(self.home)
        draw_nothing()
        with get_client(sync_client=True) as client:
            run = client.read_flow_run(UUID(run_id))
        with redirect_stdout(StringIO()):
            made = run_flow(pipeline.sft_pipeline, flow_run=run, parameters=run.parameters)
        return str(made.path)

    def retry(self, run_id: str) -> None:
        """Ask Prefect for what ``prefect flow-run retry`` asks after a process was killed."""
        with get_client(sync_client=True) as client:
            for state in (Crashed(), AwaitingRetry()):
                client.set_flow_run_state(run_id, state, force=True)

    def outputs(self, summary: Path) -> dict[str, Path]:
        """Return where each stage left its result, by the name of its task run."""
        values = json.loads(summary.read_bytes())
        texts, chats = (self._dataset(values["digests"][f"{kind}_dataset"]) for kind in _KINDS)
        tokens = self._dataset(json.loads((chats / METADATA).read_bytes())["parent"])
        base, chat = (Path(values[model]["checkpoint"]["path"]).parent for model in ("base", "sft"))
        return {
            "tokenize base corpus small-base": texts,
            "tokenize chat data small-chat": tokens,
            "mask chat data small-chat": chats,
            "validate chat data small-chat": chats / REPORT,
            "pretrain small-base": base,
            "fine-tune small-chat": chat,
            "evaluate small": summary.parent,
        }

    def print_of(self, summary: Path) -> dict[str, str]:
        """Return the digest of all data and weights: what holds no id of a service."""
        return {
            f"{name}/{file.name}": files.digest_file(file)
            for name, output in self.outputs(summary).items()
            for file in used_files(output)
            if not name.startswith("evaluate") and file.name not in _WITH_IDS
        }

    def _dataset(self, digest: str) -> Path:
        (found,) = (
            path.parent
            for path in (self.home / "datasets").glob(f"small-*/{METADATA}")
            if json.loads(path.read_bytes())["digest"] == digest
        )
        return found


def used_files(output: Path) -> list[Path]:
    """Return the files of a result that a later stage reads."""
    if output.is_file():
        return [output]
    if (output / "latest").exists():
        output = home.checkpoint_to_use(output)
    return sorted(path for path in output.rglob("*") if path.is_file() and path.name != REPORT)
