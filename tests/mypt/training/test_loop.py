import math
from collections import Counter

import numpy as np
import pytest
import torch

from mypt.config import MaskPolicy, PrepareConfig, Source
from mypt.data.dataset import open_dataset, prepare
from mypt.errors import CheckpointError, ConfigError, TrainingError
from mypt.evaluation.token_scores import score_tokens
from mypt.home import models_dir
from mypt.training import loop
from mypt.training.checkpoints.checkpoint import load_checkpoint, load_model
from mypt.training.events import CheckpointSaved, EvalReport, Finished, Sample, Started, StepReport
from mypt.training.lineage import read_lineage
from mypt.training.loop import train


def weights(folder):
    return read_lineage(folder).weights


def final_weights(name="m"):
    folder = models_dir() / name
    return weights(folder / (folder / "latest").read_text().strip())


def kinds(events):
    return [type(event) for event in events]


def test_a_run_tells_its_whole_story(plan, finish):
    events = finish(plan(max_iters=4, eval_interval=2, checkpoint_interval=4))["all"]
    steps = [(type(e), e.step) for e in events]
    assert steps[:2] == [(Started, 0), (EvalReport, 0)]
    assert steps[2:5] == [(StepReport, 1), (StepReport, 2), (EvalReport, 2)]
    assert steps[-2:] == [(CheckpointSaved, 4), (Finished, 4)]
    assert [e.step for e in events if isinstance(e, EvalReport)] == [0, 2, 4]
    report = next(e for e in events if isinstance(e, StepReport))
    assert report.tokens == 2 * 4 * 16
    assert 0 < report.supervised < report.tokens
    assert math.isfinite(report.loss)
    assert report.grad_norm > 0


def test_a_model_learns(plan, finish):
    evals = finish(plan(max_iters=60, eval_interval=60, dropout=0.0))["evals"]
    assert evals[-1].val_loss < 0.6 * evals[0].val_loss


def test_training_is_the_same_bits_each_time(plan, finish):
    first = finish(plan("a"))
    second = finish(plan("b"))
    assert final_weights("a") == final_weights("b")
    assert [e.loss for e in first["steps"]] == [e.loss for e in second["steps"]]


def test_another_seed_is_another_run(plan, finish):
    finish(plan("a"))
    finish(plan("b", seed=7))
    assert final_weights("a") != final_weights("b")


def test_looking_more_often_changes_no_bit(plan, finish):
    finish(plan("a", eval_interval=1, checkpoint_interval=1, sample_prompts=("say 1",)))
    finish(plan("b", eval_interval=12, checkpoint_interval=12))
    assert final_weights("a") == final_weights("b")


def test_samples_answer_the_prompts_at_each_evaluation(plan, finish):
    events = finish(plan(max_iters=2, eval_interval=2, sample_prompts=("say 1", "say 2")))["all"]
    samples = [e for e in events if isinstance(e, Sample)]
    assert [(s.step, s.prompt) for s in samples] == [
        (0, "say 1"), (0, "say 2"), (2, "say 1"), (2, "say 2"),
    ]  # fmt: skip


def test_evaluations_score_the_same_rows_each_time(plan, monkeypatch, finish):
    seen = []
    true_loss = loop.loss_of

    def spy(run, batch):
        seen.append(batch.input_ids.clone())
        return true_loss(run, batch)

    monkeypatch.setattr(loop, "loss_of", spy)
    finish(plan(max_iters=2, eval_interval=2))
    half = len(seen) // 2
    assert half > 0
    assert all(torch.equal(a, b) for a, b in zip(seen[:half], seen[half:], strict=True))


def test_dropout_is_off_in_evaluations_and_samples_and_on_in_steps(plan, monkeypatch, finish):
    modes = {}

    def watch(name):
        true_function = getattr(loop, name)

        def watched(run, *arguments):
            modes.setdefault(name, []).append(run.model.training)
            result = true_function(run, *arguments)
            modes[name].append(run.model.training)
            return result

        monkeypatch.setattr(loop, name, watched)

    watch("_mean_loss")
    watch("take_step")
    finish(plan(max_iters=2, eval_interval=1))
    assert len(modes["_mean_loss"]) == 2 * 2 * 3
    assert not any(modes["_mean_loss"])
    assert len(modes["take_step"]) == 2 * 2
    assert all(modes["take_step"])


def scripted(monkeypatch, losses):
    values = iter(losses)
    monkeypatch.setattr(
        loop,
        "_mean_loss",
        lambda run, split: (1.0 if split == "train" else next(values), run.groups.none()),
    )


