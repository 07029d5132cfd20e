"""The student, which the paper has not: a feed-forward segmenter taught by labelled slices.

Everything passes through random geometry and random appearance (``appearance``), so the student goes by shape; CT's
looks lead to modalities that it was never trained on. A few pictures of a batch may hold no organ, so it learns to
say so. It has a size of its own, larger than the generator's, and begins with smaller slices (``growth``): it is
convolutional. It needs no generator: it is also the reference method of the tables, a U-Net.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sgan_core.appearance import apply_looks, draw_looks, places
from sgan_core.config import StudentTrainConfig
from sgan_core.networks.segmenter import make_segmenter
from sgan_core.training import augment
from sgan_core.training.data import Order, SliceStore, rng
from sgan_core.training.gan import one_hot
from sgan_core.training.losses import soft_dice_loss
from sgan_core.training.parallel import autocast, average_gradients, rank, share
from sgan_core.training.schedule import Schedule

_FRAME = 0.25  # a frame's largest width, of the side


class StudentTrainer:
    """The student, its moving average, its optimiser and the state that a checkpoint holds."""

    name = "student"

    def __init__(
        self,
        config: StudentTrainConfig,
        store: SliceStore,
        device: torch.device,
        *,
        labelled: int,
        num_classes: int,
        seed: int,
        amp: bool = True,
    ) -> None:
        self.config, self.store, self.device, self.seed = (
            config,
            store.at(config.size or store.size),
            device,
            seed,
        )
        self.num_classes, self.amp = num_classes, amp
        channels = store.images.shape[1]
        net = make_segmenter(
            config.channels,
            image_channels=channels,
            num_classes=num_classes,
            network=config.network,
            seed=seed,
        )
        self.net = net.to(device)
        self.average = copy.deepcopy(self.net).eval().requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=config.lr)
        self.order = Order(store.labelled(labelled), seed)
        self.step_number = 0
        self.schedule = Schedule(config.max_images)

    @property
    def images(self) -> int:
        """Images seen so far."""
        return self.step_number * self.config.batch

    @property
    def size(self) -> int:
        """Pixels along a side of the slices in the next step."""
        done, ends = self.schedule.progress(self.images), 0.0
        for smaller, part in self.config.growth.items():
            ends += part
            if done < ends:
                return smaller
        return self.store.size

    def step(self) -> dict[str, float]:
        """One iteration; returns the loss."""
        self.net.train()
        loss = self._loss(*self._changed(*self.pairs()))
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.cosine(self.config.lr, self.images)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self.net)
        self.optimizer.step()
        self.step_number += 1
        self._update_average()
        return {"loss": float(loss.detach())}

    def _loss(self, image: Tensor, target: Tensor) -> Tensor:
        with autocast(self.device, self.amp, cpu=True):
            logits = self.net(image)
        return segmentation_loss(logits.float(), target)

    def pairs(self) -> tuple[Tensor, Tensor]:
        """This process's part of a batch before it is changed: images (B, C, H, W), labels (B, K, H, W)."""
        index = share(self.order.batch(self.images, self.config.batch))
        store = self.store.at(self.size)
        first = rank() * len(index)  # of the joint batch

        def numbers(position: int) -> torch.Generator:
            return rng(self.seed, self.step_number, f"student-negatives/{first + position}")

        image, label = with_negatives(
            store.image_batch(index),
            store.label_batch(index),
            self.config.negative_share,
            numbers,
        )
        return image.to(self.device), one_hot(label.to(self.device), self.num_classes)

    def _changed(self, image: Tensor, hot: Tensor) -> tuple[Tensor, Tensor]:
        """Image and label moved together, then the image in another look; both drawn for the joint batch."""
        config = self.config
        image, label = self._moved(image, hot)
        if config.appearance:
            image = self._looked(image)
        if config.frame_share:
            numbers = rng(self.seed, self.step_number, "student-frames")
            seen = frames(config.batch, image.shape[-1], config.frame_share, numbers)
            image, label = framed(image, label, share(seen))
        return image, label

    def _moved(self, image: Tensor, hot: Tensor) -> tuple[Tensor, Tensor]:
        config, numbers = self.config, rng(self.seed, self.step_number, "student-geometry")
        theta, contrast = augment.draw(config.batch, config.strength, config.geometry, numbers)
        image, label = augment.warp(image, share(theta), share(contrast), hot, fill=config.geometry.fill)
        assert label is not None
        return image, label

    def _looked(self, image: Tensor) -> Tensor:
        channels, height, width = image.shape[1:]
        numbers = rng(self.seed, self.step_number, "student-appearance")
        looks = draw_looks((self.config.batch, channels, height, width), numbers, self.config.looks)
        return apply_looks(image, looks.part(share))

    @torch.no_grad()
    def _update_average(self) -> None:
        half_life = min(
            self.config.ema_half_life_images, 0.1 * self.images
        )  # young averages forget the start
        kept = 0.5 ** (self.config.batch / max(half_life, 1e-8))
        for mean, new in zip(self.average.parameters(), self.net.parameters(), strict=True):
            mean.lerp_(new, 1.0 - kept)

    def state_dict(self) -> dict[str, Any]:
        """Everything that exact resume needs; random numbers follow from seed and step."""
        return {
            "student": self.net.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step_number,
            "seconds": self.schedule.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict``."""
        self.net.load_state_dict(state["student"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step_number = int(state["step"])
        self.schedule.seconds = float(
            state.get("seconds", 0.0)
        )  # runs of earlier versions did not count them


def segmentation_loss(logits: Tensor, label_probs: Tensor) -> Tensor:
    """Cross-entropy + Dice loss. logits, label_probs: (B, K, H, W)."""
    return F.cross_entropy(logits, label_probs) + soft_dice_loss(logits.softmax(dim=1), label_probs)


def with_negatives(
    image: Tensor, label: Tensor, negative_share: float, numbers: Callable[[int], torch.Generator]
) -> tuple[Tensor, Tensor]:
    """Some of images (B, C, H, W) and labels (B, H, W) replaced by pictures without the organ, labels empty.

    Each with probability ``negative_share``, by one of ``NEGATIVES``. numbers(k): a CPU generator for image k.
    """
    image, label = image.clone(), label.clone()
    for one in range(len(image)):
        random = numbers(one)
        if float(torch.rand((), generator=random)) < negative_share:
            kind = NEGATIVES[int(torch.randint(len(NEGATIVES), (1,), generator=random))]
            image[one] = kind(image[one], random)
            label[one] = 0
    return image, label


def frames(batch: int, side: int, frame_share: float, numbers: torch.Generator) -> Tensor:
    """What frames leave to be seen, (batch, 1, side, side): 0 in the frame, 1 inside it.

    A picture has a frame with probability ``frame_share``, on each side of it with probability 1/2, up to a quarter
    of the picture wide. numbers: a CPU generator.
    """
    wide = torch.rand(batch, 4, generator=numbers) * _FRAME
    wide *= (torch.rand(batch, 4, generator=numbers) < 0.5) * (
        torch.rand(batch, 1, generator=numbers) < frame_share
    )
    top, bottom, left, right = (wide[:, k, None, None, None] for k in range(4))
    place = (torch.arange(side) + 0.5) / side
    rows, columns = place[:, None], place
    inside = (rows >= top) & (rows < 1.0 - bottom) & (columns >= left) & (columns < 1.0 - right)
    return inside.float()


def framed(image: Tensor, label_probs: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) in [-1, 1] black, and label probabilities (B, K, H, W) background, outside ``seen``."""
    seen = seen.to(image)
    foreground = label_probs[:, 1:] * seen
    background = 1.0 - foreground.sum(dim=1, keepdim=True)
    return (image + 1.0) * seen - 1.0, torch.cat([background, foreground], dim=1)


def ellipses(image: Tensor, numbers: torch.Generator) -> Tensor:
    """An ellipse with a rim, as a head or limb has, and others inside it. image: (C, H, W); returns its shape."""
    count = int(torch.randint(3, 10, (1,), generator=numbers))
    row, column = places((image.shape[1], image.shape[2]))
    radius = torch.rand(count, 2, generator=numbers) * 0.35 + 0.05
    centre = (torch.rand(count, 2, generator=numbers) - 0.5) * 0.8
    radius[:2] = torch.rand(1, 2, generator=numbers) * 0.4 + 0.5  # the head, and in it what the rim encloses
    radius[1] -= torch.rand(1, generator=numbers) * 0.15 + 0.03
    centre[:2] = centre[0] * 0.3
    turn = torch.rand(count, generator=numbers) * torch.pi
    turn[1] = turn[0]
    grey = torch.rand(count, image.shape[0], generator=numbers) * 2.0 - 1.0
    picture = torch.full_like(image, -1.0)
    for (high, wide), (y, x), angle, shade in zip(radius, centre, turn, grey, strict=True):
        down = (row - y) * angle.cos() + (column - x) * angle.sin()
        right = (column - x) * angle.cos() - (row - y) * angle.sin()
        inside = (down / high).square() + (right / wide).square() < 1.0
        picture = torch.where(inside, shade[:, None, None].to(image), picture)
    return picture


def grating(image: Tensor, numbers: torch.Generator) -> Tensor:
    """Waves of two directions, as weaves and screens have. image: (C, H, W); returns its shape."""
    row, column = places((image.shape[1], image.shape[2]))
    waves = torch.rand(2, 3, generator=numbers)
    angle, phase = waves[:, 0] * torch.pi, waves[:, 1] * 2.0 * torch.pi
    speed = torch.pi * (1.0 + 7.0 * waves[:, 2])  # 1 to 8 waves across
    first, second = (
        torch.cos(v * (row * a.cos() + column * a.sin()) + p)
        for v, a, p in zip(speed, angle, phase, strict=True)
    )
    weight = torch.rand(image.shape[0], 1, 1, generator=numbers)
    return (weight * first + (1.0 - weight) * second).to(image)


NEGATIVES = (ellipses, grating)
