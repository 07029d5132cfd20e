"""Air beside the body is cut off: the body fills the square, and every label comes back to where it was."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgan_core.cohort import Intensity
from sgan_core.imaging import slices
from sgan_core.imaging.grid import Grid
from sgan_core.imaging.image import Picture, Volume
from sgan_core.imaging.slices import (
    BODY_SHARE,
    SliceStack,
    images_to_volume,
    labels_to_model,
    points_to_model,
    to_model,
    to_volume,
)

HU = Intensity(low=-160.0, high=240.0, unit="HU")
quick = settings(deadline=None, max_examples=40)
SIZE = 64


def patient(
    *,
    field_mm: tuple[float, float] = (400.0, 400.0),  # rows, columns
    body_mm: tuple[float, float] = (160.0, 240.0),
    at_mm: tuple[float, float] = (0.0, 0.0),  # the body's middle from the field's
    spacing_mm: tuple[float, float] = (2.0, 2.0),
    count: int = 3,
    axes: str = "LPS",
) -> tuple[Volume, np.ndarray]:
    """An ellipse of 60 HU in air, and in it a disc of 120 HU with its mask, 40 mm from the middle; axes of the file."""
    shape = [round(side / mm) for side, mm in zip(field_mm, spacing_mm, strict=True)]
    rows, columns = (
        (np.arange(n) - (n - 1) / 2) * mm - middle
        for n, mm, middle in zip(shape, spacing_mm, at_mm, strict=True)
    )
    down, across = np.meshgrid(rows, columns, indexing="ij")
    inside = (2 * down / body_mm[0]) ** 2 + (2 * across / body_mm[1]) ** 2 <= 1.0
    disc = down**2 + (across - 40.0) ** 2 <= 25.0**2
    seen = np.where(disc, 120, np.where(inside, 60, -1000)).astype(np.int16)
    arrays = [np.repeat(plane.T[:, :, None], count, axis=2) for plane in (seen, disc.astype(np.uint8))]
    affine = np.diag([-spacing_mm[1], -spacing_mm[0], 5.0, 1.0])  # axes L, P, S
    for axis, letter in enumerate("LPS"):
        if letter not in axes:
            arrays = [np.flip(array, axis) for array in arrays]
            affine[axis, axis] *= -1.0
    order = [next(axis for axis, pair in enumerate(("LR", "PA", "SI")) if letter in pair) for letter in axes]
    image, mask = (np.ascontiguousarray(array.transpose(order)) for array in arrays)
    return Volume(image, Grid(image.shape, affine[:, [*order, 3]])), mask


def body_sides(stack: SliceStack) -> np.ndarray:
    """Rows and columns of the square that the body has."""
    inside = stack.images[0, 0] > 0.0
    return np.array([np.ptp(np.flatnonzero(inside.any(axis=axis))) + 1 for axis in (1, 0)])


def one_hot(labels: np.ndarray) -> np.ndarray:
    return np.stack([labels == 0, labels == 1], axis=1).astype(np.float32)


@quick
@given(
    st.floats(1.05, 2.5),
    st.tuples(st.floats(-0.9, 0.9), st.floats(-0.9, 0.9)),
    st.tuples(st.floats(0.8, 3.0), st.floats(0.8, 3.0)),
    st.sampled_from([(160.0, 240.0), (240.0, 160.0)]),
)
def test_the_body_fills_the_square_however_large_the_field_of_view(
    field: float, at: tuple[float, float], spacing: tuple[float, float], body: tuple[float, float]
) -> None:
    sides = (240.0 * field, 240.0 * field)
    free = [(side - own) / 2 for side, own in zip(sides, body, strict=True)]
    where = (at[0] * free[0], at[1] * free[1])
    volume, _ = patient(field_mm=sides, body_mm=body, at_mm=where, spacing_mm=spacing)
    stack = to_model(volume, size=SIZE, intensity=HU, body=True)
    longer = body_sides(stack).max()
    # It is looked for on a grid of 64; what the image does not show cannot be beside it.
    assert BODY_SHARE * SIZE - 6.0 <= longer <= SIZE
    assert stack.images.shape == (3, 1, SIZE, SIZE)


@pytest.mark.parametrize("at", [(0.0, 0.0), (70.0, -60.0)])
def test_air_is_left_on_both_sides_of_the_body(at: tuple[float, float]) -> None:
    volume, _ = patient(field_mm=(480.0, 480.0), spacing_mm=(1.0, 1.0), at_mm=at)
    stack = to_model(volume, size=SIZE, intensity=HU, body=True)
    assert abs(body_sides(stack).max() - BODY_SHARE * SIZE) <= 2
    assert (stack.images[..., [0, -1]] < 0.0).all()


@quick
@given(
    st.floats(1.0, 2.0),
    st.tuples(st.floats(-0.9, 0.9), st.floats(-0.9, 0.9)),
    st.tuples(st.floats(1.0, 3.0), st.floats(1.0, 3.0)),
    st.permutations(range(3)),
    st.tuples(*[st.booleans()] * 3),
)
def test_labels_come_back_to_their_place(
    field: float,
    at: tuple[float, float],
    spacing: tuple[float, float],
    order: list[int],
    flips: tuple[bool, bool, bool],
) -> None:
    axes = "".join(["LPS", "RAI"][flips[axis]][axis] for axis in order)
    sides = (300.0 * field, 300.0 * field)
    where = (at[0] * (sides[0] - 160.0) / 2, at[1] * (sides[1] - 240.0) / 2)
    volume, mask = patient(field_mm=sides, at_mm=where, spacing_mm=spacing, axes=axes)
    stack = to_model(volume, size=SIZE, intensity=HU, body=True)
    back = to_volume(one_hot(labels_to_model(mask, stack)), stack)
    assert back.shape == mask.shape
    own, found = (np.argwhere(one).mean(axis=0) * volume.grid.spacing_mm for one in (mask, back))
    assert np.abs(own - found).max() <= 0.5 * (240.0 / SIZE + max(spacing))
    assert 2.0 * (back & mask).sum() / (back.sum() + mask.sum()) > 0.9


def test_the_same_patient_looks_the_same_in_any_field_of_view_and_file() -> None:
    first = to_model(patient()[0], size=SIZE, intensity=HU, body=True).images
    for axes in ("LPS", "RAS", "SPR", "AIL"):
        for field in (300.0, 500.0):
            volume, _ = patient(field_mm=(field, field), at_mm=(20.0, -15.0), axes=axes)
            found = to_model(volume, size=SIZE, intensity=HU, body=True).images
            assert np.abs(found - first).mean() < 0.05  # a pixel more or less
            whole = to_model(volume, size=SIZE, intensity=HU).images
            assert field == 300.0 or np.abs(whole - first).mean() > 0.15


def test_what_is_cut_off_is_background_and_air() -> None:
    volume, mask = patient(field_mm=(500.0, 500.0), at_mm=(0.0, 100.0))
    stack = to_model(volume, size=SIZE, intensity=HU, body=True)
    drawn = np.ones((3, 2, SIZE, SIZE), np.float32) * [[[[0.1]], [[0.9]]]]  # all of the square is organ
    back = to_volume(drawn, stack)
    assert 0.0 < back.mean() < 0.6
    assert back[volume.array > 0].mean() == 1.0
    for outside in (-1.0, 0.5):
        shown = images_to_volume(np.full((3, 1, SIZE, SIZE), 0.25, np.float32), stack, outside=outside)
        np.testing.assert_allclose(shown[back == 0], outside, atol=1e-6)
        np.testing.assert_allclose(shown[back == 1], 0.25, atol=1e-6)
    assert mask.sum() == (back & mask).sum()


def test_a_table_wires_and_noise_are_no_body() -> None:
    volume, _ = patient(field_mm=(400.0, 400.0))
    plain = to_model(volume, size=SIZE, intensity=HU, body=True)
    spoilt = volume.array.copy()
    spoilt[:, 180:182] = 200  # a table of 4 mm below, as wide as the picture
    spoilt[2, ::9] = 1000
    noise = np.random.default_rng(0).random(spoilt.shape) < 0.02
    spoilt = np.where(noise, 0, spoilt)
    found = to_model(Volume(spoilt.astype(np.int16), volume.grid), size=SIZE, intensity=HU, body=True)
    assert crop_of(found) == crop_of(plain)


def crop_of(stack: SliceStack) -> list[tuple[int, int]]:
    return [(part.start, part.stop) for part in stack.transform.transforms[0].slices]


def test_one_slice_with_arms_does_not_move_a_long_scan() -> None:
    volume, _ = patient(field_mm=(400.0, 400.0), count=30)
    plain = crop_of(to_model(volume, size=SIZE, intensity=HU, body=True))
    wide = volume.array.copy()
    wide[20:-20, 80:120, :2] = 60
    assert crop_of(to_model(Volume(wide, volume.grid), size=SIZE, intensity=HU, body=True)) == plain
    wide[20:-20, 80:120, :5] = 60  # of 30 slices: more than a tenth
    assert crop_of(to_model(Volume(wide, volume.grid), size=SIZE, intensity=HU, body=True)) != plain


@pytest.mark.parametrize("air", [1, 20, 200])
def test_slices_of_air_above_and_below_change_nothing(air: int) -> None:
    """The body of a few slices is all of theirs, however much is empty: here it moves to the left on its way up."""
    volume, _ = patient(field_mm=(400.0, 400.0), count=12)
    array = np.stack([np.roll(volume.array[:, :, k], 3 * k, axis=0) for k in range(12)], axis=2)
    plain = crop_of(to_model(Volume(array, volume.grid), size=SIZE, intensity=HU, body=True))
    padded = np.pad(array, ((0, 0), (0, 0), (air, air)), constant_values=-1000)
    grid = Grid(padded.shape, volume.grid.affine)
    assert crop_of(to_model(Volume(padded, grid), size=SIZE, intensity=HU, body=True)) == plain


@pytest.mark.parametrize("window", [(-160.0, 240.0), (-160.0, 400.0), (-1350.0, 150.0)])
def test_fat_is_beside_the_body_whatever_the_window_and_the_voltage(window: tuple[float, float]) -> None:
    """Its -120 to -80 HU lie around an eighth of the soft tissue window."""
    muscle, _ = patient(body_mm=(160.0, 240.0))
    skin, _ = patient(body_mm=(240.0, 320.0))
    windowed = Intensity(*window, "HU")
    for fat in (-120, -105, -90, -80):
        array = np.where((skin.array > 0) & (muscle.array <= 0), fat, muscle.array)
        found = to_model(Volume(array, muscle.grid), size=SIZE, intensity=windowed, body=True)
        expected = crop_of(to_model(muscle, size=SIZE, intensity=windowed, body=True))
        assert (
            np.abs(np.array(crop_of(found)) - expected).max() <= 3
        )  # the skin is 40 mm away, 20 of its pixels


def test_a_picture_of_a_narrow_window_is_cut_by_its_own_level() -> None:
    """Black is -40 HU there, fat and air alike; a tenth of its window is darker than any organ."""
    volume, _ = patient()
    narrow = Intensity(-40.0, 160.0, "HU")
    clipped = Volume(volume.array.clip(-40, 160), volume.grid)
    expected = crop_of(to_model(volume, size=SIZE, intensity=HU, body=True))
    found = crop_of(to_model(clipped, size=SIZE, intensity=narrow, body=True))
    assert np.abs(np.array(found) - expected).max() <= 2


@pytest.mark.parametrize("what", ["air", "all of it", "a finger", "squashed"])
def test_without_a_body_to_cut_to_nothing_changes(what: str) -> None:
    finger = {"field_mm": (900.0, 900.0), "body_mm": (60.0, 60.0)} if what == "a finger" else {}
    volume, _ = patient(**finger)
    array = volume.array
    if what == "air":
        array = np.random.default_rng(0).integers(-1000, -900, array.shape).astype(np.int16)
    elif what == "all of it":
        array = np.full_like(array, 30)
        array[0, 0] = 40
    squash = what == "squashed"
    one, two = (
        to_model(Volume(array, volume.grid), size=SIZE, intensity=HU, squash=squash, body=body)
        for body in (False, True)
    )
    np.testing.assert_array_equal(one.images, two.images)
    assert len(two.transform.transforms) == 2


@quick
@given(st.integers(20, 50), st.integers(20, 50), st.integers(1, 8), st.sampled_from([31, 64]))
def test_points_go_where_their_pixels_go(height: int, width: int, inset: int, size: int) -> None:
    array = np.full((1, 2 * height, 2 * width), -1000, np.int16)
    top, left = height // 2, width // 3
    array[0, top : top + height, left : left + width] = 60
    stack = to_model(Picture(array), size=size, intensity=HU, body=True)
    labelmap = np.zeros(array.shape[1:], np.uint8)
    ends = (top + inset, left + inset, top + height - inset, left + width - inset)
    labelmap[ends[0] : ends[2], ends[1] : ends[3]] = 1
    rows, columns = np.nonzero(labels_to_model(labelmap, stack)[0])
    drawn = [(columns.min(), rows.min()), (columns.max() + 1, rows.max() + 1)]
    found = points_to_model(np.array([(ends[1], ends[0]), (ends[3], ends[2])]), stack)
    pixel = size / (max(height, width) / BODY_SHARE)
    np.testing.assert_allclose(found, drawn, atol=0.75 * max(1.0, pixel))


def test_a_part_of_the_slices_keeps_the_window() -> None:
    volume, mask = patient(count=8)
    stack = to_model(volume, size=SIZE, intensity=HU, body=True)
    part = stack.part(slice(2, 5))
    back = to_volume(one_hot(labels_to_model(mask, part)), part)
    assert back[:, :, 2:5].any()
    assert not back[:, :, :2].any()
    assert not back[:, :, 5:].any()


def test_many_chunks_are_one_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    volume, _ = patient(count=9)
    whole = to_model(volume, size=SIZE, intensity=HU, body=True)
    monkeypatch.setattr(slices, "_CHUNK_VALUES", 200 * 200 * 2)
    parts = to_model(volume, size=SIZE, intensity=HU, body=True)
    assert crop_of(parts) == crop_of(whole)
    np.testing.assert_array_equal(parts.images, whole.images)
