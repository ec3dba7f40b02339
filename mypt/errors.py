"""The errors a user can meet; each message is one line that says what to do.

MyptError
├── ConfigError        a knob, flag or name is wrong
├── DataError          a file of conversations or tokens is wrong
│   ├── ManifestError  a dataset's metadata and its files disagree
│   └── MaskError      a loss mask is missing, short or senseless
├── CheckpointError    a model folder is incomplete, damaged or foreign
├── MissingError       a dataset, model or folder that was named is not there
└── TrainingError      a step produced what no step should produce
"""

from mypt.text import one_line


class MyptError(Exception):
    """What was found, what was expected, where, and what to do, in one line.

    Names and values come from files and may hold anything: see :func:`mypt.text.one_line`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class ConfigError(MyptError):
    """A configuration value, flag or name cannot be used."""


class DataError(MyptError):
    """Input or prepared data cannot be used."""


class ManifestError(DataError):
    """A dataset's metadata is missing, damaged, or disagrees with its files."""


class MaskError(DataError):
    """A loss mask is missing, does not fit its tokens, or supervises nothing."""


class CheckpointError(MyptError):
    """A checkpoint is incomplete, damaged, or does not fit what is asked of it."""


class MissingError(MyptError):
    """What was named is not there; a program ends as after any other wrong use."""


class MissingFileError(DataError, MissingError):
    """There is no file or folder of that name to read data from."""


class MissingDatasetError(ManifestError, MissingError):
    """There is no dataset of that name."""


class MissingModelError(CheckpointError, MissingError):
    """There is no model of that name."""


class TrainingError(MyptError):
    """Training met a value it must not learn from, such as an infinite loss."""
