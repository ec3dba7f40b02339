"""mypt: masked fine-tuning that can prove what a model was trained on."""

__version__ = "0.1.0"
