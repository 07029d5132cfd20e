"""Slices: orientation, intensities, and a way back that puts every label where it was."""

from __future__ import annotations

import pickle
import time

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.data import MetaTensor
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom
from scipy.spatial.transform import Rotation

from sgan_core.cohort import Intensity
from sgan_core.errors import InputError
from sgan_core.imaging import slices as slices_module
from sgan_core.imaging.grid import Grid
from sgan_core.imaging.image import Picture, Volume
from sgan_core.imaging.slices import (
    AntialiasedResize,
    SliceStack,
    enlarged,
    images_to_volume,
    in_input_units,
    labels_to_model,
    points_to_model,
    reduced,
    reduced_labels,
    slice_centres_mm,
    to_model,
    to_volume,
)

HU = Intensity(low=-160.0, high=240.0, unit="HU")
quick = settings(deadline=None, max_examples=60)


@st.composite
def grids(draw: st.DrawFn, *, oblique_degrees: float = 30.0) -> Grid:
    """Any axis order, flips, spacings, tilt, odd sizes, single slices."""
    shape = draw(st.tuples(*[st.integers(1, 48)] * 3))
    order, flips = draw(st.permutations(range(3))), draw(st.tuples(*[st.sampled_from([1.0, -1.0])] * 3))
    axes = np.eye(3)[:, order] * flips * draw(st.tuples(*[st.floats(0.4, 5.0)] * 3))
    angles = draw(st.tuples(*[st.floats(-oblique_degrees / 2, oblique_degrees / 2)] * 3))
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ axes
    affine[:3, 3] = draw(st.tuples(*[st.floats(-300.0, 300.0)] * 3))
    return Grid(shape, affine)


def noise_volume(grid: Grid, seed: int = 0) -> Volume:
    values = np.random.default_rng(seed).integers(-1000, 1000, grid.shape).astype(np.int16)
    values.flat[0] = 1000
    return Volume(values, grid)


def radiological(array: np.ndarray, grid: Grid) -> np.ndarray:
    """Feet to head, anterior to posterior, right to left: by nibabel alone."""
    canonical = nib.as_closest_canonical(nib.Nifti1Image(array, grid.affine))  # x to R, y to A, z to S
    # (x, y, z) -> (z, -y, -x)
    return np.asarray(canonical.dataobj)[::-1, ::-1, :].transpose(2, 1, 0)


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    return (labels[:, None] == np.arange(classes)[:, None, None]).astype(np.float32)


# --- orientation ----------------------------------------------------------------------------------


@quick
@given(grids())
def test_slices_are_as_a_radiologist_sees_them(grid: Grid) -> None:
    cube = Grid((12, 12, 12), grid.affine / np.append(grid.spacing_mm, 1.0))  # square: nothing to resample
    volume = noise_volume(cube)
    stack = to_model(volume, size=12, intensity=Intensity(low=-1000.0, high=1000.0))
    seen = radiological(volume.array, cube)
    np.testing.assert_allclose(stack.images[:, 0], seen / 1000.0, atol=1e-6)
    assert stack.images.dtype == np.float32


