"""The command that hands models and datasets to other programs; it starts no Prefect or MLflow."""

from pathlib import Path
from typing import Literal

from flows.console import Console
from mypt.errors import ConfigError


def export(source: str, out: Path, *, to: Literal["hf", "mlflow", "parquet"]) -> int:
    """Write a model or a dataset for other programs.

    Args:
        source: For hf and mlflow a model: a name, a model folder or a step folder. For parquet
            a dataset.
        out: A new folder.
        to: hf: what transformers loads. mlflow: what 'mlflow models serve' loads. parquet:
            input_ids and labels, -100 where unsupervised.
    """
    if out.exists():
        raise ConfigError(f"{out} exists and is never overwritten; name another")
    if to == "parquet":
        from mypt.data.exchange.labels import export_labels

        export_labels(Path(source), out)
    elif to == "mlflow":
        from mypt.home import checkpoint_to_use
        from mypt.training.checkpoints.checkpoint import load_checkpoint
        from tasks.pyfunc import export_mlflow

        export_mlflow(load_checkpoint(checkpoint_to_use(source)), out)
    else:
        _export_model(source, out)
    Console().print(f"written: {out}", markup=False)
    return 0


def _export_model(source: str, out: Path) -> None:
    from mypt.config import MaskPolicy
    from mypt.home import checkpoint_to_use
    from mypt.inference.huggingface.exports import export_hf
    from mypt.provenance.model_card import model_card
    from mypt.training.checkpoints.checkpoint import load_checkpoint

    found = load_checkpoint(checkpoint_to_use(source))
    mask = found.lineage.dataset.mask
    export_hf(
        out,
        found.config,
        found.weights,
        found.tokenizer,
        policy=(mask and mask.policy) or MaskPolicy(),
        card=model_card(found.lineage, stop=found.tokenizer.template.stop),
    )
