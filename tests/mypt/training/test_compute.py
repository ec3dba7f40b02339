import pytest
import torch

from mypt.config import GPTConfig, TrainConfig
from mypt.errors import ConfigError
from mypt.training.compute import resolve, seed_everything, use_threads

WIDE, NARROW = GPTConfig(n_embd=128, n_head=4), GPTConfig(n_embd=64, n_head=4)
CAN = {"avx512_bf16": True, "amx_bf16": False}


def test_auto_takes_the_cpu_where_nothing_else_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve(TrainConfig(), NARROW).device.type == "cpu"


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"'mps' is not on this machine; it has .*cpu"):
        resolve(TrainConfig(device="mps"), NARROW)


@pytest.mark.parametrize(
    ("capabilities", "model", "dtype"),
    [
        (CAN, WIDE, torch.bfloat16),
        (CAN, NARROW, torch.float32),
        ({}, WIDE, torch.float32),
        ({"avx512_bf16": False, "amx_bf16": True}, WIDE, torch.bfloat16),
    ],
)
def test_auto_takes_bfloat16_where_a_cpu_step_is_quicker(monkeypatch, capabilities, model, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolve(TrainConfig(device="cpu"), model).dtype == dtype


def test_a_dtype_that_is_asked_for_is_used():
    assert resolve(TrainConfig(device="cpu", dtype="bfloat16"), NARROW).dtype == torch.bfloat16
    assert resolve(TrainConfig(device="cpu", dtype="float32"), WIDE).dtype == torch.float32


def test_threads_hold_inside_the_block_only():
    torch.set_num_threads(1)
    with use_threads(2):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 1


def test_randomness_is_a_function_of_the_key_alone():
    def draw(*key):
        seed_everything(*key)
        return torch.rand(4).tolist()

    first = draw(1, 2, 3)
    draw(5)
    assert draw(1, 2, 3) == first
    assert len({tuple(draw(*key)) for key in [(1, 2, 3), (1, 3, 2), (1, 2, 4), (0, 2, 3)]}) == 4


def test_the_record_says_where_it_ran():
    record = resolve(TrainConfig(device="cpu", dtype="float32", threads=3), NARROW).record()
    assert (record.device, record.dtype, record.threads) == ("cpu", "float32", 3)
    assert record.device_name
    assert record.machine
