"""Find the W+ code whose image looks like the target, then read off its label (Eq. 7-8)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sgan_core.config import InversionConfig
from sgan_core.networks.generator import Generator
from sgan_core.reconstruction import Reconstruction

OnStep = Callable[[int, dict[str, Tensor]], bool]


@dataclass(frozen=True, eq=False)
class Inversion:
    """What inversion found for each of N slices."""

    w_plus: Tensor  # (N, num_ws, w_dim)
    image: Tensor  # (N, C, H, W), the reconstruction in about [-1, 1]
    label_probs: Tensor  # (N, K, H, W) softmax; channel 0 is background
    loss: Tensor  # (N,) the objective of the best iterate, without the encoder term
    steps: int  # steps done


def learning_rate(step: int, config: InversionConfig) -> float:
    """The rate of a step: linear ramp up, cosine ramp down (the projector of StyleGAN2)."""
    progress = step / max(1, config.steps)
    down = min(1.0, (1.0 - progress) / config.ramp_down) if config.ramp_down else 1.0
    up = min(1.0, (step + 1) / max(1.0, config.ramp_up * config.steps))
    return config.lr * up * (0.5 - 0.5 * float(torch.cos(torch.tensor(down * torch.pi))))


def invert(
    target: Tensor,
    generator: Generator,
    encoder: nn.Module | None,
    reconstruction: Reconstruction,
    config: InversionConfig,
    *,
    on_step: OnStep | None = None,
) -> Inversion:
    """Minimise reconstruction + lambda_2 |w_plus - E(G_x(w_plus))|^2 over w_plus, for a batch of slices.

    target: (B, C, H, W) in [-1, 1]. The start is E(target), or the mean w without an encoder. The encoder's
    answer is a constant of each step: no gradient flows through E. The best iterate of each slice is kept.
    ``steps`` 0 gives the start itself: the paper's "Ours-NO".
    on_step(step, terms) -> bool: return False to stop; the best w_plus so far is returned.
    Noise maps stay fixed: optimised noise explains the image without its anatomy, and its label is arbitrary.
    """
    generator.requires_grad_(False)
    reconstruction.aim(target)
    with torch.no_grad():
        start = encoder(target) if encoder is not None else generator.broadcast(generator.mean_w[None])
    w_plus = start.detach().expand(len(target), -1, -1).clone().requires_grad_(True)
    optimizer = torch.optim.Adam([w_plus], lr=config.lr, betas=(0.9, 0.999))
    best_loss = torch.full((len(target),), torch.inf, device=target.device)
    best = w_plus.detach().clone()

    step = 0
    for step in range(config.steps + 1):  # the last pass only scores the last step's result
        last = step == config.steps
        with torch.set_grad_enabled(not last):
            image = generator.synthesis(w_plus).image
            terms = reconstruction.terms(image)
        loss = torch.stack(list(terms.values())).sum(dim=0)  # (B,)
        better = loss.detach() < best_loss
        best_loss = torch.where(better, loss.detach(), best_loss)
        best = torch.where(better[:, None, None], w_plus.detach(), best)
        if last or (on_step is not None and not on_step(step, {k: v.detach() for k, v in terms.items()})):
            break
        if encoder is not None and config.encoder_weight:
            with torch.no_grad():
                answer = encoder(image)
            loss = loss + config.encoder_weight * (w_plus - answer).square().mean(dim=(1, 2))
        optimizer.param_groups[0]["lr"] = learning_rate(step, config)
        optimizer.zero_grad(set_to_none=True)
        loss.sum().backward()  # slices are independent: the sum's gradient is each slice's own
        optimizer.step()

    with torch.no_grad():
        pair = generator.synthesis(best)
    return Inversion(best, pair.image, pair.label_logits.softmax(dim=1), best_loss, step)
