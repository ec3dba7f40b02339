"""Attention inside documents against a dense mask, and where documents begin."""

import pytest
import torch

from mypt.model.attention import (
    Documents,
    attend,
    attend_at,
    block_mask,
    document_mask,
    has_kernel,
    restart_positions,
    run_numbers,
    separate,
)

SEGMENTS = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2], [5, 5, 5, 5, 5, 5, -1, -1, -1]])


def by_hand(qkv, segments):
    """One query, one head at a time; softmax written out."""
    out = torch.zeros_like(qkv[:, :, 0])
    q, k, v = qkv.unbind(2)
    for b in range(qkv.shape[0]):
        for t in range(qkv.shape[1]):
            first = t
            while first and segments[b, first - 1] == segments[b, t]:
                first -= 1
            for h in range(qkv.shape[3]):
                scores = k[b, first : t + 1, h] @ q[b, t, h] / qkv.shape[-1] ** 0.5
                out[b, t, h] = scores.softmax(0) @ v[b, first : t + 1, h]
    return out


@pytest.fixture
def qkv():
    return torch.randn(2, 9, 3, 2, 4, generator=torch.Generator().manual_seed(0))


def dense(segments):
    """What separate gives where the device is no CPU and the kernel below has no use."""
    return Documents(mask=document_mask(segments))


def blocks(segments):
    """What separate gives on a GPU; a CPU computes it forward and without a fused kernel."""
    return Documents(blocks=block_mask(run_numbers(segments)))


UNFUSED = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
PLANS = pytest.mark.parametrize("plan", [separate, dense, blocks])


@UNFUSED
@PLANS
def test_attention_stays_inside_each_run(qkv, plan):
    torch.testing.assert_close(attend(*qkv.unbind(2), plan(SEGMENTS)), by_hand(qkv, SEGMENTS))


def test_without_segments_a_row_is_one_document(qkv):
    torch.testing.assert_close(attend(*qkv.unbind(2)), by_hand(qkv, torch.zeros(2, 9)))


def test_positions_restart_in_each_run():
    """Pain 6."""
    assert restart_positions(SEGMENTS).tolist() == [
        [0, 1, 2, 0, 1, 0, 1, 2, 3],
        [0, 1, 2, 3, 4, 5, 0, 1, 2],
    ]


def test_runs_are_numbered_across_rows_and_a_number_that_returns_begins_a_new_one():
    assert run_numbers(torch.tensor([[0, 1, 0, 0], [0, 0, 1, 1]])).tolist() == [
        [1, 2, 3, 3],
        [4, 4, 5, 5],
    ]


def test_a_cpu_gets_one_call_a_document():
    assert separate(SEGMENTS).lengths == [3, 2, 4, 6, 3]


def test_blocks_are_for_gpus_without_dropout_and_heads_that_have_a_kernel(monkeypatch):
    monkeypatch.setattr("mypt.model.attention.find_spec", lambda name: name == "triton")
    gpu = torch.device("cuda")
    assert has_kernel(gpu, 64, 0.0)
    assert not has_kernel(torch.device("cpu"), 64, 0.0)
    assert not has_kernel(gpu, 8, 0.0)
    assert not has_kernel(gpu, 64, 0.1)


@UNFUSED
@PLANS
def test_grouped_heads_read_their_groups_keys(qkv, plan):
    query, (key, value) = qkv[:, :, 0], (part[:, :, :1] for part in qkv.unbind(2)[1:])
    shared = (part.expand_as(query) for part in (key, value))
    expected = attend(query, *shared, plan(SEGMENTS))
    torch.testing.assert_close(attend(query, key, value, plan(SEGMENTS)), expected)


@UNFUSED
@pytest.mark.parametrize("density", [0.02, 0.1, 0.4, 1.0])
@pytest.mark.parametrize("plan", [None, separate, dense, blocks])
def test_queries_at_some_places_gather_what_they_gather_among_all(density, plan):
    """With few queries a row, with many, with none in some row; in one document or several."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 40, 3, 2, 4, generator=generator, dtype=torch.float64)
    segments = torch.tensor([[0] * 7 + [1] * 33, [0] * 40])
    documents = None if plan is None else plan(segments)
    chosen = torch.rand(80, generator=generator) < density
    chosen[3] = True
    places = chosen.nonzero()[:, 0]
    query, key, value = qkv.unbind(2)
    gathered = attend_at(places, query.flatten(0, 1)[places], key, value, documents)
    expected = attend(query, key, value, documents).flatten(0, 1)[places]
    torch.testing.assert_close(gathered, expected, rtol=0, atol=1e-12)
