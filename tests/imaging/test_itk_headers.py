"""What NRRD and MetaImage headers say that ITK does not read."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from sgan_core.errors import InputError
from sgan_core.imaging.readers import read_volume

VOXELS = np.random.default_rng(0).integers(0, 99, (4, 5, 6)).astype(np.int16)  # (K, J, I)
RAS = {
    "space": "right-anterior-superior",
    "space directions": "(2,0,0) (0,3,0) (0,0,4)",
    "space origin": "(1,2,3)",
}
LPS = {"TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "1 2 3", "ElementSpacing": "2 3 4"}
STEPS_MM = np.array([2.0, 3.0, 4.0])


def nrrd(path: Path, entries: dict[str, str]) -> Path:
    fixed = {"type": "short", "dimension": "3", "sizes": "6 5 4", "encoding": "raw", "endian": "little"}
    header = "NRRD0005\n" + "".join(f"{key}: {value}\n" for key, value in {**fixed, **entries}.items())
    path.write_bytes((header + "\n").encode() + VOXELS.tobytes())
    return path


def metaimage(path: Path, entries: dict[str, str]) -> Path:
    fixed = {"ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False"}
    last = {"DimSize": "6 5 4", "ElementType": "MET_SHORT", "ElementDataFile": "LOCAL"}
    header = "".join(f"{key} = {value}\n" for key, value in {**fixed, **entries, **last}.items())
    path.write_bytes(header.encode() + VOXELS.tobytes())
    return path


def units(name: str) -> dict[str, str]:
    return {"space units": f'"{name}" "{name}" "{name}"'}


@pytest.mark.parametrize(
    ("name", "mm"), [("mm", 1), ("", 1), ("cm", 10), ("m", 1000), ("microns", 0.001), ("µm", 0.001)]
)
def test_space_units_become_mm(tmp_path: Path, name: str, mm: float) -> None:
    directions = " ".join(str(tuple(row)).replace(" ", "") for row in np.diag(STEPS_MM / mm).tolist())
    origin = str(tuple((np.array([1, 2, 3]) / mm).tolist()))
    volume = read_volume(
        nrrd(
            tmp_path / "a.nrrd", RAS | {"space directions": directions, "space origin": origin} | units(name)
        )
    )
    expected = np.diag([2.0, 3.0, 4.0, 1.0])
    expected[:3, 3] = 1, 2, 3
    np.testing.assert_allclose(volume.grid.affine, expected)
    assert (len(volume.warnings), volume.doubts) == (int(mm != 1), ())


def test_units_of_spacings_count_too(tmp_path: Path) -> None:
    entries = {"spacings": "0.2 0.3 0.4", "units": '"cm" "cm" "cm"'}
    np.testing.assert_allclose(read_volume(nrrd(tmp_path / "a.nrrd", entries)).grid.spacing_mm, STEPS_MM)


@pytest.mark.parametrize(("unit", "mm"), [("mm", 1), ("cm", 10), ("um", 0.001), ("?", 1)])
def test_distance_units_become_mm(tmp_path: Path, unit: str, mm: float) -> None:
    spacing = {"ElementSpacing": " ".join(map(str, STEPS_MM / mm)), "DistanceUnits": unit}
    volume = read_volume(metaimage(tmp_path / "a.mha", LPS | spacing))
    np.testing.assert_allclose(volume.grid.spacing_mm, STEPS_MM)
    np.testing.assert_allclose(volume.grid.affine[:3, 3], np.array([-1, -2, 3]) * mm)
    assert (len(volume.warnings), volume.doubts) == (int(mm != 1), ())


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (RAS | units("s"), "unit of length"),
        (RAS | {"space units": '"mm" "mm" "m"'}, "different units"),
        (RAS | units("m"), "but then voxels of 2000 x 3000 x 4000 mm"),
        ({"spacings": "nan 3 4"}, "NaN"),
        (RAS | {"kinds": "domain domain time"}, "one of its axes is time"),
        (RAS | {"encoding": "gzip"}, "truncated, damaged or not"),
        (RAS | {"space origin": "(1,2x,3)"}, "no vectors of numbers"),
    ],
)
def test_nrrd_that_is_not_sure_is_refused(tmp_path: Path, entries: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_volume(nrrd(tmp_path / "a.nrrd", entries))


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"DistanceUnits": "s"}, "unit of length"),
        ({"ElementToIntensityFunctionSlope": "2"}, "scaling of the values"),
        ({"ElementToIntensityFunctionOffset": "-1024"}, "scaling of the values"),
        ({"TransformMatrix": "2 0 0 0 3 0 0 0 4"}, "not of length 1"),
    ],
)
def test_metaimage_that_is_not_sure_is_refused(tmp_path: Path, entries: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_volume(metaimage(tmp_path / "a.mha", LPS | entries))


@pytest.mark.parametrize("space", ["RAS", "LAS", "left-posterior-superior", "left-anterior-superior"])
def test_spaces_of_the_patient_are_no_doubt(tmp_path: Path, space: str) -> None:
    assert read_volume(nrrd(tmp_path / "a.nrrd", RAS | {"space": space})).doubts == ()


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (RAS | {"space": "scanner-xyz"}, "no orientation"),
        (RAS | {"space": "3D-right-handed"}, "no orientation"),
        ({"spacings": "2 3 4"}, "no orientation"),
        ({"space": "RAS", "space origin": "(1,2,3)"}, "no voxel size"),
        ({}, "no voxel size"),
        ({key: value for key, value in RAS.items() if key != "space origin"}, "no origin"),
    ],
)
def test_nrrd_that_leaves_the_place_open_is_doubted(
    tmp_path: Path, entries: dict[str, str], said: str
) -> None:
    assert said in " ".join(read_volume(nrrd(tmp_path / "a.nrrd", entries)).doubts)


def test_metaimage_that_leaves_the_place_open_is_doubted(tmp_path: Path) -> None:
    for entry, said in (
        ("TransformMatrix", "no orientation"),
        ("ElementSpacing", "no voxel size"),
        ("Offset", "no origin"),
    ):
        without = {key: value for key, value in LPS.items() if key != entry}
        assert said in read_volume(metaimage(tmp_path / "a.mha", without)).doubts[0]


@pytest.mark.parametrize(
    ("code", "sure"), [("RAI", True), ("LPS", True), ("LAI", False), ("AIR", False), ("???", True)]
)
def test_orientation_that_contradicts_the_matrix_is_doubted(tmp_path: Path, code: str, sure: bool) -> None:
    volume = read_volume(metaimage(tmp_path / "a.mha", LPS | {"AnatomicalOrientation": code}))
    assert (volume.doubts == ()) is sure


def test_what_simpleitk_writes_is_no_doubt(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(VOXELS)
    for direction in (
        (0, 0, 1, 1, 0, 0, 0, 1, 0),
        (-1, 0, 0, 0, 0, -1, 0, 1, 0),
        (0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, -1),
    ):
        image.SetDirection(direction)
        for ending in (".mha", ".nrrd"):
            sitk.WriteImage(image, str(tmp_path / f"a{ending}"))
            volume = read_volume(tmp_path / f"a{ending}")
            assert (volume.warnings, volume.doubts) == ((), ())


# --- compressed voxels -----------------------------------------------------------------------------


def compressed(path: Path) -> Path:
    """A compressed volume, in one file or two."""
    image = sitk.GetImageFromArray(np.random.default_rng(1).integers(0, 9, (4, 5, 6)).astype(np.int16))
    sitk.WriteImage(image, str(path), useCompression=True)
    return path


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd", "a.nii.gz"])
def test_no_damage_of_compressed_voxels_goes_unnoticed(tmp_path: Path, name: str) -> None:
    """ITK checks no checksum: a changed byte was other voxels."""
    path = compressed(tmp_path / name)
    whole = read_volume(path).array
    voxels = max(tmp_path.iterdir(), key=lambda file: (file != path, file.name))
    content = voxels.read_bytes()
    first = content.find(b"\x1f\x8b" if name != "a.mha" and name != "a.mhd" else b"\x78")
    refused = 0
    for at in range(first, len(content)):
        for value in (0x00, 0xFF, content[at] ^ 0x10):
            changed = bytearray(content)
            changed[at] = value
            voxels.write_bytes(changed)
            try:
                found = read_volume(path).array
            except InputError:
                refused += 1
            else:
                np.testing.assert_array_equal(found, whole, err_msg=f"{value} at {at}")
    assert refused > len(content) - first
    voxels.write_bytes(content[:-9])
    with pytest.raises(InputError):
        read_volume(path)


@pytest.mark.parametrize("size", [0, 10, -1])
def test_wrong_size_of_compressed_data_is_refused(tmp_path: Path, size: int) -> None:
    path = compressed(tmp_path / "a.mha")
    read_volume(path)
    text = re.sub(rb"CompressedDataSize = \d+", f"CompressedDataSize = {size}".encode(), path.read_bytes())
    path.write_bytes(text)
    with pytest.raises(InputError, match="CompressedDataSize"):
        read_volume(path)


@pytest.mark.parametrize("named", ["LIST\nx0.raw\nx1.raw", "x%d.raw 0 1 1", "gone.raw"])
def test_voxels_in_many_files_are_refused(tmp_path: Path, named: str) -> None:
    """Where there are fewer files than slices, the rest was the scan that was read before."""
    for index in range(2):
        (tmp_path / f"x{index}.raw").write_bytes(bytes(60))
    header = "ObjectType = Image\nNDims = 3\nDimSize = 6 5 4\nElementType = MET_SHORT\n"
    (tmp_path / "x.mhd").write_text(f"{header}ElementDataFile = {named}\n")
    with pytest.raises(InputError, match="Save the volume as one file"):
        read_volume(tmp_path / "x.mhd")


@pytest.mark.parametrize("value", ["T", "1", "Yes"])
def test_compression_that_is_not_plainly_said_is_refused(tmp_path: Path, value: str) -> None:
    path = compressed(tmp_path / "a.mha")
    path.write_bytes(
        path.read_bytes().replace(b"CompressedData = True", f"CompressedData = {value}".encode())
    )
    with pytest.raises(InputError, match="neither True nor False"):
        read_volume(path)


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd"])
@pytest.mark.parametrize("dtype", [np.int16, np.float64])
def test_more_voxels_than_announced_are_refused(tmp_path: Path, name: str, dtype: type) -> None:
    """Those of another program's header before them would come first."""
    image = sitk.GetImageFromArray(np.random.default_rng(1).integers(0, 9, (4, 5, 6)).astype(dtype))
    sitk.WriteImage(image, str(tmp_path / name))
    read_volume(tmp_path / name)
    voxels = max(tmp_path.iterdir(), key=lambda file: (file.name != name, file.name))
    voxels.write_bytes(voxels.read_bytes() + bytes(2))
    with pytest.raises(InputError, match="bytes of voxels are announced"):
        read_volume(tmp_path / name)
