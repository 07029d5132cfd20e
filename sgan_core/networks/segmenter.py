"""The feed-forward segmenter: MONAI's 2-D U-Net, as student of the generator and as reference method."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from sgan_core.config import TrainConfig

if TYPE_CHECKING:
    from monai.networks.nets import DynUNet

_BATCH_PIXELS = (
    64 * 64 * 64
)  # in one forward pass without gradients: larger ones are no faster, and take memory


def make_segmenter(
    channels: tuple[int, ...],
    *,
    image_channels: int,
    num_classes: int,
    network: str = "residual",
    seed: int = 0,
) -> nn.Module:
    """The untrained network: (B, C, S, S) in [-1, 1] -> logits (B, K, S, S).

    channels: width of each level, each half the resolution of the one before; S is a multiple of
    2 ** (levels - 1). network: "residual" is MONAI's residual U-Net, whose first level has half the image's resolution;
    "nnunet" is MONAI's DynUNet, the network of nnU-Net, two convolutions a level, the first at the image's own.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _NETWORKS[network](channels, image_channels, num_classes)


def _residual(channels: tuple[int, ...], image_channels: int, num_classes: int) -> nn.Module:
    from monai.networks.nets import UNet  # a second to import

    return UNet(
        spatial_dims=2,
        in_channels=image_channels,
        out_channels=num_classes,
        channels=channels,
        strides=(2,) * (len(channels) - 1),
        num_res_units=1,
        norm=("instance", {"affine": True}),  # the same in training and use, whatever the batch
    )


def _nnunet(channels: tuple[int, ...], image_channels: int, num_classes: int) -> nn.Module:
    from monai.networks.nets import DynUNet

    deeper = len(channels) - 1
    net = DynUNet(
        spatial_dims=2,
        in_channels=image_channels,
        out_channels=num_classes,
        kernel_size=(3,) * (deeper + 1),
        strides=(1,) + (2,) * deeper,
        upsample_kernel_size=(2,) * deeper,
        filters=channels,
    )
    return _NnUNet(net)


class _NnUNet(nn.Module):
    """The layers of a DynUNet, each once: its own state has them twice."""

    def __init__(self, net: DynUNet) -> None:
        super().__init__()
        self.down = nn.ModuleList([net.input_block, *net.downsamples, net.bottleneck])
        self.up = net.upsamples
        self.output = net.output_block

    def forward(self, images: Tensor) -> Tensor:
        x, skips = images, []
        for block in self.down:
            x = block(x)
            skips.append(x)
        for block, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            x = block(x, skip)
        return self.output(x)


_NETWORKS = {"residual": _residual, "nnunet": _nnunet}


def make_student(config: TrainConfig) -> nn.Module:
    """The untrained student of a config: the model's channels and labels in, logits out."""
    return make_segmenter(
        config.student_train.channels,
        image_channels=config.generator.image_channels,
        num_classes=config.generator.num_classes,
        network=config.student_train.network,
        seed=config.seed,
    )


@torch.no_grad()
def label_probs(net: nn.Module, images: Tensor) -> Tensor:
    """Softmax (N, K, S, S) float32 of images (N, C, S, S) in [-1, 1]; ``net`` is in evaluation mode."""
    batch = max(1, _BATCH_PIXELS // (images.shape[-1] * images.shape[-2]))
    return torch.cat([net(part).float().softmax(dim=1) for part in images.split(batch)])


def predict(net: nn.Module, images: np.ndarray) -> np.ndarray:
    """Label probabilities (N, K, S, S) float32 of images (N, C, S, S) in [-1, 1], on the network's device."""
    device = next(net.parameters()).device
    return label_probs(net.eval(), torch.from_numpy(np.asarray(images, np.float32)).to(device)).cpu().numpy()
