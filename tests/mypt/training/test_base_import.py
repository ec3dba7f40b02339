"""Small random models made by transformers and tokenizers become bases, and go back again."""

import json
from pathlib import Path

import pytest
import torch

from flows.cli import main
from mypt.data.tokenizer import Tokenizer, load_tokenizer
from mypt.data.vocabularies.huggingface import hf_vocabulary
from mypt.errors import CheckpointError, ConfigError
from mypt.evaluation.proof.proof import prove_mask
from mypt.home import checkpoint_to_use
from mypt.inference.huggingface.exports import export_hf
from mypt.inference.huggingface.imports import read_base
from mypt.inference.huggingface.tensors import Tensors
from mypt.provenance.reproduction import reproduce
from mypt.provenance.trace import trace
from mypt.training.base_import import adopt_adapter, base_of, licence_of, on_base
from mypt.training.checkpoints.checkpoint import load_model
from mypt.training.lineage import read_lineage
from mypt.training.loop import train
from mypt.training.plan import plan_run
from tests.mypt.conftest import prepare_chat
from tests.mypt.inference.huggingface.families import FAMILIES, make

transformers = pytest.importorskip("transformers", reason="pip install 'mypt[dev]'")
tokenizers = pytest.importorskip("tokenizers")

CORPUS = [
    f"the answer to question {i} is {i * 7}, isn't it? caf\xe9 \u65e5\u672c" for i in range(300)
]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MODELS = {
    "gpt2": lambda n: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=n, n_positions=32, n_embd=16, n_layer=2, n_head=2)
    ),
    "llama": lambda n: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=n, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
            rms_norm_eps=1e-5, rope_theta=50_000.0,
        )
    ),
}  # fmt: skip


def make_tokenizer(pattern=None, size=400):
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    stages = tokenizers.pre_tokenizers
    if pattern is None:
        made.pre_tokenizer = stages.ByteLevel(add_prefix_space=False)
    else:
        split = stages.Split(tokenizers.Regex(pattern), "isolated")
        bytes_ = stages.ByteLevel(add_prefix_space=False, use_regex=False)
        made.pre_tokenizer = stages.Sequence([split, bytes_])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=stages.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    made.add_special_tokens(["<|endoftext|>"])
    return made


@pytest.fixture(params=MODELS)
def theirs(request, tmp_path):
    """A folder that transformers wrote, and what it wrote it from."""
    folder = tmp_path / request.param
    tokenizer = make_tokenizer(None if request.param == "gpt2" else LLAMA3)
    torch.manual_seed(1)
    model = MODELS[request.param](tokenizer.get_vocab_size()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder, model, tokenizer


def logits(model, ids):
    with torch.no_grad():
        found = model(ids)
    return found[0] if isinstance(found, tuple) else found.logits


def test_ids_are_those_of_tokenizers(theirs):
    folder, _, tokenizer = theirs
    ours = Tokenizer(hf_vocabulary(folder), load_tokenizer("byte").template)
    for text in (
        *CORPUS,
        "  a\n\n b\r\n 123456 don't DON'T \t ",
        "\u65e5\u672c \U0001f600",
        "x" * 99,
    ):
        assert ours.encode(text).tolist() == tokenizer.encode(text).ids
    assert ours.end_of_text == tokenizer.token_to_id("<|endoftext|>")


def test_a_base_from_transformers_is_trained_and_goes_back(theirs, tmp_path, tiny):
    folder, model, tokenizer = theirs
    data = prepare_chat(tmp_path, tokenization=f"hf:{folder}")
    plan = plan_run(tiny(max_iters=2), "chat", data, init_from=f"hf:{folder}")
    base, ours, _ = load_model(plan.parent.path)
    n, ids = model.config.vocab_size, torch.tensor([tokenizer.encode(CORPUS[0]).ids[:30]])
    torch.testing.assert_close(logits(base, ids)[..., :n], logits(model, ids), atol=1e-4, rtol=0)
    embedding = base.transformer.wte.weight
    for token in ("<User>", "</Assistant>"):
        row = embedding[ours.special_tokens[token]]
        torch.testing.assert_close(row, embedding[:n].mean(0))
    said = next(line for line in plan.inherited if line.startswith("new tokens begin"))
    assert "</Assistant> read" in said
    assert "learned 0" not in said.partition("</Assistant> ")[2].partition(",")[0]
    assert "<Tool>" in next(line for line in plan.inherited if "never reads" in line)

    before = embedding.detach().clone()
    list(train(plan))
    after, ours, checkpoint = load_model("chat")
    moved = (after.transformer.wte.weight - before).abs().amax(1) > 1e-4
    assert moved[ours.special_tokens["<User>"]]
    assert moved[ours.special_tokens["<Assistant>"]]

    links = [
        link for link in trace(checkpoint.path, verify=True).links if link.kind == "checkpoint"
    ]
    files = links[0].links[0].links
    assert {file.name for file in files} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    }  # fmt: skip
    assert all(file.verified for file in files)

    export_hf(tmp_path / "out", after.config, dict(after.named_parameters()), ours, card="")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(logits(back, ids), logits(after, ids), atol=1e-4, rtol=0)
    again = read_base(tmp_path / "out")
    for name, parameter in after.named_parameters():
        assert torch.equal(again.weights[name], parameter)
    assert hf_vocabulary(tmp_path / "out").tokens == ours.vocabulary.tokens


