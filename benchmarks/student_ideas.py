"""What might teach the student to generalise: ideas of the literature beside how it is taught, for student_recipe.py.

An idea is a StudentTrainer that changes one thing. What helps goes into the package; the others stay here, so that
the table in docs/results.md can be measured again.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from model_test import FURTHEST, place_of
from monai.networks.nets import BasicUNet, DynUNet, UNet
from torch import Tensor, nn

from sgan_core.appearance import apply_curves, random_curves, shift_appearance
from sgan_core.networks.segmenter import label_probs
from sgan_core.training import augment
from sgan_core.training.data import Order, SliceStore, rng
from sgan_core.training.parallel import autocast
from sgan_core.training.student import StudentTrainer, segmentation_loss

_OFTEN = 0.5  # share of the images that an idea changes


class Idea(StudentTrainer):
    """The student as it is; ``before_looks`` may change images and labels between the move and the look."""

    @property
    def segmenter(self) -> nn.Module:
        """The trained network: slices (N, 1, S, S) of a volume in order -> logits."""
        return self.average

    def _moved(self, image: Tensor, hot: Tensor) -> tuple[Tensor, Tensor]:
        image, label = super()._moved(image, hot)
        numbers = rng(self.seed, self.step_number, "student-idea")
        chosen = (torch.rand(len(image), generator=numbers) < _OFTEN)[:, None, None, None]
        changed, moved = self.before_looks(image, label, numbers)
        return torch.where(chosen, changed, image), torch.where(chosen, moved, label)

    def before_looks(self, image: Tensor, label: Tensor, numbers: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in [-1, 1] and label probabilities (B, K, H, W), changed."""
        return image, label

    def use(self, net: nn.Module) -> None:
        """Teach this network instead."""
        self.net = net.to(self.device)
        self.average = copy.deepcopy(self.net).eval().requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=self.config.lr)


# --- another curve for a part of the image


def _two_curves(image: Tensor, weight: Tensor, looks: Any, numbers: torch.Generator) -> Tensor:
    """The image with other intensities where weight (B, 1, H, W) is 1, as it is where it is 0."""
    return torch.lerp(image, apply_curves(image, random_curves(len(image), numbers, looks)), weight)


