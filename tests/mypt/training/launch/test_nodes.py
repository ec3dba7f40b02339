"""Which machines may train together, and what they are told."""

import pytest

from mypt.errors import ConfigError
from mypt.training.launch.nodes import Nodes, check_sizes, environment, torchrun_arguments


def test_a_number_a_range_and_nothing_are_understood():
    assert Nodes.parse(None, None) == Nodes(1, 1, "")
    assert Nodes.parse("2", "node0:29400") == Nodes(2, 2, "node0:29400")
    assert Nodes.parse("1:4", "10.0.0.1:29400") == Nodes(1, 4, "10.0.0.1:29400")


@pytest.mark.parametrize(
    ("text", "meet_at", "said"),
    [
        ("two", "a:1", "nodes 'two'"),
        ("0:2", "a:1", "nodes '0:2'"),
        ("4:2", "a:1", "nodes '4:2'"),
        ("2", None, "rendezvous None"),
        (None, "a:1", "nodes None"),
        ("2", "node0", "rendezvous 'node0'"),
    ],
)
def test_anything_else_is_refused(text, meet_at, said):
    with pytest.raises(ConfigError, match=said):
        Nodes.parse(text, meet_at)


def test_sizes_that_leave_a_process_without_work_are_refused(tiny):
    pair = {"parallel": "ddp", "processes": 2}
    check_sizes(tiny(grad_accumulation=6, **pair), Nodes(1, 3, "a:1"))
    with pytest.raises(ConfigError, match=r"8 processes .4 nodes x 2. found for grad_accumulation"):
        check_sizes(tiny(grad_accumulation=6, **pair), Nodes(1, 4, "a:1"))
    with pytest.raises(ConfigError, match=r"4 processes .* do not divide grad_accumulation 6"):
        check_sizes(tiny(grad_accumulation=6, parallel="fsdp", processes=2), Nodes(1, 3, "a:1"))
    with pytest.raises(ConfigError, match="parallel none"):
        check_sizes(tiny(), Nodes(2, 2, "a:1"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"processes": 2}, "parallel none"),
        ({"parallel": "fsdp", "reduction": "tree"}, "tree wants whole gradients"),
        ({"parallel": "fsdp", "sample_prompts": ["hi"]}, "want a whole model"),
    ],
)
def test_words_that_do_not_go_together_are_refused(tiny, words, said):
    with pytest.raises(ValueError, match=said):
        tiny(**words)


def test_torch_is_told_what_a_restart_needs(tiny):
    config = tiny(parallel="ddp", processes=2, max_restarts=7, threads=0)
    found = environment(config, Nodes())
    assert found["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert found["GLOO_SOCKET_IFNAME"] == found["NCCL_SOCKET_IFNAME"]
    assert found["OMP_NUM_THREADS"] == "1"
    arguments = torchrun_arguments("m", config, Nodes())
    assert "--nproc-per-node=2" in arguments
    assert "--max-restarts=7" in arguments
    assert any("is_host=1" in one for one in arguments)


def test_who_computes_does_not_decide_which_run_it_is(plan):
    alone = plan(reduction="tree", grad_accumulation=8)
    many = plan(
        reduction="tree", grad_accumulation=8, parallel="ddp", processes=8,
        activation_checkpointing=True, max_restarts=9, step_timeout=5.0,
    )  # fmt: skip
    assert alone.digest == many.digest
    assert alone.differences(plan(grad_accumulation=8)) == ("reduction tree -> allreduce",)
