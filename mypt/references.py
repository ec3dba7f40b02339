"""What one stage hands to the next: a place and the digest its reader checks (law 7)."""

from typing import Annotated

from pydantic import AfterValidator

from mypt.home import place_now
from mypt.parsing import Frozen

HomePath = Annotated[str, AfterValidator(place_now)]
"""A path that follows its home when that is moved: read again, it is where it lies now."""


class DatasetRef(Frozen):
    """A dataset folder and the digest that its metadata must carry."""

    path: HomePath
    """The dataset's folder."""
    digest: str
    """The digest of its metadata, 64 hexadecimal digits."""


class CheckpointRef(Frozen):
    """A checkpoint folder and the digest of its lineage."""

    path: HomePath
    """The step folder, such as ``runs/models/chat/step_000500``."""
    digest: str
    """The digest of ``lineage.json``, which holds the digest of every other file."""
    step: int
    """Optimizer steps that made it."""


class BaseRecord(Frozen):
    """What a model that came from elsewhere looked like there, so that it can go back so."""

    config: str
    """Its ``config.json``, the very text."""
    generation: str = ""
    """Its ``generation_config.json``, where it had one."""
    dtype: str = "float32"
    """Type of its numbers."""
    tokenizer: str = ""
    """Its ``tokenizer_config.json`` as JSON, without chat template and code, where it had one."""
    flags: str = ""
    """How added tokens of its ``tokenizer.json`` are read that are not as most, as JSON by name."""
