"""Volumes and pictures to model-size slices, then exactly back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, InvertibleTransform, SpatialCrop, SpatialPad
from monai.utils.enums import TraceKeys
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, interpolate, max_pool2d

from sgan_core.cohort import Intensity
from sgan_core.imaging.grid import Grid
from sgan_core.imaging.image import Picture, Volume
from sgan_core.imaging.intensity import intensity_range, luminance, prepare_intensities

AIR = -1.0  # model intensity of air or black, also the padding

# The body, where a model asks for it (to_model). Whoever changes one of these numbers raises the rule's.
BODY_RULE = 1
BODY_SHARE = 15 / 16  # of the square's side: the body's longer side
_BODY_PX = 128  # longer side of the slices in which it is looked for
_BODY_LEVEL = -0.75  # model intensity that air and its noise stay below
_BODY_HU = -60.0  # of CT the level at least: fat's -120 to -80 would be body in one scan and not in the next
_BODY_SLICES = 0.1  # a pixel is body where more than this share of the slices that show any have it there
_LEAST_BODY = 0.3  # of the longer side; what is smaller is no body

_CHUNK_VALUES = 1 << 23  # float32 values held at native size at one time: 32 MiB


@dataclass(frozen=True, eq=False)
class SliceStack:
    """Model-size slices of one volume or picture, with what is needed to go back.

    Seen as a radiologist sees them: row 0 anterior, column 0 the patient's right, slices from feet to head.
    A picture is one slice, as stored.
    """

    images: np.ndarray  # (N, C, S, S) float32 in [-1, 1]
    grid: Grid | None  # of the volume; None for a picture
    shape: tuple[int, ...]  # of the input: (I, J, K), or (H, W) for a picture
    low: float  # input intensity that became -1
    high: float  # input intensity that became 1
    transform: Compose  # native slices (channels, H, W) to (channels, S, S), invertible
    # Which of the input's axial slices the images are, counted from the feet.
    rows: slice = field(default_factory=lambda: slice(None))

    @property
    def first_slice(self) -> int:
        """Number of the first image in the whole input, counted from 1."""
        return (self.rows.start or 0) + 1

    def part(self, rows: slice) -> SliceStack:
        """Some neighbouring images of this stack; what else the input holds is then left alone.

        rows: positions in this stack. Raises ValueError when they are none, or not neighbours.
        """
        start, stop, step = rows.indices(len(self.images))
        if step != 1 or start >= stop:
            raise ValueError(f"{rows} are no neighbouring slices of {len(self.images)}")
        first = self.first_slice - 1
        return replace(self, images=self.images[start:stop], rows=slice(first + start, first + stop))


def to_model(
    image: Volume | Picture,
    *,
    size: int,
    intensity: Intensity,
    channels: int = 1,
    squash: bool = False,
    body: bool = False,
) -> SliceStack:
    """Cut an image into model slices.

    Intensities: corrected as ``intensity`` asks for (``prepare_intensities``), then its fixed range or
    percentiles (``intensity_range``), mapped linearly to [-1, 1] and clipped.
    In the plane, pixels become square in mm, the longer side fills ``size``, the other is padded with -1.
    ``squash``: each slice is stretched to the whole square instead, whatever its spacing and aspect.
    ``body``: before, air beside the body is cut off, the same in all slices, so that the body's longer side fills
    ``BODY_SHARE`` of the square, however large the scanner's field of view was. What is cut off is background later.
    Nothing is cut where no body is found, and not with ``squash``.
    ``channels`` 1 or 3: colour becomes luminance, grey is repeated.
    Raises InputError when the intensity range is empty (a constant image).
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, not {channels}")
    image = prepare_intensities(image, intensity)
    if isinstance(image, Picture):
        native = _with_channels(image.array, channels)  # (C, H, W)
        shape, grid, spacing_mm = native.shape[1:], None, (1.0, 1.0)
        padded = image.padded
    else:
        native = _axial_view(image.array, image.grid)  # (N, H, W)
        _, row_mm, column_mm = _axial_view_spacing(image.grid)
        shape, grid, spacing_mm = image.array.shape, image.grid, (row_mm, column_mm)
        padded = None if image.padded is None else _axial_view(image.padded, image.grid)
    low, high = intensity_range(native, intensity, padded)
    plane = (native.shape[1], native.shape[2])
    window = None
    if body and not squash:
        level = _BODY_LEVEL
        if intensity.percentiles is None:  # a range of CT, whether or not its unit is named
            level = max(level, 2.0 * (_BODY_HU - low) / (high - low) - 1.0)
        window = _body_window(native, low, high, spacing_mm, level)
    transform = _model_transform(plane, _squashed_spacing(plane) if squash else spacing_mm, size, window)

    # Slices (or colour channels) stand where MONAI expects channels: one call does many.
    slices = np.empty((len(native), size, size), np.float32)
    for chunk in _chunks(native.shape):
        slices[chunk] = transform(MetaTensor(_to_unit_range(native[chunk], low, high))).numpy()
    slices.clip(-1.0, 1.0, out=slices)  # averaging overshoots by a rounding error
    # Colours of one slice (C, S, S) -> (1, C, S, S); many slices (N, S, S) -> (N, C, S, S)
    images = slices[None] if grid is None else slices[:, None]
    if images.shape[1] != channels:  # a copy: only for models of colour pictures
        images = np.repeat(images, channels, axis=1)
    return SliceStack(images, grid, shape, low, high, transform)


