"""A folder that plain ``transformers`` loads, written without it."""

from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file

from mypt import files
from mypt.config import GPTConfig, MaskPolicy
from mypt.data.tokenizer import Tokenizer
from mypt.inference.hf_template import chat_template
from mypt.inference.hf_tokenizer import tokenizer_config, tokenizer_json
from mypt.inference.hf_weights import Weights, family_of, hf_config, to_hf

WEIGHTS: Final = "model.safetensors"
CONFIG: Final = "config.json"
TOKENIZER: Final = "tokenizer.json"


def export_hf(
    folder: Path,
    config: GPTConfig,
    weights: Weights,
    tokenizer: Tokenizer,
    *,
    policy: MaskPolicy = MaskPolicy(),
    card: str,
) -> None:
    """Write weights, config, tokenizer, chat template and card of a model.

    Args:
        folder: A new folder.
        config: The model's.
        weights: Its parameters by name; a tied one once.
        tokenizer: The model's own.
        policy: Whose tokens the template's ``{% generation %}`` blocks mark.
        card: ``README.md``.

    Raises:
        ConfigError: If transformers has no class for the model.
        FileExistsError: If ``folder`` exists.
    """
    family_of(config)  # before anything is written
    ends = sorted({tokenizer.stop_id, tokenizer.end_of_text})
    ids = {"bos_token_id": None, "eos_token_id": ends, "pad_token_id": tokenizer.end_of_text}
    with files.new_folder(folder) as new:
        theirs = {n: t.to(torch.float32) for n, t in to_hf(config, weights).items()}
        save_file(theirs, new / WEIGHTS, metadata={"format": "pt"})
        files.write_json(new / CONFIG, hf_config(config) | ids)
        files.write_json(new / "generation_config.json", ids | {"do_sample": False})
        files.write_bytes(new / TOKENIZER, files.canonical_json(tokenizer_json(tokenizer)))
        block_size = config.block_size
        files.write_json(new / "tokenizer_config.json", tokenizer_config(tokenizer, block_size))
        template = chat_template(tokenizer.template, policy)
        files.write_bytes(new / "chat_template.jinja", template.encode())
        files.write_bytes(new / "README.md", card.encode())
