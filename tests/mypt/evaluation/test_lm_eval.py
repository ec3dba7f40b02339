"""lm-eval's own model classes, on the export and on the server, answer as ours does."""

import math

import pytest
import torch

from mypt.config import GPTConfig, MaskPolicy
from mypt.data.tokenizer import load_tokenizer, train_tokenizer
from mypt.inference.huggingface.exports import export_hf
from mypt.model.gpt import GPT
from tests.mypt.inference.echo import serving

pytest.importorskip("lm_eval", reason="pip install 'mypt[eval]'")
pytest.importorskip("accelerate", reason="lm-eval's --model hf needs accelerate")
pytest.importorskip("tenacity", reason="pip install 'lm-eval[api]'")

from mypt.evaluation.harness import MyptLM
from tests.mypt.evaluation.test_harness import request, tasks  # noqa: F401

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
BLOCK = 64
PAIRS = [
    ("What is", " two"), ("What is ", "two"), ("a", " b"), ("Grüß", " Gott"), ("q", "w" * 30),
    ("x" * 90, "y"),
]  # fmt: skip
TEXTS = ["Hi", "The quick brown fox.", "Grüß Gott " * 4, "The quick brown fox. " * 12]


@pytest.fixture(scope="module", params=["byte", "bpe:300"])
def world(request, tmp_path_factory):
    """The model class of ours, lm-eval's on the export, and lm-eval's on the server."""
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    name = request.param
    texts = ["Which fox is quick and brown? Grüß Gott, said the fox. " * 9]
    tokenizer = load_tokenizer(name) if name == "byte" else train_tokenizer(name, texts)
    torch.manual_seed(0)
    sizes = {"block_size": BLOCK, "n_layer": 2, "n_head": 2, "n_embd": 16}
    model = GPT(GPTConfig(vocab_size=tokenizer.n_vocab, **sizes)).eval()
    model.gate = type("Open", (), {"set": lambda _: None})()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("export")
    weights = dict(model.named_parameters())
    out = folder / "hf"
    export_hf(out, model.config, weights, tokenizer, policy=MaskPolicy(), card="", form="plain")
    exported = HFLM(pretrained=str(out), device="cpu", dtype="float32", batch_size=2)
    with serving(model, tokenizer, at_once=4) as url:
        asked = LocalCompletionsAPI(
            base_url=f"{url}/v1/completions", model="echo", tokenizer=str(out),
            tokenizer_backend="huggingface", max_length=BLOCK + 1, batch_size=2,
        )  # fmt: skip
        yield MyptLM((model, tokenizer), "plain"), exported, asked


def test_a_continuation_is_as_likely_to_all_three(world):
    ours, exported, asked = world
    pairs = [request("loglikelihood", *pair) for pair in PAIRS]
    expected = ours.loglikelihood(pairs)
    for other in (exported, asked):
        n = len(pairs) if other is exported else len(pairs) - 1  # it keeps a place to write in
        found = other.loglikelihood(pairs[:n])
        assert [one for one, _ in found] == pytest.approx([v for v, _ in expected[:n]], abs=1e-3)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected[:n]]


def test_a_rolling_text_is_as_likely_to_all_three(world):
    ours, exported, asked = world
    texts = [request("loglikelihood_rolling", text) for text in TEXTS]
    expected = ours.loglikelihood_rolling(texts)
    assert exported.loglikelihood_rolling(texts) == pytest.approx(expected, abs=1e-3)
    fitting = texts[:2]
    assert asked.loglikelihood_rolling(fitting) == pytest.approx(expected[:2], abs=1e-3)


def test_what_is_written_is_the_same(world):
    ours, exported, asked = world
    how = {"until": ["q"], "max_gen_toks": 7, "do_sample": False}
    said = ["Which", "The fox", "quick and", "said ", "brown?", "Gott, s", "a", "9"]

    def written(model):
        return model.generate_until([request("generate_until", t, dict(how)) for t in said])

    expected = written(ours)
    plain = [n for n, text in enumerate(expected) if "<" not in text]  # others drop such tokens
    assert len(plain) > 3
    for other in (exported, asked):
        found = written(other)
        assert [found[n] for n in plain] == [expected[n] for n in plain]


def test_a_task_of_a_file_has_the_same_figures(world, tasks):  # noqa: F811
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    paths, _ = tasks
    names = ["our_choices", "our_text"]
    figures = []
    for model in world:
        found = simple_evaluate(
            model=model, tasks=[str(paths[name]) for name in names], log_samples=False,
            task_manager=TaskManager(include_defaults=False), bootstrap_iters=0,
        )  # fmt: skip
        results = found["results"]
        figures.append([results[names[0]]["acc,none"], results[names[1]]["bits_per_byte,none"]])
    assert all(math.isfinite(value) for one in figures for value in one)
    assert figures[1] == pytest.approx(figures[0], rel=1e-4)
    assert figures[2] == pytest.approx(figures[0], rel=1e-4)