def labels_to_model(labelmap: np.ndarray, stack: SliceStack) -> np.ndarray:
    """Cut the stack's slices from a label map of the input's shape, (I, J, K) or (H, W), into (N, S, S) uint8.

    Each label's share of every model pixel is computed, and the largest wins; padding is background 0.
    """
    native = native_slices(labelmap, stack)  # (N, H, W)
    size = stack.images.shape[-1]
    values = np.union1d([0], np.unique(labelmap)).astype(np.uint8)
    model_labels = np.empty((len(native), size, size), np.uint8)
    for chunk in _chunks(native.shape, per_slice=len(values)):
        one_hot = native[chunk][:, None] == values[:, None, None]  # (n, K, H, W)
        shares = _to_model_size(torch.from_numpy(one_hot).float(), stack.transform)
        # Padding is -1 for every label alike, and the first of equals, background, wins.
        model_labels[chunk] = values[shares.numpy().argmax(axis=1)]
    return model_labels


def to_volume(probabilities: np.ndarray | torch.Tensor, stack: SliceStack) -> np.ndarray:
    """Bring label probabilities (N, K, S, S) back and label them.

    Returns uint8 of the input's shape, (I, J, K) or (H, W): probabilities are interpolated to the native
    pixels, then the most probable class 0..K-1 wins. Slices that are not in the stack are background 0.
    Those of a smaller model, whose size divides S, are enlarged first.
    """
    _require_model_shape(probabilities, stack)
    size = stack.images.shape[-1]
    labelmap = np.zeros(stack.shape, np.uint8)
    native = native_slices(labelmap, stack)  # a view: writing here fills the label map
    for chunk in _chunks(native.shape, per_slice=probabilities.shape[1]):
        model_probs = enlarged(_float_tensor(probabilities[chunk]), size)  # (n, K, S, S)
        native_probs = _to_native_size(model_probs, stack.transform, native.shape[1:])
        # numpy's argmax: six times as fast here as torch's
        native[chunk] = native_probs.numpy().argmax(axis=1).astype(np.uint8)  # (n, K, H, W) -> (n, H, W)
    return labelmap


def images_to_volume(
    images: np.ndarray | torch.Tensor, stack: SliceStack, *, outside: float = AIR
) -> np.ndarray:
    """Bring model images (N, C, S, S) in [-1, 1] back, e.g. reconstructions, still in [-1, 1].

    Those of a smaller model, whose size divides S, are enlarged first.
    Returns float32 on the input's grid: (I, J, K), the mean over C, for a volume; (C, H, W) for a picture.
    What is not in the stack gets the value ``outside``. ``in_input_units`` gives input units.
    """
    _require_model_shape(images, stack)
    size = stack.images.shape[-1]
    if stack.grid is None:
        picture = enlarged(_float_tensor(images), size)
        return _to_native_size(picture, stack.transform, stack.shape, outside)[0].numpy()
    volume = np.full(stack.shape, outside, np.float32)
    native = native_slices(volume, stack)  # a view: writing here fills the volume
    for chunk in _chunks(native.shape):
        grey = enlarged(_float_tensor(images[chunk]).mean(dim=1, keepdim=True), size)  # (n, 1, S, S)
        found = _to_native_size(grey, stack.transform, native.shape[1:], outside)
        native[chunk] = found[:, 0].numpy()
    return volume