@pytest.fixture(params=FAMILIES)
def base(request, tmp_path):
    """A folder of each family with a tokenizer beside it."""
    make(request.param, tmp_path / "base")
    make_tokenizer(size=270).save(str(tmp_path / "base" / "tokenizer.json"))
    return tmp_path / "base"


def test_a_tuned_base_is_proved_packed_stopped_traced_made_again_and_exported(base, tmp_path, tiny):
    data = prepare_chat(tmp_path, n=12, tokenization=f"hf:{base}")
    assert prove_mask(data, rows=4, block_size=16).ok
    preset = tiny(max_iters=3, checkpoint_interval=1, batching="packed", eval_interval=3)
    made = [
        plan_run(preset, name, data, init_from=f"hf:{base}") for name in ("straight", "stopped")
    ]
    list(train(made[0]))
    list(train(made[1], should_stop=iter([False, False, True]).__next__))
    list(train(made[1]))
    (straight, _, end), (again, _, _) = (load_model(name) for name in ("straight", "stopped"))
    for name, parameter in straight.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name
    assert straight.config.block_size == 16
    assert straight.config.longest > 16

    read = torch.tensor(end.tokenizer.encode("".join(CORPUS))[:40].astype(int))[None]
    segments = torch.tensor([[0] * 17 + [1] * 23])
    changed = read.clone()
    changed[0, 3] = read[0, 4]
    with torch.no_grad():
        packed, other = (straight(ids, segments=segments)[0] for ids in (read, changed))
    assert torch.equal(packed[0, 17:], other[0, 17:])
    assert not torch.equal(packed[0, :17], other[0, :17])

    links = trace(end.path, verify=True).links
    assert all(file.verified for link in links for deeper in link.links for file in deeper.links)
    found = reproduce(end.path, tmp_path / "again")
    assert [stage.outcome for stage in found.stages] == ["same"] * 3, found.stages

    wanted = {"base": base_of(end.lineage), "card": ""}
    given = (tmp_path / "out", straight.config, end.weights, end.tokenizer)
    if json.loads((base / "config.json").read_text())["model_type"] == "qwen2":
        with pytest.raises(ConfigError, match="of every Qwen2 model"):  # in our own template
            export_hf(*given, **wanted)
        return
    export_hf(*given, **wanted)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.arange(40)[None]
    torch.testing.assert_close(logits(back, ids), logits(straight, ids), rtol=1e-5, atol=2e-5)


def test_rows_longer_than_the_base_holds_want_stretched_positions(theirs, tmp_path, tiny):
    folder, _, _ = theirs
    data = prepare_chat(tmp_path, tokenization=f"hf:{folder}")
    with pytest.raises(ConfigError, match="block_size is 64; expected at most 32, which is what"):
        plan_run(tiny(block_size=64), "a", data, init_from=f"hf:{folder}")
    stretched = {"kind": "linear", "factor": 2.0}
    asked = tiny(block_size=64, rope_scaling=stretched)
    if folder.name == "gpt2":
        with pytest.raises(ConfigError, match="expected at most 32"):
            plan_run(asked, "a", data, init_from=f"hf:{folder}")
    else:
        made = plan_run(asked, "a", data, init_from=f"hf:{folder}").preset
        assert (made.block_size, made.longest, made.rope_scaling.factor) == (64, 64, 2.0)


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\ntags: [a]\nlicense: apache-2.0\nb: c\n---\nlicense: other\n", "apache-2.0"),
        ("---\nlicense: 'llama3.2'\n---\n", "llama3.2"), ("# A\nlicense: mit\n", ""), (None, ""),
    ],
)  # fmt: skip
def test_a_lineage_names_the_licence_that_a_base_states(card, licence, tmp_path):
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert licence_of(tmp_path) == licence


