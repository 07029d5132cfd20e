"""Stage 3: the student, a feed-forward segmenter taught by labelled slices and by the generator.

The generator draws endless image + label pairs; a part of each batch comes from it. Everything passes through
random geometry and random appearance (``appearance``), so the student goes by shape and reads modalities
that it was never trained on. Without a generator this is the reference method of the tables: a U-Net.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sgan_core.appearance import shift_appearance
from sgan_core.config import StudentTrainConfig
from sgan_core.networks.generator import Generator
from sgan_core.networks.segmenter import label_probs, make_segmenter
from sgan_core.training import augment
from sgan_core.training.data import Order, SliceStore, rng
from sgan_core.training.gan import one_hot
from sgan_core.training.losses import overlap_share, soft_dice_loss
from sgan_core.training.parallel import average_gradients, share


class StudentTrainer:
    """The student, its moving average, its optimiser and the state that a checkpoint holds."""

    name = "student"

    def __init__(
        self,
        config: StudentTrainConfig,
        store: SliceStore,
        device: torch.device,
        generator: Generator | None,
        *,
        labelled: int,
        num_classes: int,
        seed: int,
    ) -> None:
        self.config, self.store, self.device, self.seed = config, store, device, seed
        self.num_classes = num_classes
        self.generator = generator and generator.to(device).eval().requires_grad_(False)
        channels = store.images.shape[1]
        net = make_segmenter(config.channels, image_channels=channels, num_classes=num_classes, seed=seed)
        self.net = net.to(device)
        self.average = copy.deepcopy(self.net).eval().requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=config.lr)
        self.order = Order(store.labelled(labelled), seed)
        self.step_number = 0

    @property
    def images(self) -> int:
        """Images seen so far, real and generated."""
        return self.step_number * self.config.batch

    def step(self) -> dict[str, float]:
        """One iteration; returns the loss and the share of generated pairs as numbers."""
        self.net.train()
        image, hot = self._real()
        drawn = self._generated(image.dtype)
        if drawn is not None:
            image = torch.cat([image[len(drawn[0]) :], drawn[0]])
            hot = torch.cat([hot[len(drawn[1]) :], drawn[1]])
        image, target = self._changed(image, hot)
        loss = segmentation_loss(self.net(image), target)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self.net)
        self.optimizer.step()
        self.step_number += 1
        self._update_average()
        generated = 0 if drawn is None else len(drawn[0])
        return {"loss": float(loss.detach()), "generated": generated / len(image)}

    def _real(self) -> tuple[Tensor, Tensor]:
        index = share(self.order.batch(self.images, self.config.batch))
        hot = one_hot(self.store.label_batch(index).to(self.device), self.num_classes)
        return self.store.image_batch(index).to(self.device), hot

    @torch.no_grad()
    def _generated(self, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        """Pairs of the generator that the student agrees with so far: a bad label would teach its mistakes."""
        count = self._generated_count()
        if self.generator is None or not count:
            return None
        z_dim = self.generator.config.z_dim
        z = torch.randn(2 * count, z_dim, generator=rng(self.seed, self.step_number, "student-pairs"))
        pair = self.generator(share(z).to(self.device))
        image = pair.image.to(dtype).clamp(-1.0, 1.0)
        hot = one_hot(pair.labels(), self.num_classes)
        seen = one_hot(label_probs(self.average, image).argmax(dim=1), self.num_classes)
        kept = torch.nonzero(overlap_share(hot, seen) >= self.config.agreement)[:, 0][:count]
        return image[kept], hot[kept]

    def _generated_count(self) -> int:
        """Generated pairs of this process's part of a batch; they come slowly, when the student can judge."""
        ramp = min(1.0, self.images / max(1, self.config.ramp_images))
        return int(self.config.generated_share * ramp * self.config.batch)

    def _changed(self, image: Tensor, hot: Tensor) -> tuple[Tensor, Tensor]:
        """Image and label moved together, then the image in another look."""
        config, step = self.config, self.step_number
        drawn = augment.draw(
            len(image), config.strength, config.geometry, rng(self.seed, step, "student-geometry")
        )
        image, label = augment.warp(image, *drawn, hot)
        assert label is not None
        if config.appearance:
            image = shift_appearance(image, rng(self.seed, step, "student-appearance"))
        return image, label

    def _rate(self) -> float:
        """Cosine decay over the stage's images."""
        progress = min(1.0, self.images / self.config.max_images)
        return self.config.lr * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress)))

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
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict``."""
        self.net.load_state_dict(state["student"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step_number = int(state["step"])


def segmentation_loss(logits: Tensor, label_probs: Tensor) -> Tensor:
    """Cross-entropy + Dice loss. logits, label_probs: (B, K, H, W)."""
    return F.cross_entropy(logits, label_probs) + soft_dice_loss(logits.softmax(dim=1), label_probs)
