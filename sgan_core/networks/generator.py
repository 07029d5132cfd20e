"""The generator: one style code to an image with its label (docs/method.md section 1)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sgan_core.config import GeneratorConfig
from sgan_core.networks.stylegan2 import EqualLinear, Head, StyledConv


class Pair(NamedTuple):
    """An image with its label logits."""

    image: Tensor  # (B, C, H, W) in [-1, 1], not clipped
    label_logits: Tensor  # (B, K, H, W); channel 0 is background

    def labels(self) -> Tensor:
        """The label map, (B, H, W) integers."""
        return self.label_logits.argmax(dim=1)


class Mapping(nn.Module):
    """z ~ N(0, I) -> w: pixel norm and linear layers with a small learning rate."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        dims = [config.z_dim] + [config.w_dim] * config.mapping_layers
        self.layers = nn.Sequential(
            *(EqualLinear(a, b, lr_mul=0.01, act=True) for a, b in zip(dims, dims[1:], strict=False))
        )

    def forward(self, z: Tensor) -> Tensor:
        """(B, z_dim) -> (B, w_dim)."""
        return self.layers(z * torch.rsqrt(z.square().mean(dim=1, keepdim=True) + 1e-8))


class Block(nn.Module):
    """One resolution: two styled convolutions (one at 4 px), then the image and the label head."""

    def __init__(self, in_ch: int, out_ch: int, config: GeneratorConfig, *, first: bool = False) -> None:
        super().__init__()
        self.up = None if first else StyledConv(in_ch, out_ch, config.w_dim, up=True, noise=config.noise)
        self.conv = StyledConv(in_ch if first else out_ch, out_ch, config.w_dim, noise=config.noise)
        self.to_image = Head(out_ch, config.image_channels, config.w_dim)
        self.to_label = Head(out_ch, config.num_classes, config.w_dim)


class Synthesis(nn.Module):
    """Skip generator: image and label logits are summed up from resolution to resolution."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.channels
        self.const = nn.Parameter(torch.randn(1, widths[4], 4, 4))
        blocks = {"4": Block(widths[4], widths[4], config, first=True)}
        for resolution in sorted(widths)[1:]:
            blocks[str(resolution)] = Block(widths[resolution // 2], widths[resolution], config)
        self.blocks = nn.ModuleDict(blocks)
        if config.noise:
            for index, resolution in enumerate(self.noise_resolutions()):
                self.register_buffer(f"noise_{index}", torch.randn(1, 1, resolution, resolution))

    def noise_resolutions(self) -> list[int]:
        """The side of each noise map, in the order of the style layers."""
        return [4] + [resolution for resolution in sorted(self.config.channels)[1:] for _ in range(2)]

    def _noise(
        self, noise: str | list[Tensor], like: Tensor, rng: torch.Generator | None
    ) -> list[Tensor | None]:
        resolutions = self.noise_resolutions()
        if not self.config.noise or noise == "none":
            return [None] * len(resolutions)
        if isinstance(noise, list):
            return list(noise)
        if noise == "const":
            return [self.get_buffer(f"noise_{index}") for index in range(len(resolutions))]
        batch = like.shape[0]
        return [
            torch.randn(batch, 1, side, side, generator=rng, device=like.device, dtype=like.dtype)
            for side in resolutions
        ]

    def forward(
        self, w_plus: Tensor, *, noise: str | list[Tensor] = "const", rng: torch.Generator | None = None
    ) -> Pair:
        """w_plus: (B, num_ws, w_dim) -> Pair of image (B, C, H, W) and label_logits (B, K, H, W).

        noise: "const" (the stored maps), "random" (drawn with ``rng``), "none", or a list of maps
        (1 or B, 1, H, W), one for each styled convolution. Without effect when the config has no noise.
        """
        maps = iter(self._noise(noise, w_plus, rng))
        x = self.const.expand(w_plus.shape[0], -1, -1, -1)
        image = label_logits = None
        index = 0  # style layer; the heads read the style of the next resolution's first convolution
        for block in self.blocks.values():
            assert isinstance(block, Block)
            if block.up is not None:
                x = block.up(x, w_plus[:, index], next(maps))
                index += 1
            x = block.conv(x, w_plus[:, index], next(maps))
            index += 1
            image = block.to_image(x, w_plus[:, index], image)
            label_logits = block.to_label(x, w_plus[:, index], label_logits)
        assert image is not None
        assert label_logits is not None
        return Pair(image, label_logits)


class Generator(nn.Module):
    """Mapping and synthesis network; ``mean_w`` (w_dim,) is the centre of W for truncation."""

    mean_w: Tensor

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.mapping = Mapping(config)
        self.synthesis = Synthesis(config)
        self.register_buffer("mean_w", torch.zeros(config.w_dim))

    @property
    def num_ws(self) -> int:
        """Number of style inputs of W+."""
        return self.config.num_ws

    def broadcast(self, w: Tensor) -> Tensor:
        """(B, w_dim) -> w_plus (B, num_ws, w_dim) with the same w for each style."""
        return w[:, None].expand(-1, self.num_ws, -1)

    def mix(self, first: Tensor, second: Tensor, crossover: Tensor) -> Tensor:
        """Style mixing: styles below ``crossover`` (B,) come from ``first`` (B, w_dim), the others from ``second``."""
        index = torch.arange(self.num_ws, device=first.device)
        take_first = index[None] < crossover[:, None]  # (B, num_ws)
        return torch.where(take_first[:, :, None], self.broadcast(first), self.broadcast(second))

    def truncate(self, w: Tensor, psi: float) -> Tensor:
        """Pull w or w_plus (..., w_dim) towards the mean: psi 1 changes nothing, 0 gives the mean."""
        return self.mean_w + psi * (w - self.mean_w)

    @torch.no_grad()
    def update_mean_w(self, samples: int = 8192, seed: int = 0) -> None:
        """Measure the mean of W over ``samples`` latents and keep it in ``mean_w``."""
        rng = torch.Generator().manual_seed(seed)
        z = torch.randn(samples, self.config.z_dim, generator=rng).to(self.mean_w)
        self.mean_w.copy_(self.mapping(z).mean(dim=0))

    def forward(self, z: Tensor, *, truncation: float = 1.0, noise: str | list[Tensor] = "const") -> Pair:
        """z: (B, z_dim) -> Pair; ``truncation`` is psi."""
        return self.synthesis(self.broadcast(self.truncate(self.mapping(z), truncation)), noise=noise)
