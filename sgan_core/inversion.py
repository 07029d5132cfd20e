"""Find the W+ code whose image looks like the target, then read off its label (Eq. 7-8)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from sgan_core.config import InversionConfig
from sgan_core.curvature import Curvature
from sgan_core.networks.generator import Generator
from sgan_core.reconstruction import Reconstruction

OnStep = Callable[[int, dict[str, Tensor]], bool]

HISTORY = 100  # steps that L-BFGS remembers; with 20 the loss after 60 steps was 5 % higher
_ADAM_BETAS = (0.9, 0.999)
_FIRST_STEP = 0.1  # length of its first step: root mean square over the code's numbers
_SUFFICIENT = 1e-4  # share of the promised decrease that a step must keep (Armijo)
_SHORTER = 0.3  # a step that failed is tried again by as much
_FREE_SHARE = 0.6  # of a GPU's free memory that a batch may be planned to use
_MOST_SLICES = 512  # of a planned batch


@dataclass(frozen=True, eq=False)
class Inversion:
    """What inversion found for each of N slices."""

    w_plus: Tensor  # (N, num_ws, w_dim)
    image: Tensor  # (N, C, H, W), the reconstruction in about [-1, 1]
    label_probs: Tensor  # (N, K, H, W) softmax; channel 0 is background
    loss: Tensor  # (N,) the objective of the best iterate, without the encoder term
    steps: int  # steps done, of the slice that took most


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
    curvature: Curvature | None = None,
    on_step: OnStep | None = None,
) -> Inversion:
    """Minimise reconstruction + lambda_2 |w_plus - E(G_x(w_plus))|^2 over w_plus (Eq. 8), for a batch of slices.

    target: (B, C, H, W) in [-1, 1]. The start is E(target), or the mean w without an encoder. The encoder's
    answer is a constant of each step: no gradient flows through E. ``start_weight`` holds w_plus near an encoder's
    start instead, which costs no passes of E. The best iterate of each slice is kept. L-BFGS takes fewer steps
    with the generator's ``curvature``.
    ``steps`` 0 gives the start itself: the paper's "Ours-NO". Every slice goes its own way: its result does not
    depend on the others, but for rounding. With a ``tolerance`` it leaves the batch when it hardly improves.
    on_step(step, terms) -> bool: return False to stop; the best w_plus so far is returned. The terms are those
    of the slices still at work. A batch that does not fit into memory is halved, and the steps start again.
    Noise maps stay fixed: optimised noise explains the image without its anatomy, and its label is arbitrary.
    """
    found = None
    try:
        found = _invert(target, generator, encoder, reconstruction, config, curvature, on_step)
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if len(target) < 2 or not out_of_memory(error):
            raise
    # Only out here is the failed attempt's memory free: the exception holds its tensors.
    if found is not None:
        return found
    if target.device.type == "cuda":
        torch.cuda.empty_cache()
    halves = target.tensor_split(2)
    return joined(
        [
            invert(half, generator, encoder, reconstruction, config, curvature=curvature, on_step=on_step)
            for half in halves
        ]
    )


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of PyTorch says that memory ran out, on a GPU or on the CPU."""
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in said for words in ("not enough memory", "DefaultCPUAllocator", "out of memory")
    )


