import numpy as np
import pytest

from mypt.data.dataset import open_dataset
from mypt.data.shards import name_row
from mypt.training.loader import GPTDataLoader


@pytest.mark.parametrize("batching", ["windows", "packed"])
def test_places_say_which_tokens_a_row_reads(chat_dataset, batching):
    loader = GPTDataLoader(
        chat_dataset, batch_size=3, block_size=24, use_loss_mask=True, batching=batching,
        grad_accumulation=2,
    )  # fmt: skip
    batch, places = loader.batch_at("train", 4, 1), loader.places_at("train", 4, 1)
    assert len(places) == len(batch.input_ids)
    for row, segments, stretches in zip(
        batch.input_ids,
        batch.segments if batch.segments is not None else np.zeros_like(batch.input_ids),
        places,
        strict=True,
    ):
        read = [place.shard.tokens[place.start : place.stop - 1] for place in stretches]
        assert row[segments >= 0].tolist() == np.concatenate(read).tolist()


def test_a_row_is_named_down_to_the_raw_line(chat_dataset):
    dataset = open_dataset(chat_dataset)
    loader = GPTDataLoader(
        dataset, batch_size=2, block_size=24, use_loss_mask=True, batching="packed"
    )
    place = loader.places_at("train", 0)[0][0]
    name = name_row(dataset.manifest.sources, [place])
    assert name.startswith(f"train/shard_000.bin tokens {place.start}..{place.stop} (chat.jsonl ")
    line = int(name.removesuffix(")").rpartition(" ")[2])
    text = dataset.tokenizer.decode(place.shard.tokens[place.start : place.stop].tolist())
    assert f"<User>say {line - 1}</User>" in text
