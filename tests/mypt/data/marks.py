"""Rows as they are written, with what is learned of them between brackets."""

from mypt.config import MaskPolicy
from mypt.data.conversations import Row
from mypt.data.masking import mask_from_spans
from mypt.data.preparation.encoding import encode_rows
from mypt.data.tokenizer import load_tokenizer

BYTES = load_tokenizer("byte")


def marked(row: Row) -> str:
    """A row as it is written, what is learned of it between brackets."""
    encoded = encode_rows([row], BYTES, many=False)
    mask = mask_from_spans(encoded.spans, len(encoded.tokens), MaskPolicy())
    text, before = "", 0
    for token, bit in zip(encoded.tokens.tolist(), mask.tolist(), strict=True):
        text += ("", "⟦", "⟧")[bit - before] + BYTES.decode([token])
        before = bit
    return text + "⟧" * before


def asked(question: str, answer: str, system: str = "") -> str:
    """A round of two, by hand; what stands between brackets is learned."""
    told = f"<System>{system}</System>" if system else ""
    return f"{told}<User>{question}</User><Assistant>⟦{answer}</Assistant>⟧"
