"""Every family of bases against transformers' own random models, and the way back."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from mypt.data.tokenizer import load_tokenizer
from mypt.inference.huggingface import families
from mypt.inference.huggingface.exports import export_hf
from mypt.inference.huggingface.layouts import read_layout
from mypt.inference.huggingface.weights import read_row, rows_of
from tests.mypt.data.rendering.bases import CHATML
from tests.mypt.data.vocabularies.test_huggingface import samples, split, trained
from tests.mypt.inference.huggingface.families import FAMILIES, LONGEST, VOCAB, make, ours

transformers = pytest.importorskip("transformers", reason="pip install 'mypt[dev]'")
tokenizers = pytest.importorskip("tokenizers")

SEGMENTS = torch.tensor([[0] * 23 + [1] * 40, [0] * 63])


@pytest.fixture(params=FAMILIES, scope="module")
def pair(request, tmp_path_factory):
    """A folder that transformers wrote, what it wrote it from, and the same read by us."""
    folder = tmp_path_factory.mktemp("base") / "model"
    theirs = make(request.param, folder)
    model, read = ours(folder)
    return folder, theirs, model, read


def ids(n=63):
    return torch.randint(VOCAB, (2, n), generator=torch.Generator().manual_seed(2))


def spoken_by(model, folder):
    """Return a tokenizer that transformers reads as it stands beside such a model."""
    if model.config.model_type != "qwen2":
        return load_tokenizer("byte")
    own = trained(split(), size=280, normalizer=tokenizers.normalizers.NFC())
    own.save(str(folder / "tokenizer.json"))
    said = {"chat_template": CHATML, "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return load_tokenizer(f"hf:{folder}", "base")


def close(found, expected):
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@torch.no_grad()
def test_logits_are_those_of_transformers(pair):
    _, theirs, model, _ = pair
    close(model(ids())[0], theirs(ids()).logits)


@torch.no_grad()
def test_packed_conversations_have_the_logits_that_each_has_alone(pair):
    _, theirs, model, _ = pair
    found = model(ids(), segments=SEGMENTS)[0]
    for row, part in ((0, slice(0, 23)), (0, slice(23, 63)), (1, slice(0, 63))):
        close(found[row, part], theirs(ids()[row : row + 1, part]).logits[0])
    changed = ids()
    changed[0, 5] = (changed[0, 5] + 1) % VOCAB
    assert torch.equal(model(changed, segments=SEGMENTS)[0][0, 23:], found[0, 23:])


@torch.no_grad()
def test_logits_from_the_cache_are_those_of_transformers(pair):
    _, theirs, model, _ = pair
    expected, cache = theirs(ids()).logits, model.new_cache(2, 63)
    close(model.step(ids()[:, :40], cache, torch.arange(40).expand(2, -1)), expected[:, 39])
    for t in range(40, 63):
        close(model.step(ids()[:, t : t + 1], cache, torch.full((2, 1), t)), expected[:, t])


def test_the_masked_loss_and_its_gradients_are_those_of_transformers(pair):
    folder, theirs, model, _ = pair
    targets = ids().roll(-1, 1)
    mask = (torch.rand(2, 63, generator=torch.Generator().manual_seed(3)) < 0.3).to(torch.uint8)
    found = model.loss(ids(), targets, mask)
    found.total.backward()
    losses = F.cross_entropy(
        theirs(ids()).logits.flatten(0, 1), targets.flatten(), reduction="none"
    )
    expected = losses[mask.flatten().bool()].sum()
    expected.backward()
    close(found.total.detach(), expected.detach())
    slopes = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, gradient in _in_our_names(folder, slopes).items():
        mine = model.get_parameter(name).grad
        held = gradient.abs().sum(1) > 0 if name.endswith("wte.weight") else slice(None)
        # of a token that pads, transformers' embedding has no gradient
        close(mine[held], gradient[held])
    model.zero_grad()
    theirs.zero_grad()


def _in_our_names(folder, slopes):
    """Return gradients laid out as weights are; of a norm's weight less 1 it is the weight's."""
    config = json.loads((folder / "config.json").read_text())
    name, model = read_layout(config, folder)
    slopes = slopes | {"embed_out.weight": slopes.get("lm_head.weight")}
    rows = (
        row._replace(form=row.form.replace("less one", "same"))
        for row in rows_of(families.FAMILIES[name], model)
    )
    return {
        row.ours: read_row(row, model.n_head, [slopes[one] for one in row.theirs]) for row in rows
    }


@torch.no_grad()
def test_an_export_is_the_base_again(pair, tmp_path):
    folder, theirs, model, read = pair
    tokenizer = spoken_by(theirs, tmp_path)
    out = tmp_path / "out"
    weights = dict(model.named_parameters())
    export_hf(out, model.config, weights, tokenizer, base=read.base, card="")
    back, info = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert type(back) is type(theirs)
    assert not any(info.values())
    close(back.eval()(ids()).logits, theirs(ids()).logits)
    before, after = (json.loads((at / "config.json").read_text()) for at in (folder, out))
    changed = {key for key in before | after if before.get(key) != after.get(key)}
    assert changed <= {"eos_token_id", "pad_token_id"}


@torch.no_grad()
def test_an_export_without_its_config_finds_a_family_that_says_the_same(pair, tmp_path):
    _, theirs, model, _ = pair
    weights = dict(model.named_parameters())
    tokenizer = spoken_by(theirs, tmp_path)
    export_hf(tmp_path / "out", model.config, weights, tokenizer, card="")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    close(back(ids()).logits, theirs(ids()).logits)
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("e\u0301 don't I'LL 12345\r\n\r\n\tb  \n", *samples(1)):
        assert read.encode(text, add_special_tokens=False) == tokenizer.encode(text).tolist(), text


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["gpt2", "qwen3", "gemma 3", "pythia"])
def test_half_precision_in_shards_comes_in_and_goes_out_as_it_was(tmp_path, name, dtype):
    make(name, tmp_path / "in", dtype, max_shard_size="60KB")
    assert len(list((tmp_path / "in").glob("*.safetensors"))) > 1
    model, read = ours(tmp_path / "in")
    assert read.base.dtype == dtype
    weights = dict(model.named_parameters())
    export_hf(
        tmp_path / "out", model.config, weights, load_tokenizer("byte"), base=read.base, card=""
    )
    files = (tmp_path / "in").glob("*.safetensors")
    before = {n: t for file in files for n, t in load_file(file).items()}
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert torch.equal(after[key], tensor), key


def test_a_base_holds_what_its_short_factors_say_exactly(tmp_path):
    make("phi-4-mini", tmp_path)
    assert ours(tmp_path)[1].architecture.block_size == LONGEST
