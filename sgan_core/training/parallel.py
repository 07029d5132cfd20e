"""What several processes of one training run share: batches, gradients, numbers."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sgan_core.device import has_bfloat16

Rows = TypeVar("Rows", Tensor, np.ndarray)

AMP_DEVICES = ("cuda",)


def world_size() -> int:
    """Number of processes, 1 without ``torchrun``."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, 0 without ``torchrun``."""
    return dist.get_rank() if world_size() > 1 else 0


def share(rows: Rows, dim: int = 0) -> Rows:
    """This process's consecutive part of the joint batch along ``dim``.

    Raises ValueError when the rows cannot be divided: some would be left out without a word.
    """
    if world_size() == 1:
        return rows
    size, left = divmod(rows.shape[dim], world_size())
    if left:
        raise ValueError(f"{rows.shape[dim]} rows cannot be divided between {world_size()} processes")
    part = slice(rank() * size, (rank() + 1) * size)
    return rows[(slice(None),) * dim + (part,)]


def average_gradients(net: nn.Module) -> None:
    """Replace each gradient by its mean over the processes: the gradient of the joint batch's mean loss."""
    if world_size() == 1:
        return
    gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def average_value(value: Tensor) -> Tensor:
    """The mean of a tensor over the processes."""
    if world_size() == 1:
        return value
    total = value.detach().clone()
    if dist.get_backend() == "nccl":  # sends from GPU memory only
        total = total.cuda()
    dist.all_reduce(total)
    return total.to(value.device) / world_size()


def sum_of_all(value: Tensor) -> Tensor:
    """The sum of a tensor over the processes, for losses that are no mean over the samples.

    ``average_gradients`` divides by the number of processes, so this process's part counts as many times: the
    gradient is then that of the joint batch's loss.
    """
    if world_size() == 1:
        return value
    part = value * world_size()
    return average_value(value) * world_size() + (part - part.detach())


def autocast(device: torch.device, enabled: bool, *, cpu: bool = False) -> AbstractContextManager[None]:
    """bfloat16 where it pays (its range needs no loss scaling); float32 elsewhere.

    cpu: also on a CPU that computes it natively; on others it is many times slower than float32.
    """
    pays = device.type in AMP_DEVICES or (cpu and device.type == "cpu" and has_bfloat16())
    if not enabled or not pays:
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """float32 inside an ``autocast`` block, for what bfloat16 is too coarse for."""
    return torch.autocast(device.type, enabled=False) if device.type in AMP_DEVICES else nullcontext()
