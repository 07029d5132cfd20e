"""The terms of Eq. 1-6 as functions of tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sgan_core.training.parallel import average_value, sum_of_all


def real_loss(logits: Tensor, kind: str) -> Tensor:
    """E log D(real) of Eq. 1 and 2 without its mean. kind: logistic (the paper) or hinge (the authors' code, D_m)."""
    return F.softplus(-logits) if kind == "logistic" else F.relu(1.0 - logits)


def fake_loss(logits: Tensor, kind: str) -> Tensor:
    """E log(1 - D(fake)) of Eq. 1 and 2 without its mean, as a loss to be minimised."""
    return F.softplus(logits) if kind == "logistic" else F.relu(1.0 + logits)


def generator_loss(logits: Tensor, kind: str) -> Tensor:
    """A term of Eq. 3 without its mean: non-saturating logistic, or the negative logit for hinge."""
    return F.softplus(-logits) if kind == "logistic" else -logits


def r1_penalty(logits: Tensor, *inputs: Tensor) -> Tensor:
    """Squared gradient norm of D on real inputs, mean over the batch: E |grad D(x)|^2 (Mescheder et al. 2018).

    logits: (B, ...) of D on ``inputs``, tensors (B, ...) that require gradients.
    """
    gradients = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
    return torch.stack([gradient.flatten(1).square().sum(dim=1) for gradient in gradients]).sum(dim=0).mean()


def path_lengths(image: Tensor, w_plus: Tensor, direction: Tensor) -> Tensor:
    """Length of the Jacobian times a random image direction, for each sample (Karras et al. 2020, section 3.2).

    image: (B, C, H, W) drawn from w_plus: (B, num_ws, w_dim). direction: standard normal noise of the image's
    shape. Returns (B,).
    """
    pixels = image.shape[2] * image.shape[3]
    (gradient,) = torch.autograd.grad((image * direction).sum() / pixels**0.5, w_plus, create_graph=True)
    return gradient.square().sum(dim=2).mean(dim=1).sqrt()


def path_length_penalty(lengths: Tensor, mean: Tensor, decay: float = 0.01) -> tuple[Tensor, Tensor]:
    """Squared distance of the lengths (B,) from their running mean, with the new running mean.

    The running mean is that of the joint batch of all processes.
    """
    new_mean = mean + decay * (average_value(lengths.detach().mean()) - mean)
    return (lengths - new_mean).square().mean(), new_mean


def soft_dice_loss(label_probs: Tensor, one_hot: Tensor) -> Tensor:
    """1 - mean DICE over the foreground classes, pooled over the joint batch of all processes (DC in Eq. 4).

    label_probs, one_hot: (B, K, H, W); channel 0 is background. Pooled, so that slices without the organ
    do not each contribute an undefined 0 / 0.
    """
    overlap = sum_of_all((label_probs * one_hot)[:, 1:].sum(dim=(0, 2, 3)))
    total = sum_of_all((label_probs + one_hot)[:, 1:].sum(dim=(0, 2, 3)))
    return 1.0 - ((2.0 * overlap + 1.0) / (total + 1.0)).mean()


def overlap_share(first: Tensor, second: Tensor) -> Tensor:
    """DICE of two one-hot label batches (B, K, H, W) for each sample, (B,); 1 when both are empty."""
    a, b = first[:, 1:], second[:, 1:]
    overlap, total = (a * b).sum(dim=(1, 2, 3)), (a + b).sum(dim=(1, 2, 3))
    return torch.where(total > 0, 2.0 * overlap / total.clamp(min=1e-8), torch.ones_like(total))