def test_early_stopping_keeps_the_best(plan, monkeypatch, finish):
    scripted(monkeypatch, [9.0, 3.0, 2.0, 2.5, 2.0])
    found = finish(plan(eval_interval=2, patience=2, keep_checkpoints=1))
    assert [e.best for e in found["evals"]] == [False, True, True, False, False]
    assert (found["end"].reason, found["end"].step) == ("early stop", 8)
    assert found["end"].checkpoint.step == 4
    folder = models_dir() / "m"
    assert (folder / "best").read_text() == "step_000004\n"
    assert (folder / "latest").read_text() == "step_000008\n"
    assert sorted(p.name for p in folder.glob("step_*")) == ["step_000004", "step_000008"]
    again = finish(plan(eval_interval=2, patience=2, keep_checkpoints=1))
    assert again["all"] == [Finished(8, "already finished", found["end"].checkpoint)]


def test_the_baseline_is_reported_but_never_the_best(plan, monkeypatch, finish):
    scripted(monkeypatch, [0.1, 3.0])
    found = finish(plan(max_iters=2, eval_interval=2))
    assert [e.best for e in found["evals"]] == [False, True]
    assert found["end"].checkpoint.step == 2


def test_old_checkpoints_are_pruned_but_not_the_best(plan, monkeypatch, finish):
    scripted(monkeypatch, [9.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    finish(plan(eval_interval=2, checkpoint_interval=2, keep_checkpoints=2))
    names = sorted(p.name for p in (models_dir() / "m").glob("step_*"))
    assert names == ["step_000002", "step_000010", "step_000012"]


def test_finished_is_a_no_op(plan, finish):
    first = finish(plan())
    before = {p: p.stat().st_mtime_ns for p in (models_dir() / "m").rglob("*.*")}
    again = finish(plan())
    assert again["all"] == [Finished(12, "already finished", first["end"].checkpoint)]
    assert {p: p.stat().st_mtime_ns for p in (models_dir() / "m").rglob("*.*")} == before


def test_another_config_under_the_name_is_refused_with_a_diff(plan, finish, other_dataset):
    finish(plan(max_iters=1))
    with pytest.raises(ConfigError, match=r"another config: learning_rate 0\.01 -> 0\.02;"):
        finish(plan(max_iters=1, learning_rate=0.02))
    with pytest.raises(ConfigError, match=r"dataset [0-9a-f]{12} -> [0-9a-f]{12};"):
        finish(plan(max_iters=1, dataset=other_dataset))


def test_a_second_run_of_the_name_is_refused_at_once(plan, finish):
    first = train(plan())
    next(first)
    with pytest.raises(CheckpointError, match="held by another run"):
        finish(plan())
    first.close()
    assert finish(plan())["end"].reason == "max_iters"


def poisoned(monkeypatch, at_step, poison):
    true_batch = loop.Run.batch

    def batch(run, micro):
        if run.state.step == at_step and micro == 1:
            poison(run)
        return true_batch(run, micro)

    monkeypatch.setattr(loop.Run, "batch", batch)


def test_a_loss_that_is_not_finite_stops_before_the_update(plan, monkeypatch, finish):
    seen = {}

    def poison(run):
        with torch.no_grad():
            run.model.transformer.wte.weight[ord("i")] = math.nan
        seen["before"] = [p.clone() for p in run.model.parameters()]
        seen["run"] = run

    poisoned(monkeypatch, 7, poison)
    with pytest.raises(TrainingError, match=r"step 8: loss nan .* lines? \d+") as caught:
        finish(plan())
    assert "the checkpoint of step 6 is good" in str(caught.value)
    for before, after in zip(seen["before"], seen["run"].model.parameters(), strict=True):
        assert torch.equal(before.nan_to_num(), after.nan_to_num())
    assert load_checkpoint(models_dir() / "m" / "step_000006").state.step == 6


def test_a_gradient_that_is_not_finite_stops_before_the_update(plan, monkeypatch, finish):
    def poison(run):
        run.model.transformer.ln_f.weight.register_hook(lambda grad: grad * math.inf)

    poisoned(monkeypatch, 1, poison)
    with pytest.raises(TrainingError, match=r"step 2: gradient norm (inf|nan)") as caught:
        finish(plan())
    assert "there is no checkpoint yet" in str(caught.value)
    assert not (models_dir() / "m" / "latest").exists()


def test_memory_that_runs_out_is_one_line_with_what_to_change(plan, monkeypatch, finish):
    def poison(_run):
        raise MemoryError

    poisoned(monkeypatch, 0, poison)
    with pytest.raises(TrainingError, match=r"step 1: out of memory .*halve batch_size"):
        finish(plan())


def test_bfloat16_changes_little_and_keeps_float32_weights(plan, finish):
    single = finish(plan("a", max_iters=2, dropout=0.0))
    half = finish(plan("b", max_iters=2, dropout=0.0, dtype="bfloat16"))
    assert half["all"][0].dtype == "bfloat16"
    assert half["steps"][0].loss != single["steps"][0].loss
    assert half["steps"][0].loss == pytest.approx(single["steps"][0].loss, rel=1e-2)
    stored = load_checkpoint(models_dir() / "b" / "step_000002").weights
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}


def test_without_a_validation_split_the_last_checkpoint_is_the_one(
    plan, tmp_path, finish, make_chat
):
    dataset = make_chat(tmp_path, val_fraction=0.0)
    found = finish(plan(dataset=dataset, max_iters=4))
    assert "no validation split" in found["all"][0].notes[0]
    assert math.isnan(found["evals"][-1].val_loss)
    assert found["end"].checkpoint.step == 4
    assert not (models_dir() / "m" / "best").exists()


def test_packed_conversations_train_and_count_no_padding(plan, finish):
    found = finish(plan(batching="packed", block_size=32, max_iters=6, eval_interval=6))
    full = 2 * 4 * 32
    assert all(0 < step.tokens < full for step in found["steps"])


def test_random_weights_are_measured_by_few_batches_and_a_base_by_all(plan, finish, monkeypatch):
    read = Counter()
    loss_of = loop.loss_of

    def counted(run, batch):
        read[run.plan.model_name, run.state.step] += 1
        return loss_of(run, batch)

    monkeypatch.setattr(loop, "loss_of", counted)
    asked = {"eval_iters": 7, "max_iters": 1, "batching": "windows"}
    finish(plan("base", **asked))
    finish(plan("chat", init_from="base", **asked))
    assert read == {("base", 0): 10, ("base", 1): 14, ("chat", 0): 14, ("chat", 1): 14}


def test_tags_that_the_base_never_read_are_learned_in_fine_tuning(plan, tmp_path, finish):
    """Pain 30: no row of the embedding is frozen, though plain text never touched these."""
    (tmp_path / "text.txt").write_text("All work and no play. " * 40 + "\n\n" + "Or not. " * 60)
    source = Source(path=str(tmp_path / "text.txt"))
    config = PrepareConfig(sources=(source,), tokenization="byte", val_fraction=0.0)
    text = open_dataset(prepare(config, MaskPolicy(), tmp_path / "text").path)
    names = ("<User>", "</User>", "<Assistant>", "</Assistant>")
    tags = [text.tokenizer.special_id(name) for name in names]
    assert not any(np.isin(shard.tokens, tags).any() for shard in text.shards("train"))
    quiet = {"dropout": 0.0, "weight_decay": 0.0, "eval_interval": 100}
    base = finish(plan("base", dataset=text.path, use_loss_mask=False, max_iters=1, **quiet))
    made = plan("chat", init_from="base", max_iters=30, **quiet)
    chat = finish(made)
    old = load_model(base["end"].checkpoint.path)[0]
    model = load_model(chat["end"].checkpoint.path)[0]
    learned = score_tokens(model, open_dataset(made.dataset.path)).mean
    for tag in tags:
        rows = model.transformer.wte.weight
        kept = rows[tag].clone()
        assert not torch.equal(kept, old.transformer.wte.weight[tag])
        with torch.no_grad():
            rows[tag] = old.transformer.wte.weight[tag]
            assert score_tokens(model, open_dataset(made.dataset.path)).mean > learned
            rows[tag] = kept


def test_text_is_trained_whole(plan, tmp_path, finish):
    (tmp_path / "text.txt").write_text("All work and no play. " * 40 + "\n\n" + "Or not. " * 60)
    source = Source(path=str(tmp_path / "text.txt"))
    config = PrepareConfig(sources=(source,), tokenization="byte", val_fraction=0.0)
    dataset = prepare(config, MaskPolicy(), tmp_path / "text").path
    found = finish(plan(dataset=dataset, use_loss_mask=False, max_iters=2, sample_prompts=("All",)))
    assert all(step.supervised == step.tokens for step in found["steps"])
