"""TRL itself: its assistant-only loss marks what our masks mark, and it trains on our labels."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mypt.config import FieldMapping, GPTConfig, MaskPolicy, PrepareConfig, Source
from mypt.data.conversations import Conversation
from mypt.data.dataset import prepare
from mypt.data.exchange.labels import UNSUPERVISED, export_labels
from mypt.data.masking import mask_from_spans
from mypt.data.preparation.encoding import encode_rows
from mypt.data.reading.sources import open_source
from mypt.data.tokenizer import load_tokenizer
from mypt.errors import MyptError
from mypt.inference.huggingface.exports import export_hf
from mypt.model.gpt import GPT
from mypt.model.objectives import Objective
from mypt.training.loader import GPTDataLoader
from tests.mypt.conftest import prepare_chat, write_chat
from tests.mypt.inference.huggingface.messages import hf_messages

WHY = "pip install 'mypt[bench]', as 'make test-all' does"
trl = pytest.importorskip("trl", reason=WHY)
datasets = pytest.importorskip("datasets", reason=WHY)
transformers = pytest.importorskip("transformers", reason=WHY)
pytestmark = pytest.mark.filterwarnings("default")
REAL = Path(__file__).parents[5] / "shared" / "data" / "chat"
LAYOUTS = (
    None,
    FieldMapping(turns="utterances", role="speaker", text="text"),
    FieldMapping(turns="messages", role="sender", text="text", by_order=True),
)


def conversations(path):
    """The conversations of a file as it tells by itself, or as a mapping says."""
    said = None
    for mapping in LAYOUTS:
        kind = "mapping" if mapping else "auto"
        try:
            reader = open_source(Source(path=str(path), format=kind, mapping=mapping))
            return [row for row in reader if isinstance(row, Conversation)]
        except MyptError as error:
            said = said or error
    raise said


def exported(folder, template):
    tokenizer = load_tokenizer("byte", template)
    torch.manual_seed(0)
    sizes = {"block_size": 64, "n_layer": 1, "n_head": 2, "n_embd": 16}
    model = GPT(GPTConfig(vocab_size=tokenizer.n_vocab, **sizes))
    weights = dict(model.named_parameters())
    export_hf(folder, model.config, weights, tokenizer, policy=MaskPolicy(), card="")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    return tokenizer, theirs, transformers.AutoModelForCausalLM.from_pretrained(folder)


def trainer(model, tokenizer, rows, folder, **choices):
    config = trl.SFTConfig(
        output_dir=str(folder / "trained"), max_steps=2, per_device_train_batch_size=2,
        max_length=None, report_to=[], use_cpu=True, bf16=False, save_strategy="no",
        logging_steps=1, **choices,
    )  # fmt: skip
    return trl.SFTTrainer(model, args=config, train_dataset=rows, processing_class=tokenizer)


def mask_of(row, tokenizer):
    ids, spans, *_ = encode_rows([row], tokenizer)
    return mask_from_spans(spans, len(ids), MaskPolicy())


def compare(rows, tokenizer, theirs, model, folder):
    """Let TRL tokenize the rows for its assistant-only loss; count the tokens that agree."""
    turns = [hf_messages(row) for row in rows]
    for turn in (turn for messages in turns for turn in messages):
        if isinstance(turn["content"], str):  # a column of datasets has one type
            turn["content"] = [{"type": "text", "text": turn["content"]}]
    found = trainer(
        model, theirs, datasets.Dataset.from_list([{"messages": one} for one in turns]), folder,
        assistant_only_loss=True,
    )  # fmt: skip
    tokens = 0
    for row, made in zip(rows, found.train_dataset, strict=True):
        ids, spans, *_ = encode_rows([row], tokenizer)
        assert made["input_ids"] == ids.tolist()
        mask = mask_from_spans(spans, len(ids), MaskPolicy())
        assert made["labels"] == np.where(mask, ids.tolist(), UNSUPERVISED).tolist()
        tokens += len(ids)
    return found, tokens


@pytest.mark.parametrize("template", ["mypt", "chatml"])
def test_its_assistant_only_loss_is_on_our_supervised_tokens(tmp_path, template):
    parts = exported(tmp_path / "model", template)
    rows = conversations(write_chat(tmp_path / "chat.jsonl", 6))
    found, _ = compare(rows, *parts, tmp_path)
    assert found.train().global_step == 2


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not REAL.is_dir(), reason="no real chats beside this checkout")
def test_they_agree_token_for_token_on_real_chats(tmp_path):
    parts = exported(tmp_path / "model", "chatml")
    n_rows = n_tokens = 0
    for path in sorted(path for path in REAL.iterdir() if path.is_file()):
        try:
            rows = conversations(path)
        except MyptError:  # its refusal is tested elsewhere
            continue
        # TRL refuses conversations that teach nothing; we count them as rows without supervision.
        if rows := [row for row in rows if mask_of(row, parts[0]).any()]:
            n_tokens += compare(rows, *parts, tmp_path)[1]
            n_rows += len(rows)
    assert n_rows > 1000
    assert n_tokens > 1_000_000


def test_it_loads_our_exported_folder_and_trains_on_our_masks(tmp_path):
    dataset = prepare_chat(tmp_path)
    export_labels(dataset, tmp_path / "labels")
    loaded = datasets.load_dataset(str(tmp_path / "labels"), cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train", "validation"}
    _, theirs, model = exported(tmp_path / "model", "mypt")
    found = trainer(model, theirs, loaded["train"], tmp_path)
    batch = next(iter(found.get_train_dataloader()))
    wanted = {tuple(row["input_ids"]): row["labels"] for row in loaded["train"]}
    for ids, labels, seen in zip(
        batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True
    ):
        n = int(seen.sum())
        assert labels[:n].tolist() == wanted[tuple(ids[:n].tolist())]
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    found.train()
    assert any(not torch.equal(before[name], tensor) for name, tensor in model.named_parameters())


PAIRS = [
    {"prompt": "say 7", "chosen": "seven", "rejected": "no"},
    {"prompt": "say ü", "chosen": "it is ü, of course", "rejected": "u"},
    {"prompt": "count", "chosen": "1 2 3", "rejected": "1 2 3 4 5 6 7"},
    {"prompt": "count down", "chosen": "3", "rejected": "1"},
]
TALKS = [
    {"prompt": [{"role": "user", "content": row["prompt"]}]}
    | {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
    for row in PAIRS
]


def dpo_loss_of(model, reference, tokenizer, folder, kind, beta):
    """What TRL's own trainer says of the pairs, and its gradient by weight."""
    config = trl.DPOConfig(
        output_dir=str(folder / "preferred"), per_device_train_batch_size=len(TALKS), beta=beta,
        loss_type=[kind], max_length=None, report_to=[], use_cpu=True, bf16=False,
        gradient_checkpointing=False, save_strategy="no", max_steps=1,
    )  # fmt: skip
    rows = datasets.Dataset.from_list(TALKS)
    trainer = trl.DPOTrainer(
        model, ref_model=reference, args=config, train_dataset=rows, processing_class=tokenizer
    )
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item(), trainer.model.get_input_embeddings().weight.grad


