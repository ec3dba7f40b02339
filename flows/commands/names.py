"""Names of models as people type them."""

import sys
from pathlib import Path

from mypt.home import model_names, models_dir


def full_name(text: str) -> str:
    """Return the model that ``text`` means: itself, or the newest whose name begins so.

    Which one that is stands on standard error. What is the beginning of no name comes back as it
    is: whoever opens it says what there is.
    """
    if Path(text).is_dir() or (models_dir() / text).is_dir():
        return text
    found = [name for name in model_names() if name.startswith(text)]
    if not found:
        return text
    others = f", the newest of {len(found)}" if len(found) > 1 else ""
    sys.stderr.write(f"{text}: {found[0]}{others}\n")
    return found[0]


def adapted(model: str, adapter: str | None) -> str:
    """Return the model that ``model`` means, or its adapter: a model too, or a folder of peft's.

    A folder of peft's is taken in first, under a name by its content.
    """
    if adapter is None:
        return full_name(model)
    from mypt.training.base_import import on_base  # loads torch

    return str(on_base(adapter if Path(adapter).is_dir() else full_name(adapter), full_name(model)))
