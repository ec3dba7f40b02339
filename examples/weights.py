"""What the weight of questions and of ends does: nine weightings of the demo's fine-tuning data.

``python examples/weights.py`` prints the table of docs/training.md. One base, made as the demo's
is; nine fine-tunings of fewer steps, so that there is something left to learn, each with three
seeds. All are scored on the same answers of the validation split, in plain nats.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from mypt.config import EvaluateConfig, MaskPolicy, PipelineConfig, load_pipeline
from mypt.data.dataset import mask, tokenize
from mypt.evaluation.measuring import evaluate_model
from mypt.references import CheckpointRef, DatasetRef
from mypt.training.events import Finished
from mypt.training.loop import train
from mypt.training.plan import plan_run

DEMO = Path(__file__).parents[1] / "configs" / "demo.json"
PROMPTS, STOPS, SEEDS = (0.0, 0.1, 1.0), (1.0, 2.0, 4.0), (0, 1, 2)
STUDENT = 4.303
"""Of two degrees of freedom, 95 %: three seeds."""
HEADS = ("prompt", "stop", "stops found", "answers ended", "exact match", "loss")


def main() -> None:
    """Train, score and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100, help="of each fine-tuning")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    config = load_pipeline(DEMO)
    folder = Path("runs", "datasets")
    text = tokenize(config.chain[0].data, folder / "weights-text", reuse=True)
    base = _train("weights-base", text, config, asked.threads)
    chats = config.chain[1].data.model_copy(update={"tokenizer_from": text.path})
    tokens = tokenize(chats, folder / "weights-chats", reuse=True)
    plain = mask(tokens.path, MaskPolicy(), folder / "weights-plain", reuse=True)
    print(f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}", flush=True)
    for prompt in PROMPTS:
        for stop in STOPS:
            policy = _policy(prompt, stop)
            name = f"weights-{prompt:g}-{stop:g}"
            data = mask(tokens.path, policy, folder / name, reuse=True)
            rows = []
            for seed in SEEDS:
                named = f"{name}-{seed}".replace(".", "_")
                model = _train(named, data, config, asked.threads, base, seed, asked.steps)
                rows.append(_scores(model, plain, config.evaluate))
            cells = [_interval(column) for column in zip(*rows, strict=True)]
            print(f"| {prompt:g} | {stop:g} |", " | ".join(cells), "|", flush=True)


def _policy(prompt: float, stop: float) -> MaskPolicy:
    """Return a policy that gives the user's text one weight, and the assistant's ends another."""
    if not prompt:
        return MaskPolicy(weights={} if stop == 1 else {"stop": stop})
    # The user's ends weigh what the user's text does times what ends do.
    weights = {"user": prompt, "stop": stop}
    kept = {word: weight for word, weight in weights.items() if weight != 1}
    return MaskPolicy(roles=("user", "assistant"), weights=kept)


def _train(
    name: str,
    data: DatasetRef,
    config: PipelineConfig,
    threads: int,
    base: CheckpointRef | None = None,
    seed: int = 0,
    steps: int = 0,
) -> CheckpointRef:
    preset = config.chain[0 if base is None else 1].checked
    changes: dict[str, object] = {"threads": threads, "seed": seed, "keep_checkpoints": 1}
    if base is not None:
        changes |= {"max_iters": steps, "eval_interval": steps, "checkpoint_interval": steps}
    plan = plan_run(
        preset.model_copy(update=changes), name, data.path, init_from=base and base.path,
        dataset_digest=data.digest,
    )  # fmt: skip
    *_, last = train(plan)
    assert isinstance(last, Finished)
    return last.checkpoint


def _scores(model: CheckpointRef, data: DatasetRef, config: EvaluateConfig) -> tuple[float, ...]:
    found = evaluate_model(model, data, config, "chat")
    assert found.tokens.stop_recall is not None
    assert found.stop_recall is not None
    return found.tokens.stop_recall, found.stop_recall, found.exact_match["overall"], found.val_loss


def _interval(values: Sequence[float]) -> str:
    reach = STUDENT * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.3f} ± {reach:.3f}"


if __name__ == "__main__":
    main()