def saved_bytes(step: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass of what ``step`` computes; storage counts once."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = step()
    del kept
    return sum(sizes.values())


def fitting_batch(
    target: Tensor, generator: Generator, reconstruction: Reconstruction, config: InversionConfig
) -> int:
    """How many slices to optimise together: as many as a GPU's free memory holds, else the config's ``batch``.

    target: some slices, (1 or more, C, H, W), on the device. On a GPU one slice is tried to see what it keeps.
    """
    if target.device.type != "cuda":
        return config.batch
    free = torch.cuda.mem_get_info(target.device)[0]
    return planned_batch(free, bytes_of_slice(target[:1], generator, reconstruction))


def bytes_of_slice(target: Tensor, generator: Generator, reconstruction: Reconstruction) -> int:
    """What one more slice, target (1, C, H, W), keeps in memory during a step."""
    generator.requires_grad_(False)
    one, two = target, target.expand(2, -1, -1, -1)

    def kept(slices: Tensor) -> int:
        reconstruction.aim(slices)
        w_plus = generator.broadcast(generator.mean_w[None]).expand(len(slices), -1, -1)
        w_plus = w_plus.clone().requires_grad_(True)

        def step() -> Tensor:
            terms = reconstruction.terms(generator.synthesis(w_plus).image)
            return torch.stack(list(terms.values())).sum()

        return saved_bytes(step)

    return kept(two) - kept(one)  # the difference is without weights, which a batch shares


def planned_batch(free_bytes: int, slice_bytes: int) -> int:
    """Slices that fit into a share of the free memory: 1 to 512."""
    # Gradients and the next layer's result come on top of what is kept for the backward pass.
    return int(min(_MOST_SLICES, max(1, _FREE_SHARE * free_bytes / (2 * slice_bytes))))


def joined(parts: Sequence[Inversion]) -> Inversion:
    """The results of several batches as one."""
    return Inversion(
        w_plus=torch.cat([part.w_plus for part in parts]),
        image=torch.cat([part.image for part in parts]),
        label_probs=torch.cat([part.label_probs for part in parts]),
        loss=torch.cat([part.loss for part in parts]),
        steps=max(part.steps for part in parts),
    )


def _invert(
    target: Tensor,
    generator: Generator,
    encoder: nn.Module | None,
    reconstruction: Reconstruction,
    config: InversionConfig,
    curvature: Curvature | None,
    on_step: OnStep | None,
) -> Inversion:
    generator.requires_grad_(False)
    reconstruction.aim(target)
    with torch.no_grad():
        start = encoder(target) if encoder is not None else generator.broadcast(generator.mean_w[None])
    start = start.detach().expand(len(target), -1, -1)
    w_plus = start.clone()
    optimizer: _Optimizer = Lbfgs(curvature) if config.optimizer == "lbfgs" else Adam(config)
    kept = _Best(w_plus, config)

    step = 0
    for step in range(config.steps + 1):  # the last pass only scores the last step's result
        last = step == config.steps
        w_plus.requires_grad_(not last)
        with torch.set_grad_enabled(not last):
            image = generator.synthesis(w_plus).image
            terms = reconstruction.terms(image)  # Eq. 7, or what takes its place
        loss = torch.stack(list(terms.values())).sum(dim=0)  # (B,)
        kept.update(w_plus.detach(), loss.detach())
        if last or (on_step is not None and not on_step(step, {k: v.detach() for k, v in terms.items()})):
            break
        if encoder is not None and config.encoder_weight:
            with torch.no_grad():
                answer = encoder(image)
            # lambda_2 in Eq. 8
            loss = loss + config.encoder_weight * (w_plus - answer).square().mean(dim=(1, 2))
        if encoder is not None and config.start_weight:
            # Not in the paper: E(target) in place of E(G_x(w_plus)).
            loss = loss + config.start_weight * (w_plus - start).square().mean(dim=(1, 2))
        # Slices are independent: the sum's gradient is each slice's own.
        (gradient,) = torch.autograd.grad(loss.sum(), w_plus)
        w_plus = optimizer.next(w_plus.detach(), loss.detach(), gradient)
        rows = kept.improving(step)
        if not rows.any():
            break
        if not rows.all():
            w_plus, start = w_plus[rows], start[rows]
            for part in (reconstruction, optimizer, kept):
                part.keep(rows)

    with torch.no_grad():
        pair = generator.synthesis(kept.w_plus)
    return Inversion(kept.w_plus, pair.image, pair.label_logits.softmax(dim=1), kept.loss, step)


class _Best:
    """The best iterate of each slice, and which slices still improve."""

    def __init__(self, w_plus: Tensor, config: InversionConfig) -> None:
        self.config = config
        self.w_plus = w_plus.clone()  # of all slices
        self.loss = torch.full_like(w_plus[:, 0, 0], torch.inf)
        self.at_work = torch.arange(len(w_plus), device=w_plus.device)  # their positions
        self.checked = self.loss.clone()  # the loss ``patience`` steps ago

    def update(self, w_plus: Tensor, loss: Tensor) -> None:
        """Take what is better; both are of the slices at work."""
        better = loss < self.loss[self.at_work]
        self.loss[self.at_work[better]] = loss[better]
        self.w_plus[self.at_work[better]] = w_plus[better]

    def improving(self, step: int) -> Tensor:
        """(slices at work,) bool. Asked after every step, answered every ``patience`` steps."""
        now = self.loss[self.at_work]
        if not self.config.tolerance or step % self.config.patience:
            return torch.ones_like(self.at_work, dtype=torch.bool)
        rows = now < (1.0 - self.config.tolerance) * self.checked
        self.checked = now
        return rows

    def keep(self, rows: Tensor) -> None:
        self.at_work, self.checked = self.at_work[rows], self.checked[rows]


# --- optimisers: each slice has its own, they only compute together


class _Optimizer(Protocol):
    def next(self, w_plus: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        """Where to look next: (B, num_ws, w_dim) and (B,) -> (B, num_ws, w_dim)."""

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the slices: ``rows`` (B,) bool."""


class Adam:
    """Adam (Kingma and Ba, ICLR 2015) with the rate of ``learning_rate``: what the paper uses."""

    def __init__(self, config: InversionConfig) -> None:
        self.config = config
        self.step = 0
        self.first = self.second = torch.zeros(())

    def next(self, w_plus: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        if not self.step:
            self.first = self.second = torch.zeros_like(w_plus)
        b1, b2 = _ADAM_BETAS
        self.first = b1 * self.first + (1.0 - b1) * gradient
        self.second = b2 * self.second + (1.0 - b2) * gradient.square()
        rate = learning_rate(self.step, self.config)
        self.step += 1
        mean, square = self.first / (1.0 - b1**self.step), self.second / (1.0 - b2**self.step)
        return w_plus - rate * mean / (square.sqrt() + 1e-8)

    def keep(self, rows: Tensor) -> None:
        self.first, self.second = self.first[rows], self.second[rows]


class Lbfgs:
    """L-BFGS (Nocedal and Wright, Numerical Optimization, algorithm 7.4), a step length for each slice.

    One evaluation is one step: a slice whose loss did not fall enough goes back and tries a shorter step, in the
    direction that it knows better by then; the others go on. inverse: about the inverse of the objective's
    curvature times a vector (B, num_ws, w_dim), up to a factor.
    """

    def __init__(self, inverse: Callable[[Tensor], Tensor] | None = None) -> None:
        self.inverse = inverse or (lambda vector: vector)
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # moves, gradient changes, 1 / their product
        self.loss: Tensor | None = None  # of ``point``
        self.slope = torch.zeros(())  # of the loss along the last move

    def next(self, w_plus: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        if self.loss is None:
            self.point, self.loss, self.gradient = w_plus, loss, gradient
            self.length = torch.ones_like(loss)
            size = _dot(gradient, self.inverse(gradient)).sqrt()
            self.gain = _FIRST_STEP * gradient[0].numel() ** 0.5 / size.clamp(min=1e-12)
        else:
            self._learn(w_plus - self.point, gradient - self.gradient)
            # Not a number is no decrease either.
            better = loss <= self.loss + _SUFFICIENT * self.length * self.slope
            rows = better[:, None, None]
            self.point = torch.where(rows, w_plus, self.point)
            self.gradient = torch.where(rows, gradient, self.gradient)
            self.loss = torch.where(better, loss, self.loss)
            self.length = torch.where(better, torch.ones_like(loss), _SHORTER * self.length)
        direction = self._direction()
        self.slope = _dot(direction, self.gradient)
        return self.point + self.length[:, None, None] * direction

    def keep(self, rows: Tensor) -> None:
        assert self.loss is not None
        self.point, self.gradient, self.loss = self.point[rows], self.gradient[rows], self.loss[rows]
        self.length, self.gain, self.slope = self.length[rows], self.gain[rows], self.slope[rows]
        self.pairs = [(move[rows], change[rows], inverse[rows]) for move, change, inverse in self.pairs]

    def _learn(self, move: Tensor, change: Tensor) -> None:
        """Remember the curvature along a move, of slices where it is positive: elsewhere zeros, without effect."""
        product = _dot(move, change)
        positive = product > 1e-8 * _dot(change, change)
        rows = positive[:, None, None]
        move, change = (torch.where(rows, part, torch.zeros_like(part)) for part in (move, change))
        inverse = torch.where(positive, 1.0 / product, torch.zeros_like(product))
        gain = product / _dot(change, self.inverse(change)).clamp(min=1e-20)
        self.gain = torch.where(positive, gain, self.gain)
        self.pairs = [*self.pairs, (move, change, inverse)][-HISTORY:]

    def _direction(self) -> Tensor:
        q = self.gradient
        shares = []
        for move, change, inverse in reversed(self.pairs):
            share = inverse * _dot(move, q)
            shares.append(share)
            q = q - share[:, None, None] * change
        q = self.inverse(q) * self.gain[:, None, None]
        for (move, change, inverse), share in zip(self.pairs, reversed(shares), strict=True):
            q = q + (share - inverse * _dot(change, q))[:, None, None] * move
        return -q


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(B, num_ws, w_dim) twice -> (B,)."""
    return (a * b).sum(dim=(1, 2))
