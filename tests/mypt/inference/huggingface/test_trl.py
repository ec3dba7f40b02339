"""TRL itself: its assistant-only loss marks what our masks mark, and it trains on our labels."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mypt.config import FieldMapping, GPTConfig, MaskPolicy, Source
from mypt.data.conversations import Conversation
from mypt.data.exchange.labels import UNSUPERVISED, export_labels
from mypt.data.masking import mask_from_spans
from mypt.data.preparation.encoding import encode_rows
from mypt.data.reading.sources import open_source
from mypt.data.tokenizer import load_tokenizer
from mypt.errors import MyptError
from mypt.inference.huggingface.exports import export_hf
from mypt.model.gpt import GPT
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
