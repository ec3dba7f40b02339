"""Every knob: frozen models of five pages, and the two files that hold them."""

from mypt.config.architecture import MAX_BLOCK, Architecture, GPTConfig, RopeScaling
from mypt.config.data import (
    MOST_WEIGHT,
    UNWEIGHED,
    WEIGHED,
    FieldMapping,
    Format,
    Markup,
    MaskPolicy,
    Preparation,
    PrepareConfig,
    Reading,
    Role,
    Source,
    Voice,
    later,
)
from mypt.config.pipeline import EvaluateConfig, PipelineConfig, PreferConfig, load_pipeline
from mypt.config.stages import PipelineStage, StageConfig, StageGate
from mypt.config.training import (
    TARGETS,
    Lora,
    Normalisation,
    Preset,
    TrainConfig,
    load_config,
)

__all__ = [
    "MAX_BLOCK",
    "MOST_WEIGHT",
    "TARGETS",
    "UNWEIGHED",
    "WEIGHED",
    "Architecture",
    "EvaluateConfig",
    "FieldMapping",
    "Format",
    "GPTConfig",
    "Lora",
    "Markup",
    "MaskPolicy",
    "Normalisation",
    "PipelineConfig",
    "PipelineStage",
    "PreferConfig",
    "Preparation",
    "PrepareConfig",
    "Preset",
    "Reading",
    "Role",
    "RopeScaling",
    "Source",
    "StageConfig",
    "StageGate",
    "TrainConfig",
    "Voice",
    "later",
    "load_config",
    "load_pipeline",
]
