"""The reference segmenter: MONAI's 2-D U-Net on the labelled slices alone.

Method ``unet`` sees the slices with geometric augmentation only, ``unet_intensity`` also with random
intensity curves, bias field, noise and blur (``training.appearance``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgan_core.config import AugmentConfig
from sgan_core.errors import InputError
from sgan_core.training import augment
from sgan_core.training.appearance import shift_appearance
from sgan_core.training.data import Order, SliceStore, rng
from sgan_core.training.evaluate import mean_dice
from sgan_core.training.gan import one_hot
from sgan_core.training.losses import soft_dice_loss

CHANNELS = (16, 32, 64, 128)
METHODS = {"unet": False, "unet_intensity": True}  # method: with changes of appearance?

_GEOMETRY = AugmentConfig(contrast=0.0)
_STRENGTH = 0.8  # probability of each geometric transform
_EVALUATIONS = 10  # validations during a training
_BATCH = 64  # slices in one forward pass without gradients


@dataclass(frozen=True)
class UnetConfig:
    """One training of the U-Net."""

    steps: int = 5000  # four minutes at 64 px on one CPU core
    batch: int = 16
    lr: float = 1e-3  # Adam, cosine decay to a hundredth
    appearance: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise InputError(f"U-Net: {self.steps} steps of {self.batch} slices, expected at least 1 of each")


def make_unet(*, image_channels: int, num_classes: int, seed: int) -> nn.Module:
    """The untrained network: (B, C, S, S) in [-1, 1] -> logits (B, K, S, S), S a multiple of 8."""
    from monai.networks.nets import UNet  # a second to import

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet(
            spatial_dims=2,
            in_channels=image_channels,
            out_channels=num_classes,
            channels=CHANNELS,
            strides=(2,) * (len(CHANNELS) - 1),
            num_res_units=1,
            norm=("instance", {"affine": True}),  # the same in training and use, whatever the batch
        )


def train_unet(
    store: SliceStore,
    config: UnetConfig,
    *,
    labelled: int,
    num_classes: int,
    device: torch.device | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> nn.Module:
    """Train on all slices of the first ``labelled`` labelled patients; returns the network in eval mode.

    Ten times during training it is scored on the store's validation patients, and the best network is kept
    (the last without validation patients). The score is DICE per patient at model size; with ``appearance``
    on slices whose appearance is shifted by draws that training never sees, the same at each validation.
    So nothing but the training domain decides. When ``should_stop`` says so the best so far is returned.
    The same store, config and number of threads give the same network. Raises InputError when no slice is
    labelled.
    """
    device = device or torch.device("cpu")
    channels = store.images.shape[1]
    net = make_unet(image_channels=channels, num_classes=num_classes, seed=config.seed).to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=config.lr)
    order = Order(store.labelled(labelled), config.seed)
    validation = _Validation(store, config, num_classes)
    every = max(1, math.ceil(config.steps / _EVALUATIONS))
    for step in range(config.steps):
        if should_stop is not None and should_stop():
            break
        net.train()
        image, label_probs = _batch(store, order, config, num_classes, step)
        loss = segmentation_loss(net(image.to(device)), label_probs.to(device))
        optimizer.param_groups[0]["lr"] = _rate(step, config)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        done = step + 1
        if done % every == 0 or done == config.steps:
            validation.keep_best(net)
        if on_progress is not None:
            on_progress(done, config.steps, f"U-Net, {validation.report()}")
    validation.restore_best(net)
    return net.eval()


def predict(net: nn.Module, images: np.ndarray) -> np.ndarray:
    """Label probabilities (N, K, S, S) float32 of images (N, C, S, S) in [-1, 1], on the network's device."""
    net.eval()
    device = next(net.parameters()).device
    found = []
    with torch.no_grad():
        for part in torch.from_numpy(np.ascontiguousarray(images, np.float32)).split(_BATCH):
            found.append(net(part.to(device)).softmax(dim=1).cpu().numpy())
    return np.concatenate(found)


def segmentation_loss(logits: Tensor, label_probs: Tensor) -> Tensor:
    """Cross-entropy + Dice loss. logits, label_probs: (B, K, H, W)."""
    return F.cross_entropy(logits, label_probs) + soft_dice_loss(logits.softmax(dim=1), label_probs)


def _batch(
    store: SliceStore, order: Order, config: UnetConfig, num_classes: int, step: int
) -> tuple[Tensor, Tensor]:
    """Images (B, C, S, S) and labels (B, K, S, S) of a step, moved together."""
    index = order.batch(step * config.batch, config.batch)
    hot = one_hot(store.label_batch(index), num_classes)
    drawn = augment.draw(config.batch, _STRENGTH, _GEOMETRY, rng(config.seed, step, "unet-geometry"))
    image, label_probs = augment.warp(store.image_batch(index), *drawn, hot)
    assert label_probs is not None
    if config.appearance:
        image = shift_appearance(image, rng(config.seed, step, "unet-appearance"))
    return image, label_probs


def _rate(step: int, config: UnetConfig) -> float:
    """Cosine decay over the steps."""
    return config.lr * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * step / config.steps)))


class _Validation:
    """Scores a network on the validation patients and remembers the best one."""

    def __init__(self, store: SliceStore, config: UnetConfig, num_classes: int) -> None:
        self.num_classes = num_classes
        index = store.slices_of(split="validation", with_label=True)
        self.truth, self.patients = store.labels[index], store.patients(index)
        images = store.image_batch(index)
        if config.appearance and len(index):
            images = shift_appearance(images, rng(config.seed, 0, "unet-validation"))
        self.images = images.numpy()
        self.best = math.nan
        self._state: dict[str, Tensor] = {}

    def keep_best(self, net: nn.Module) -> None:
        if not len(self.images):
            return
        predicted = predict(net, self.images).argmax(axis=1).astype(np.uint8)
        dice = mean_dice(predicted, self.truth, self.patients, self.num_classes)
        if math.isnan(dice) or dice <= self.best:
            return
        self.best = dice
        self._state = {name: value.detach().clone() for name, value in net.state_dict().items()}

    def report(self) -> str:
        """The best score so far in words."""
        return "not yet validated" if math.isnan(self.best) else f"best validation DICE {self.best:.3f}"

    def restore_best(self, net: nn.Module) -> None:
        if self._state:
            net.load_state_dict(self._state)
