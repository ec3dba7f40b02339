"""Weights are mapped where they lie as here, and copied once where they do not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mypt.config import Architecture
from mypt.inference.huggingface import families
from mypt.inference.huggingface.layouts import write_layout
from mypt.inference.huggingface.weights import rows_of

_MEASURE = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from mypt.inference.huggingface.imports import read_base
torch.set_num_threads(1)
status = Path("/proc/self/status")
peak = lambda: int(status.read_text().split("VmHWM:")[1].split()[0]) << 10
read_base(Path(sys.argv[1]))  # what is loaded once, whatever the size
before = peak()
weights = read_base(Path(sys.argv[2])).weights
save_file(weights, sys.argv[3])
print((peak() - before) / sum(4 * tensor.numel() for tensor in weights.values()))
"""
MODERN = {"pos_encoding": "rope", "norm_type": "rmsnorm", "mlp_type": "swiglu"}


def write(folder, name, dtype, **sizes):
    model = Architecture(n_head=8, block_size=64, **sizes)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(write_layout(name, model)))
    tensors = {}
    for row in rows_of(families.FAMILIES[name], model):
        for there, size in zip(row.theirs, row.sizes, strict=True):
            shape = (size, *row.shape[1:])
            tensors[there] = torch.zeros(
                shape[::-1] if row.form == "turned" else shape, dtype=dtype
            )
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells a process's peak")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "changes"), [("llama", MODERN), ("gpt2", {"bias": True})])
def test_reading_and_writing_a_base_takes_little_more_than_its_weights(
    tmp_path, name, changes, dtype
):
    small = write(tmp_path / "small", name, dtype, n_layer=1, n_embd=64, vocab_size=99, **changes)
    large = write(
        tmp_path / "large", name, dtype, n_layer=9, n_embd=512, vocab_size=9999, **changes
    )
    words = [sys.executable, "-c", _MEASURE, small, large, tmp_path / "out.safetensors"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert 0.5 < float(done.stdout) <= 1.2
