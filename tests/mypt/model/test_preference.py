"""Losses of pairs equal their formulas, written once more with full logits, in float64."""

import pytest
import torch
import torch.nn.functional as F

from mypt.config import GPTConfig
from mypt.model.gpt import GPT
from mypt.model.objectives import Objective
from mypt.model.preference import count_pairs

VOCAB = 37
OBJECTIVES = {
    "dpo": Objective("dpo", beta=0.3),
    "dpo, smoothed": Objective("dpo", beta=0.3, label_smoothing=0.2),
    "dpo without a reference": Objective("dpo", beta=0.1),
    "ipo": Objective("ipo", beta=0.4),
    "simpo": Objective("simpo", beta=2.0, gamma=1.2),
    "simpo, smoothed": Objective("simpo", beta=2.0, gamma=0.7, label_smoothing=0.1),
}
PAIRS = ((3, 2, 5), (4, 6, 1), (1, 1, 1), (5, 3, 3), (2, 7, 4))
"""Tokens of the prompt, of the chosen answer and of the rejected one."""


def has_reference(name):
    return "simpo" not in name and "without" not in name


@pytest.fixture(autouse=True)
def _doubles():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def models(tied=True):
    torch.manual_seed(3)
    sizes = {"block_size": 64, "n_layer": 2, "n_head": 2, "n_embd": 12, "dropout": 0.0}
    config = GPTConfig(vocab_size=VOCAB, tie_weights=tied, **sizes)
    model, base = GPT(config), GPT(config).requires_grad_(False).eval()
    with torch.no_grad():
        for weight in (*model.parameters(), *base.parameters()):
            weight.normal_(std=0.4)
    return model, base


def sides():
    """The pairs as (tokens, first token of the answer), chosen and rejected in turn."""
    torch.manual_seed(0)
    found = []
    for prompt, *answers in PAIRS:
        asked = torch.randint(0, VOCAB, (prompt,))
        for n in answers:
            found.append((torch.cat([asked, torch.randint(0, VOCAB, (n,))]), prompt))
    return found


def packed(rows, width=64):
    """Lay sides into rows of places: ids, targets, mask, positions and segments."""
    made = []
    for row in rows:
        ids, targets, mask, positions, segments = ([] for _ in range(5))
        for number, (tokens, prompt) in enumerate(row):
            n = len(tokens) - 1
            ids += tokens[:-1].tolist()
            targets += tokens[1:].tolist()
            mask += [int(place + 1 >= prompt) for place in range(n)]
            positions += range(n)
            segments += [number] * n
        rest = width - len(ids)
        fills = zip((ids, targets, mask, positions, segments), (0, 0, 0, 0, -1), strict=True)
        made.append([part + [fill] * rest for part, fill in fills])
    ids, targets, mask, positions, segments = (
        torch.tensor(part) for part in zip(*made, strict=True)
    )
    return ids, targets, mask.to(torch.uint8), positions, segments


def by_hand(model, base, objective):
    """The sum over pairs, each side a row of its own, with all logits."""

    def of(who, tokens, prompt):
        logits, _ = who(tokens[None, :-1])
        log_p = logits[0].log_softmax(1).gather(1, tokens[1:, None])[prompt - 1 :, 0]
        return log_p.sum(), len(log_p)

    total = 0.0
    found = sides()
    for better, worse in zip(found[::2], found[1::2], strict=True):
        (s_plus, n_plus), (s_minus, n_minus) = of(model, *better), of(model, *worse)
        r_plus = r_minus = 0.0
        if base is not None:
            r_plus, r_minus = of(base, *better)[0].detach(), of(base, *worse)[0].detach()
        beta, wrong = objective.beta, objective.label_smoothing
        if objective.name == "ipo":
            gap = (s_plus - r_plus) / n_plus - (s_minus - r_minus) / n_minus
            total = total + (gap - 1 / (2 * beta)) ** 2
            continue
        h = beta * ((s_plus - r_plus) - (s_minus - r_minus))
        if objective.name == "simpo":
            h = beta * (s_plus / n_plus - s_minus / n_minus) - objective.gamma
        total = total - (1 - wrong) * F.logsigmoid(h) - wrong * F.logsigmoid(-h)
    return total


def gradients(model, total):
    model.zero_grad()
    total.backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters()])