def loss_of_pairs(model, base, folder, objective):
    """Ours on the same pairs, as packed rows."""
    raw = folder / "pairs.jsonl"
    raw.write_text("".join(json.dumps(row) + "\n" for row in TALKS))
    source = Source(path=str(raw), pairs=True)
    config = PrepareConfig(
        sources=(source,), tokenization="byte", template="chatml", val_fraction=0.0
    )
    loader = GPTDataLoader(
        prepare(config, MaskPolicy(), folder / "pairs").path, batch_size=1, block_size=128,
        use_loss_mask=True, batching="packed", length_policy="drop",
    )  # fmt: skip
    found = []
    for step in range(loader.epoch("train").steps):
        ids, targets, mask, *where = loader.batch_at("train", step)
        places = dict(zip(("positions", "segments"), where, strict=True))
        loss = model.loss(ids, targets, mask, **places, objective=objective, base=base)
        found.append((loss.total, loss.weight))
    total, n_pairs = (sum(column) for column in zip(*found, strict=True))
    assert n_pairs == len(TALKS)
    (total / n_pairs).backward()
    return (total / n_pairs).item(), model.transformer.wte.weight.grad


@pytest.mark.parametrize(
    ("kind", "name", "beta"),
    [("sigmoid", "dpo", 0.1), ("sigmoid", "dpo", 2.0), ("ipo", "ipo", 0.3)],
)
def test_losses_of_pairs_are_those_of_its_trainer(tmp_path, kind, name, beta):
    made = []
    for seed in (1, 2):
        tokenizer = load_tokenizer("byte", "chatml")
        torch.manual_seed(seed)
        sizes = {"block_size": 128, "n_layer": 2, "n_head": 2, "n_embd": 16, "dropout": 0.0}
        model = GPT(GPTConfig(vocab_size=tokenizer.n_vocab, **sizes))
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight), alpha=0.2)
        folder = tmp_path / str(seed)
        weights = dict(model.named_parameters())
        export_hf(folder, model.config, weights, tokenizer, policy=MaskPolicy(), card="")
        made.append((model, folder))
    theirs = [transformers.AutoModelForCausalLM.from_pretrained(folder) for _, folder in made]
    words = transformers.AutoTokenizer.from_pretrained(made[0][1])
    expected, slope = dpo_loss_of(*theirs, words, tmp_path, kind, beta)
    loss, ours = loss_of_pairs(made[0][0], made[1][0].eval(), tmp_path, Objective(name, beta=beta))
    assert loss == pytest.approx(expected, abs=1e-5)
    assert (ours - slope[: len(ours)]).abs().max() <= 1e-4 * slope.abs().max()
