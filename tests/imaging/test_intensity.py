"""Intensities before a model sees them: units, windows, corrections, percentiles."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from sgan_core.cohort import MODALITIES, Intensity
from sgan_core.errors import InputError
from sgan_core.imaging import intensity as intensity_module
from sgan_core.imaging.grid import Grid
from sgan_core.imaging.image import Picture, Volume
from sgan_core.imaging.intensity import (
    CT_WINDOWS_HU,
    correct_bias,
    equalise,
    in_units,
    intensity_range,
    prepare_intensities,
    remove_colour_cast,
)
from sgan_core.imaging.readers import read_image, read_picture
from sgan_core.imaging.slices import to_model
from sgan_core.phantom import LIVER, make_case

PLAIN = Intensity(percentiles=(0.5, 99.5))
BIAS = Intensity(percentiles=(0.5, 99.5), bias_correction=True)
EQUALISE = Intensity(percentiles=(0.5, 99.5), equalise=True)
CAST = Intensity(low=0.0, high=255.0, colour_constancy=True)
CENTRAL = Intensity(percentiles=(0.5, 99.5), central=0.7)
quick = settings(deadline=None, max_examples=60)


def random_array(shape: tuple[int, ...], dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(dtype)


def volume(array: np.ndarray) -> Volume:
    return Volume(array, Grid(array.shape, np.eye(4)))


# --- units and windows -----------------------------------------------------------------------------


def test_windows_are_level_and_width() -> None:
    assert CT_WINDOWS_HU["lung"] == (-1350.0, 150.0)
    assert CT_WINDOWS_HU["brain"] == (0.0, 80.0)
    assert all(low < high for low, high in CT_WINDOWS_HU.values())


def test_abdomen_is_the_default_of_ct() -> None:
    ct = MODALITIES["ct"]["intensity"]
    assert CT_WINDOWS_HU["abdomen"] == (ct.low, ct.high) == (-160.0, 240.0)


def test_only_eight_bit_pictures_with_a_range_are_given_units() -> None:
    hu = Intensity(-160.0, 240.0, "HU")
    picture = Picture(np.array([[[0, 102, 255]]], np.uint8), ("read with care",))
    given_units = in_units(picture, hu)
    np.testing.assert_allclose(given_units.array, [[[-160, 0, 240]]], atol=1e-4)
    assert given_units.array.dtype == np.float32
    assert given_units.warnings == picture.warnings
    assert in_units(picture, PLAIN) is picture
    for other in (Picture(picture.array.astype(np.uint16)), volume(random_array((2, 2, 2)))):
        assert in_units(other, hu) is other


def test_without_corrections_nothing_is_copied() -> None:
    for image in (volume(random_array((4, 4, 4), np.int16)), Picture(random_array((3, 4, 4)))):
        for rule in (PLAIN, CENTRAL, Intensity(0.0, 1.0)):
            assert prepare_intensities(image, rule) is image


def test_model_slices_are_of_the_corrected_image(monkeypatch: pytest.MonkeyPatch) -> None:
    scan = volume(random_array((16, 16, 4), np.int16))
    monkeypatch.setattr(intensity_module, "correct_bias", lambda array: 255.0 - array)
    plain, corrected = (to_model(scan, size=16, intensity=rule).images for rule in (PLAIN, BIAS))
    np.testing.assert_allclose(corrected, -plain, atol=1e-5)


# --- bias field of MR ------------------------------------------------------------------------------


def shading(shape: tuple[int, ...]) -> np.ndarray:
    """A smooth multiplicative field, about 0.7 to 2."""
    axes = np.meshgrid(*[np.linspace(-1, 1, side) for side in shape], indexing="ij")
    return np.exp(0.35 * axes[0] - 0.2 * axes[1] + 0.25 * axes[1] ** 2).astype(np.float32)


def variation(values: np.ndarray) -> float:
    """Coefficient of variation."""
    return float(values.std() / values.mean())


@pytest.fixture(scope="module")
def t1() -> tuple[Volume, np.ndarray]:
    """T1 of a phantom under a bias field, (144, 144, 31), and where its liver is."""
    case = make_case(3, "t1_in")
    shaded = case.image.array * shading(case.image.array.shape)
    return Volume(shaded, case.image.grid, ("made up",)), case.labels == LIVER


@pytest.fixture(scope="module")
def t1_corrected(t1: tuple[Volume, np.ndarray]) -> Volume:
    return prepare_intensities(t1[0], BIAS)


def test_bias_of_a_volume_is_taken_out(t1: tuple[Volume, np.ndarray], t1_corrected: Volume) -> None:
    image, liver = t1
    true = variation(make_case(3, "t1_in").image.array[liver])
    assert variation(image.array[liver]) > 1.5 * true
    assert variation(t1_corrected.array[liver]) < 1.1 * true
    assert t1_corrected.array.dtype == np.float32
    assert (t1_corrected.grid, t1_corrected.warnings) == (image.grid, image.warnings)


def test_bias_correction_keeps_the_brightness(t1: tuple[Volume, np.ndarray], t1_corrected: Volume) -> None:
    image, _ = t1
    bright = image.array > np.percentile(image.array, 60)
    assert t1_corrected.array[bright].mean() == pytest.approx(image.array[bright].mean(), rel=0.1)


def test_bias_of_a_picture_is_taken_out(t1: tuple[Volume, np.ndarray]) -> None:
    image, liver = t1
    level = int(liver.sum(axis=(0, 1)).argmax())
    grey = (255 * image.array[..., level] / image.array[..., level].max()).astype(np.uint8)
    corrected = prepare_intensities(Picture(grey[None]), BIAS)
    assert corrected.array.shape == (1, *grey.shape)
    before, after = (variation(array[liver[..., level]]) for array in (grey, corrected.array[0]))
    assert after < 0.8 * before
    in_colour = prepare_intensities(Picture(np.repeat(grey[None], 3, axis=0)), BIAS)
    np.testing.assert_allclose(in_colour.array, corrected.array, rtol=1e-3)


def test_bias_correction_does_not_depend_on_the_threads(t1: tuple[Volume, np.ndarray]) -> None:
    array = t1[0].array[..., 15:20]
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    corrected = []
    try:
        for number in (1, 3):
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(number)
            corrected.append(correct_bias(array))
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    np.testing.assert_array_equal(*corrected)
    assert not np.array_equal(corrected[0], array)


@pytest.mark.parametrize("shape", [(1, 1, 7), (1, 5, 5), (8, 1, 8), (3, 12, 40), (6, 6, 6)])
def test_too_little_to_fix_a_bias_field_stays_as_it_is(shape: tuple[int, ...]) -> None:
    array = random_array(shape)
    assert correct_bias(array) is array


def test_a_single_slice_is_corrected_wherever_its_thin_axis_is() -> None:
    plane = random_array((64, 80)) + shading((64, 80)) * 50
    corrected = correct_bias(plane[None])
    assert not np.array_equal(corrected[0], plane)
    for axis in (1, 2):
        np.testing.assert_array_equal(correct_bias(np.expand_dims(plane, axis)).squeeze(), corrected[0])


def test_bias_correction_lives_with_any_values() -> None:
    array = random_array((48, 48, 9), np.float32) - 20.0  # below 0, where there is no logarithm
    array[0, 0, 0], array[1, 1, 1] = np.nan, np.inf
    before = array.copy()
    assert np.isfinite(correct_bias(array)).all()
    np.testing.assert_array_equal(array, before)
    empty = np.zeros((48, 48, 9), np.int16)
    assert correct_bias(empty) is empty


# --- local contrast of X-rays ----------------------------------------------------------------------


def flat_lungs(dtype: type = np.uint8) -> np.ndarray:
    """(96, 96): two lungs whose inside differs by 4 of 200 grey levels."""
    array = np.full((96, 96), 200.0)
    array[20:80, 10:40] = array[20:80, 56:86] = 60 + 4 * (np.indices((60, 30)).sum(axis=0) // 4 % 2)
    array[:12] = 5
    return array.astype(dtype)


def test_equalising_raises_the_contrast_within_the_lungs() -> None:
    xray = Picture(flat_lungs()[None])
    lung = np.s_[0, 24:76, 14:36]
    found = prepare_intensities(xray, EQUALISE)
    assert found.array.dtype == np.float32
    assert found.array[lung].std() > 1.5 * xray.array[lung].astype(float).std()
    low, high = intensity_range(xray.array, EQUALISE)
    assert low <= found.array.min() < found.array.max() <= high + 1e-3


def test_one_hot_pixel_does_not_take_the_contrast() -> None:
    xray = flat_lungs(np.uint16)
    hot = xray.copy()
    hot[50, 48] = 65535
    plain, found = (prepare_intensities(Picture(array[None]), EQUALISE).array for array in (xray, hot))
    np.testing.assert_allclose(plain[0, 24:76, 14:36], found[0, 24:76, 14:36], atol=5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_xray_stored_as_volume_is_equalised_in_its_plane(axis: int) -> None:
    picture = prepare_intensities(Picture(flat_lungs()[None]), EQUALISE).array[0]
    thin = prepare_intensities(volume(np.expand_dims(flat_lungs(), axis)), EQUALISE)
    np.testing.assert_array_equal(thin.array.squeeze(axis), picture)


@pytest.mark.parametrize("shape", [(1, 1, 9), (1, 2, 2), (2, 7, 130)])
def test_equalising_takes_any_shape_and_even_planes(shape: tuple[int, ...]) -> None:
    planes = random_array(shape, np.float32)
    planes[-1] = 9.0
    planes[0, 0, 0] = np.nan
    found = equalise(planes, 0.0, 100.0)
    assert np.isfinite(found).all()
    if shape[0] > 1:
        np.testing.assert_allclose(found[-1], 9.0, rtol=1e-5)


# --- colour of the light ---------------------------------------------------------------------------


def skin(side: int = 48) -> np.ndarray:
    """(3, S, S) uint8: pictures of every colour, neutral on the whole."""
    plane = np.random.default_rng(1).integers(20, 150, (side, side))
    return np.stack([plane, np.roll(plane, 7, axis=0), np.roll(plane, 5, axis=1)]).astype(np.uint8)


@pytest.mark.parametrize("cast", [(1.3, 1.0, 0.7), (0.6, 1.0, 1.2)])
def test_a_colour_cast_comes_back_neutral(cast: tuple[float, float, float]) -> None:
    seen = skin() * np.array(cast, np.float32)[:, None, None]
    found = prepare_intensities(Picture(seen), CAST).array
    means = found.mean(axis=(1, 2))
    assert means.max() / means.min() < 1.01
    assert seen.mean(axis=(1, 2)).max() / seen.mean(axis=(1, 2)).min() > 1.5
    scale = found.mean() / skin().mean()
    np.testing.assert_allclose(found, scale * skin(), rtol=0.01)


def test_light_is_the_minkowski_mean_of_norm_6() -> None:
    """Half of the red is missing: its light is (1/2)^(1/6) = 0.891 of that of green and blue."""
    rgb = np.full((3, 1, 2), 60, np.uint8)
    rgb[0, 0, 1] = 0
    light = np.array([0.5 ** (1 / 6), 1.0, 1.0])
    gains = np.sqrt((light**2).mean()) / light
    np.testing.assert_allclose(remove_colour_cast(rgb), rgb * gains[:, None, None], rtol=1e-5)


def test_neutral_pictures_stay() -> None:
    for array in (skin(), np.full((3, 9, 9), 255, np.uint8), np.repeat(random_array((1, 9, 9)), 3, axis=0)):
        found = prepare_intensities(Picture(array), CAST).array
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, array, rtol=1e-5)


def test_grey_images_have_no_cast() -> None:
    for image in (Picture(random_array((1, 9, 9))), volume(random_array((3, 3, 3), np.int16))):
        assert prepare_intensities(image, CAST) is image


def test_colours_that_cannot_be_balanced_stay() -> None:
    red = np.zeros((3, 9, 9), np.uint8)
    assert remove_colour_cast(red) is red
    red[0] = 200
    assert remove_colour_cast(red) is red


def test_bits_of_a_picture_do_not_matter() -> None:
    eight = remove_colour_cast(skin())
    sixteen = remove_colour_cast(skin().astype(np.uint16) * 257)
    np.testing.assert_allclose(sixteen, 257 * eight, rtol=1e-5)


# --- percentiles of the central part ---------------------------------------------------------------


@quick
@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.int16, np.int32, np.float32]),
        hnp.array_shapes(min_dims=3, max_dims=3, max_side=14),
        elements=st.integers(0, 200),
    ),
    st.floats(0.01, 1.0),
)
def test_central_percentiles_are_numpys_of_the_middle(array: np.ndarray, share: float) -> None:
    edges = [int(side * (1 - share) / 2) for side in array.shape[1:]]
    middle = array[:, edges[0] : array.shape[1] - edges[0], edges[1] : array.shape[2] - edges[1]]
    low, high = np.percentile(middle.astype(np.float64), (5, 95))
    assume(high - low > 1e-3)
    found = intensity_range(array, Intensity(percentiles=(5, 95), central=share))
    assert found == pytest.approx((low, high), abs=1e-3)


def test_borders_and_markers_do_not_count() -> None:
    xray = np.random.default_rng(0).integers(80, 121, (1, 100, 100)).astype(np.uint8)
    framed = xray.copy()
    framed[:, :12], framed[:, :, -14:], framed[:, 86:96, 4:14] = 0, 0, 255
    assert intensity_range(framed, CENTRAL) == intensity_range(xray, CENTRAL)
    assert intensity_range(framed, PLAIN) == (0.0, 255.0)


def test_an_even_centre_leaves_the_whole_picture() -> None:
    array = np.zeros((1, 40, 40), np.int16)
    array[0, :5] = 80
    assert intensity_range(array, CENTRAL) == (0.0, 80.0)
    with pytest.raises(InputError, match="nothing to segment"):
        intensity_range(np.zeros((1, 40, 40), np.int16), CENTRAL)


# --- real data -------------------------------------------------------------------------------------


def lung_means(pictures: list[tuple[np.ndarray, np.ndarray]], rule: Intensity) -> tuple[float, float]:
    """Of the model's intensities in the lungs: spread of the means over pictures, mean spread within one."""
    means, within = [], []
    for pixels, lungs in pictures:
        array = prepare_intensities(Picture(pixels), rule).array
        low, high = intensity_range(array, rule)
        shown = np.clip((array[0].astype(np.float32) - low) * 2 / (high - low) - 1, -1, 1)[lungs]
        means.append(shown.mean())
        within.append(shown.std())
    return float(np.std(means)), float(np.mean(within))


