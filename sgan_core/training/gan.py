"""Stage 1: generator against D_r on images and D_m on image + label pairs (Eq. 1-3)."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgan_core.config import AugmentConfig, TrainConfig
from sgan_core.networks.discriminators import ImageDiscriminator, PairDiscriminator
from sgan_core.networks.generator import Generator, Pair
from sgan_core.training import augment, losses
from sgan_core.training.data import Order, SliceStore, rng
from sgan_core.training.parallel import autocast, average_gradients, average_value, share, world_size
from sgan_core.training.schedule import Schedule

Losses = dict[str, Tensor]
Transforms = tuple[Tensor, Tensor]  # theta (B, 2, 3), contrast (B, 2)


def pair_label(label: Tensor, *, encoding: str, blur: bool) -> Tensor:
    """A label as D_m sees it, (B, K, H, W) in [-1, 1] (unbounded raw logits in the official encoding).

    label: probabilities or one-hot (B, K, H, W) in [0, 1] for "softmax"; anything for "official", unchanged.
    The blur takes the give-away away that real labels are hard and generated ones soft.
    """
    if encoding == "official":
        return label
    if blur:
        taps = torch.tensor([1.0, 2.0, 1.0], dtype=label.dtype, device=label.device) / 4.0
        kernel = torch.outer(taps, taps).expand(label.shape[1], 1, 3, 3)
        label = F.conv2d(F.pad(label, (1, 1, 1, 1), mode="replicate"), kernel, groups=label.shape[1])
    return label * 2.0 - 1.0


def one_hot(labels: Tensor, num_classes: int, *, encoding: str = "softmax") -> Tensor:
    """(B, H, W) integers -> (B, K, H, W), in {0, 1}, or {-1, 1} for the official encoding."""
    hot = F.one_hot(labels, num_classes).permute(0, 3, 1, 2).float()  # (B, H, W, K) -> (B, K, H, W)
    return hot * 2.0 - 1.0 if encoding == "official" else hot


def _mean_over_scales(outputs: list[list[Tensor]], loss: Any, weight: Tensor | None = None) -> Tensor:
    """Mean over scales of a per-patch loss on D_m's logits; ``weight`` (B,) weighs the samples."""
    terms = []
    for layers in outputs:
        per_sample = loss(layers[-1].float()).flatten(1).mean(dim=1)  # (B, 1, h, w) -> (B,)
        terms.append(per_sample.mean() if weight is None else (per_sample * weight).mean())
    return torch.stack(terms).mean()


def image_discriminator_step(
    discriminator: nn.Module, real: Tensor, fake: Tensor, *, fade: float = 1.0
) -> Losses:
    """D_r's loss on real and generated images (B, C, H, W) (Eq. 1)."""
    real_logits, fake_logits = discriminator(real, fade=fade), discriminator(fake.detach(), fade=fade)
    loss = losses.real_loss(real_logits, "logistic").mean() + losses.fake_loss(fake_logits, "logistic").mean()
    return {"image_d": loss, "certainty": real_logits.detach().sign().mean()}


def image_r1_step(
    discriminator: nn.Module, real: Tensor, *, gamma: float, every: int, fade: float = 1.0
) -> Losses:
    """D_r's regulariser on real images (B, C, H, W): gamma / 2 R1, times the steps that it stands for."""
    real = real.detach().requires_grad_()
    penalty = losses.r1_penalty(discriminator(real, fade=fade), real)
    return {"image_r1": gamma / 2 * every * penalty}


def pair_discriminator_step(
    discriminator: nn.Module,
    real: tuple[Tensor, Tensor],
    fake: tuple[Tensor, Tensor],
    *,
    kind: str,
    weight: float = 1.0,
    mismatched: tuple[Tensor, Tensor] | None = None,
    mismatch_weight: Tensor | None = None,
) -> Losses:
    """D_m's losses on real and generated pairs of image (B, C, H, W) and label (B, K, H, W) (Eq. 2).

    weight: of the loss; with 0.5 it is the mean of real and generated, as in the authors' code.
    mismatched: real images with other images' labels, an extra kind of fake; mismatch_weight (B,) is 0 where
    the labels agree by chance (two empty slices are no mismatch).
    """
    real_out = discriminator(*real)
    fake_out = discriminator(fake[0].detach(), fake[1].detach())
    loss = _mean_over_scales(real_out, lambda x: losses.real_loss(x, kind))
    loss = loss + _mean_over_scales(fake_out, lambda x: losses.fake_loss(x, kind))
    found = {"pair_d": weight * loss}
    if mismatched is not None:
        out = discriminator(*(part.detach() for part in mismatched))
        found["mismatch"] = _mean_over_scales(out, lambda x: losses.fake_loss(x, kind), mismatch_weight)
    return found