@pytest.mark.parametrize("degrees", [0.0, 20.0])
def test_landmarks_are_at_the_right_corner(degrees: float) -> None:
    rotation = Rotation.from_euler("xyz", (degrees, -degrees / 2, degrees), degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = rotation[:, [2, 0, 1]] * [1.0, -1.0, 1.0]  # file axes: S, L, A
    array = np.zeros((9, 9, 9), np.int16)
    array[8, 0, 8] = 1  # head, patient's right, anterior
    stack = to_model(Volume(array, Grid(array.shape, affine)), size=9, intensity=Intensity(low=0.0, high=1.0))
    assert np.argwhere(stack.images[:, 0] > 0).tolist() == [[8, 0, 0]]


def test_picture_stays_as_stored() -> None:
    pixels = np.arange(16, dtype=np.uint8).reshape(1, 4, 4)
    stack = to_model(Picture(pixels), size=4, intensity=Intensity(low=0.0, high=15.0))
    np.testing.assert_allclose(stack.images[0, 0], pixels[0] / 7.5 - 1.0, atol=1e-6)


@quick
@given(grids(oblique_degrees=60.0), st.data())
def test_centres_of_slices_are_where_the_affine_puts_them(grid: Grid, data: st.DataObject) -> None:
    index = np.moveaxis(np.indices(grid.shape), 0, -1)
    places_mm = nib.affines.apply_affine(grid.affine, index)  # (I, J, K, 3)
    seen = [radiological(places_mm[..., axis], grid).mean(axis=(1, 2)) for axis in range(3)]
    stack = to_model(noise_volume(grid), size=16, intensity=HU)
    np.testing.assert_allclose(slice_centres_mm(stack), np.transpose(seen), atol=1e-6)
    rows = some_rows(data, len(stack.images))
    np.testing.assert_allclose(slice_centres_mm(stack.part(rows)), np.transpose(seen)[rows], atol=1e-6)


def test_centres_of_a_sagittal_scan_as_written_down() -> None:
    affine = np.array([[0, 0, 3.0, -40], [2.0, 0, 0, 10], [0, -1.5, 0, 90], [0, 0, 0, 1]])  # axes A, I, R
    stack = to_model(noise_volume(Grid((5, 4, 3), affine)), size=16, intensity=HU)
    expected = [[-37, 14, 85.5], [-37, 14, 87], [-37, 14, 88.5], [-37, 14, 90]]
    np.testing.assert_allclose(slice_centres_mm(stack), expected)


def test_picture_has_no_place() -> None:
    with pytest.raises(ValueError, match="no place"):
        slice_centres_mm(to_model(Picture(np.eye(4)[None]), size=4, intensity=Intensity()))


# --- a part of the slices -------------------------------------------------------------------------


def some_rows(data: st.DataObject, count: int) -> slice:
    start = data.draw(st.integers(0, count - 1))
    return slice(start, data.draw(st.integers(start + 1, count)))


@quick
@given(grids(), st.data())
def test_part_leaves_the_rest_of_the_volume_alone(grid: Grid, data: st.DataObject) -> None:
    whole = to_model(noise_volume(grid), size=16, intensity=HU)
    rows = some_rows(data, len(whole.images))
    part = whole.part(rows)
    outside = np.ones(len(whole.images), bool)
    outside[rows] = False

    np.testing.assert_array_equal(part.images, whole.images[rows])
    assert part.first_slice == rows.start + 1
    values = 1 + np.arange(len(whole.images)) % 4  # each slice has one label
    probabilities = one_hot(np.broadcast_to(values[:, None, None], (len(values), 16, 16)), 5)
    labels = radiological(to_volume(probabilities[rows], part), grid)
    np.testing.assert_array_equal(labels, np.broadcast_to((values * ~outside)[:, None, None], labels.shape))
    images = radiological(images_to_volume(part.images, part), grid)
    expected = radiological(images_to_volume(whole.images, whole), grid)
    np.testing.assert_allclose(images[rows], expected[rows], atol=1e-6)
    assert (images[outside] == -1.0).all()
    assert not radiological(images_to_volume(part.images, part, outside=0.0), grid)[outside].any()
    labelmap = np.random.default_rng(1).integers(0, 3, grid.shape).astype(np.uint8)
    np.testing.assert_array_equal(labels_to_model(labelmap, part), labels_to_model(labelmap, whole)[rows])


def test_part_of_a_part_counts_from_the_feet() -> None:
    whole = to_model(noise_volume(Grid((6, 5, 9), np.eye(4))), size=16, intensity=HU)
    part = whole.part(slice(2, 8)).part(slice(1, 3))
    assert (part.rows, part.first_slice) == (slice(3, 5), 4)
    np.testing.assert_array_equal(part.images, whole.images[3:5])
    assert whole.first_slice == 1


@pytest.mark.parametrize("rows", [slice(3, 3), slice(9, 12), slice(0, 9, 2)])
def test_part_without_neighbouring_slices_is_our_mistake(rows: slice) -> None:
    whole = to_model(noise_volume(Grid((6, 5, 9), np.eye(4))), size=16, intensity=HU)
    with pytest.raises(ValueError, match="no neighbouring slices"):
        whole.part(rows)


# --- there and back -------------------------------------------------------------------------------


@quick
@given(grids(), st.sampled_from([16, 32, 33]), st.data())
def test_blob_comes_back_within_half_a_model_pixel(grid: Grid, size: int, data: st.DataObject) -> None:
    stack = to_model(noise_volume(grid), size=size, intensity=HU)
    index = np.moveaxis(np.indices(grid.shape), 0, -1).astype(float)
    axial = int(np.argmax(np.abs(nib.orientations.io_orientation(grid.affine)[:, 0]) == 2))
    in_plane = [axis for axis in range(3) if axis != axial]
    extents_mm = (np.array(grid.shape) * grid.spacing_mm)[in_plane]
    pixel_mm = extents_mm.max() / size
    radius_mm = data.draw(st.floats(2.5, 0.4 * size)) * pixel_mm
    centre = [data.draw(st.floats(0.0, grid.shape[axis] - 1.0)) for axis in in_plane]
    offsets_mm = (index[..., in_plane] - centre) * grid.spacing_mm[in_plane]
    first = data.draw(st.integers(0, grid.shape[axial] - 1))
    blob = (np.hypot(*np.moveaxis(offsets_mm, -1, 0)) <= radius_mm) & (index[..., axial] >= first)
    assume(blob.any())

    model_labels = labels_to_model(blob.astype(np.uint8), stack)
    back = to_volume(one_hot(model_labels, 2), stack)

    assert back.shape == grid.shape
    assert back.dtype == np.uint8
    shift = (np.argwhere(back).mean(axis=0) - np.argwhere(blob).mean(axis=0))[in_plane]
    # Half a model pixel, as labels are drawn there, and half a native one, as they are drawn again here.
    assert (np.abs(shift) * grid.spacing_mm[in_plane] <= 0.5 * (pixel_mm + grid.spacing_mm[in_plane])).all()
    np.testing.assert_array_equal(  # the slices that hold it are the same
        np.unique(np.argwhere(back)[:, axial]), np.unique(np.argwhere(blob)[:, axial])
    )


@quick
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([16, 31, 64]), st.data())
def test_blob_in_a_picture_comes_back(height: int, width: int, size: int, data: st.DataObject) -> None:
    assume(height * width > 1)
    pixels = np.arange(height * width, dtype=np.float32).reshape(1, height, width)
    stack = to_model(Picture(pixels), size=size, intensity=Intensity())
    pixel = max(height, width) / size
    centre = data.draw(st.tuples(st.floats(0, height - 1), st.floats(0, width - 1)))
    rows, columns = np.indices((height, width))
    blob = np.hypot(rows - centre[0], columns - centre[1]) <= data.draw(st.floats(2.5, size / 2)) * pixel
    assume(blob.any())

    back = to_volume(one_hot(labels_to_model(blob.astype(np.uint8), stack), 2), stack)

    assert back.shape == (height, width)
    shift = np.argwhere(back).mean(axis=0) - np.argwhere(blob).mean(axis=0)
    assert (np.abs(shift) <= 0.5 * (pixel + 1.0)).all()