def test_an_imported_base_has_its_licence_in_its_lineage(theirs, tmp_path, tiny):
    folder, _, _ = theirs
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    data = prepare_chat(tmp_path, tokenization=f"hf:{folder}")
    parent = plan_run(tiny(), "a", data, init_from=f"hf:{folder}").parent
    (source,) = read_lineage(Path(parent.path)).dataset.sources
    assert source.licence == "mit"


def test_the_same_base_is_read_once_and_a_lineage_says_that_it_was_imported(theirs, tmp_path, tiny):
    folder, _, _ = theirs
    data = prepare_chat(tmp_path, tokenization=f"hf:{folder}")
    first = plan_run(tiny(), "a", data, init_from=f"hf:{folder}").parent
    second = plan_run(tiny(), "b", data, init_from=f"hf:{folder}").parent
    assert (first.path, first.digest) == (second.path, second.digest)
    assert read_lineage(Path(first.path)).dataset.kind == "import"


def test_a_dataset_of_another_tokenizer_is_refused(theirs, tmp_path, tiny):
    with pytest.raises(ConfigError, match="prepare the dataset again with --tokenization hf:"):
        plan_run(tiny(), "chat", prepare_chat(tmp_path), init_from=f"hf:{theirs[0]}")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba'; expected one of gpt2, llama, "),
        (
            {"hidden_act": "gelu", "activation_function": "relu"},
            "expected '(silu|gelu_new)'",
        ),
        ({"rope_parameters": {"rope_type": "llama3"}, "scale_attn_weights": False}, "expected"),
    ],
)
def test_a_model_with_other_parts_is_refused(theirs, change, named):
    path = theirs[0] / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=named):
        read_base(theirs[0])


def test_a_name_that_is_nowhere_is_refused_without_a_download(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match=r"nothing is downloaded|no folder"):
        load_tokenizer("hf:nobody/nothing-here")


@pytest.fixture(params=["lfm2", "mixtral", "gemma", "gemma 4"])
def foreign(request, tmp_path):
    """A folder of a model that no family is, with a tokenizer beside it."""
    make(request.param, tmp_path / "base", dtype="bfloat16")
    make_tokenizer(size=270).save(str(tmp_path / "base" / "tokenizer.json"))
    return tmp_path / "base"


def test_a_module_of_transformers_is_trained_stopped_traced_made_again_and_exported(
    foreign, tmp_path, tiny
):
    data = prepare_chat(tmp_path, n=12, tokenization=f"hf:{foreign}")
    preset = tiny(
        max_iters=3, checkpoint_interval=1, batching="packed", eval_interval=3, dropout=0.0,
        base="transformers", sample_prompts=("say 3",),
    )  # fmt: skip
    made = [
        plan_run(preset, name, data, init_from=f"hf:{foreign}") for name in ("straight", "stopped")
    ]
    first, *_ = list(train(made[0]))
    name = json.loads((foreign / "config.json").read_text())["architectures"][0]
    said = [note for note in first.notes if note.startswith(name)]
    assert len(said) == 1
    whole = "reads a row's conversations together" in said[0]
    assert whole == name.startswith("Gemma"), said
    list(train(made[1], should_stop=iter([False, False, True]).__next__))
    list(train(made[1]))
    (straight, _, end), (again, _, _) = (load_model(name) for name in ("straight", "stopped"))
    for name, parameter in straight.named_parameters():
        assert torch.equal(parameter, dict(again.named_parameters())[name]), name
    assert (straight.config.block_size, straight.config.longest) == (16, 128)

    links = trace(end.path, verify=True).links
    assert all(file.verified for link in links for deeper in link.links for file in deeper.links)
    found = reproduce(end.path, tmp_path / "again")
    assert [stage.outcome for stage in found.stages] == ["same"] * 3, found.stages

    made_by = [one.code.libraries for one in (end.lineage, end.lineage.parent.lineage)]
    assert {libraries["transformers"] for libraries in made_by} == {transformers.__version__}

    record = base_of(end.lineage)
    export_hf(tmp_path / "out", straight.config, end.weights, end.tokenizer, base=record, card="")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="float32")
    ids = torch.arange(40)[None]
    low = {k: v.bfloat16().float() for k, v in end.weights.items()}
    with torch.no_grad():
        for name, parameter in straight.named_parameters():
            parameter.copy_(low[name])
    torch.testing.assert_close(
        logits(back.eval(), ids), logits(straight, ids), rtol=1e-5, atol=2e-5
    )
    assert record.dtype == "bfloat16"
    theirs, ours = (Tensors(folder).held for folder in (foreign, tmp_path / "out"))
    assert theirs.keys() == ours.keys()
    assert {held.dtype for held in ours.values()} == {"BF16"}
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    kept = json.loads((foreign / "config.json").read_text())
    assert {key for key in kept if values.get(key) != kept[key]} <= {
        "eos_token_id", "bos_token_id", "pad_token_id", "dtype",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"dropout": 0.1}, "base transformers with dropout 0.1; expected 0.0"),
        ({"compile": True}, "base transformers with compile True"),
        (
            {"weight_dtype": "bfloat16", "dtype": "auto"},
            "base transformers with weight_dtype bfloat16",
        ),
        ({"parallel": "fsdp"}, "base transformers with parallel fsdp; expected ddp"),
    ],
)
def test_what_a_module_of_transformers_cannot_do_is_refused(changes, named, tiny):
    with pytest.raises(ValueError, match=named):
        tiny(**{"base": "transformers", "dropout": 0.0} | changes)