def loss(model, base, objective, rows, **choices):
    ids, targets, mask, positions, segments = packed(rows)
    return model.loss(
        ids, targets, mask, positions=positions, segments=segments, objective=objective, base=base,
        **choices,
    )  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_and_its_gradient_equal_the_formula(name, tied):
    objective, (model, base) = OBJECTIVES[name], models(tied)
    base = base if has_reference(name) else None
    expected = by_hand(model, base, objective)
    slope = gradients(model, expected)
    all_sides = sides()
    for rows in ([all_sides], [all_sides[:4], all_sides[4:]], [all_sides[:2], [], all_sides[2:]]):
        found = loss(model, base, objective, rows)
        assert found.weight == len(PAIRS)
        assert found.total.item() == pytest.approx(expected.item(), rel=1e-12)
        error = (gradients(model, found.total) - slope).abs().max() / slope.abs().max()
        assert error <= 1e-12


@pytest.mark.parametrize("name", OBJECTIVES)
def test_micro_batches_add_up_to_the_whole(name):
    objective, (model, base) = OBJECTIVES[name], models()
    base = base if has_reference(name) else None
    all_sides = sides()
    whole = loss(model, base, objective, [all_sides]).total
    slope = gradients(model, whole)
    parts = [loss(model, base, objective, [all_sides[n : n + 2]]) for n in range(0, 10, 2)]
    assert sum(part.weight for part in parts) == len(PAIRS)
    total = sum(part.total for part in parts)
    assert total.item() == pytest.approx(whole.item(), rel=1e-13)
    assert (gradients(model, total) - slope).abs().max() <= 1e-13 * slope.abs().max()


def test_the_same_without_a_shorter_last_block():
    objective, (model, base) = OBJECTIVES["dpo"], models()
    one = loss(model, base, objective, [sides()]).total
    other = loss(model, base, objective, [sides()], prune_last_block=False).total
    assert one.item() == pytest.approx(other.item(), rel=1e-13)


def test_where_nothing_is_learned_a_score_is_the_same_number():
    objective, (model, base) = OBJECTIVES["ipo"], models()
    with torch.no_grad():
        scored = loss(model, base, objective, [sides()])
    assert torch.equal(scored.total, loss(model, base, objective, [sides()]).total.detach())
    assert not scored.total.requires_grad


def test_a_model_that_is_its_own_reference_loses_log_2_a_pair():
    model, _ = models()
    found = loss(model, model, Objective("dpo"), [sides()])
    assert found.mean.item() == pytest.approx(torch.tensor(2.0).log().item(), rel=1e-13)


def test_the_reference_has_no_gradient():
    model, base = models()
    base.requires_grad_(True)
    loss(model, base, OBJECTIVES["dpo"], [sides()]).total.backward()
    assert all(weight.grad is None for weight in base.parameters())


def test_swapped_sides_are_another_loss():
    model, base = models()
    one = loss(model, base, OBJECTIVES["dpo"], [sides()]).total
    swapped = [side for n in range(0, 10, 2) for side in sides()[n : n + 2][::-1]]
    assert abs(one - loss(model, base, OBJECTIVES["dpo"], [swapped]).total) > 1e-2


def test_rows_of_padding_hold_no_pair():
    model, base = models()
    found = loss(model, base, OBJECTIVES["ipo"], [[]])
    assert (found.total.item(), found.weight.item()) == (0.0, 0)
    assert gradients(model, found.total).eq(0).all()
    segments = packed([sides()[:4], [], sides()[4:]])[-1]
    assert count_pairs(segments) == len(PAIRS)


def test_no_logits_of_all_tokens_are_kept(monkeypatch):
    monkeypatch.setattr("mypt.model.linear_loss.CHUNK_BYTES", 5 * VOCAB * 8)
    objective, (model, base) = OBJECTIVES["dpo"], models()
    expected = by_hand(model, base, objective)
    slope = gradients(model, expected)
    found = loss(model, base, objective, [sides()]).total
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    assert (gradients(model, found) - slope).abs().max() <= 1e-12 * slope.abs().max()


def test_pairs_without_segments_are_refused():
    model, base = models()
    ids, targets, mask, *_ = packed([sides()])
    with pytest.raises(ValueError, match="dpo without segments"):
        model.loss(ids, targets, mask, objective=OBJECTIVES["dpo"], base=base)
