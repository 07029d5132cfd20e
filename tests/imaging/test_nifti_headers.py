"""What NIfTI headers say about values and places, against nibabel, SimpleITK and closed form."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from sgan_core.errors import InputError
from sgan_core.imaging.grid import Grid
from sgan_core.imaging.image import Volume
from sgan_core.imaging.readers import image_suffix, read_image, read_labels, read_volume, require_same_grid

SHAPE = (24, 20, 10)
AFFINE = np.array([[-4, 0, 0, 190], [0, -4, 0, 190], [0, 0, 8, -100], [0, 0, 0, 1.0]])
VOXELS = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)
# offset and type of fields of nifti1.h
FIELDS = {
    "dim": (40, "8h"),
    "qfac": (76, "f"),
    "pixdim": (80, "3f"),
    "scl_slope": (112, "f"),
    "scl_inter": (116, "f"),
    "xyzt_units": (123, "B"),
    "qform_code": (252, "h"),
    "sform_code": (254, "h"),
    "quatern": (256, "3f"),
    "qoffset": (268, "3f"),
    "srow": (280, "12f"),
}


def nifti(path: Path, **fields: Any) -> Path:
    """A scan with both forms, whose header fields are then overwritten."""
    image = nib.Nifti1Image(VOXELS, AFFINE)
    image.set_sform(AFFINE, 1)
    image.set_qform(AFFINE, 1)
    nib.save(image, path)
    content = bytearray(path.read_bytes())
    for name, value in fields.items():
        offset, form = FIELDS[name]
        struct.pack_into(f"<{form}", content, offset, *np.ravel(value).tolist())
    path.write_bytes(content)
    return path


def scaled(*factors: float) -> np.ndarray:
    """The rows of the sform with columns times the factors."""
    return (AFFINE @ np.diag([*factors, 1.0]))[:3]


def itk_affine(path: Path) -> np.ndarray:
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return np.diag([-1, -1, 1, 1]) @ affine


# --- units ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("forms", [(1, 1), (0, 1), (1, 0)])
@pytest.mark.parametrize(("code", "unit"), [(1, 0.001), (3, 1000.0)])
def test_metres_and_micrometres_become_mm(
    tmp_path: Path, code: int, unit: float, forms: tuple[int, int]
) -> None:
    path = nifti(
        tmp_path / "scan.nii",
        xyzt_units=code | 8,  # seconds beside
        srow=AFFINE[:3] * unit,
        pixdim=np.array([4, 4, 8]) * unit,
        qoffset=AFFINE[:3, 3] * unit,
        sform_code=forms[0],
        qform_code=forms[1],
    )
    volume = read_volume(path)
    np.testing.assert_allclose(volume.grid.affine, AFFINE, atol=1e-4)
    np.testing.assert_allclose(volume.grid.affine, itk_affine(path), atol=1e-4)
    assert len(volume.warnings) == 1
    assert "xyzt_units" in volume.warnings[0]
    assert volume.doubts == ()


@pytest.mark.parametrize("code", [0, 2, 5])
def test_other_units_are_mm(tmp_path: Path, code: int) -> None:
    volume = read_volume(nifti(tmp_path / "scan.nii", xyzt_units=code))
    np.testing.assert_allclose(volume.grid.affine, AFFINE)
    assert bool(volume.warnings) is (code == 5)


@pytest.mark.parametrize("code", [1, 3])
def test_unit_that_makes_an_impossible_body_is_refused(tmp_path: Path, code: int) -> None:
    with pytest.raises(InputError, match=r"xyzt_units says \w*metres, but then voxels"):
        read_volume(nifti(tmp_path / "scan.nii", xyzt_units=code))


def test_impossible_size_in_mm_is_doubted(tmp_path: Path) -> None:
    path = nifti(tmp_path / "scan.nii", srow=AFFINE[:3] / 1000, pixdim=(0.004, 0.004, 0.008), qform_code=0)
    assert "is its unit of length mm" in read_volume(path).doubts[0]


# --- forms ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sform_code", [0, 1])
@pytest.mark.parametrize("above", [1.0000002, 1.0000005, 1.0004])
def test_quaternion_a_hair_too_long_is_normalised(tmp_path: Path, above: float, sform_code: int) -> None:
    path = nifti(tmp_path / "scan.nii", quatern=(0, 0, above), sform_code=sform_code)
    volume = read_volume(path)
    np.testing.assert_allclose(volume.grid.affine, AFFINE, atol=1e-3)
    np.testing.assert_allclose(volume.grid.affine, itk_affine(path), atol=1e-3)
    assert volume.warnings == ()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"quatern": (0, 0, 1.1)}, "no rotation"),
        ({"quatern": (np.nan, 0, 0)}, "no rotation"),
        ({"qfac": -2}, "not 1 or -1"),
        ({"qfac": np.nan}, "not 1 or -1"),
        ({"pixdim": (-4, 4, 8)}, "no voxel size"),
        ({"pixdim": (np.nan, 4, 8)}, "no voxel size"),
    ],
)
def test_damaged_qform_is_refused_alone_and_said_beside_a_sform(
    tmp_path: Path, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        read_volume(nifti(tmp_path / "alone.nii", sform_code=0, **fields))
    volume = read_volume(nifti(tmp_path / "beside.nii", **fields))
    np.testing.assert_allclose(volume.grid.affine, AFFINE)
    assert said in volume.warnings[0]


@pytest.mark.parametrize("qfac", [0.0, 1.0, 5.0, -1.0])
def test_qfac_counts_as_itk_counts_it(tmp_path: Path, qfac: float) -> None:
    path = nifti(tmp_path / "scan.nii", qfac=qfac, sform_code=0)
    np.testing.assert_allclose(read_volume(path).grid.affine, itk_affine(path), atol=1e-5)


def test_quaternion_is_nibabels_and_itks_rotation(tmp_path: Path) -> None:
    for number in range(20):
        affine = AFFINE.copy()
        affine[:3, :3] = Rotation.random(rng=number).as_matrix() @ np.diag([0.7, 0.8, 2.5 * (-1) ** number])
        image = nib.Nifti1Image(VOXELS, affine)
        image.set_qform(affine, 1)
        image.set_sform(None, 0)
        nib.save(image, tmp_path / "scan.nii")
        found = read_volume(tmp_path / "scan.nii").grid.affine
        np.testing.assert_allclose(found, nib.load(tmp_path / "scan.nii").affine, atol=1e-5)
        np.testing.assert_allclose(found, itk_affine(tmp_path / "scan.nii"), atol=1e-4)


def test_sform_that_was_never_scaled_leaves_the_size_to_the_qform(tmp_path: Path) -> None:
    volume = read_volume(nifti(tmp_path / "scan.nii", srow=scaled(1 / 4, 1 / 4, 1 / 8)))
    np.testing.assert_allclose(volume.grid.affine, AFFINE, atol=1e-4)
    assert "1 x 1 x 1 mm in the sform, 4 x 4 x 8 mm in pixdim; the qform is used" in volume.doubts[0]


def test_sform_scaled_to_a_template_leaves_the_size_to_the_qform(tmp_path: Path) -> None:
    volume = read_volume(nifti(tmp_path / "scan.nii", srow=scaled(1.2, 1.1, 0.9), sform_code=4))
    np.testing.assert_allclose(volume.grid.affine, AFFINE, atol=1e-4)
    assert "the qform is used" in volume.warnings[0]
    assert volume.doubts == ()


@pytest.mark.parametrize(
    "fields",
    [
        {"srow": scaled(1 / 4, 1 / 4, 1 / 8), "qform_code": 0},
        {"srow": scaled(1.2, 1.1, 0.9)},
        {"srow": scaled(1.2, 1.1, 0.9), "sform_code": 4, "qform_code": 0},
    ],
)
def test_contradicting_voxel_sizes_are_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="mm in the sform, 4 x 4 x 8 mm in pixdim"):
        read_volume(nifti(tmp_path / "scan.nii", **fields))


def test_pixdim_that_was_never_filled_in_is_doubted(tmp_path: Path) -> None:
    volume = read_volume(nifti(tmp_path / "scan.nii", pixdim=(1, 1, 1), qform_code=0))
    np.testing.assert_allclose(volume.grid.affine, AFFINE)
    assert "1 x 1 x 1 mm in pixdim; the sform is used" in volume.doubts[0]


@pytest.mark.parametrize("distance_mm", [8.0, 8.0 / np.cos(np.radians(20))])
def test_sheared_sform_may_have_either_slice_distance_in_pixdim(tmp_path: Path, distance_mm: float) -> None:
    sheared = AFFINE.copy()
    sheared[1, 2] = 8 * np.tan(np.radians(20))
    volume = read_volume(
        nifti(tmp_path / "scan.nii", srow=sheared[:3], pixdim=(4, 4, distance_mm), qform_code=0)
    )
    np.testing.assert_allclose(volume.grid.affine, sheared, atol=1e-5)
    assert volume.grid.voxel_ml == pytest.approx(0.128)


def test_forms_that_exchange_left_and_right_are_doubted(tmp_path: Path) -> None:
    mirrored = read_volume(nifti(tmp_path / "mirrored.nii", srow=np.diag([-1, 1, 1]) @ AFFINE[:3]))
    turned = read_volume(nifti(tmp_path / "turned.nii", quatern=(0, 0, 0)))
    for volume in (mirrored, turned):
        assert "left and right may be exchanged" in volume.doubts[0]
        assert "the sform is used" in volume.warnings[0]
    shifted = read_volume(nifti(tmp_path / "shifted.nii", qoffset=(190, 190, -90)))
    assert (len(shifted.warnings), shifted.doubts) == (1, ())


def test_no_orientation_is_nibabels_guess_and_a_doubt(tmp_path: Path) -> None:
    path = nifti(tmp_path / "scan.nii", sform_code=0, qform_code=0)
    volume = read_volume(path)
    np.testing.assert_allclose(volume.grid.affine, nib.load(path).affine)
    assert "no orientation" in volume.doubts[0]


@pytest.mark.parametrize("code", [-1, 6, 300])
def test_unknown_form_code_is_refused(tmp_path: Path, code: int) -> None:
    with pytest.raises(InputError, match=f"sform_code {code} is unknown"):
        read_volume(nifti(tmp_path / "scan.nii", sform_code=code))


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slope", "inter", "warned"), [(0, 0, False), (0, 5, True), (np.nan, np.nan, False), (np.nan, 3, True)]
)
def test_slope_of_zero_or_nan_scales_nothing(
    tmp_path: Path, slope: float, inter: float, warned: bool
) -> None:
    volume = read_volume(nifti(tmp_path / "scan.nii", scl_slope=slope, scl_inter=inter))
    np.testing.assert_array_equal(volume.array, VOXELS)
    assert bool(volume.warnings) is warned


@pytest.mark.parametrize(("slope", "inter"), [(np.inf, 0), (2, np.nan), (1, np.inf), (1e-38, 0)])
def test_scaling_without_a_number_is_refused(tmp_path: Path, slope: float, inter: float) -> None:
    with pytest.raises(InputError, match="scl_slope"):
        read_volume(nifti(tmp_path / "scan.nii", scl_slope=slope, scl_inter=inter))


@pytest.mark.filterwarnings("ignore")
def test_mutated_header_is_refused_or_read_as_a_reference_reads_it(tmp_path: Path) -> None:
    """Whatever is read without a word is what nibabel or SimpleITK reads."""
    path = nifti(tmp_path / "scan.nii")
    content, outcomes = path.read_bytes(), []
    bytes_of_numbers = np.array([0, 1, 2, 3, 4, 0x3F, 0x40, 0x7F, 0x80, 0xBF, 0xFF], np.uint8)
    for seed in range(400):
        rng = np.random.default_rng(seed)
        mutated = bytearray(content)
        for _ in range(rng.integers(1, 4)):
            at, count = int(rng.integers(40, 348)), int(rng.integers(1, 5))
            mutated[at : at + count] = rng.choice(bytes_of_numbers, count).tobytes()
        path.write_bytes(mutated)
        try:
            volume = read_volume(path)
        except InputError:
            continue
        if not volume.warnings and not volume.doubts:
            outcomes.append(seed)
            assert _as_nibabel(path, volume) or _as_itk(path, volume), f"seed {seed}"
    assert len(outcomes) > 100


def _as_nibabel(path: Path, volume: Volume) -> bool:
    image = nib.load(path)
    array = np.asarray(image.dataobj).reshape(volume.array.shape, order="A")
    return np.allclose(array, volume.array, rtol=1e-4) and np.allclose(
        image.affine, volume.grid.affine, atol=0.01
    )


def _as_itk(path: Path, volume: Volume) -> bool:
    array = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(path))).transpose().reshape(volume.array.shape, order="A")
    )
    return np.allclose(array, volume.array, rtol=1e-4) and np.allclose(
        itk_affine(path), volume.grid.affine, atol=0.01
    )


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Pair])
@pytest.mark.parametrize("endings", [(".hdr", ".img"), (".hdr.gz", ".img.gz"), (".HDR", ".IMG")])
def test_pair_is_one_volume_under_both_names(
    tmp_path: Path, endings: tuple[str, str], kind: type[nib.Nifti1Pair]
) -> None:
    nib.save(kind(VOXELS, AFFINE), tmp_path / f"scan{endings[0].lower()}")
    for ending in endings:
        (tmp_path / f"scan{ending.lower()}").rename(tmp_path / f"scan{ending}")
    for ending in endings:
        volume = read_image(tmp_path / f"scan{ending}")
        assert isinstance(volume, Volume)
        np.testing.assert_array_equal(volume.array, VOXELS)
        np.testing.assert_allclose(volume.grid.affine, AFFINE)
        assert image_suffix(f"scan{ending}") == ending.lower()
    (tmp_path / f"scan{endings[1]}").unlink()
    with pytest.raises(InputError, match="is missing beside it"):
        read_image(tmp_path / f"scan{endings[0]}")


def test_nifti2_is_read(tmp_path: Path) -> None:
    nib.save(nib.Nifti2Image(VOXELS, AFFINE), tmp_path / "scan.nii.gz")
    volume = read_volume(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(volume.array, VOXELS)
    np.testing.assert_array_equal(volume.grid.affine, AFFINE)


def test_analyze_is_refused_by_name(tmp_path: Path) -> None:
    nib.save(nib.AnalyzeImage(VOXELS, AFFINE), tmp_path / "scan.hdr")
    with pytest.raises(InputError, match=r"Analyze 7.5, which does not say where left and right are"):
        read_volume(tmp_path / "scan.img")


def test_mended_headers_are_no_noise(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    read_volume(nifti(tmp_path / "scan.nii", pixdim=(-4, 4, 8)))
    assert capfd.readouterr().err == ""


# --- one grid in two headers ----------------------------------------------------------------------


def labels_at(affine: np.ndarray, array: np.ndarray) -> Volume:
    return Volume(array, Grid((array.shape[0], array.shape[1], array.shape[2]), affine))


def on(labels: Volume, image: Volume) -> Volume | np.ndarray:
    return require_same_grid(labels, image, label_path="seg.nii", image_path="scan.nii")


def test_direction_that_differs_by_rounding_is_the_same_grid() -> None:
    affine = np.diag([0.7, 0.7, 1.0, 1.0])
    rounded = affine.copy()
    rounded[0, 1] = rounded[1, 0] = 0.7e-4
    shape = (512, 512, 300)
    image, labels = (Volume(np.empty(0), Grid(shape, one)) for one in (affine, rounded))
    volumes = [Volume(np.broadcast_to(np.uint8(0), shape), one.grid) for one in (labels, image)]
    on(*volumes)
    rounded[0, 1] = 7e-3
    with pytest.raises(InputError, match="mm apart"):
        on(Volume(volumes[0].array, Grid(shape, rounded)), volumes[1])


@pytest.mark.parametrize("axes", ["LPS", "RAS", "SRA", "PIL", "ALI"])
def test_labels_in_another_order_come_into_the_images(tmp_path: Path, axes: str) -> None:
    labelmap = (VOXELS > 500).astype(np.uint8)
    image = nib.Nifti1Image(labelmap, AFFINE)
    turn = nib.orientations.ornt_transform(nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(axes))
    nib.save(image.as_reoriented(turn), tmp_path / "seg.nii")
    stored = read_labels(tmp_path / "seg.nii", values={1})
    assert isinstance(stored, Volume)
    ordered = on(stored, labels_at(AFFINE, VOXELS))
    assert isinstance(ordered, Volume)
    np.testing.assert_array_equal(ordered.array, labelmap)
    np.testing.assert_allclose(ordered.grid.affine, AFFINE, atol=1e-4)


# --- where the voxels are in the file --------------------------------------------------------------


def patched(path: Path, offset: int, form: str, value: float) -> Path:
    content = bytearray(nifti(path).read_bytes())
    struct.pack_into(form, content, offset, value)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("offset", [0.0, 300.0, 348.0])
def test_voxels_within_the_header_are_refused(tmp_path: Path, offset: float) -> None:
    with pytest.raises(InputError, match="within the header|too low"):
        read_volume(patched(tmp_path / "a.nii", 108, "<f", offset))


@pytest.mark.parametrize("bits", [8, 32])
def test_bits_that_contradict_the_type_are_refused(tmp_path: Path, bits: int) -> None:
    with pytest.raises(InputError, match="by bitpix"):
        read_volume(patched(tmp_path / "a.nii", 72, "<h", bits))


def test_voxels_behind_the_last_are_doubted(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii")
    assert read_volume(path).doubts == ()
    path.write_bytes(path.read_bytes() + bytes(2))
    assert "goes on behind its last voxel" in read_volume(path).doubts[0]
