"""The files in configs/ that carry the seed's names."""

import re
from pathlib import Path

import pytest
import torch

from mypt.config import load_config
from mypt.model.gpt import GPT
from mypt.model.parameters import n_parameters

CONFIGS = Path(__file__).parents[2] / "configs"
BASES = ("tiny", "150M", "200M", "250M_1024")
SFT = ("tiny_sft", "150M_chat_sft", "200M_chat_sft", "250M_1024_chat_sft")


@pytest.mark.parametrize("name", [n for n in BASES + SFT if n[0].isdigit()])
def test_a_name_tells_the_number_of_parameters_within_5_percent(name):
    with torch.device("meta"):
        model = GPT(load_config(CONFIGS / f"{name}.json").gpt())
    promised = int(re.match(r"(\d+)M", name).group(1)) * 1e6
    assert abs(n_parameters(model) / promised - 1) < 0.05


@pytest.mark.parametrize("name", BASES)
def test_base_presets_learn_every_token(name):
    preset = load_config(CONFIGS / f"{name}.json")
    assert (preset.dropout, preset.learning_rate) == (0.2, 3e-4)
    assert not preset.use_loss_mask
    assert preset.batching == "windows"
    assert preset.vocab_size == 50304


@pytest.mark.parametrize("name", SFT)
def test_sft_presets_learn_what_the_mask_supervises(name):
    preset = load_config(CONFIGS / f"{name}.json")
    assert (preset.dropout, preset.learning_rate) == (0.1, 3e-5)
    assert preset.use_loss_mask
    assert preset.batching == ("windows" if name == "tiny_sft" else "packed")


@pytest.mark.parametrize(("base", "sft"), zip(BASES, SFT, strict=True))
def test_each_sft_preset_fits_its_base_presets_architecture(base, sft):
    bases, tuned = (load_config(CONFIGS / f"{name}.json") for name in (base, sft))
    assert bases.architecture() == tuned.architecture()


def test_exactly_four_presets_are_for_fine_tuning():
    assert {path.stem for path in CONFIGS.glob("*sft.json")} == set(SFT)


def test_200m_is_the_seeds_16_layers_of_896():
    preset = load_config(CONFIGS / "200M.json")
    assert (preset.n_layer, preset.n_embd) == (16, 896)
    assert load_config(CONFIGS / "250M_1024.json").block_size == 1024


def test_every_preset_shows_its_comments():
    assert all("//" in (CONFIGS / f"{name}.json").read_text() for name in BASES + SFT)


def test_the_preset_for_small_chats_learns_from_random_weights():
    preset = load_config(CONFIGS / "small_chat.json")
    assert (preset.use_loss_mask, preset.batching) == (True, "packed")
    assert preset.epochs is not None
    assert preset.learning_rate >= 1e-3
    assert n_parameters(GPT(preset.gpt())) <= 1_000_000


def test_the_modern_preset_has_the_sizes_of_the_seeds_tiny_one():
    plain, modern = (load_config(CONFIGS / f"{name}.json") for name in ("tiny", "tiny_modern"))
    sizes = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "batch_size", "max_iters")
    assert [getattr(plain, key) for key in sizes] == [getattr(modern, key) for key in sizes]
    assert (modern.pos_encoding, modern.schedule) == ("rope", "trapezoid")
    assert plain.architecture() == type(plain.architecture())(n_layer=4, n_head=4, n_embd=128)
