"""Readers against nibabel, SimpleITK and PIL, and every bad file a user may bring."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from scipy.spatial.transform import Rotation

from sgan_core.errors import InputError
from sgan_core.imaging.grid import Grid
from sgan_core.imaging.image import Picture, Volume
from sgan_core.imaging.readers import (
    image_suffix,
    read_image,
    read_labels,
    read_picture,
    read_volume,
    require_same_grid,
)


def hu_array(shape: tuple[int, ...] = (5, 4, 3)) -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 1000, shape).astype(np.int16)


def oblique_affine() -> np.ndarray:
    affine = np.eye(4)
    rotation = Rotation.from_euler("xyz", (10, -20, 15), degrees=True).as_matrix()
    affine[:3, :3] = rotation @ np.diag([-0.7, 0.8, 2.5])
    affine[:3, 3] = (100.0, -120.0, 30.0)
    return affine


def save_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(array, oblique_affine() if affine is None else affine), path)
    return path


# --- geometry and intensities of volumes ----------------------------------------------------------


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".nhdr", ".mhd"])
def test_volume_written_by_simpleitk_has_its_world_positions(tmp_path: Path, ending: str) -> None:
    image = sitk.GetImageFromArray(hu_array().transpose())
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-100.0, 120.0, 30.0))
    image.SetDirection(Rotation.from_euler("xyz", (10, -20, 15), degrees=True).as_matrix().ravel().tolist())
    path = tmp_path / f"scan{ending}"
    sitk.WriteImage(image, str(path))

    volume = read_volume(path)

    np.testing.assert_array_equal(volume.array, hu_array())
    assert volume.array.dtype == np.int16
    assert volume.grid.shape == (5, 4, 3)
    for voxel in [(0, 0, 0), (4, 0, 0), (0, 3, 0), (0, 0, 2), (4, 3, 2)]:
        x_lps, y_lps, z = image.TransformIndexToPhysicalPoint(voxel)
        world = volume.grid.affine @ (*voxel, 1)
        np.testing.assert_allclose(world, (-x_lps, -y_lps, z, 1), atol=1e-4)


def test_nifti_affine_and_values_are_nibabels(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "scan.nii.gz", hu_array())
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.grid.affine, nib.load(path).affine)
    assert volume.array.dtype == np.int16
    assert volume.warnings == ()


def test_scaled_nifti_becomes_float32(tmp_path: Path) -> None:
    image = nib.Nifti1Image(hu_array(), oblique_affine())
    image.header.set_slope_inter(0.5, -1024.0)
    nib.save(image, tmp_path / "scan.nii.gz")
    stored = nib.load(tmp_path / "scan.nii.gz")
    assert (stored.dataobj.slope, stored.dataobj.inter) == (0.5, -1024.0)

    volume = read_volume(tmp_path / "scan.nii.gz")

    assert volume.array.dtype == np.float32
    np.testing.assert_allclose(volume.array, stored.get_fdata(), atol=1e-3)


def test_qform_is_used_where_there_is_no_sform(tmp_path: Path) -> None:
    image = nib.Nifti1Image(hu_array(), None)
    image.set_qform(oblique_affine(), code=1)
    image.set_sform(None, code=0)
    nib.save(image, tmp_path / "scan.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "scan.nii").grid.affine, oblique_affine(), atol=1e-4)


def test_sform_wins_and_a_different_qform_is_reported(tmp_path: Path) -> None:
    image = nib.Nifti1Image(hu_array(), None)
    image.set_sform(oblique_affine(), code=1)
    image.set_qform(np.diag([1.0, 1.0, 1.0, 1.0]), code=1)
    nib.save(image, tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii")
    np.testing.assert_allclose(volume.grid.affine, oblique_affine(), atol=1e-4)
    assert "sform and qform differ" in volume.warnings[0]


def test_header_without_orientation_is_reported(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(hu_array(), None), tmp_path / "scan.nii")
    assert "no orientation" in read_volume(tmp_path / "scan.nii").doubts[0]


@pytest.mark.parametrize(
    ("stored", "expected"),
    [((5, 4), (5, 4, 1)), ((5, 4, 1), (5, 4, 1)), ((5, 4, 3, 1), (5, 4, 3)), ((5, 4, 3, 1, 1), (5, 4, 3))],
)
def test_axes_of_length_one_do_not_matter(
    tmp_path: Path, stored: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    array = hu_array(stored)
    volume = read_volume(save_nifti(tmp_path / "scan.nii.gz", array))
    np.testing.assert_array_equal(volume.array, array.reshape(expected))
    assert volume.grid.shape == expected


def test_two_dimensional_and_padded_metaimage_are_volumes(tmp_path: Path) -> None:
    flat = sitk.GetImageFromArray(hu_array((4, 5)))
    flat.SetSpacing((0.5, 2.0))
    sitk.WriteImage(flat, str(tmp_path / "flat.mha"))
    volume = read_volume(tmp_path / "flat.mha")
    np.testing.assert_array_equal(volume.array, hu_array((4, 5)).T[..., None])
    np.testing.assert_array_equal(volume.grid.spacing_mm, (0.5, 2.0, 1.0))

    padded = sitk.GetImageFromArray(hu_array((1, 3, 4, 5)), isVector=False)
    sitk.WriteImage(padded, str(tmp_path / "padded.mha"))
    np.testing.assert_array_equal(
        read_volume(tmp_path / "padded.mha").array, hu_array((1, 3, 4, 5))[0].transpose()
    )


def test_big_endian_and_wide_types_become_native_and_narrow(tmp_path: Path) -> None:
    save_nifti(tmp_path / "big.nii", hu_array().astype(">i2"))
    nib.save(nib.Nifti1Image(hu_array().astype(np.int64), np.eye(4), dtype=np.int64), tmp_path / "wide.nii")
    save_nifti(tmp_path / "double.nii", hu_array().astype(np.float64))
    big, wide, double = (read_volume(tmp_path / f"{name}.nii").array for name in ("big", "wide", "double"))
    assert (big.dtype, wide.dtype, double.dtype) == (np.int16, np.int32, np.float32)
    assert big.dtype.isnative
    for array in (big, wide, double):
        np.testing.assert_array_equal(array, hu_array())


def test_some_missing_voxels_become_air_with_a_warning(tmp_path: Path) -> None:
    array = hu_array().astype(np.float32)
    array[0, 0, :2] = np.nan, np.inf
    lowest = array[np.isfinite(array)].min()
    volume = read_volume(save_nifti(tmp_path / "scan.nii.gz", array))
    assert volume.array[0, 0, 0] == volume.array[0, 0, 1] == lowest
    assert volume.array.dtype == np.float32
    assert "2 values" in volume.warnings[0]


@pytest.mark.parametrize(
    ("name", "axes"), [("example_ct_sm.nii.gz", ("R", "A", "S")), ("example_mr_sm.nii.gz", ("L", "P", "S"))]
)
def test_real_scan_is_as_nibabel_and_simpleitk_read_it(
    name: str, axes: tuple[str, ...], shared: Path
) -> None:
    path = shared / "data" / "TotalSegmentator_example" / name
    volume, by_nibabel, by_itk = read_volume(path), nib.load(path), sitk.ReadImage(str(path))
    assert nib.aff2axcodes(volume.grid.affine) == axes
    np.testing.assert_array_equal(volume.array, by_nibabel.get_fdata())
    np.testing.assert_array_equal(volume.array, sitk.GetArrayFromImage(by_itk).transpose())
    np.testing.assert_array_equal(volume.grid.affine, by_nibabel.affine)
    # Every voxel's place follows from the corners': all three are affine.
    last = [size - 1 for size in volume.array.shape]
    for corner in itertools.product(*((0, end) for end in last)):
        x_lps, y_lps, z = by_itk.TransformIndexToPhysicalPoint(corner)
        np.testing.assert_allclose(volume.grid.affine @ (*corner, 1), (-x_lps, -y_lps, z, 1), atol=1e-3)


def test_real_labels_lie_on_their_scan(shared: Path) -> None:
    folder = shared / "data" / "TotalSegmentator_example"
    image, label = folder / "example_ct_sm.nii.gz", folder / "example_seg.nii.gz"
    labels = read_labels(label, values=None)
    require_same_grid(labels, read_volume(image), label_path=label, image_path=image)


# --- bad volumes ----------------------------------------------------------------------------------


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.nii\.gz: no such file"):
        read_image(tmp_path / "gone.nii.gz")


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".png", ".jpg", ".tif"])
@pytest.mark.parametrize("content", [b"", b"just a note\n" * 60], ids=["empty", "text"])
def test_file_of_another_kind_is_refused_in_one_line(tmp_path: Path, ending: str, content: bytes) -> None:
    path = tmp_path / f"scan{ending}"
    path.write_bytes(content)
    with pytest.raises(InputError, match="scan") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("kept", [0.05, 0.5, 0.95])
def test_truncated_volume_is_refused(tmp_path: Path, ending: str, kept: float) -> None:
    path = tmp_path / f"scan{ending}"
    image = sitk.GetImageFromArray(hu_array((20, 30, 40)))
    sitk.WriteImage(image, str(path), useCompression=ending != ".nii")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(InputError, match="truncated"):
        read_volume(path)


def test_text_inside_a_gzip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(b"just a note\n" * 60))
    with pytest.raises(InputError, match="not a NIfTI"):
        read_volume(path)


def test_four_dimensional_volume_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"4-D \(5 x 4 x 3 x 2\)"):
        read_volume(save_nifti(tmp_path / "scan.nii.gz", hu_array((5, 4, 3, 2))))


def test_vector_and_colour_volumes_are_refused(tmp_path: Path) -> None:
    vectors = sitk.GetImageFromArray(hu_array((3, 4, 5, 2)), isVector=True)
    sitk.WriteImage(vectors, str(tmp_path / "vectors.nrrd"))
    with pytest.raises(InputError, match="2 values a voxel"):
        read_volume(tmp_path / "vectors.nrrd")
    colours = np.zeros((3, 4, 5), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(InputError, match="colour"):
        read_volume(save_nifti(tmp_path / "colours.nii.gz", colours))


def test_complex_volume_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="real numbers"):
        read_volume(save_nifti(tmp_path / "scan.nii.gz", np.ones((3, 4, 5), np.complex64)))


def test_empty_axis_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="length 0"):
        read_volume(save_nifti(tmp_path / "scan.nii.gz", np.zeros((0, 3, 4), np.int16)))


def test_volume_of_missing_values_is_refused(tmp_path: Path) -> None:
    array = np.full((3, 4, 5), np.nan, np.float32)
    array[0] = np.inf
    with pytest.raises(InputError, match="every value is NaN or infinite"):
        read_volume(save_nifti(tmp_path / "scan.nii.gz", array))


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_constant_volume_is_refused(tmp_path: Path, dtype: type) -> None:
    with pytest.raises(InputError, match="every value is -1000"):
        read_volume(save_nifti(tmp_path / "scan.nii.gz", np.full((3, 4, 5), -1000, dtype)))


@pytest.mark.parametrize("third_axis", [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (np.nan, 0.0, 1.0)])
def test_singular_affine_is_refused(tmp_path: Path, third_axis: tuple[float, float, float]) -> None:
    path = save_nifti(tmp_path / "scan.nii", hu_array(), np.eye(4))
    content = bytearray(path.read_bytes())
    for row, value in zip((280, 296, 312), third_axis, strict=True):  # bytes of srow_x, srow_y, srow_z
        content[row + 8 : row + 12] = np.float32(value).tobytes()
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match="singular"):
        read_volume(path)


def test_absurd_header_does_not_exhaust_memory(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "scan.nii", hu_array())
    content = bytearray(path.read_bytes())
    content[40:56] = np.array([3, 32767, 32767, 32767, 1, 1, 1, 1], "<i2").tobytes()
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match="scan"):
        read_volume(path)


def test_unknown_ending_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown kind"):
        read_image(tmp_path / "scan.docx")
    (tmp_path / "scan.nii").mkdir()
    with pytest.raises(InputError, match="a folder"):
        read_image(tmp_path / "scan.nii")
    with pytest.raises(InputError, match="a volume is needed"):
        read_volume(tmp_path / "photo.png")
    with pytest.raises(InputError, match="a picture is needed"):
        read_picture(tmp_path / "scan.nii")


def test_suffix_is_the_whole_ending() -> None:
    assert image_suffix("a.b/Scan.1.NII.GZ") == ".nii.gz"
    assert image_suffix("photo.JPG") == ".jpg"
    assert image_suffix("notes.gz") == ""


# --- pictures -------------------------------------------------------------------------------------


def rgb_pixels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (6, 9, 3)).astype(np.uint8)


def test_colour_picture_is_channels_first(tmp_path: Path) -> None:
    Image.fromarray(rgb_pixels()).save(tmp_path / "photo.png")
    picture = read_image(tmp_path / "photo.png")
    assert isinstance(picture, Picture)
    np.testing.assert_array_equal(picture.array, rgb_pixels().transpose(2, 0, 1))


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif", ".TIFF"])
def test_grey_picture_keeps_its_values(tmp_path: Path, ending: str) -> None:
    grey = rgb_pixels()[..., 0]
    Image.fromarray(grey).save(tmp_path / f"xray{ending}")
    np.testing.assert_array_equal(read_picture(tmp_path / f"xray{ending}").array, grey[None])


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_sixteen_bit_picture_keeps_its_depth(tmp_path: Path, ending: str) -> None:
    deep = np.random.default_rng(2).integers(0, 65536, (6, 9)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / f"xray{ending}")
    array = read_picture(tmp_path / f"xray{ending}").array
    assert array.dtype == np.uint16
    np.testing.assert_array_equal(array, deep[None])


def test_float_picture_has_missing_pixels_replaced(tmp_path: Path) -> None:
    pixels = rgb_pixels()[..., 0].astype(np.float32)
    pixels[0, 0] = np.nan
    Image.fromarray(pixels).save(tmp_path / "xray.tif")
    picture = read_picture(tmp_path / "xray.tif")
    assert picture.array[0, 0, 0] == np.nanmin(pixels)
    assert "1 values" in picture.warnings[0]


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK", "LA"])
def test_other_colour_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    converted = Image.fromarray(rgb_pixels()).convert(mode)
    ending = ".tif" if mode == "CMYK" else ".png"
    converted.save(tmp_path / f"photo{ending}")
    expected = np.asarray(converted.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(read_picture(tmp_path / f"photo{ending}").array, expected)


def test_transparent_pixels_blend_into_black(tmp_path: Path) -> None:
    rgba = np.dstack([rgb_pixels(), np.full((6, 9), 255, np.uint8)])
    rgba[:3, :, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "photo.png")
    array = read_picture(tmp_path / "photo.png").array
    assert not array[:, :3].any()
    np.testing.assert_array_equal(array[:, 3:], rgb_pixels()[3:].transpose(2, 0, 1))


def test_one_bit_picture_is_black_and_white(tmp_path: Path) -> None:
    bits = rgb_pixels()[..., 0] > 127
    Image.fromarray(bits).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "mask.png").array, bits[None] * np.uint8(255))


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [(1, lambda a: a), (3, lambda a: a[::-1, ::-1]), (6, lambda a: np.rot90(a, -1)), (8, np.rot90)],
)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, turned) -> None:  # noqa: ANN001
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind, pixels in (("rgb", rgb_pixels()), ("deep", rgb_pixels()[..., 0].astype(np.uint16) * 200)):
        Image.fromarray(pixels).save(tmp_path / f"{kind}.png", exif=exif)
        upright = read_picture(tmp_path / f"{kind}.png").array
        expected = turned(pixels)
        np.testing.assert_array_equal(upright, np.atleast_3d(expected).transpose(2, 0, 1))


def test_truncated_picture_is_refused(tmp_path: Path) -> None:
    for ending in (".png", ".jpg", ".tif", ".bmp"):
        path = tmp_path / f"photo{ending}"
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99, 3)).astype(np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(InputError, match="truncated"):
            read_picture(path)


def test_blank_picture_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (9, 6)).save(tmp_path / "photo.png")
    with pytest.raises(InputError, match="nothing to segment"):
        read_picture(tmp_path / "photo.png")


# --- labels ---------------------------------------------------------------------------------------


def label_array(shape: tuple[int, ...] = (5, 4, 3)) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 3, shape).astype(np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_label_volume_of_any_type_is_uint8(tmp_path: Path, dtype: type) -> None:
    path = save_nifti(tmp_path / "seg.nii.gz", label_array().astype(dtype))
    labels = read_labels(path, values={1, 2})
    assert isinstance(labels, Volume)
    assert labels.array.dtype == np.uint8
    np.testing.assert_array_equal(labels.array, label_array())


def test_label_without_any_organ_is_fine(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "seg.nii.gz", np.zeros((3, 4, 5), np.uint8))
    assert not read_labels(path, values={1}).array.any()


@pytest.mark.parametrize(
    ("array", "values", "said"),
    [
        (np.array([0, 1, 7]), {1, 2}, "unknown label value 7; known are 0, 1, 2"),
        (np.array([0, 1, 300]), None, "unknown label value 300"),
        (np.array([0, -1, 1]), {1}, "unknown label value -1"),
        (np.array([0, 0.5, 1]), {1}, "whole numbers, 0.5 found"),
        (np.array([0, np.nan, 1]), {1}, "whole numbers, nan found"),
    ],
)
def test_unknown_label_value_is_named(tmp_path: Path, array: np.ndarray, values, said: str) -> None:  # noqa: ANN001
    stored = array.astype(np.float32 if array.dtype.kind == "f" else np.int16).reshape(3, 1, 1)
    with pytest.raises(InputError, match=said):
        read_labels(save_nifti(tmp_path / "seg.nii.gz", stored), values=values)


def test_palette_indices_and_grey_values_are_labels(tmp_path: Path) -> None:
    mask = label_array((6, 9))
    grey, palette = Image.fromarray(mask), Image.fromarray(mask)
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0], "RGB")
    grey.save(tmp_path / "grey.png")
    palette.save(tmp_path / "palette.png")
    Image.fromarray(np.dstack([mask] * 3)).save(tmp_path / "equal.png")
    for name in ("grey", "palette", "equal"):
        labels = read_labels(tmp_path / f"{name}.png", values=(1, 2))
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, mask)


def test_black_and_white_mask_is_the_only_label(tmp_path: Path) -> None:
    bits = label_array((6, 9)) > 0
    Image.fromarray(bits).save(tmp_path / "bits.png")
    Image.fromarray(bits * np.uint8(255)).save(tmp_path / "white.png")
    for name in ("bits", "white"):
        np.testing.assert_array_equal(read_labels(tmp_path / f"{name}.png", values={4}), bits * 4)
    with pytest.raises(InputError, match="unknown label value 255"):
        read_labels(tmp_path / "white.png", values={1, 2})


def test_coloured_label_picture_is_refused(tmp_path: Path) -> None:
    Image.fromarray(rgb_pixels()).save(tmp_path / "mask.png")
    with pytest.raises(InputError, match="colour picture"):
        read_labels(tmp_path / "mask.png", values={1})


def test_image_given_as_label_is_refused(tmp_path: Path) -> None:
    Image.fromarray(rgb_pixels()[..., 0]).save(tmp_path / "image.png")
    with pytest.raises(InputError, match="unknown label value"):
        read_labels(tmp_path / "image.png", values={1})


# --- label against image --------------------------------------------------------------------------


def volume_on(affine: np.ndarray, shape: tuple[int, int, int] = (5, 4, 3)) -> Volume:
    return Volume(np.zeros(shape, np.uint8), Grid(shape, affine))


def check(labels: Volume | np.ndarray, image: Volume | Picture) -> None:
    require_same_grid(labels, image, label_path="a/seg.nii.gz", image_path="a/scan.nii.gz")


def test_rounding_of_the_affine_is_no_difference() -> None:
    rounded = oblique_affine().astype(np.float32).astype(np.float64)
    check(volume_on(rounded), volume_on(oblique_affine()))


def test_label_of_another_shape_is_refused() -> None:
    with pytest.raises(InputError, match=r"seg.nii.gz and image scan.nii.gz .* 5 x 4 x 2 against 5 x 4 x 3"):
        check(volume_on(np.eye(4), (5, 4, 2)), volume_on(np.eye(4)))
    with pytest.raises(InputError, match="6 x 9 against 9 x 6"):
        check(np.zeros((6, 9), np.uint8), Picture(np.zeros((1, 9, 6), np.uint8)))


@pytest.mark.parametrize("shift_mm", [2.5, 0.11])
def test_label_elsewhere_in_the_patient_is_refused_in_mm(shift_mm: float) -> None:
    moved = np.eye(4)
    moved[2, 3] = shift_mm
    with pytest.raises(InputError, match=f"lie {shift_mm:g} mm apart"):
        check(volume_on(moved), volume_on(np.eye(4)))