def wingspan(root: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    files = sorted((root / "png").glob("*.png"))[::4]
    masks = [read_picture(root / "mask" / "lungs" / file.name).array[0] > 127 for file in files]
    return [(read_picture(file).array, mask) for file, mask in zip(files, masks, strict=True)]


def covid(root: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    with (root / "metadata.csv").open(encoding="utf-8") as file:
        names = [row["filename"] for row in csv.DictReader(file)]
    masks = root / "masks_generalblockchain_lungs"
    pairs = [(root / "images" / name, masks / f"{Path(name).stem}.png") for name in names]
    return [
        (grey, read_picture(mask).array[0] > 127)
        for image, mask in pairs
        if mask.exists() and len(grey := read_picture(image).array) == 1
    ]


@pytest.mark.parametrize(("folder", "read"), [("Wingspan", wingspan), ("covid-chestxray-dataset", covid)])
def test_lungs_of_real_xrays_look_more_alike(shared: Path, folder: str, read) -> None:
    """What XRAY_CENTRAL was chosen for; equalising goes further."""
    pictures = read(shared / "data" / folder)
    assert len(pictures) > 20
    spread, contrast = lung_means(pictures, PLAIN)
    central_spread, central_contrast = lung_means(pictures, MODALITIES["xray"]["intensity"])
    assert central_spread < 0.9 * spread
    assert central_contrast > 1.1 * contrast
    assert lung_means(pictures, EQUALISE)[0] < spread


def test_liver_of_a_real_mr_gets_more_even(shared: Path) -> None:
    folder = shared / "data" / "CHAOS" / "PNG_T1_InPhase" / "MR" / "37"
    files = sorted((folder / "Image").glob("*.png"))
    scan = np.stack([read_picture(file).array[0] for file in files], axis=-1)
    liver = np.stack([np.asarray(Image.open(folder / "Ground" / file.name)) for file in files], axis=-1) == 63
    shaded = scan * shading(scan.shape)
    corrected = prepare_intensities(volume(shaded), BIAS).array
    assert variation(corrected[liver]) < 0.9 * variation(shaded[liver])


def test_real_dermoscopy_under_another_light(shared: Path) -> None:
    folder = shared / "data" / "HAM10000_fullres" / "HAM10000_images"
    for file in sorted(folder.glob("*.jpg"))[:2]:
        picture = read_image(file)
        tinted = Picture(picture.array * np.array([1.25, 1.0, 0.7], np.float32)[:, None, None])
        plain, found = (prepare_intensities(image, CAST).array for image in (picture, tinted))
        np.testing.assert_allclose(found / found.mean(), plain / plain.mean(), rtol=1e-3)