def test_a_module_of_transformers_without_a_base_is_refused(plan):
    with pytest.raises(
        ConfigError, match="base transformers is read from its base, and there is none"
    ):
        plan(base="transformers", dropout=0.0)


OLD_WAYS = pytest.mark.filterwarnings("ignore::FutureWarning")
"""In which peft asks transformers."""


@pytest.fixture
def adapter(tmp_path):
    """A base with a tokenizer and an adapter of peft's beside it, as peft left them."""
    peft = pytest.importorskip("peft", reason="pip install peft")
    base = tmp_path / "base"
    made = make_tokenizer()
    model = MODELS["llama"](made.get_vocab_size())
    model.save_pretrained(base)
    made.save(str(base / "tokenizer.json"))
    config = peft.LoraConfig(r=3, target_modules="all-linear", init_lora_weights=False)
    theirs = peft.get_peft_model(model, config)
    theirs.peft_config["default"].base_model_name_or_path = str(base)
    theirs.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", theirs.eval()


@OLD_WAYS
def test_an_adapter_is_adopted_on_the_base_that_it_names(adapter):
    folder, theirs = adapter
    place = adopt_adapter(folder, None)
    assert adopt_adapter(folder, None) == place
    model, _, found = load_model(place)
    ids = torch.randint(model.config.vocab_size, (2, 20))
    with torch.no_grad():
        assert (model(ids)[0] - theirs(ids).logits).abs().max() < 1e-5
    assert not (place / "model.safetensors").exists()
    assert [source.format for source in found.lineage.dataset.sources] == ["peft"]
    link = trace(place, verify=True)
    assert link.ok
    assert [below.kind for below in link.links] == ["source", "checkpoint"]


@OLD_WAYS
def test_what_is_trained_on_an_adopted_adapter_is_made_again(adapter, tmp_path, tiny):
    folder, _ = adapter
    data = prepare_chat(tmp_path, tokenization=f"hf:{tmp_path / 'base'}", template="plain")
    base = plan_run(tiny(lora={"rank": 2}), "first", data, init_from=f"hf:{tmp_path / 'base'}")
    place = adopt_adapter(folder, Path(base.parent.path), "taken")
    for _ in train(plan_run(tiny(max_iters=2), "on", data, init_from="taken")):
        pass
    found = reproduce(checkpoint_to_use("on"), tmp_path / "again")
    assert found.ok
    assert [stage.name for stage in found.stages[1:3]] == ["base base", "adapter adapter"]
    assert read_lineage(place).parents == 1


def test_an_adapter_of_ours_finds_its_base_by_digest_and_no_other_will_do(tmp_path, plan, finish):
    finish(plan("base", max_iters=2))
    finish(plan("other", max_iters=3))
    finish(plan("tuned", init_from="base", lora={"rank": 2}, max_iters=2))
    main(["export", "tuned", str(tmp_path / "out"), "--to", "peft"])
    place = adopt_adapter(tmp_path / "out", None)
    assert read_lineage(place).parent.model_name == "base"
    with pytest.raises(CheckpointError, match=r"an adapter of weights .*name its own base"):
        adopt_adapter(tmp_path / "out", "other")
    with pytest.raises(ConfigError, match="another model; name a new one with --model_name"):
        adopt_adapter(tmp_path / "out", "base", "other")
    tuned, again = (load_model(name)[2].weights for name in ("tuned", place))
    assert all(torch.equal(tuned[name], again[name]) for name in tuned)
    assert on_base("tuned", "base").parent.name == "tuned"
    assert on_base(tmp_path / "out", "base") == place
    with pytest.raises(ConfigError, match=r"an adapter of base step 2, weights"):
        on_base("tuned", "other")
    with pytest.raises(ConfigError, match="whole weights and no adapter"):
        on_base("other", "base")