def pair_r1_step(
    discriminator: nn.Module, real: tuple[Tensor, Tensor], *, gamma: float, every: int
) -> Losses:
    """D_m's regulariser on real pairs: gamma / 2 R1, times the steps that it stands for.

    D_m's answer to a pair is the mean over its patches, as in all its losses: of their sum the penalty would be
    a million times larger at 256 px, and D_m would learn nothing. Each scale is a discriminator with a penalty
    of its own, and their mean counts. Gradients are those of each sample's own answer; the authors' code takes
    the mean over the batch before the gradient too, so that its penalty falls with the square of the batch, and
    adds up the scales.
    """
    image, label = (part.detach().requires_grad_() for part in real)
    answers = [
        layers[-1].float().flatten(1).mean(dim=1) for layers in discriminator(image, label)
    ]  # (B,) each
    penalties = [losses.r1_penalty(answer, image, label) for answer in answers]
    return {"pair_r1": gamma / 2 * every * torch.stack(penalties).mean()}


def generator_step(
    image_logits: Tensor,
    pair_out: list[list[Tensor]],
    *,
    kind: str,
    pair_weight: float,
    real_pair_out: list[list[Tensor]] | None = None,
    feature_matching: float = 0.0,
) -> Losses:
    """G's losses (Eq. 3): D_r on x, and D_m on (x.detach(), y), which the caller has detached.

    real_pair_out: D_m's layers on real pairs, for the authors' feature matching (L1).
    """
    found = {"image_g": losses.generator_loss(image_logits, "logistic").mean()}  # the D_r term of Eq. 3
    # The D_m term of Eq. 3.
    found["pair_g"] = pair_weight * _mean_over_scales(pair_out, lambda x: losses.generator_loss(x, kind))
    if feature_matching and real_pair_out is not None:
        gaps = [
            (a - b.detach()).abs().mean()
            for fake, real in zip(pair_out, real_pair_out, strict=True)
            for a, b in zip(fake[:-1], real[:-1], strict=True)
        ]
        found["matching"] = feature_matching * torch.stack(gaps).sum() / len(pair_out)
    return found


