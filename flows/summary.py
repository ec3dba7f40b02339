"""The last page of a run on the terminal: figures, dialogues, digests, and where all lies."""

import json
from pathlib import Path

from rich.console import Console

from mypt.evaluation.report import render_report
from mypt.evaluation.scores import EvaluationReport, Summary
from mypt.home import home
from tasks.evaluation import summary_path


def show_summary(summary: Summary) -> None:
    """Print what a run came to; the last line is ``summary: PATH``."""
    path = summary_path(summary)
    console = Console(highlight=False)
    report = EvaluationReport.model_validate(json.loads(Path(summary.evaluation).read_bytes()))
    console.print()
    console.print(render_report(report))
    model = Path(summary.checkpoint).parent.name
    lines = [
        "",
        f"mask density: {summary.mask_density:.3f} of the chat data's tokens are supervised",
        *(f"digest of {name}: {digest[:16]}" for name, digest in summary.digests.items()),
        f"checkpoint: {summary.checkpoint}",
        f"reports: {path.parent}",
        f"everything lies in {home()}; see it in both UIs with: mypt up",
        f"ask the model with: mypt generate {model} --prompt 'What is tanok backwards?'",
        f"summary: {path}",
    ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