def test_blobs_do_not_drift() -> None:
    """Over many blobs in many geometries the rounding averages out; a shift of the pixel grid would not."""
    rng = np.random.default_rng(0)
    shifts_mm, pixels_mm = [], []
    for _ in range(300):
        grid = Grid((*rng.integers(30, 70, 2), 1), np.diag([*rng.uniform(0.5, 2.0, 2), 5.0, 1.0]))
        middle_mm = grid.spacing_mm[:2] * grid.shape[:2] / 2 + rng.uniform(-5.0, 5.0, 2)
        offsets = np.indices(grid.shape)[:2].transpose(1, 2, 3, 0) * grid.spacing_mm[:2] - middle_mm
        blob = np.linalg.norm(offsets, axis=-1) <= rng.uniform(6.0, 12.0)
        stack = to_model(noise_volume(grid), size=24, intensity=HU)
        back = to_volume(one_hot(labels_to_model(blob.astype(np.uint8), stack), 2), stack)
        centroids = [np.argwhere(mask)[:, :2].mean(axis=0) * grid.spacing_mm[:2] for mask in (blob, back)]
        shifts_mm.append(centroids[1] - centroids[0])
        pixels_mm.append((grid.spacing_mm * grid.shape)[:2].max() / 24)
    in_model_pixels = np.array(shifts_mm) / np.array(pixels_mm)[:, None]
    assert np.abs(in_model_pixels).max() < 0.5
    assert (np.abs(in_model_pixels.mean(axis=0)) < 0.03).all()


@quick
@given(grids(), st.sampled_from([16, 33]), st.data())
def test_squashed_blob_comes_back_within_half_a_model_pixel(
    grid: Grid, size: int, data: st.DataObject
) -> None:
    stack = to_model(noise_volume(grid), size=size, intensity=HU, squash=True)
    rows_columns = np.array(radiological(np.zeros(grid.shape, np.uint8), grid).shape[1:])
    pixel = rows_columns / size  # one model pixel, in native ones
    centre = data.draw(st.tuples(*[st.floats(0, side - 1) for side in rows_columns]))
    offsets = np.indices(rows_columns).transpose(1, 2, 0) - centre
    radius = data.draw(st.floats(2.5, size / 2))
    ellipse = np.linalg.norm(offsets / np.maximum(pixel, 1e-9), axis=-1) <= radius  # a disc for the model
    assume(ellipse.any())
    blob = np.zeros(grid.shape, np.uint8)
    slices_module._axial_view(blob, grid)[:] = ellipse

    back = to_volume(one_hot(labels_to_model(blob, stack), 2), stack)

    assert back.shape == grid.shape
    for plane in radiological(back, grid):
        shift = np.argwhere(plane).mean(axis=0) - np.argwhere(ellipse).mean(axis=0)
        assert (np.abs(shift) <= 0.5 * (pixel + 1.0)).all()


