"""FSDP2: every rank holds a part of each weight, and all of a block only while it computes."""

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from mypt.model.gpt import GPT
from mypt.training.compute import Compute


def shard(model: GPT, compute: Compute, size: int) -> None:
    """Let the ranks share the weights of ``model``, which all of them hold alike before.

    With bfloat16 products, blocks travel and compute in bfloat16; the parts that ranks keep,
    their gradients' sums and the optimizer stay float32. The vocabulary's matrix stays whole
    from the forward pass to the backward pass, since both ends of the model read it.

    Args:
        model: On its device already.
        compute: The run's arithmetic.
        size: Number of ranks.
    """
    policy = MixedPrecisionPolicy()
    if compute.dtype == torch.bfloat16:
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    mesh = init_device_mesh(compute.device.type, (size,))
    for block in model.transformer.h:
        fully_shard(block, mesh=mesh, mp_policy=policy)
        register_fsdp_forward_method(block, "at")
    fully_shard(model, mesh=mesh, mp_policy=policy)
    register_fsdp_forward_method(model, "loss")


def part_of(whole: Tensor, parameter: Tensor) -> Tensor:
    """Return this rank's part of a tensor that every rank holds, cut as ``parameter`` is cut.

    A tensor that is cut already, a count, or any tensor of a model that is whole, stays whole.
    """
    if isinstance(whole, DTensor) or not isinstance(parameter, DTensor) or not whole.dim():
        return whole
    mesh, places = parameter.device_mesh, parameter.placements
    return distribute_tensor(whole.to(mesh.device_type), mesh, places, src_data_rank=None)


def copied(tensor: Tensor, mesh: DeviceMesh) -> Tensor:
    """Return a copy of this rank's part on the CPU, as a part of the same whole.

    Args:
        tensor: A part of a whole, or a whole tensor.
        mesh: The ranks' CPUs, in the order of their devices.
    """
    if not isinstance(tensor, DTensor):
        return tensor.detach().to("cpu", copy=True)
    part = tensor.to_local().detach().to("cpu", copy=True)
    size, stride = tensor.size(), tensor.stride()
    return DTensor.from_local(part, mesh, tensor.placements, shape=size, stride=stride)
