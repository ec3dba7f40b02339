"""Norms and gates whose gradients are written here, against autograd's."""

import pytest
import torch
import torch.nn.functional as F

from mypt.model.elementwise import RMSNorm, gated


def both(found, expected, given):
    """Values and gradients of two ways to compute the same, as pairs."""
    slope = torch.randn_like(expected)
    yield found, expected
    learned = [one for one in given if one.requires_grad]
    grads = (torch.autograd.grad(out, learned, slope) for out in (found, expected))
    yield from zip(*grads, strict=True)


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("shape", [(3, 5, 8), (7, 8)])
def test_a_norm_is_autograds(shape, learns):
    norm = RMSNorm(8, eps=1e-5, dtype=torch.float64)
    torch.nn.init.normal_(norm.weight.requires_grad_(learns))
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    plain = F.rms_norm(x, (8,), norm.weight, 1e-5)
    for one, other in both(norm(x), plain, (x, norm.weight)):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(norm(x), plain)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_gate_is_autograds(dtype):
    x = torch.randn(3, 5, 16).to(dtype).requires_grad_()
    value, gate = x.chunk(2, -1)
    for one, other in both(gated(x), F.silu(gate) * value, (x,)):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)