@quick
@given(st.integers(20, 90), st.integers(20, 90), st.sampled_from([31, 64]), st.booleans(), st.data())
def test_points_go_where_their_pixels_go(
    height: int, width: int, size: int, squash: bool, data: st.DataObject
) -> None:
    """The corners of a rectangle, beside those of its mask on the model's slice, which are at whole pixels."""
    top, left = data.draw(st.integers(0, height - 10)), data.draw(st.integers(0, width - 10))
    bottom, right = data.draw(st.integers(top + 10, height)), data.draw(st.integers(left + 10, width))
    array = np.arange(height * width, dtype=np.float32).reshape(1, height, width)
    intensity = Intensity(percentiles=(0.0, 100.0))
    stack = to_model(Picture(array), size=size, intensity=intensity, squash=squash)
    labelmap = np.zeros((height, width), np.uint8)
    labelmap[top:bottom, left:right] = 1
    rows, columns = np.nonzero(labels_to_model(labelmap, stack)[0])
    drawn = [(columns.min(), rows.min()), (columns.max() + 1, rows.max() + 1)]
    found = points_to_model(np.array([(left, top), (right, bottom)]), stack)
    np.testing.assert_allclose(found, drawn, atol=0.75)


@quick
@given(grids(), st.integers(2, 5))
def test_squashing_to_the_size_that_is_there_changes_nothing(grid: Grid, classes: int) -> None:
    """Seven voxels each way, whatever their spacing: labels and images come back exactly."""
    cube = Grid((7, 7, 7), grid.affine)
    labels = np.random.default_rng(0).integers(0, classes, cube.shape).astype(np.uint8)
    stack = to_model(noise_volume(cube), size=7, intensity=HU, squash=True)
    model_labels = labels_to_model(labels, stack)
    np.testing.assert_array_equal(model_labels, radiological(labels, cube))
    np.testing.assert_array_equal(to_volume(one_hot(model_labels, classes), stack), labels)
    expected = np.clip((noise_volume(cube).array + 160.0) / 200.0 - 1.0, -1.0, 1.0)
    np.testing.assert_allclose(images_to_volume(stack.images, stack), expected, atol=1e-5)


@quick
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([16, 31, 64]))
def test_squashed_picture_fills_the_square_and_is_undone(height: int, width: int, size: int) -> None:
    bright = Picture(np.full((1, height, width), 500, np.int16))
    stack = to_model(bright, size=size, intensity=HU, squash=True)
    np.testing.assert_allclose(stack.images, 1.0, atol=1e-6)  # no padding
    rows, columns = ((np.arange(side) + 0.5) / side for side in (height, width))
    ramp = (rows[:, None] - columns)[None].astype(np.float32)
    stack = to_model(Picture(ramp), size=size, intensity=Intensity(low=-1.0, high=1.0), squash=True)
    back = images_to_volume(stack.images, stack)
    assert back.shape == ramp.shape
    # Half a model pixel at the borders, where there is nothing to interpolate with
    np.testing.assert_allclose(back, ramp, atol=2.0 / min(size, height, width))


@quick
@given(grids())
def test_squashing_does_not_look_at_millimetres(grid: Grid) -> None:
    first, second = (
        to_model(Volume(noise_volume(grid).array, other), size=16, intensity=HU, squash=True).images
        for other in (grid, Grid(grid.shape, grid.affine * [[0.5, 1.0, 2.0, 1.0]]))
    )
    np.testing.assert_array_equal(first, second)


def test_a_squashed_copy_and_its_original_look_the_same() -> None:
    """What the option is for: a release squashed to a square, and a new image that is not."""
    rows, columns = np.indices((120, 80)) / [[[120]], [[80]]]
    original = (100 * np.sin(5 * rows) * np.cos(4 * columns)).astype(np.float32)
    released = np.asarray(Image.fromarray(original).resize((60, 60), Image.Resampling.BILINEAR))
    range_ = Intensity(low=-100.0, high=100.0)
    new, trained = (
        to_model(Picture(array[None]), size=30, intensity=range_, squash=True).images
        for array in (original, released)
    )
    assert np.abs(new - trained).max() < 0.03
    padded = to_model(Picture(original[None]), size=30, intensity=range_).images
    assert np.abs(padded - trained).max() > 0.5


@quick
@given(grids(), st.integers(2, 5))
def test_volume_of_model_size_comes_back_untouched(grid: Grid, classes: int) -> None:
    square = Grid((7, 7, 7), grid.affine / np.append(grid.spacing_mm, 1.0))
    labels = np.random.default_rng(0).integers(0, classes, square.shape).astype(np.uint8)
    stack = to_model(noise_volume(square), size=7, intensity=HU)
    model_labels = labels_to_model(labels, stack)
    np.testing.assert_array_equal(model_labels, radiological(labels, square))
    np.testing.assert_array_equal(to_volume(one_hot(model_labels, classes), stack), labels)
    reconstruction = images_to_volume(stack.images, stack)
    expected = np.clip((noise_volume(square).array + 160.0) / 200.0 - 1.0, -1.0, 1.0)
    np.testing.assert_allclose(reconstruction, expected, atol=1e-5)


