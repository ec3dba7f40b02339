"""What the training room trains on, which is planned here."""

from tests.mypt.training.conftest import (  # noqa: F401
    _own_home,
    chat_dataset,
    finish,
    make_chat,
    other_dataset,
    plan,
    tiny,
)
