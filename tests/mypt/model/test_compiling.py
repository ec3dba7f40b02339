"""Compiled blocks: the same results, and no graph more after the first batches."""

import pytest
import torch
from torch._dynamo.utils import counters

from mypt.config import GPTConfig
from mypt.errors import ConfigError
from mypt.inference.generation import generate_batch
from mypt.model.compiling import compile_blocks, compile_reading, missing_compiler
from mypt.model.gpt import GPT

GPT2 = GPTConfig(block_size=32, vocab_size=61, n_layer=2, n_head=4, n_embd=48, bias=True)
MODERN = GPT2.model_copy(
    update={"pos_encoding": "rope", "norm_type": "rmsnorm", "mlp_type": "swiglu", "qk_norm": True}
)

# torch asks a residual stream for its gradient while it traces, and warns itself
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute")


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()
    counters.clear()


def build(config):
    torch.manual_seed(0)
    return GPT(config)


def batch(seed, rows=3, length=32):
    generator = torch.Generator().manual_seed(seed)
    idx, targets = torch.randint(61, (2, rows, length), generator=generator).unbind()
    density = 0.1 + 0.15 * (seed % 6)
    mask = (torch.rand(rows, length, generator=generator) < density).to(torch.uint8)
    mask[0, :2] = 1  # a single supervised token has graphs of its own
    segments = torch.randint(4, (rows, length), generator=generator).sort(dim=1).values
    return idx, targets, mask, segments


def learn(model, idx, targets, mask, segments):
    model.zero_grad()
    model.loss(idx, targets, mask, segments=segments).total.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def look(model, idx, targets, mask, segments):
    model.eval()
    with torch.no_grad():
        model.loss(idx, targets, mask, segments=segments)
    model.train()


@pytest.mark.parametrize(
    "config", [GPT2, pytest.param(MODERN, marks=pytest.mark.slow)], ids=["gpt2", "modern"]
)
def test_no_graph_is_made_after_the_first_batches(config):
    """Other numbers of supervised tokens, of conversations, of rows and of places."""
    model = build(config)
    compile_blocks(model, backend="eager")
    for seed in range(2):
        learn(model, *batch(seed))
        look(model, *batch(seed))
    made = counters["stats"]["unique_graphs"]
    assert 0 < made == 8
    for seed in range(2, 8):
        learn(model, *batch(seed))
        look(model, *batch(seed, rows=2 + seed % 3, length=18 + seed))
    assert counters["stats"]["unique_graphs"] == made


@pytest.mark.slow
def test_all_blocks_share_their_graphs():
    made = []
    for layers in (2, 6):
        torch.compiler.reset()
        counters.clear()
        model = build(GPT2.model_copy(update={"n_layer": layers}))
        compile_blocks(model, backend="eager")
        learn(model, *batch(1))
        made.append(counters["stats"]["unique_graphs"])
    assert made[0] == made[1]


@pytest.mark.slow
@pytest.mark.parametrize("config", [GPT2, MODERN], ids=["gpt2", "modern"])
def test_compiled_blocks_give_the_same_gradients(config):
    plain, compiled = build(config), build(config)
    compile_blocks(compiled)
    for seed in range(2):
        ours, theirs = learn(compiled, *batch(seed)), learn(plain, *batch(seed))
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_weights_keep_their_names():
    model = build(GPT2)
    before = list(model.state_dict())
    compile_blocks(model)
    assert list(model.state_dict()) == before


def test_a_machine_without_a_compiler_says_what_is_missing(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda _name: None)
    monkeypatch.setenv("CXX", "c++9")
    assert missing_compiler(torch.device("cpu")) == "a C++ compiler (c++9)"
    assert missing_compiler(torch.device("mps")) == "a backend for mps"


def test_a_compiler_that_fails_says_so_in_one_line():
    def broken(_graph, _inputs):
        raise RuntimeError("Command:\nc++ -O3\n\nx.cpp:3:10: fatal error: Python.h: no such file")

    model = build(GPT2)
    compile_blocks(model, backend=broken)
    with pytest.raises(ConfigError, match=r"Python\.h: no such file; mend the compiler"):
        model.hidden(torch.zeros(1, 4, dtype=torch.int64))


PROMPTS = [[1, 2, 3], [4] * 9, [5, 6], [7]]


def test_generation_keeps_its_graphs_whatever_the_rows_and_lengths():
    model = build(GPT2)
    compile_reading(model, backend="eager")
    for rows in (1, 2, 4):
        generate_batch(model, PROMPTS[:rows], max_tokens=4)
    made = counters["stats"]["unique_graphs"]
    assert made in (2, 3)
    for rows, more in ((3, 20), (1, 9), (2, 30)):
        generate_batch(model, PROMPTS[:rows], max_tokens=more)
    assert counters["stats"]["unique_graphs"] == made


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("config", [GPT2, MODERN], ids=["gpt2", "modern"])
def test_compiled_generation_writes_the_tokens_of_the_uncached_path(config, backend):
    model = build(config)
    alone = [naively(model, prompt, 20) for prompt in PROMPTS]
    compile_reading(model, backend)
    assert generate_batch(model, PROMPTS, max_tokens=20) == alone
    assert [generate_batch(model, [p], max_tokens=20)[0] for p in PROMPTS] == alone


@torch.no_grad()
def naively(model, prompt, n):
    model.eval()
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(model(torch.tensor([ids]))[0][0, -1].argmax()))
    return ids[len(prompt) :]