class GanTrainer:
    """The players, their optimisers and the state that a checkpoint holds."""

    name = "gan"

    def __init__(
        self, config: TrainConfig, store: SliceStore, device: torch.device, *, grown: bool = False
    ) -> None:
        self.config, self.gan, self.device, self.store = config, config.gan, device, store
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            generator = Generator(config.generator)
            channels, classes = config.generator.image_channels, config.generator.num_classes
            image_d = ImageDiscriminator(config.image_discriminator, image_channels=channels, grown=grown)
            pair_d = PairDiscriminator(
                config.pair_discriminator, image_channels=channels, num_classes=classes
            )
        self.generator, self.image_d, self.pair_d = (
            generator.to(device),
            image_d.to(device),
            pair_d.to(device),
        )
        self.ema = copy.deepcopy(self.generator).eval().requires_grad_(False)
        gan = config.gan
        self.step_number = 0
        self.schedule = Schedule(gan.max_images)
        self.g_optimizer = _adam(self.generator, gan.generator_lr, self._path_every)
        self.image_optimizer = _adam(self.image_d, gan.image_lr, gan.r1_every if gan.image_r1 else 0)
        self.pair_optimizer = _adam(self.pair_d, gan.pair_lr, gan.r1_every if gan.pair_r1 else 0)
        self.path_mean = torch.zeros((), device=device)
        self.strength = gan.augment.image_strength
        self.grown = grown
        self.image_order = Order(store.slices_of(split="train"), config.seed)
        self.pair_order = Order(store.labelled(config.labelled), config.seed + 1)

    @property
    def images(self) -> int:
        """Real images seen by D_r so far."""
        return self.step_number * self.gan.batch

    @property
    def fade(self) -> float:
        """How far D_r's new block is faded in after growing, 0 to 1."""
        return min(1.0, self.images / self.gan.fade_images) if self.grown and self.gan.fade_images else 1.0

    # --- random inputs: functions of (seed, step, sample of the joint batch), the same for any number of processes

    def _latents(self, stream: str, count: int) -> Tensor:
        """w_plus (count / world, num_ws, w_dim) of this process, with style mixing."""
        random = rng(self.config.seed, self.step_number, stream)
        z = torch.randn(2, count, self.config.generator.z_dim, generator=random)
        mixed = torch.rand(count, generator=random) < self.gan.style_mixing
        crossover = torch.randint(1, self.generator.num_ws, (count,), generator=random)
        crossover = torch.where(mixed, crossover, self.generator.num_ws)
        z, crossover = share(z, dim=1).to(self.device), share(crossover).to(self.device)
        first, second = self.generator.mapping(z.flatten(0, 1)).chunk(2)
        return self.generator.mix(first, second, crossover)

    def _synthesise(self, w_plus: Tensor, stream: str, count: int) -> Pair:
        if not self.config.generator.noise:
            return self.generator.synthesis(w_plus)
        random = rng(self.config.seed, self.step_number, stream + "/noise")
        sides = self.generator.synthesis.noise_resolutions()
        maps = [share(torch.randn(count, 1, side, side, generator=random)).to(self.device) for side in sides]
        return self.generator.synthesis(w_plus, noise=maps)

    def _transforms(self, stream: str, strength: float, config: AugmentConfig) -> Transforms | None:
        if strength <= 0:
            return None
        theta, contrast = augment.draw(
            self.gan.batch, strength, config, rng(self.config.seed, self.step_number, stream)
        )
        return share(theta).to(self.device), share(contrast).to(self.device)

    def _image_input(self, image: Tensor, stream: str) -> Tensor:
        transforms = self._transforms(stream, self.strength, self.gan.augment)
        return (
            image if transforms is None else augment.warp(image, *transforms, fill=self.gan.augment.fill)[0]
        )

    def _pair_input(self, image: Tensor, label: Tensor, stream: str) -> tuple[Tensor, Tensor]:
        """image (B, C, H, W) with label (one-hot or softmax; raw in the official encoding) as D_m sees them."""
        encoding = self.config.pair_discriminator.encoding
        transforms = self._transforms(stream, self.gan.augment.pair_strength, self.gan.augment)
        if transforms is not None:
            image, warped = augment.warp(image, *transforms, label, fill=self.gan.augment.fill)
            assert warped is not None
            label = warped
        return image, pair_label(label, encoding=encoding, blur=self.gan.pair_label_blur)

    def _fake_label(self, pair: Pair) -> Tensor:
        official = self.config.pair_discriminator.encoding == "official"
        return pair.label_logits if official else pair.label_logits.softmax(dim=1)

    # --- one iteration

    def step(self) -> dict[str, float]:
        """One iteration of all players on one batch; returns the named losses as numbers."""
        gan, batch = self.gan, self.gan.batch
        start = self.step_number * batch
        real = self.store.image_batch(share(self.image_order.batch(start, batch))).to(self.device)
        index = self.pair_order.batch(start, batch)
        pair_image = self.store.image_batch(share(index)).to(self.device)
        pair_hot = self._one_hot(share(index))
        # Each label with its neighbour's image, also across the borders between processes.
        other_hot = self._one_hot(share(np.roll(index, 1))) if gan.mismatch_weight else None

        found = self._discriminators(real, pair_image, pair_hot, other_hot)
        found |= self._generator(pair_image, pair_hot)
        self._update_ema()
        self._adapt(found["certainty"])
        self.step_number += 1
        return {name: float(value) for name, value in found.items()} | {"augment": self.strength}

    def _one_hot(self, index: np.ndarray) -> Tensor:
        """The labels of slices as D_m's encoding has them, (B, K, H, W)."""
        labels = self.store.label_batch(index).to(self.device)
        encoding = self.config.pair_discriminator.encoding
        return one_hot(labels, self.config.generator.num_classes, encoding=encoding)

    def _discriminators(
        self, real: Tensor, pair_image: Tensor, pair_hot: Tensor, other_hot: Tensor | None
    ) -> Losses:
        gan, batch = self.gan, self.gan.batch
        lazy = self.step_number % gan.r1_every == 0
        real = self._image_input(real, "d/real")
        with torch.no_grad(), autocast(self.device, self.config.amp):
            fake = self._synthesise(self._latents("d", batch), "d", batch)
            fake = Pair(fake.image.float(), fake.label_logits.float())
        with autocast(self.device, self.config.amp):
            found = image_discriminator_step(
                self.image_d, real, self._image_input(fake.image, "d/fake"), fade=self.fade
            )
        _descend(self.image_optimizer, self.image_d, found["image_d"])
        if lazy and gan.image_r1:
            r1 = image_r1_step(self.image_d, real, gamma=gan.image_r1, every=gan.r1_every, fade=self.fade)
            _descend(self.image_optimizer, self.image_d, r1["image_r1"])
            found |= r1

        real_pair = self._pair_input(pair_image, pair_hot, "m/real")
        fake_pair = self._pair_input(fake.image, self._fake_label(fake), "m/fake")
        mismatched = weight = None
        if other_hot is not None:
            weight = gan.mismatch_weight * (1.0 - losses.overlap_share(pair_hot, other_hot))
            mismatched = self._pair_input(pair_image, other_hot, "m/mismatch")
        with autocast(self.device, self.config.amp):
            pair_found = pair_discriminator_step(
                self.pair_d,
                real_pair,
                fake_pair,
                kind=gan.pair_loss,
                weight=gan.pair_d_weight,
                mismatched=mismatched,
                mismatch_weight=weight,
            )
        _descend(self.pair_optimizer, self.pair_d, torch.stack(list(pair_found.values())).sum())
        if lazy and gan.pair_r1:
            r1 = pair_r1_step(self.pair_d, real_pair, gamma=gan.pair_r1, every=gan.r1_every)
            _descend(self.pair_optimizer, self.pair_d, r1["pair_r1"])
            pair_found |= r1
        return {name: value.detach() for name, value in (found | pair_found).items()}

    def _generator(self, pair_image: Tensor, pair_hot: Tensor) -> Losses:
        gan, batch = self.gan, self.gan.batch
        for net in (self.image_d, self.pair_d):
            net.requires_grad_(False)
        with autocast(self.device, self.config.amp):
            fake = self._synthesise(self._latents("g", batch), "g", batch)
            image, label = fake.image.float(), self._fake_label(Pair(fake.image, fake.label_logits.float()))
            image_logits = self.image_d(self._image_input(image, "g/image"), fade=self.fade)
            # The one line of the method: D_m sees the image without gradient, the styles learn through y.
            pair_out = self.pair_d(*self._pair_input(image.detach(), label, "g/pair"))
            real_out = None
            if gan.feature_matching:
                real_out = self.pair_d(*self._pair_input(pair_image, pair_hot, "m/real"))
            # A generator grown from a smaller one knows its labels already.
            ramped = gan.pair_ramp_images and not self.grown
            ramp = min(1.0, self.images / gan.pair_ramp_images) if ramped else 1.0
            found = generator_step(
                image_logits,
                pair_out,
                kind=gan.pair_loss,
                pair_weight=gan.pair_weight * ramp,
                real_pair_out=real_out,
                feature_matching=gan.feature_matching,
            )
        _set_rate(self.g_optimizer, gan.generator_lr, self._path_every)
        _descend(self.g_optimizer, self.generator, torch.stack(list(found.values())).sum())
        if self._path_every and self.step_number % self._path_every == 0:
            count = world_size() * max(1, batch // gan.path_batch_shrink // world_size())
            found["path"], self.path_mean = self.path_step(count)
            _descend(self.g_optimizer, self.generator, found["path"])
        for net in (self.image_d, self.pair_d):
            net.requires_grad_(True)
        return {name: value.detach() for name, value in found.items()}

    @property
    def _path_every(self) -> int:
        """Iterations from one step of path length to the next; 0 while it has not started."""
        gan = self.gan
        started = gan.path_weight > 0 and self.schedule.progress(self.images) >= gan.path_from
        return gan.path_every if started else 0

    def path_step(self, count: int) -> tuple[Tensor, Tensor]:
        """The weighted path-length penalty on ``count`` samples of the joint batch, and its new running mean."""
        w_plus = self._latents("path", count)
        image = self._synthesise(w_plus, "path", count).image
        random = rng(self.config.seed, self.step_number, "path/direction")
        direction = share(torch.randn(count, *image.shape[1:], generator=random)).to(self.device)
        penalty, mean = losses.path_length_penalty(
            losses.path_lengths(image, w_plus, direction), self.path_mean
        )
        return self.gan.path_weight * self.gan.path_every * penalty, mean

    @torch.no_grad()
    def _update_ema(self) -> None:
        # Half-life in images, shorter at the start so that the average forgets the random weights.
        half_life = min(self.gan.ema_half_life_images, max(1.0, 0.05 * self.images))
        decay = 0.5 ** (self.gan.batch / half_life)
        for average, current in zip(self.ema.parameters(), self.generator.parameters(), strict=True):
            average.lerp_(current, 1.0 - decay)

    def _adapt(self, certainty: Tensor) -> None:
        config = self.gan.augment
        if not config.adaptive:
            return
        direction = 1.0 if float(average_value(certainty)) > config.target else -1.0
        change = direction * self.gan.batch / (config.adapt_kimg * 1000.0)
        self.strength = min(config.image_max, max(0.0, self.strength + change))

    # --- checkpoints

    def _modules(self) -> dict[str, Any]:
        return {
            "generator": self.generator,
            "ema": self.ema,
            "image_d": self.image_d,
            "pair_d": self.pair_d,
            "g_optimizer": self.g_optimizer,
            "image_optimizer": self.image_optimizer,
            "pair_optimizer": self.pair_optimizer,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that exact resume needs; random numbers follow from seed and step."""
        state = {name: part.state_dict() for name, part in self._modules().items()}
        numbers = {"step": self.step_number, "strength": self.strength, "grown": self.grown}
        return state | numbers | {"path_mean": self.path_mean, "seconds": self.schedule.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict``."""
        for name, part in self._modules().items():
            part.load_state_dict(state[name])
        self.step_number, self.strength = int(state["step"]), float(state["strength"])
        self.path_mean = state["path_mean"].to(self.device)
        self.schedule.seconds = float(
            state.get("seconds", 0.0)
        )  # runs of earlier versions did not count them

    def init_from(self, state: dict[str, Any]) -> list[str]:
        """Take over all weights of a model that fit; returns the names of those that start anew.

        state: "ema", "image_d" and "pair_d" of ``state_dict``; without a discriminator it starts anew. Of a smaller
        model the new resolution's heads start at zero, so the first image is the smaller one, up-sampled.
        """
        size = str(self.config.generator.size)
        fresh = []
        for name, net in (("generator", self.generator), ("image_d", self.image_d), ("pair_d", self.pair_d)):
            source = dict(state.get("ema" if name == "generator" else name, {}))
            if name == "image_d" and self.grown and source:
                for part in ("weight", "bias"):
                    source[f"from_half.{part}"] = source.pop(f"from_image.{part}")
            own = net.state_dict()
            fits = {
                key: value for key, value in source.items() if key in own and own[key].shape == value.shape
            }
            net.load_state_dict(fits, strict=False)
            fresh += [f"{name}.{key}" for key in own if key not in fits]
        for head in ("to_image", "to_label"):
            if f"generator.synthesis.blocks.{size}.{head}.conv.weight" in fresh:
                nn.init.zeros_(
                    self.generator.synthesis.get_submodule(f"blocks.{size}.{head}.conv").get_parameter(
                        "weight"
                    )
                )
        self.ema.load_state_dict(self.generator.state_dict())
        return fresh


def _adam(net: nn.Module, lr: float, lazy_every: int = 0) -> torch.optim.Adam:
    """Adam (0, 0.99) with the rate of ``_set_rate``."""
    optimizer = torch.optim.Adam(net.parameters(), eps=1e-8)
    _set_rate(optimizer, lr, lazy_every)
    return optimizer


def _set_rate(optimizer: torch.optim.Optimizer, lr: float, lazy_every: int) -> None:
    """Adam's rate and beta_2, so that ``lazy_every`` iterations with their regulariser's step go as far as without.

    The regulariser has a step of its own (Karras et al. 2020, appendix B): ``lazy_every + 1`` steps in all.
    0: no regulariser.
    """
    ratio = lazy_every / (lazy_every + 1) if lazy_every else 1.0
    for group in optimizer.param_groups:
        group.update(lr=lr * ratio, betas=(0.0, 0.99**ratio))


def _descend(optimizer: torch.optim.Optimizer, net: nn.Module, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    average_gradients(net)
    optimizer.step()