def _soft(mask: Tensor) -> Tensor:
    """A mask (B, 1, H, W) whose border is as wide as a sixteenth of the side."""
    radius = max(1, mask.shape[-1] // 32)
    for _ in range(2):
        mask = F.avg_pool2d(
            mask, radius + 1 - radius % 2, 1, (radius - radius % 2) // 2, count_include_pad=False
        )
    return mask


class OrganCurve(Idea):
    """The organ has another curve than its surroundings, soft at the border (label-wise looks: SLAug, SRCSM)."""

    def before_looks(self, image: Tensor, label: Tensor, numbers: torch.Generator) -> tuple[Tensor, Tensor]:
        return _two_curves(image, _soft(1.0 - label[:, :1]), self.config.looks, numbers), label


class FieldCurve(Idea):
    """A random half of the image, of smooth border, has another curve."""

    def before_looks(self, image: Tensor, label: Tensor, numbers: torch.Generator) -> tuple[Tensor, Tensor]:
        nodes = torch.randn(len(image), 1, 4, 4, generator=numbers)
        field = F.interpolate(nodes, size=image.shape[2:], mode="bicubic", align_corners=True)
        return _two_curves(image, torch.sigmoid(8.0 * field), self.config.looks, numbers), label


class RegionCurve(Idea):
    """Half of twelve clusters of place and brightness have another curve, soft at their borders."""

    def before_looks(self, image: Tensor, label: Tensor, numbers: torch.Generator) -> tuple[Tensor, Tensor]:
        batch, _, height, width = image.shape
        row, column = torch.meshgrid(
            torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
        )
        place = torch.stack([row, column]).expand(batch, 2, height, width)
        points = torch.cat([place, 2.0 * image.mean(dim=1, keepdim=True)], dim=1).flatten(2)  # (B, 3, H * W)
        seeds = torch.randint(height * width, (batch, 1, 12), generator=numbers).expand(-1, 3, -1)
        centres = points.gather(2, seeds)
        for _ in range(2):
            nearest = torch.cdist(points.mT, centres.mT).argmin(dim=2)  # (B, H * W)
            member = F.one_hot(nearest, 12).float()
            centres = torch.where(
                member.sum(1, keepdim=True) > 0,
                (points @ member) / member.sum(1, keepdim=True).clamp(min=1),
                centres,
            )
        half = (torch.rand(batch, 12, generator=numbers) < 0.5).float()
        weight = (member @ half[:, :, None]).view(batch, 1, height, width)
        return _two_curves(image, _soft(weight), self.config.looks, numbers), label


# --- texture


class RandConv(Idea):
    """A random convolution of 1 to 7 pixels, mixed with the image (Xu et al., ICLR 2021)."""

    def before_looks(self, image: Tensor, label: Tensor, numbers: torch.Generator) -> tuple[Tensor, Tensor]:
        batch, channels, height, width = image.shape
        side = 1 + 2 * int(torch.randint(4, (), generator=numbers))
        kernel = torch.randn(batch * channels, 1, side, side, generator=numbers)
        light = (image + 1.0).reshape(1, batch * channels, height, width)
        found = F.conv2d(light, kernel, padding=side // 2, groups=batch * channels).view_as(image)
        (std, mean), (own_std, own_mean) = (
            torch.std_mean(x, dim=(1, 2, 3), keepdim=True) for x in (image, found)
        )
        found = (found - own_mean) / own_std.clamp(min=1e-3) * std + mean
        share = torch.rand(batch, 1, 1, 1, generator=numbers)
        return torch.lerp(image, found, share).clamp(-1.0, 1.0), label


class Fourier(Idea):
    """The amplitudes are mixed with those of another slice, the phases stay (Xu et al., CVPR 2021)."""

    def before_looks(self, image: Tensor, label: Tensor, numbers: torch.Generator) -> tuple[Tensor, Tensor]:
        pool = self.order.positions
        other = pool[torch.randint(len(pool), (len(image),), generator=numbers).numpy()]
        spectrum, second = (
            torch.fft.rfft2(image),
            torch.fft.rfft2(self.store.at(self.size).image_batch(other)),
        )
        share = torch.rand(len(image), 1, 1, 1, generator=numbers)
        amplitude = torch.lerp(spectrum.abs(), second.abs(), share)
        mixed = torch.fft.irfft2(torch.polar(amplitude, spectrum.angle()), s=image.shape[2:])
        return mixed.clamp(-1.0, 1.0), label


class LowResolution(Idea):
    """Fewer pixels, up to a quarter, along both sides or one: thick slices, coarse scans (nnU-Net)."""

    def before_looks(self, image: Tensor, label: Tensor, numbers: torch.Generator) -> tuple[Tensor, Tensor]:
        side = image.shape[-1]
        factor = 1.0 + 3.0 * torch.rand(2, generator=numbers)
        factor[int(torch.randint(2, (), generator=numbers))] **= float(
            torch.rand((), generator=numbers) < 0.5
        )
        fewer = F.interpolate(image, size=[max(8, int(side / f)) for f in factor], mode="area")
        return F.interpolate(fewer, size=image.shape[2:], mode="bilinear", align_corners=False), label


# --- shape


class Elastic(Idea):
    """Smooth displacements of up to a sixteenth of the side."""

    def before_looks(self, image: Tensor, label: Tensor, numbers: torch.Generator) -> tuple[Tensor, Tensor]:
        nodes = (torch.rand(len(image), 2, 6, 6, generator=numbers) * 2.0 - 1.0) / 8.0  # the side is 2
        moved = F.interpolate(nodes, size=image.shape[2:], mode="bicubic", align_corners=True)
        eye = torch.eye(2, 3).expand(len(image), 2, 3)
        grid = F.affine_grid(eye, list(image.shape), align_corners=False) + moved.permute(0, 2, 3, 1)
        stacked = torch.cat([image + 1.0, label[:, 1:]], dim=1)
        stacked = F.grid_sample(stacked, grid, align_corners=False)
        foreground = stacked[:, image.shape[1] :]
        background = 1.0 - foreground.sum(dim=1, keepdim=True)
        return stacked[:, : image.shape[1]] - 1.0, torch.cat([background, foreground], dim=1)


# --- what is seen, and how often


class Balanced(Idea):
    """Every second slice has an organ."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        positions = self.order.positions
        full = np.array([bool(self.store.labels[p].any()) for p in positions])
        self.order = _Turns(Order(positions[full], self.seed), Order(positions[~full], self.seed))


class _Turns:
    """Two orders that take turns."""

    def __init__(self, *orders: Order) -> None:
        self.orders = orders
        self.positions = np.concatenate([order.positions for order in orders])

    def batch(self, start: int, size: int) -> np.ndarray:
        return np.concatenate([order.batch(start // 2, size // 2) for order in self.orders])


class MeanTeacher(Idea):
    """As many unlabelled slices again, whose label is what the average draws of them as they are (Tarvainen 2017).

    From a quarter of the training on. The unlabelled are the training patients beyond the labelled ones; so where
    these are a test (``--rest``), its images were seen, without their labels.
    """

    def _loss(self, image: Tensor, target: Tensor) -> Tensor:
        if self.schedule.progress(self.images) < 0.25:
            return super()._loss(image, target)
        unknown, answer = self._unlabelled()
        with autocast(self.device, self.amp, cpu=True):
            known, others = self.net(torch.cat([image, unknown])).float().split([len(image), len(unknown)])
        return segmentation_loss(known, target) + 0.5 * segmentation_loss(others, answer)

    def _unlabelled(self) -> tuple[Tensor, Tensor]:
        numbers = rng(self.seed, self.step_number, "student-unlabelled")
        pool = np.setdiff1d(self.store.slices_of(split="train"), self.order.positions)
        index = pool[torch.randint(len(pool), (self.config.batch,), generator=numbers).numpy()]
        image = self.store.at(self.size).image_batch(index)
        theta, contrast = augment.draw(len(image), self.config.strength, self.config.geometry, numbers)
        image, _ = augment.warp(image, theta, contrast, fill=self.config.geometry.fill)
        answer = label_probs(self.average, image)
        return shift_appearance(image, numbers, self.config.looks), answer


class ThreeSlices(Idea):
    """The slices above and below are channels too; in a fifth of the images they are the slice itself."""

    def __init__(self, config: Any, store: SliceStore, device: Any, **more: Any) -> None:
        super().__init__(config, store, device, **more)
        self.above, self.below = neighbours(store)
        self.use(_unet(self, image_channels=3))

    @property
    def segmenter(self) -> nn.Module:
        return _Stack(self.average)

    def pairs(self) -> tuple[Tensor, Tensor]:
        index = self.order.batch(self.images, self.config.batch)
        middle, label = super().pairs()
        store = self.store.at(self.size)
        own = store.image_batch(index)
        alone = torch.rand(len(index), 1, 1, 1, generator=rng(self.seed, self.step_number, "alone")) < 0.2
        alone = (
            alone | (middle != own).flatten(1).any(dim=1)[:, None, None, None]
        )  # a picture without the organ
        parts = [torch.where(alone, middle, store.image_batch(n[index])) for n in (self.above, self.below)]
        return torch.cat([parts[0], middle, parts[1]], dim=1), label


class _Stack(nn.Module):
    """A network of three slices for a batch (N, 1, S, S) of slices that follow each other."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.net(
            torch.cat(
                [torch.cat([images[1:], images[-1:]]), images, torch.cat([images[:1], images[:-1]])], dim=1
            )
        )


def neighbours(store: SliceStore) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the slices above and below each slice; the slice itself at the ends of a volume."""
    place = {}
    for position, case in enumerate(store.case):
        found = place_of(store.cohort.cases[case])
        assert found is not None, "ThreeSlices is for cohorts of slices"
        place[found] = position
    above, below = np.arange(len(store.case)), np.arange(len(store.case))
    ordered = sorted(place)
    for one, two in itertools.pairwise(ordered):
        if one[0] == two[0] and two[1] - one[1] <= FURTHEST:
            above[place[one]], below[place[two]] = place[two], place[one]
    return above, below


# --- networks


def _unet(
    student: StudentTrainer,
    channels: tuple[int, ...] = (),
    strides: tuple[int, ...] = (),
    units: int = 1,
    image_channels: int = 1,
) -> nn.Module:
    """The student's network, changed."""
    channels = channels or student.config.channels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(student.seed)
        return UNet(
            spatial_dims=2,
            in_channels=image_channels,
            out_channels=student.num_classes,
            channels=channels,
            strides=strides or (2,) * (len(channels) - 1),
            num_res_units=units,
            norm=("instance", {"affine": True}),
        )


class FullResolution(Idea):
    """A level more, at the image's own resolution."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        channels = self.config.channels
        self.use(_unet(self, (16, *channels), (1,) + (2,) * (len(channels) - 1)))


class TwoUnits(Idea):
    """Two convolutions in a residual unit instead of one."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.use(_unet(self, units=2))


class DeepSupervision(Idea):
    """nnU-Net's network (MONAI's DynUNet), its three finest levels supervised."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        levels = len(self.config.channels)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            net = DynUNet(
                spatial_dims=2,
                in_channels=1,
                out_channels=self.num_classes,
                kernel_size=(3,) * levels,
                strides=(1,) + (2,) * (levels - 1),
                upsample_kernel_size=(2,) * (levels - 1),
                filters=self.config.channels,
                deep_supervision=True,
                deep_supr_num=2,
            )
        self.use(net)

    def _loss(self, image: Tensor, target: Tensor) -> Tensor:
        with autocast(self.device, self.amp, cpu=True):
            heads = self.net(image).unbind(dim=1)
        losses = [0.5**k * segmentation_loss(head.float(), target) for k, head in enumerate(heads)]
        return torch.stack(losses).sum() / sum(0.5**k for k in range(len(heads)))


class PlainUnet(Idea):
    """nnU-Net's plain network without its other resolutions' heads (MONAI's BasicUNet)."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            net = BasicUNet(
                spatial_dims=2,
                in_channels=1,
                out_channels=self.num_classes,
                features=(*self.config.channels, self.config.channels[0]),
                norm=("instance", {"affine": True}),
            )
        self.use(net)


IDEAS: dict[str, type[StudentTrainer]] = {
    "": Idea,
    "organ curve": OrganCurve,
    "field curve": FieldCurve,
    "region curve": RegionCurve,
    "randconv": RandConv,
    "fourier": Fourier,
    "low resolution": LowResolution,
    "elastic": Elastic,
    "balanced": Balanced,
    "mean teacher": MeanTeacher,
    "three slices": ThreeSlices,
    "full resolution": FullResolution,
    "two units": TwoUnits,
    "plain unet": PlainUnet,
    "dynunet, deep supervision": DeepSupervision,
}
