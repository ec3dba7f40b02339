"""A run that is made longer: it goes on with its optimizer, and the record says so."""

from pathlib import Path

import pytest

from mypt.errors import ConfigError
from mypt.provenance.reproduction import reproduce
from mypt.provenance.trace import trace
from mypt.training.claim import as_begun, extend
from mypt.training.lineage import Extension, read_lineage
from mypt.training.optim import learning_rate_at
from mypt.training.plan import plan_run


@pytest.fixture
def longer(plan, finish):
    """A run of four steps that has ended, and the plan of the same with six."""
    finish(plan(max_iters=4))
    return plan(max_iters=6)


def test_a_run_goes_on_and_says_what_the_schedule_does(longer, finish, tiny):
    extend(longer)
    events = finish(longer)
    assert events["end"].step == 6
    assert [step.step for step in events["steps"]] == [5, 6]
    old, new = learning_rate_at(3, tiny(max_iters=4)), learning_rate_at(4, tiny(max_iters=6))
    (note,) = [line for line in events["all"][0].notes if "extended" in line]
    assert note.startswith("extended at step 4, from 4 steps to 6: AdamW's state is kept")
    assert note.endswith(f"jumps from {old:.3g} to {new:.3g}")
    assert finish(longer)["end"].reason == "already finished"


def test_the_record_says_that_it_was_extended_and_reproduces_it(longer, finish, tmp_path):
    extend(longer)
    made = Path(finish(longer)["end"].checkpoint.path).with_name("step_000006")
    assert read_lineage(made).extended == (Extension(step=4, max_iters=4),)
    facts = trace(made).facts
    assert "extended at step 4: planned for 4 steps until then" in facts
    again = reproduce(made, tmp_path / "again")
    assert again.ok, [stage.details for stage in again.stages]


def test_a_longer_run_is_refused_unless_it_is_asked_for(longer, finish):
    said = "a run of 4 steps, and 6 are asked for; give --extend to go on for so many, or choose"
    with pytest.raises(ConfigError, match=f"{said} another model name$"):
        finish(longer)


@pytest.mark.usefixtures("longer")
def test_extending_is_no_cure_for_any_other_change(plan, finish):
    for changed in (plan(max_iters=3), plan(max_iters=6, seed=5)):
        with pytest.raises(ConfigError, match=r"another config: .*; choose another") as refused:
            finish(changed)
        assert "--extend" not in str(refused.value)


def test_nothing_but_the_length_changes_and_only_upwards(plan, finish, longer):
    with pytest.raises(ConfigError, match=r"no run that could be extended"):
        extend(plan("other"))
    with pytest.raises(ConfigError, match=r"seed 1337 -> 5; --extend changes max_iters alone"):
        extend(plan(max_iters=6, seed=5))
    with pytest.raises(ConfigError, match=r"max_iters 4 -> 3: --extend makes a run longer only"):
        extend(plan(max_iters=3))
    assert finish(plan(max_iters=4))["end"].reason == "already finished"
    assert longer


def test_a_run_that_ended_early_is_not_extended(plan, finish):
    finish(plan(max_iters=12, eval_interval=1, patience=1, learning_rate=1.0, warmup_iters=0))
    more = plan(max_iters=20, eval_interval=1, patience=1, learning_rate=1.0, warmup_iters=0)
    with pytest.raises(ConfigError, match="ended by early stop at step"):
        extend(more)


def test_a_warmup_said_as_a_share_stays_as_many_steps(tiny, chat_dataset, finish):
    def asked(steps, share=0.5):
        return tiny(max_iters=steps, warmup=share, warmup_iters=100)

    def planned(preset):
        return plan_run(preset, "m", chat_dataset)

    finish(planned(asked(4)))
    for steps in (6, 8):
        longer = planned(as_begun(asked(steps), "m"))
        assert (longer.preset.max_iters, longer.preset.warmup_iters) == (steps, 2)
        extend(longer)
        assert finish(longer)["end"].step == steps
    with pytest.raises(ConfigError, match=r"warmup_iters 2 -> 8; --extend changes max_iters alone"):
        extend(planned(as_begun(asked(10, 0.8), "m")))
    assert as_begun(asked(4), "other") == asked(4)