def reduced(images: torch.Tensor, size: int) -> torch.Tensor:
    """Area averages: images or label probabilities (N, C, S, S) as (N, C, size, size), size a divisor of S."""
    factor = images.shape[-1] // size
    return images if factor == 1 else avg_pool2d(images, factor)


def reduced_labels(labels: torch.Tensor, size: int) -> torch.Tensor:
    """The label with the largest share of each pixel: (N, S, S) as (N, size, size), the lowest of equals."""
    if labels.shape[-1] == size:
        return labels
    values = labels.unique()
    shares = torch.stack([(labels == value).float() for value in values], dim=1)  # (N, values, S, S)
    return values[reduced(shares, size).argmax(dim=1)]


def enlarged(images: torch.Tensor, size: int) -> torch.Tensor:
    """Bilinear, half-pixel centred: float images (N, C, s, s) as (N, C, size, size), size a multiple of s."""
    if images.shape[-1] == size:
        return images
    return interpolate(images, size=(size, size), mode="bilinear", align_corners=False)


def in_input_units(values: np.ndarray, stack: SliceStack, dtype: np.dtype) -> np.ndarray:
    """Intensities in [-1, 1], of any shape, as the input's: -1 becomes ``stack.low`` and 1 ``stack.high``.

    dtype: of the input. Whole numbers are rounded and clipped to their type; all else becomes float32.
    """
    # float64 for the few with 32-bit numbers, which float32 would round past the end of the type
    wide = dtype.kind in "iu" and dtype.itemsize > 2
    units = np.add(values, 1.0, dtype=np.float64 if wide else np.float32)
    units *= (stack.high - stack.low) / 2.0
    units += stack.low
    if dtype.kind not in "iu":
        return units
    limits = np.iinfo(dtype)
    return np.rint(units, out=units).clip(limits.min, limits.max, out=units).astype(dtype)


def points_to_model(points: np.ndarray, stack: SliceStack) -> np.ndarray:
    """Where points of the input's slices lie on the model's: (n, 2) as (x, y), pixel corners at whole numbers."""
    *_, resize, pad = stack.transform.transforms
    rows, columns = window_of(stack)
    resized = np.array(resize.spatial_size)  # (height, width)
    before = (np.array(pad.spatial_size) - resized) // 2  # as SpatialPad parts an odd rest
    scale = resized / (rows.stop - rows.start, columns.stop - columns.start)
    moved: np.ndarray = (points - (columns.start, rows.start)) * scale[::-1] + before[::-1]
    return moved


def window_of(stack: SliceStack) -> tuple[slice, slice]:
    """Rows and columns of the input's slices that the model sees."""
    first = stack.transform.transforms[0]
    if isinstance(first, SpatialCrop):
        rows, columns = list(first.slices)
        return rows, columns
    height, width = native_slices(np.broadcast_to(np.uint8(0), stack.shape), stack).shape[1:]
    return slice(0, height), slice(0, width)


def slice_centres_mm(stack: SliceStack) -> np.ndarray:
    """Where the middles of the stack's slices lie in the patient: (N, 3) in RAS mm, in the stack's order.

    Raises ValueError for a picture, which has no place in the patient.
    """
    if stack.grid is None:
        raise ValueError("a picture has no place in the patient")
    order = _axial_order(stack.grid)
    through = int(np.argmin(order[:, 0]))  # the file's axis that the slices are stacked along
    positions = np.arange(stack.shape[through])[:: int(order[through, 1])][stack.rows]
    voxels = np.tile((np.array(stack.shape) - 1.0) / 2.0, (len(positions), 1))  # (N, 3)
    voxels[:, through] = positions
    centres: np.ndarray = voxels @ stack.grid.affine[:3, :3].T + stack.grid.affine[:3, 3]
    return centres


class AntialiasedResize(InvertibleTransform):
    """Resize (channels, H, W) so that the borders of the picture stay its borders.

    Each output pixel averages the input pixels below it, half-pixel centred; enlarging is bilinear. The
    inverse interpolates at the old pixels' centres. MONAI's own Resize blurs with zeros beyond the border,
    which draws a grey frame.
    """

    def __init__(self, spatial_size: tuple[int, int]) -> None:
        self.spatial_size = spatial_size

    def __call__(self, image: MetaTensor) -> MetaTensor:
        pixels = image.as_tensor()
        if self.spatial_size[1] == 1:
            # torch 2.14 mixes the rows up when the new width is 1: resize the column lying down.
            resized = _interpolate(pixels.mT, self.spatial_size[::-1], antialias=True).mT
        else:
            resized = _interpolate(pixels, self.spatial_size, antialias=True)
        return self.push_transform(
            MetaTensor(resized).copy_meta_from(image), orig_size=tuple(image.shape[1:])
        )

    def inverse(self, image: MetaTensor) -> MetaTensor:
        applied = self.pop_transform(image)
        # No averaging: where the old pixels are larger than the new, their centres hold the old values.
        resized = _interpolate(image.as_tensor(), applied[TraceKeys.ORIG_SIZE], antialias=False)
        return MetaTensor(resized).copy_meta_from(image)