def test_native_pixels_are_where_simpleitk_puts_them() -> None:
    """A coarse model picture onto a finer one: linear interpolation by SimpleITK in shared millimetres."""
    stack = to_model(Picture(np.arange(96 * 57, dtype=np.float32).reshape(1, 96, 57)), size=32, intensity=HU)
    model = gaussian_filter(np.random.default_rng(0).normal(size=(32, 32)), 2.0).astype(np.float32)
    native = images_to_volume(model[None, None], stack)[0]

    height, width = 32, 19  # 57 of 96 columns
    left = (32 - width) // 2
    inner = sitk.GetImageFromArray(model[:, left : left + width])
    inner.SetSpacing((57 / width, 96 / height))
    inner.SetOrigin((57 / width / 2 - 0.5, 96 / height / 2 - 0.5))  # borders meet, not centres
    reference = sitk.Resample(inner, (57, 96), sitk.Transform(), sitk.sitkLinear)
    inside = (slice(2, -2), slice(2, -2))  # beyond the outer centres SimpleITK has no value
    np.testing.assert_allclose(native[inside], sitk.GetArrayFromImage(reference)[inside], atol=1e-5)


@quick
@given(st.integers(20, 90), st.integers(20, 90), st.integers(8, 40))
def test_ramp_is_sampled_at_pixel_centres(height: int, width: int, size: int) -> None:
    ramp = np.broadcast_to((np.arange(width) + 0.5) / width, (1, height, width))
    stack = to_model(Picture(ramp), size=size, intensity=Intensity(low=0.0, high=1.0))
    columns = max(1, round(size * width / max(height, width)))
    left = (size - columns) // 2
    middle = stack.images[0, 0, size // 2, left : left + columns]
    centres = 2.0 * (np.arange(columns) + 0.5) / columns - 1.0
    margin = 2  # at the border the average is one-sided
    assume(columns > 2 * margin)
    # A hundredth of the range; half a pixel off would be 1 / columns >= 0.025 of it.
    np.testing.assert_allclose(middle[margin:-margin], centres[margin:-margin], atol=0.02)


@quick
@given(grids())
def test_aspect_is_kept_in_mm_and_the_rest_is_air(grid: Grid) -> None:
    bright = Volume(np.full(grid.shape, 500, np.int16), grid)
    stack = to_model(bright, size=32, intensity=HU)
    axes = np.argsort(nib.orientations.io_orientation(grid.affine)[:, 0])  # file axes along x, y, z
    width_mm, height_mm, _ = (np.array(grid.shape) * grid.spacing_mm)[axes]
    longest = max(width_mm, height_mm)
    height, width = max(1, round(32 * height_mm / longest)), max(1, round(32 * width_mm / longest))
    for picture in stack.images[:, 0]:
        assert set(np.unique(picture.round(5))) <= {-1.0, 1.0}  # no grey frame at the border
        rows, columns = np.flatnonzero((picture > 0).any(axis=1)), np.flatnonzero((picture > 0).any(axis=0))
        assert (len(rows), len(columns)) == (height, width)
        assert abs(rows[0] - (31 - rows[-1])) <= 1  # padded evenly
        assert abs(columns[0] - (31 - columns[-1])) <= 1


@pytest.mark.parametrize("side", [64, 100, 181, 512])
def test_fine_pattern_becomes_grey_not_stripes(side: int) -> None:
    stripes = np.broadcast_to(np.arange(side) % 2, (1, side, side)).astype(np.float32)
    stack = to_model(Picture(stripes), size=32, intensity=Intensity(low=0.0, high=1.0))
    assert np.abs(stack.images[0, 0, 1:-1, 1:-1]).max() < 0.3


def test_soft_probabilities_are_interpolated_before_labelling() -> None:
    stack = to_model(Picture(np.arange(64.0).reshape(1, 1, 64)), size=2, intensity=Intensity())
    probabilities = np.zeros((1, 2, 2, 2), np.float32)
    probabilities[0, 1] = [0.9, 0.2]  # two pixels: organ, hardly organ
    probabilities[0, 0] = 1.0 - probabilities[0, 1]
    labels = to_volume(probabilities, stack)[0]
    # Centres at 15.5 and 47.5: one half is crossed at 15.5 + 32 * (0.9 - 0.5) / 0.7 = 33.8.
    np.testing.assert_array_equal(labels, np.arange(64) <= 33)


def test_most_probable_of_several_wins_below_one_half() -> None:
    stack = to_model(Picture(np.arange(54.0).reshape(1, 9, 6)), size=4, intensity=Intensity())
    probabilities = np.broadcast_to(np.array([0.3, 0.4, 0.3])[:, None, None], (1, 3, 4, 4))
    assert (to_volume(probabilities, stack) == 1).all()


def test_largest_share_wins_and_label_values_are_kept() -> None:
    labels = np.zeros((8, 8, 2), np.uint8)
    labels[:5], labels[5:] = 200, 7
    stack = to_model(noise_volume(Grid((8, 8, 2), np.eye(4))), size=4, intensity=HU)
    model_labels = labels_to_model(labels, stack)
    assert set(np.unique(model_labels)) == {7, 200}
    assert model_labels.shape == (2, 4, 4)


def test_shares_of_labels_as_written_down() -> None:
    """Halving weighs the pixels around each new one 1, 3, 3, 1, those that exist: background holds the first."""
    row = np.array([1, 0, 0, 0, 2, 1, 2, 2], np.uint8)
    # Shares of 0, 1, 2: (4, 3, 0) / 7, (7, 0, 1) / 8, (1, 3, 4) / 8, (0, 1, 6) / 7
    stack = to_model(Picture(np.eye(8)[None]), size=4, intensity=Intensity())
    labels = np.tile(row, (8, 1))
    expected = np.tile([0, 0, 2, 2], (4, 1))
    np.testing.assert_array_equal(labels_to_model(labels, stack)[0], expected)
    np.testing.assert_array_equal(labels_to_model(labels.T, stack)[0], expected.T)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid((31, 29, 7), np.diag([1.0, 1.3, 3.0, 1.0]))
    volume, labels = noise_volume(grid), np.random.default_rng(0).integers(0, 3, grid.shape).astype(np.uint8)
    probabilities = np.random.default_rng(0).random((7, 3, 16, 16), dtype=np.float32)

    def everything() -> list[np.ndarray]:
        stack = to_model(volume, size=16, intensity=HU)
        return [
            stack.images,
            labels_to_model(labels, stack),
            to_volume(probabilities, stack),
            images_to_volume(stack.images, stack),
        ]

    whole = everything()
    monkeypatch.setattr(slices_module, "_CHUNK_VALUES", 31 * 29 * 2)
    for at_once, in_pieces in zip(whole, everything(), strict=True):
        np.testing.assert_array_equal(at_once, in_pieces)


def test_torch_probabilities_and_a_pickled_stack_work_too() -> None:
    stack = to_model(noise_volume(Grid((9, 8, 3), np.eye(4))), size=16, intensity=HU)
    probabilities = torch.rand(3, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = to_volume(probabilities.numpy(), stack)
    again: SliceStack = pickle.loads(pickle.dumps(stack))
    np.testing.assert_array_equal(to_volume(probabilities.half().float(), again) >= 0, expected >= 0)
    np.testing.assert_array_equal(to_volume(probabilities.requires_grad_(), again), expected)


def test_wrong_shapes_are_our_mistake() -> None:
    stack = to_model(noise_volume(Grid((9, 8, 3), np.eye(4))), size=16, intensity=HU)
    with pytest.raises(ValueError, match="expected"):
        to_volume(np.zeros((2, 2, 16, 16)), stack)
    with pytest.raises(ValueError, match="does not match"):
        labels_to_model(np.zeros((8, 9, 3), np.uint8), stack)
    with pytest.raises(ValueError, match="channels"):
        to_model(noise_volume(Grid((9, 8, 3), np.eye(4))), size=16, intensity=HU, channels=2)


def test_inputs_are_not_changed() -> None:
    array = np.random.default_rng(0).normal(size=(6, 6, 6)).astype(np.float32)
    before = array.copy()
    to_model(Volume(array, Grid((6, 6, 6), np.eye(4))), size=8, intensity=Intensity())
    np.testing.assert_array_equal(array, before)


@quick
@given(*[st.integers(1, 40)] * 4)
def test_resize_is_pillows(height: int, width: int, new_height: int, new_width: int) -> None:
    pixels = np.random.default_rng(0).random((2, height, width), dtype=np.float32)
    resized = AntialiasedResize((new_height, new_width))(MetaTensor(torch.from_numpy(pixels)))
    for ours, channel in zip(resized.numpy(), pixels, strict=True):
        by_pil = Image.fromarray(channel).resize((new_width, new_height), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(ours, np.asarray(by_pil), atol=1e-5)


def test_enlarging_is_undone_exactly() -> None:
    resize = AntialiasedResize((48, 30))  # three times: the old centres are among the new
    coarse = MetaTensor(torch.rand(3, 16, 10, generator=torch.Generator().manual_seed(0)))
    back = resize.inverse(resize(coarse))
    torch.testing.assert_close(back.as_tensor(), coarse.as_tensor())
    assert back.applied_operations == []


# --- intensities ----------------------------------------------------------------------------------


@quick
@given(
    hnp.arrays(
        st.sampled_from([np.int16, np.uint8, np.int32, np.float32]),
        hnp.array_shapes(min_dims=3, max_dims=3, max_side=12),
        elements=st.integers(0, 200),
    ),
    st.tuples(st.floats(0.0, 49.0), st.floats(51.0, 100.0)),
)
def test_percentiles_are_numpys(array: np.ndarray, percentiles: tuple[float, float]) -> None:
    low, high = np.percentile(array.astype(np.float64), percentiles)
    assume(high - low > 1e-3)
    volume = Volume(array, Grid(array.shape, np.eye(4)))
    stack = to_model(volume, size=8, intensity=Intensity(percentiles=percentiles))
    assert (stack.low, stack.high) == pytest.approx((low, high), abs=1e-3)


def test_default_percentiles_are_of_the_whole_volume() -> None:
    volume = noise_volume(Grid((16, 16, 16), np.eye(4)))
    stack = to_model(volume, size=16, intensity=Intensity())
    assert (stack.low, stack.high) == pytest.approx(np.percentile(volume.array, (0.5, 99.5)))


def test_values_that_are_not_finite_are_air_and_not_counted() -> None:
    array = np.linspace(0.0, 100.0, 216, dtype=np.float32).reshape(6, 6, 6)
    array[0, 0, 0], array[5, 5, 5] = np.nan, np.inf
    stack = to_model(
        Volume(array, Grid(array.shape, np.eye(4))), size=6, intensity=Intensity(percentiles=(0.0, 100.0))
    )
    assert stack.high < 100.0
    assert np.isfinite(stack.images).all()
    np.testing.assert_array_equal(images_to_volume(stack.images, stack)[[0, 5], [0, 5], [0, 5]], -1.0)


def test_fixed_range_is_linear_and_clipped() -> None:
    hu = np.array([-1000, -160, -60, 40, 140, 240, 1000, 0, 0], np.int16).reshape(1, 3, 3)
    stack = to_model(Picture(hu), size=3, intensity=HU)
    np.testing.assert_allclose(stack.images.ravel()[:7], [-1, -1, -0.5, 0, 0.5, 1, 1], atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (np.int16, [-160, -60, 40, 41, 640]),
        (np.uint8, [0, 0, 40, 41, 255]),
        (np.int32, [-160, -60, 40, 41, 640]),
        (np.float32, [-160.0, -60.0, 40.0, 40.6, 640.0]),
    ],
)
def test_intensities_go_back_to_the_units_and_the_type_of_the_input(dtype: type, expected: list) -> None:
    stack = to_model(Picture(np.eye(4)[None]), size=4, intensity=HU)
    units = in_input_units(np.array([-1.0, -0.5, 0.0, 0.003, 3.0], np.float32), stack, np.dtype(dtype))
    assert units.dtype == dtype
    np.testing.assert_allclose(units, expected, rtol=1e-6)


def test_large_whole_numbers_do_not_wrap_around() -> None:
    range_ = Intensity(low=-(2.0**31), high=2.0**31 - 1)
    stack = to_model(Picture(np.eye(4)[None]), size=4, intensity=range_)
    units = in_input_units(np.array([-1.1, 1.0, 1.1], np.float32), stack, np.dtype(np.int32))
    np.testing.assert_array_equal(units, [-(2**31), 2**31 - 1, 2**31 - 1])


def test_rare_structure_on_an_empty_background_is_shown() -> None:
    array = np.zeros((20, 20, 20), np.int16)
    array[3, 4, 5] = 80
    stack = to_model(Volume(array, Grid(array.shape, np.eye(4))), size=20, intensity=Intensity())
    assert (stack.low, stack.high) == (0.0, 80.0)


def test_constant_image_and_empty_range_are_refused() -> None:
    for dtype in (np.int16, np.float32):
        with pytest.raises(InputError, match="nothing to segment"):
            to_model(Picture(np.full((1, 4, 4), 9, dtype)), size=4, intensity=Intensity())
    with pytest.raises(InputError, match="empty"):
        to_model(Picture(np.eye(4)[None]), size=4, intensity=Intensity(low=3.0, high=3.0))
    with pytest.raises(InputError, match="NaN"):
        to_model(Picture(np.full((1, 4, 4), np.nan)), size=4, intensity=Intensity())


def test_grey_is_repeated_and_colour_becomes_luminance() -> None:
    colour = np.random.default_rng(0).integers(0, 256, (3, 6, 6)).astype(np.uint8)
    byte = Intensity(low=0.0, high=255.0)
    rgb = to_model(Picture(colour), size=6, intensity=byte, channels=3)
    np.testing.assert_allclose(rgb.images[0], colour / 127.5 - 1.0, atol=1e-6)
    np.testing.assert_allclose(images_to_volume(rgb.images, rgb), colour / 127.5 - 1.0, atol=1e-6)

    grey = to_model(Picture(colour), size=6, intensity=byte)
    by_pil = np.asarray(Image.fromarray(colour.transpose(1, 2, 0)).convert("L"))
    np.testing.assert_allclose(grey.images[0, 0], by_pil / 127.5 - 1.0, atol=1.1 / 127.5)

    repeated = to_model(Picture(colour[:1]), size=6, intensity=byte, channels=3)
    for channel in repeated.images[0]:
        np.testing.assert_allclose(channel, colour[0] / 127.5 - 1.0, atol=1e-6)


def test_scan_for_a_colour_model_comes_back_grey() -> None:
    volume = noise_volume(Grid((8, 8, 4), np.eye(4)))
    stack = to_model(volume, size=8, intensity=HU, channels=3)
    assert stack.images.shape == (4, 3, 8, 8)
    assert images_to_volume(stack.images, stack).shape == (8, 8, 4)


# --- cost -----------------------------------------------------------------------------------------


def test_full_ct_is_cut_within_two_seconds() -> None:
    grid = Grid((512, 512, 78), np.diag([-0.7, -0.7, 3.0, 1.0]))
    array = np.zeros(grid.shape, np.int16, order="F")
    array[100:400, 100:400] = 50
    start = time.perf_counter()
    to_model(Volume(array, grid), size=64, intensity=HU)
    assert time.perf_counter() - start < 2.0


# --- two sizes of one model: student and generator --------------------------------------------------


@quick
@given(factor=st.integers(1, 4), size=st.integers(1, 6), seed=st.integers(0, 99))
def test_reduced_images_are_means_of_blocks(factor: int, size: int, seed: int) -> None:
    image = np.random.default_rng(seed).normal(size=(2, 3, size * factor, size * factor)).astype(np.float32)
    blocks = image.reshape(2, 3, size, factor, size, factor).mean(axis=(3, 5))
    np.testing.assert_allclose(reduced(torch.from_numpy(image), size).numpy(), blocks, atol=1e-6)


@quick
@given(factor=st.integers(1, 4), size=st.integers(1, 6), seed=st.integers(0, 99))
def test_reduced_labels_are_the_majority_of_blocks_the_lowest_of_equals(
    factor: int, size: int, seed: int
) -> None:
    labels = np.random.default_rng(seed).choice([0, 2, 7], size=(2, size * factor, size * factor))
    blocks = labels.reshape(2, size, factor, size, factor).swapaxes(2, 3).reshape(2, size, size, -1)
    counts = np.stack([(blocks == value).sum(axis=-1) for value in (0, 2, 7)], axis=-1)
    wanted = np.array([0, 2, 7])[counts.argmax(axis=-1)]
    np.testing.assert_array_equal(reduced_labels(torch.from_numpy(labels), size).numpy(), wanted)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_enlarging_is_scipys_linear_zoom(factor: int) -> None:
    image = np.random.default_rng(0).normal(size=(1, 2, 8, 8)).astype(np.float32)
    wanted = zoom(image, (1, 1, factor, factor), order=1, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(enlarged(torch.from_numpy(image), 8 * factor).numpy(), wanted, atol=1e-6)


@quick
@given(grid=grids(), data=st.data())
def test_the_generators_answers_come_back_to_the_same_place(grid: Grid, data: st.DataObject) -> None:
    """Probabilities of a quarter of the size lie where the stack's own lie, half a small pixel at most."""
    stack = to_model(noise_volume(grid), size=64, intensity=HU)
    count = len(stack.images)
    row, column = (data.draw(st.floats(20.0, 44.0)) for _ in range(2))
    place = np.arange(64) + 0.5
    inside = np.hypot(place[:, None] - row, place[None] - column) < 12
    probs = np.broadcast_to(np.stack([~inside, inside]).astype(np.float32), (count, 2, 64, 64))
    fine = to_volume(probs, stack)
    coarse = to_volume(reduced(torch.from_numpy(probs.copy()), 16), stack)
    if fine.sum() > 200:
        centres = [np.argwhere(mask == 1).mean(axis=0) for mask in (fine, coarse)]
        scale = np.maximum(np.array(grid.shape) / 16.0, 1.0)
        assert (np.abs(centres[0] - centres[1]) / scale).max() < 0.5
    picture = images_to_volume(reduced(torch.from_numpy(stack.images), 16), stack)
    assert picture.shape == grid.shape


@pytest.mark.parametrize("shape", [(5, 2, 24, 24), (5, 2, 32, 16), (5, 2, 0, 0), (4, 2, 32, 32)])
def test_sizes_that_do_not_divide_are_our_mistake(shape: tuple[int, ...]) -> None:
    stack = to_model(noise_volume(Grid((20, 20, 5), np.eye(4))), size=64, intensity=HU)
    with pytest.raises(ValueError, match="expected, got"):
        to_volume(np.zeros(shape, np.float32), stack)


def test_a_larger_student_draws_smoother_borders() -> None:
    """A disc on 512 pixels: what 64, 128 and 256 px can draw of it, by DICE and by the roughness of its border."""
    grid = Grid((512, 512, 1), np.diag([0.8, 0.8, 3.0, 1.0]))
    place = np.arange(512) + 0.5
    disc = (np.hypot(place[:, None] - 250.3, place[None] - 241.7) < 90.0).astype(np.uint8)[..., None]
    error = []
    for size in (64, 128, 256):
        stack = to_model(noise_volume(grid), size=size, intensity=HU)
        small = labels_to_model(disc, stack)
        back = to_volume(np.stack([small == 0, small == 1], axis=1).astype(np.float32), stack)
        error.append(float((back != disc).sum()) / disc.sum())
    assert error[0] > 1.7 * error[1] > 1.7 * 1.7 * error[2]
    assert error[2] < 0.01
