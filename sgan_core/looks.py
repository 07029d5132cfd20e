"""How often and how far random looks change an image, by modality; ``sgan_core.appearance`` applies them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sgan_core.errors import InputError

_MOST = (
    10.0  # of what is no share: above it nothing of an image is left, and infinite numbers would teach NaN
)


@dataclass(frozen=True)
class AppearanceConfig:
    """How often and how far images change. Shares are probabilities for each image.

    The values here are what those of a modality, ``LOOKS``, begin from.
    """

    fat: float = 0.3  # share of images in which fat is told from air, see ``light_fat``
    gas: float = 0.25  # share of those in which wide dark regions, mostly lung and bowel gas, change as well
    curve: float = 0.8  # share of images whose intensities pass through a random curve
    monotone: float = 0.5  # share of curves that rise; the others go up and down
    dark_air: float = 0.9  # share of curves that leave air (-1) at -1
    bias: float = 0.5  # share of images with a bias field
    bias_log: float = 0.4  # brightness is multiplied by exp(-bias_log) .. exp(bias_log)
    noise: float = 0.5  # share of images with noise
    noise_std: float = 0.12  # largest standard deviation; the range of an image is 2
    blur: float = 0.3  # share of images that are blurred
    blur_px: float = 1.0  # largest standard deviation of the blur, in sixty-fourths of the side
    gamma: float = 0.0  # share of images whose brightness is raised to a power, after all else
    gamma_log: tuple[float, float] = (-1.0, 1.0)  # the power is exp of a number in this range
    contrast: float = 0.0  # share of images with another contrast
    contrast_factor: tuple[float, float] = (0.6, 1.1)  # the range of its factor, about the middle grey
    offset: float = 0.2  # the largest shift that comes with it; the range of an image is 2
    colour: float = 0.0  # share of images with another white: each channel has a factor of its own
    colour_log: float = 0.25  # exp(-colour_log) .. exp(colour_log)
    vignette: float = 0.0  # share of images with the dark corners of a round field of view
    hair: float = 0.0  # share of images with hairs across

    def __post_init__(self) -> None:
        shares = "fat gas curve monotone dark_air bias noise blur gamma contrast colour vignette hair"
        for name in shares.split():
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"appearance: {name} is {getattr(self, name)}, expected a share from 0 to 1")
        for name in ("bias_log", "noise_std", "blur_px", "offset", "colour_log"):
            if not 0.0 <= getattr(self, name) <= _MOST:
                raise InputError(f"appearance: {name} is {getattr(self, name)}, expected 0 to {_MOST:g}")
        for name in ("gamma_log", "contrast_factor"):
            low, high = getattr(self, name)
            if not -_MOST <= low <= high <= _MOST:
                raise InputError(
                    f"appearance: {name} is {low} to {high}, expected a rising range within {_MOST:g}"
                )


# CT's and MRI's lead to each other; of an X-ray, a mole or a face the other devices are the other looks.
_MODALITIES = AppearanceConfig(gamma=0.5, gamma_log=(-1.0, 1.2))
_DEVICES = AppearanceConfig(
    fat=0.0, gas=0.0, curve=0.0, bias_log=0.3, noise_std=0.05, contrast=0.8, gamma=0.8
)
_PHOTOGRAPH = replace(
    _DEVICES, contrast_factor=(0.7, 1.2), offset=0.15, colour=0.8, gamma=0.5, gamma_log=(-0.5, 0.5)
)
LOOKS = {
    "ct": _MODALITIES,
    "mr": _MODALITIES,
    "xray": _DEVICES,
    "dermoscopy": replace(_PHOTOGRAPH, vignette=0.3, hair=0.3),
    "face": _PHOTOGRAPH,
}