def _interpolate(pixels: torch.Tensor, size: tuple[int, int], *, antialias: bool) -> torch.Tensor:
    # (channels, H, W) -> (1, channels, H, W) and back
    return interpolate(pixels[None], size=size, mode="bilinear", align_corners=False, antialias=antialias)[0]


def _model_transform(
    shape: tuple[int, int],
    spacing_mm: tuple[float, float],
    size: int,
    window: tuple[slice, slice] | None = None,
) -> Compose:
    """Square pixels in mm, longer side ``size``, the other padded evenly; of a window of rows and columns."""
    crop = [] if window is None else [SpatialCrop(roi_slices=list(window))]
    if window is not None:
        shape = (window[0].stop - window[0].start, window[1].stop - window[1].start)
    height, width = _longer_side_is(size, shape, spacing_mm)
    pad = SpatialPad((size, size), mode="constant", value=AIR)
    return Compose([*crop, AntialiasedResize((height, width)), pad])


def _longer_side_is(size: int, shape: tuple[int, int], spacing_mm: tuple[float, float]) -> tuple[int, int]:
    extent_mm = np.multiply(shape, spacing_mm)
    height, width = (max(1, round(size * side / extent_mm.max())) for side in extent_mm.tolist())
    return height, width


def _body_window(
    native: np.ndarray, low: float, high: float, spacing_mm: tuple[float, float], level: float
) -> tuple[slice, slice] | None:
    """Rows and columns of slices (N, H, W) around the body, a square in mm but for the image's border.

    level: of model intensity, that the body lies above. None: there is no body, or all of the image is needed.
    """
    shape = (native.shape[1], native.shape[2])
    reduced_shape = _longer_side_is(_BODY_PX, shape, spacing_mm)
    step = max(1, min(shape) // (2 * _BODY_PX))  # enough pixels to average
    covered, filled = torch.zeros(reduced_shape), 0
    for chunk in _chunks(native.shape):
        light = adaptive_avg_pool2d(_to_unit_range(native[chunk, ::step, ::step], low, high), reduced_shape)
        masks = _opened((light > level).float())
        covered += masks.sum(dim=0)
        filled += int(masks.amax(dim=(1, 2)).sum())
    body = covered > _BODY_SLICES * filled
    if not body.any():
        return None
    ends = [np.flatnonzero(body.any(dim=axis).numpy())[[0, -1]] + (0, 1) for axis in (1, 0)]
    pixel_mm = np.divide(np.multiply(shape, spacing_mm), reduced_shape)
    longer_mm = max((end - start) * mm for (start, end), mm in zip(ends, pixel_mm, strict=True))
    if longer_mm < _LEAST_BODY * max(np.multiply(shape, spacing_mm)):
        return None
    window = []
    for (start, end), reduced_side, side, mm in zip(ends, reduced_shape, shape, spacing_mm, strict=True):
        middle, half = (start + end) / 2.0 / reduced_side * side, longer_mm / BODY_SHARE / mm / 2.0
        window.append(slice(max(0, math.floor(middle - half)), min(side, math.ceil(middle + half))))
    whole = all(part.stop - part.start == side for part, side in zip(window, shape, strict=True))
    return None if whole else (window[0], window[1])


def _opened(masks: torch.Tensor) -> torch.Tensor:
    """Masks (N, H, W) without what is thinner than 5 pixels: tables, cables, noise."""
    eroded = -max_pool2d(-masks, 5, stride=1, padding=2)
    return max_pool2d(eroded, 5, stride=1, padding=2)


def _squashed_spacing(shape: tuple[int, int]) -> tuple[float, float]:
    """The spacing at which an image of this shape is square."""
    return 1.0 / shape[0], 1.0 / shape[1]


def _to_model_size(slices: torch.Tensor, transform: Compose) -> torch.Tensor:
    """(n, K, H, W) float32 to (n, K, S, S)."""
    flat = transform(MetaTensor(slices.flatten(0, 1)))  # (n, K, H, W) -> (n * K, H, W) -> (n * K, S, S)
    return flat.as_tensor().unflatten(0, slices.shape[:2])


def _to_native_size(
    slices: torch.Tensor, transform: Compose, shape: tuple[int, ...], outside: float = 0.0
) -> torch.Tensor:
    """(n, K, S, S) float32 back to (n, K, H, W). outside: the value of what the transform cuts off."""
    if cuts := isinstance(transform.transforms[0], SpatialCrop):
        slices = slices - outside  # MONAI fills with 0
    flat = MetaTensor(slices.flatten(0, 1))  # (n, K, S, S) -> (n * K, S, S)
    flat.applied_operations = transform(MetaTensor(torch.zeros(1, *shape))).applied_operations
    native = transform.inverse(flat).as_tensor().unflatten(0, slices.shape[:2])
    return native + outside if cuts else native


# --- orientation -----------------------------------------------------------------------------------


def _axial_order(grid: Grid) -> np.ndarray:
    """(3, 2): for each axis of the file, its place among (slice, row, column) and whether it is flipped.

    Closest canonical axes; an oblique scan keeps its own planes.
    """
    # Slices rise to S(uperior), rows run to P(osterior), columns to the patient's L(eft).
    return ornt_transform(io_orientation(grid.affine), axcodes2ornt(("S", "P", "L")))


def _axial_view(array: np.ndarray, grid: Grid) -> np.ndarray:
    """A view of (I, J, K) as (N, H, W): feet to head, anterior to posterior, right to left."""
    order = _axial_order(grid)
    flipped = array[tuple(slice(None, None, int(flip)) for flip in order[:, 1])]
    return flipped.transpose(np.argsort(order[:, 0]))


def _axial_view_spacing(grid: Grid) -> tuple[float, float, float]:
    slice_mm, row_mm, column_mm = grid.spacing_mm[np.argsort(_axial_order(grid)[:, 0])].tolist()
    return slice_mm, row_mm, column_mm


def native_slices(array: np.ndarray, stack: SliceStack) -> np.ndarray:
    """A view (N, H, W) of the stack's slices in an array of the input's shape."""
    if array.shape != stack.shape:
        raise ValueError(f"array {array.shape} does not match the sliced image {stack.shape}")
    slices = array[None] if stack.grid is None else _axial_view(array, stack.grid)
    return slices[stack.rows]


# --- intensity -------------------------------------------------------------------------------------


def _with_channels(array: np.ndarray, channels: int) -> np.ndarray:
    """(C, H, W) with the channels the model takes."""
    if len(array) == channels:
        return array
    if channels == 3:
        return np.broadcast_to(array, (3, *array.shape[1:]))
    return luminance(array)


def _to_unit_range(native: np.ndarray, low: float, high: float) -> torch.Tensor:
    """float32 in [-1, 1]; not finite becomes -1 (air)."""
    values = torch.from_numpy(np.array(native, dtype=np.float32, order="C"))  # a copy: changed in place
    values.nan_to_num_(nan=low, posinf=low, neginf=low)
    return values.sub_(low).mul_(2.0 / (high - low)).sub_(1.0).clamp_(-1.0, 1.0)


# --- chunks ----------------------------------------------------------------------------------------


def _chunks(shape: tuple[int, ...], *, per_slice: int = 1) -> Iterator[slice]:
    """Runs of slices of (N, H, W) whose ``per_slice`` float32 planes each stay within memory."""
    count, height, width = shape
    step = max(1, _CHUNK_VALUES // (per_slice * height * width))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _float_tensor(values: np.ndarray | torch.Tensor) -> torch.Tensor:
    if isinstance(values, torch.Tensor):
        return values.detach().to("cpu", torch.float32)
    return torch.from_numpy(np.array(values, dtype=np.float32, order="C"))  # a copy: views may be read-only


def _require_model_shape(values: np.ndarray | torch.Tensor, stack: SliceStack) -> None:
    count, _, size, _ = stack.images.shape
    side = values.shape[-1]
    if values.ndim != 4 or values.shape[0] != count or values.shape[2] != side or not side or size % side:
        raise ValueError(f"({count}, any, {size}, {size}) expected, got {tuple(values.shape)}")
