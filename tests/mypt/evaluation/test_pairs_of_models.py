"""Held-out pairs: what moved, by how much, and what was forgotten, against a naive count."""

import numpy as np
import pytest
import torch

from mypt.config import EvaluateConfig, PrepareConfig, Source
from mypt.data.dataset import open_dataset, tokenize
from mypt.evaluation import report
from mypt.training.checkpoints.checkpoint import load_model
from tests.mypt.conftest import prepare_pairs
from tests.mypt.evaluation.worlds import fit

NONE = EvaluateConfig(exercises=0, max_tokens=4, eval_iters=0)
OF_PAIRS = {
    "block_size": 128, "batching": "packed", "objective": "dpo", "use_loss_mask": None,
    "learning_rate": 1e-2, "max_iters": 12,
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MYPT_HOME", str(folder / "runs"))
        torch.set_num_threads(1)
        text = PrepareConfig(sources=(Source(exercises="text", count=200),), tokenization="byte")
        corpus = tokenize(text, folder / "text")
        pairs = prepare_pairs(folder)
        fit("before", corpus.path, block_size=128)
        fit("after", pairs, "before", **OF_PAIRS)
        yield {"pairs": pairs, "report": report.report_on("after", config=NONE), "folder": folder}


def sums(name, dataset):
    """Summed nats and tokens of each validation row, each by itself."""
    model, *_ = load_model(name)
    model.eval()
    found = []
    for shard in dataset.shards("val"):
        for row in shard.rows:
            span = slice(int(row["start"]), int(row["stop"]))
            ids = torch.from_numpy(np.array(shard.tokens[span]).astype(np.int64))
            mask = torch.from_numpy(np.array(shard.mask[span]))
            with torch.no_grad():
                loss = model.loss(ids[None, :-1], ids[None, 1:], mask[None, 1:])
            found.append((loss.total.item(), loss.weight.item()))
    return np.array(found).reshape(-1, 2, 2)


def test_pairs_and_losses_are_what_each_row_alone_gives(world):
    found, dataset = world["report"], open_dataset(world["pairs"])
    before, after = (sums(name, dataset) for name in ("before", "after"))
    gained = (before - after)[:, :, 0]
    margins = gained[:, 0] - gained[:, 1]
    assert found.pairs.pairs == len(margins) > 5
    assert found.pairs.accuracy == pytest.approx((margins > 0).mean())
    assert found.pairs.margin == pytest.approx(margins.mean(), rel=1e-4)
    assert found.pairs.low <= found.pairs.accuracy <= found.pairs.high
    assert found.pairs.margin_low < found.pairs.margin < found.pairs.margin_high
    for side, name in enumerate(("chosen", "rejected")):
        per_token = [total[:, side, 0].sum() / total[:, side, 1].sum() for total in (before, after)]
        assert found.sets[name].before == pytest.approx(per_token[0], rel=1e-4)
        assert found.sets[name].after == pytest.approx(per_token[1], rel=1e-4)
    assert found.sft.val_loss == pytest.approx(found.sets["chosen"].after)
    assert found.sft.supervised == found.sets["chosen"].tokens == found.sft.available
    preferred = (after[:, 0, 0] < after[:, 1, 0]).mean()
    assert found.sft.preferred == pytest.approx(preferred)


def test_what_was_forgotten_is_the_loss_on_the_data_of_the_base(world):
    found = world["report"].sets
    assert found.keys() == {"chosen", "rejected", "data of the base"}
    own = report.evaluate_model("after", report.training_data(before_folder()), NONE).val_loss
    assert found["data of the base"].after == pytest.approx(own)


def before_folder():
    from mypt.home import checkpoint_to_use

    return checkpoint_to_use("before")


def test_the_page_shows_accuracy_margin_and_what_was_forgotten(world):
    path = report.write_report(world["report"], world["folder"] / "written")
    page = path.with_name("evaluation.html").read_text()
    found = world["report"].pairs
    assert f"{found.accuracy:.1%} moved towards" in " ".join(page.split())
    for words in (f"{found.margin:+.3f} nats more", "data of the base", "pairs whose chosen side"):
        assert words in " ".join(page.split())


def test_a_model_by_itself_says_how_often_the_chosen_side_is_likelier(world):
    scores = report.evaluate_model("after", config=NONE)
    assert scores.preferred == pytest.approx(world["report"].sft.preferred)
    assert "preferred" not in report.evaluate_model("before", config=NONE).model_dump()
