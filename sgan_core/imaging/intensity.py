"""Intensities as a model wants them: in units, corrected, between black and white."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sgan_core.cohort import Intensity
from sgan_core.errors import InputError
from sgan_core.imaging.image import Picture, Volume

if TYPE_CHECKING:
    import SimpleITK as sitk


def _window(*, level: float, width: float) -> tuple[float, float]:
    return level - width / 2, level + width / 2


# What radiologists look at an organ with; values differ somewhat between hospitals. From "Windowing (CT)" on
# radiopaedia.org; abdomen is its soft tissue window with the usual level of 40 HU instead of 50.
CT_WINDOWS_HU = {
    "abdomen": _window(level=40, width=400),
    "liver": _window(level=30, width=150),
    "lung": _window(level=-600, width=1500),
    "mediastinum": _window(level=50, width=350),
    "bone": _window(level=400, width=1800),
    "brain": _window(level=40, width=80),
}

DEFAULT_PERCENTILES = (0.5, 99.5)
NO_AIR_HU = -200  # a CT of a patient holds air, far below this

# N4 looks at an image shrunk this many times, large ones more, to 64 a side: bias is smooth, and a second does
# what took a minute. Each side of a volume keeps 8 voxels at least; of a single slice 64 pixels, where 36 x 36
# were too few to find a bias field.
N4_SHRINK = 4
N4_SIDE = 64
N4_LEAST_SIDE = {2: 64, 3: 8}
# Levels of 4, 5 and 7 control points a side: with one more the livers of phantoms got less even, not more;
# with one less some bias stayed.
N4_ITERATIONS = (50, 50, 50)
MINKOWSKI_NORM = 6

_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def in_units(image: Volume | Picture, intensity: Intensity) -> Volume | Picture:
    """Give an 8-bit picture the units of a fixed intensity range: 0 shows ``low`` and 255 shows ``high``.

    Volumes, pictures of more bits and percentile rules are returned unchanged.
    """
    if (
        isinstance(image, Volume)
        or image.array.dtype != np.uint8
        or intensity.low is None
        or intensity.high is None
    ):
        return image
    span = np.float32(intensity.high - intensity.low)
    return replace(image, array=image.array * (span / np.float32(255)) + np.float32(intensity.low))


def prepare_intensities(image: Volume | Picture, intensity: Intensity) -> Volume | Picture:
    """Do the corrections that the rule asks for, in the image's units; with none, the same image is returned.

    ``bias_correction``: see ``correct_bias``. ``equalise``: see ``equalise``, within black and white of the
    rule. Both make a colour picture grey. ``colour_constancy``: see ``remove_colour_cast``; grey pictures and
    volumes have no cast and stay. What has been changed is float32.
    Raises InputError when ``equalise`` finds no range (``intensity_range``).
    """
    if intensity.bias_correction:
        image = replace(image, array=correct_bias(_grey(image)))
    if intensity.equalise:
        grey = _grey(image)
        across = int(np.argmin(grey.shape))  # the channel, or the thin axis of an X-ray stored as volume
        planes = np.moveaxis(grey, across, 0)
        padded = None if image.padded is None else np.moveaxis(image.padded, across, 0)
        low, high = intensity_range(planes, intensity, padded)
        image = replace(image, array=np.moveaxis(equalise(planes, low, high), 0, across))
    if intensity.colour_constancy and isinstance(image, Picture) and len(image.array) == 3:
        image = replace(image, array=remove_colour_cast(image.array))
    return image


def luminance(array: np.ndarray) -> np.ndarray:
    """(C, H, W) as grey, (1, H, W): float32 when it was colour, else the array itself."""
    if len(array) == 1:
        return array
    return np.tensordot(_LUMINANCE, array, axes=1)[None].astype(np.float32)  # (3, H, W) -> (1, H, W)


def _grey(image: Volume | Picture) -> np.ndarray:
    return image.array if isinstance(image, Volume) else luminance(image.array)


# --- corrections -----------------------------------------------------------------------------------


def correct_bias(array: np.ndarray) -> np.ndarray:
    """Divide an MR image by its smooth bias field, found by N4 (Tustison et al. 2010, IEEE TMI 29:1310).

    array: (I, J, K) or (1, H, W); axes of length 1 do not count. Returns float32, of the same mean brightness.
    The field is found on an image shrunk ``N4_SHRINK`` times or more, within the bright part after Otsu, and applied
    at full size. An image with too little in it to fix a field is returned unchanged.
    N4 runs in one thread: the last digits of its sums depend on how many there are.
    """
    import SimpleITK as sitk  # here: slow to import, and seldom wanted

    voxels = np.array(array.squeeze(), np.float32)
    np.nan_to_num(voxels, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    if voxels.ndim < 2:
        return array
    full = sitk.GetImageFromArray(voxels)
    wanted = (max(N4_SHRINK, side // N4_SIDE) for side in full.GetSize())
    most = (max(1, side // N4_LEAST_SIDE[voxels.ndim]) for side in full.GetSize())
    small = sitk.BinShrink(full, list(map(min, wanted, most)))
    empty = sitk.Image(full.GetSize(), sitk.sitkUInt8)  # has the geometry, and a quarter of the bytes
    del full
    inside = sitk.And(sitk.OtsuThreshold(small, 0, 1), sitk.Greater(small, 0.0))  # N4 takes logarithms
    control_points = (2 ** (len(N4_ITERATIONS) - 1) + 3) ** voxels.ndim
    if sitk.GetArrayViewFromImage(inside).sum() < control_points:
        return array
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(N4_ITERATIONS)
    with _one_thread():
        corrected = n4.Execute(small, inside)
        field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(empty))  # float32, at full size
    field -= _mean_log(small, inside) - _mean_log(corrected, inside)  # N4 leaves the overall scale open
    np.exp(field, out=field)
    return np.divide(voxels, field, out=field).reshape(array.shape)


@contextmanager
def _one_thread() -> Iterator[None]:
    """N4 starts filters of its own, which only the default of all filters reaches."""
    import SimpleITK as sitk

    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def _mean_log(image: sitk.Image, inside: sitk.Image) -> float:
    import SimpleITK as sitk

    mask = sitk.GetArrayViewFromImage(inside).astype(bool)
    return float(np.log(sitk.GetArrayViewFromImage(image)[mask]).mean())


def equalise(planes: np.ndarray, low: float, high: float) -> np.ndarray:
    """Contrast-limited adaptive histogram equalisation of each plane (Zuiderveld 1994, scikit-image).

    planes: (N, H, W), clipped to ``low`` .. ``high`` before; NaN counts as ``low``. Tiles of an eighth of each
    side, clip limit 0.01. Returns float32 in ``low`` .. ``high``.
    """
    from skimage.exposure import equalize_adapthist  # here: slow to import, seldom wanted

    equalised = np.empty(planes.shape, np.float32)
    for plane, target in zip(planes, equalised, strict=True):
        shown = (np.nan_to_num(plane.astype(np.float32), nan=low) - low) / (high - low)
        shown.clip(0.0, 1.0, out=shown)
        target[:] = equalize_adapthist(shown) if shown.min() < shown.max() else shown
    equalised *= high - low
    equalised += low
    return equalised


def remove_colour_cast(rgb: np.ndarray) -> np.ndarray:
    """Make the light of a picture neutral by shades of grey (Finlayson and Trezzi 2004, Color Imaging Conf.).

    rgb: (3, H, W), 0 is no light. The colour of the light is taken to be that of the channels' Minkowski
    means with norm 6, which Barata et al. 2015 (IEEE J. Biomed. Health Inform. 19:1146) use for dermoscopy;
    stored values count as they are, without undoing the camera's gamma. Returns float32; where the light was
    neutral nothing changes, bright values may pass the old maximum.
    """
    peak = float(rgb.max())
    if not peak > 0:
        return rgb
    light = np.array(
        [
            np.mean((np.maximum(channel, 0) / np.float32(peak)) ** MINKOWSKI_NORM, dtype=np.float64)
            for channel in rgb
        ]
    ) ** (1 / MINKOWSKI_NORM)
    if not light.all():  # a channel without light cannot be brought back
        return rgb
    gains = np.linalg.norm(light) / (np.sqrt(3.0) * light)  # each 1 for neutral light
    return np.multiply(rgb, gains.astype(np.float32)[:, None, None], dtype=np.float32)


# --- black and white -------------------------------------------------------------------------------


def intensity_range(
    native: np.ndarray, intensity: Intensity, padded: np.ndarray | None = None
) -> tuple[float, float]:
    """The intensities that become -1 and 1: the rule's range, or its percentiles over (N, H, W).

    Percentiles (0.5 and 99.5 when the rule says nothing) are of the finite values of all slices, of their
    ``central`` part when the rule has one. Where that part is even, of the whole; where that is nearly even,
    the extremes. padded: (N or 1, H, W) bool, pixels that do not count.
    Raises InputError: an empty range, a constant image, no finite value.
    """
    if intensity.percentiles is None and intensity.low is not None and intensity.high is not None:
        low, high = intensity.low, intensity.high
        if not low < high:
            raise InputError(f"intensity range {low:g} to {high:g} is empty; low must be below high.")
        return float(low), float(high)
    percentiles = intensity.percentiles or DEFAULT_PERCENTILES
    attempts = [(1.0, percentiles), (1.0, (0.0, 100.0))]  # the extremes show rare structures at least
    if intensity.central is not None:
        attempts.insert(0, (intensity.central, percentiles))
    for share, wanted in attempts:
        values = _central(native, share)
        if padded is not None:
            image = ~np.broadcast_to(_central(padded, share), values.shape)
            values = values[image].reshape(1, -1)
        if not values.size:
            continue
        low, high = _percentiles(values, wanted)
        if low < high:
            return low, high
    raise InputError(f"every value of the image is {native.flat[0]:g}; there is nothing to segment.")


def _central(native: np.ndarray, share: float) -> np.ndarray:
    """A view of the middle of the rows and columns of (N, H, W)."""
    rows, columns = (int(side * (1.0 - share) / 2.0) for side in native.shape[1:])
    return native[:, rows : native.shape[1] - rows, columns : native.shape[2] - columns]


def _percentiles(native: np.ndarray, percentiles: tuple[float, float]) -> tuple[float, float]:
    """As np.percentile over the finite values; small integers are counted, which is far faster."""
    if native.dtype.kind in "iu" and native.dtype.itemsize <= 2:
        lowest, highest = int(native.min()), int(native.max())
        counts = np.zeros(highest - lowest + 1, np.int64)
        for plane in native:
            counts += np.bincount(plane.ravel().astype(np.int64) - lowest, minlength=len(counts))
        rank_ends = np.cumsum(counts)
        positions = np.array(percentiles) / 100.0 * (native.size - 1)
        below = np.searchsorted(rank_ends, np.floor(positions), side="right")
        above = np.searchsorted(rank_ends, np.ceil(positions), side="right")
        low, high = lowest + below + (positions % 1.0) * (above - below)
        return float(low), float(high)
    values = native[np.isfinite(native)]
    if not values.size:
        raise InputError("every value of the image is NaN or infinite; there is nothing to segment.")
    low, high = np.percentile(values, percentiles, overwrite_input=True)
    return float(low), float(high)
