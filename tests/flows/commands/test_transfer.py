"""``mypt export``: what other programs then read."""

import json
from pathlib import Path

import pytest
import torch

from flows.cli import main
from mypt.config import PrepareConfig, Preset, Source, load_config
from mypt.data.dataset import tokenize
from mypt.data.vocabularies.gguf_header import read_header
from mypt.training.checkpoints.checkpoint import load_model
from mypt.training.loop import train
from mypt.training.plan import plan_run
from tests.mypt.conftest import TINY, prepare_chat, write_chat
from tests.mypt.inference.huggingface.families import make
from tests.mypt.training.test_base_import import make_tokenizer

transformers = pytest.importorskip("transformers", reason="pip install 'mypt[dev]'")

LLAMA = {"pos_encoding": "rope", "norm_type": "rmsnorm", "mlp_type": "swiglu"}


def prepare_texts(folder):
    (folder / "text.txt").write_text("some words of a text\n\n" * 99)
    source = Source(path=str(folder / "text.txt"), format="text", licence="CC0")
    config = PrepareConfig(sources=(source,), tokenization="byte", val_fraction=0.0)
    return Path(tokenize(config, folder / "texts").path)


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A chat model and its dataset; the folder of both."""
    monkeypatch.setenv("MYPT_HOME", str(tmp_path / "runs"))
    torch.set_num_threads(1)
    data = prepare_chat(tmp_path)
    (tmp_path / "data").symlink_to(data)
    list(train(plan_run(Preset.model_validate(TINY | {"max_iters": 2}), "chat", data)))
    return tmp_path


def test_a_model_answers_in_transformers_as_here_and_its_card_says_what_made_it(world, capsys):
    out = world / "out"
    assert main(["export", "chat", "--to", "hf", str(out)]) == 0
    assert f"written: {out}" in capsys.readouterr().out.replace("\n", "")
    model, tokenizer, checkpoint = load_model("chat")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    ids = torch.tensor([tokenizer.encode("say 1").tolist()])
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids)[0], atol=1e-4, rtol=0)
    card = (out / "README.md").read_text()
    lineage = checkpoint.lineage
    source = lineage.dataset.sources[0]
    for fact in (lineage.digest, lineage.weights, source.files[0].sha256, "licence CC0"):
        assert fact in card


def test_a_base_models_card_and_files_name_no_stop_of_chats(world):
    preset = Preset.model_validate(TINY | {"max_iters": 1, "use_loss_mask": False})
    data = prepare_texts(world)
    list(train(plan_run(preset, "base", data)))
    assert main(["export", "base", "--to", "hf", str(world / "out")]) == 0
    tokenizer = load_model("base")[1]
    stop, end = tokenizer.template.stop, tokenizer.vocabulary.end
    card = (world / "out" / "README.md").read_text()
    assert f"goes on with a text, and ends it with `{end}`" in card
    for file in ("README.md", "tokenizer_config.json"):
        assert stop not in (world / "out" / file).read_text()
    ids = json.loads((world / "out" / "generation_config.json").read_text())["eos_token_id"]
    assert ids == [tokenizer.end_of_text]


def test_a_module_of_transformers_goes_from_prepare_to_export(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path / "runs"))
    base, data, preset = (tmp_path / name for name in ("base", "data", "preset.json"))
    make("lfm2", base)
    make_tokenizer(size=270).save(str(base / "tokenizer.json"))
    raw = write_chat(tmp_path / "chat.jsonl", 20)
    prepare = [
        "prepare", "--input_files", str(raw), "--out_dir", str(data),
        "--tokenization", f"hf:{base}",
    ]  # fmt: skip
    assert main(prepare) == 1
    assert "model_type 'lfm2'; expected one of " in (said := capsys.readouterr().err)
    assert "or take --base transformers" in said
    assert main([*prepare, "--base", "transformers"]) == 0
    values = TINY | {"max_iters": 1, "dropout": 0.0, "batching": "packed"}
    preset.write_text(json.dumps(values))
    trained = [
        "train", "--config_file", str(preset), "--model_name", "x", "--dataset_dir", str(data),
        "--init_from_model", f"hf:{base}",
    ]  # fmt: skip
    assert main(trained) == 1
    assert main([*trained, "--base", "transformers"]) == 0
    assert "Lfm2ForCausalLM does not keep a row's conversations apart" in capsys.readouterr().out
    assert main(["evaluate", "x", "--eval_iters", "1", "--form", "chat"]) == 0
    assert main(["generate", "x", "--prompt", "say 1", "--max_tokens", "3"]) == 0
    assert main(["lineage", "x", "--verify"]) == 0
    assert main(["export", "x", "--to", "hf", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "the module of transformers for `lfm2`" in card
    pytest.importorskip("gguf", reason="pip install 'mypt[gguf]'")
    assert main(["export", "x", "--to", "gguf", str(tmp_path / "x.gguf")]) == 2
    assert "export it --to hf" in capsys.readouterr().err.replace("\n", " ")
    assert main(["generate", "x", "--prompt", "say 1", "--compile"]) == 2
    assert "is not compiled; leave it out" in capsys.readouterr().err


def test_a_gguf_is_written_with_its_modelfile_and_names_its_lineage(world, capsys):
    pytest.importorskip("gguf", reason="pip install 'mypt[gguf]'")
    out = world / "chat.gguf"
    assert main(["export", "chat", "--to", "gguf", str(out), "--quant", "q8_0"]) == 0
    said = capsys.readouterr().out.replace("\n", "")
    assert f"written: {out}" in said
    assert f"ollama create chat -f {out}.Modelfile" in said
    values = read_header(out).values
    assert values["mypt.lineage"] == load_model("chat")[2].lineage.digest
    assert values["general.name"] == "chat"
    assert main(["export", "chat", "--to", "gguf", str(out)]) == 2
    assert main(["export", "chat", "--to", "hf", str(world / "b"), "--quant", "f16"]) == 2
    assert "--quant f16 goes with --to gguf" in capsys.readouterr().err


def test_what_is_there_is_never_overwritten(world, capsys):
    assert main(["export", "chat", "--to", "hf", str(world)]) == 2
    assert "exists and is never overwritten" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "also"),
    [
        ("norm_type", "rmsnorm", {}),
        ("mlp_type", "swiglu", {}),
        ("mlp_type", "relu2", {}),
        ("qk_norm", True, {}),
        ("n_kv_head", 1, {}),
        ("norm_type", "layernorm", LLAMA | {"norm_type": "layernorm"}),
        ("mlp_type", "gelu", LLAMA | {"mlp_type": "gelu"}),
        ("mlp_type", "relu2", LLAMA | {"mlp_type": "relu2"}),
    ],
)
def test_each_option_that_cannot_be_exported_is_named_with_what_could(
    world, capsys, option, value, also
):
    changes = TINY | {"max_iters": 1} | also | {option: value}
    list(train(plan_run(Preset.model_validate(changes), "odd", world / "data")))
    capsys.readouterr()
    assert main(["export", "odd", "--to", "hf", str(world / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    family = "LlamaForCausalLM" if also else "GPT2LMHeadModel"
    assert line.startswith(f"mypt: {family} has no place for {option} {value!r} (expected ")
    assert line.count("(expected ") == 1, "only what stands in the way is named"
    assert not (world / "out").exists()


def test_all_options_in_the_way_are_named_at_once(world, capsys):
    config = Path(__file__).parents[3] / "configs" / "tiny_modern.json"
    small = TINY | {"max_iters": 1}
    changed = small | {"compile": False, "mlp_type": "relu2", "residual_scale": 0.5}
    modern = load_config(config).model_dump(exclude_unset=True) | changed
    list(train(plan_run(Preset.model_validate(modern), "modern", world / "data")))
    capsys.readouterr()
    assert main(["export", "modern", "--to", "hf", str(world / "out")]) == 2
    said = capsys.readouterr().err
    for option in ("mlp_type 'relu2' (expected 'swiglu')", "residual_scale 0.5 (expected 1.0)"):
        assert option in said
