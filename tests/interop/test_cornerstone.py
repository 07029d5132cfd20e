"""Cornerstone's adapter, which OHIF reads segmentations with, finds the voxels that were written.

It runs in node, unchanged, with its own metadata providers; the packages are those of cornerstone/package-lock.json.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
import pydicom
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from sgan_core.cohort import Label
from sgan_core.imaging.dicom import find_series, read_series
from sgan_core.imaging.dicom.seg import write_dicom_seg
from sgan_core.imaging.grid import Grid, ras_from_lps
from sgan_core.imaging.image import Volume

CORNERSTONE = Path(__file__).parent / "cornerstone"
OLDEST_NODE = 18  # Debian 12
LIVER = Label(1, "liver", (221, 130, 101), "10200004")
SPLEEN = Label(2, "spleen", (157, 108, 162), "78961009")
CLOTH = Label(3, "Tüte: größer als ½", (10, 200, 30))
KIDNEY = Label(4, "left kidney", (212, 126, 151), "18639004")
LABELS = (LIVER, SPLEEN, CLOTH, KIDNEY)
SHAPE = (36, 28, 7)  # columns, rows, slices
AXIAL = np.eye(3)
SAGITTAL = np.array(
    [[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]
)  # columns: along a row, a column, the slices
CORONAL = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
OBLIQUE = Rotation.from_euler("xyz", (12.3, -21.7, 33.3), degrees=True).as_matrix()


# --- the viewer ---


@dataclass(frozen=True, eq=False)
class Seen:
    """What Cornerstone makes of a segmentation."""

    segments: list[dict[str, Any]]
    overlapping: bool
    slices: dict[tuple[str, int], np.ndarray]  # (SOP instance, frame from 1) -> (rows, columns)
    log: str


class Viewer(Protocol):
    """Reads a segmentation with Cornerstone onto source files, in the order of the stack.

    how: frames find their source by "reference" to the SOP instance, or by "position".
    """

    def __call__(self, segmentation: Path, sources: Sequence[Path], how: str = "reference") -> Seen: ...


def missing(reason: str) -> NoReturn:
    """Skip, or fail where all of the viewers have to be there."""
    if os.environ.get("SGAN_REQUIRE_INTEROP") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Viewer:
    """Cornerstone, once its packages are there."""
    node = shutil.which("node")
    if node is None or not shutil.which("npm"):
        missing("node and npm are needed to run Cornerstone's adapter")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version[1:].split(".")[0]) < OLDEST_NODE:
        missing(
            f"node {OLDEST_NODE} or newer is needed to run Cornerstone's adapter, this is {version.strip()}"
        )
    install()
    folder = tmp_path_factory.mktemp("cornerstone")

    def read(segmentation: Path, sources: Sequence[Path], how: str = "reference") -> Seen:
        raw = folder / "labelmap.raw"
        command = [node, CORNERSTONE / "read_seg.mjs", how, segmentation, raw, *sources]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        result = json.loads(done.stdout)
        slices = dict(labelmaps(result["slices"], raw.read_bytes()))
        return Seen(result["segments"], result["overlapping"], slices, done.stderr)

    return read


def install() -> None:
    """Get the packages of the lock file, unless they are there."""
    installed, lock = (
        CORNERSTONE / name for name in ("node_modules/.package-lock.json", "package-lock.json")
    )
    if installed.is_file() and installed.stat().st_mtime >= lock.stat().st_mtime:
        return
    command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    done = subprocess.run(command, cwd=CORNERSTONE, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        missing(f"npm cannot install Cornerstone's adapter: {done.stderr[-1000:]}")


def labelmaps(slices: list[dict[str, Any]], raw: bytes) -> Iterator[tuple[tuple[str, int], np.ndarray]]:
    at = 0
    for one in slices:
        size = one["rows"] * one["columns"]
        pixels = np.frombuffer(raw, np.uint8, size, at).reshape(one["rows"], one["columns"])
        assert one["segments"] == [] or set(np.unique(pixels)) - {0} <= set(one["segments"])
        yield (one["sop_instance"], one["frame"]), pixels
        at += size
    assert at == len(raw)


# --- what was written ---


def grid_of(
    directions: np.ndarray, spacing: Sequence[float], origin: Sequence[float], shape: Sequence[int]
) -> Grid:
    affine_lps = np.eye(4)
    affine_lps[:3, :3] = directions * spacing
    affine_lps[:3, 3] = origin
    return Grid(tuple(shape), ras_from_lps(affine_lps))


def blobs(shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """A label map (I, J, K) without any symmetry: two labels and a few voxels of a fourth; the third is nowhere."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    i, j, k = np.indices(shape) / np.array(shape).reshape(3, 1, 1, 1)
    labels[(i - 0.3) ** 2 + (j - 0.6) ** 2 + (k - 0.4) ** 2 / 4 < 0.06] = 1
    labels[(i > 0.6) & (j < 0.3 + 0.3 * k)] = 2
    labels[rng.random(shape) < 0.01] = 4
    labels[:, :, -1] = 0
    labels[0, 0, 0] = labels[-1, -1, 1] = 1
    return labels


def places(path: Path) -> Iterator[tuple[tuple[str, int], np.ndarray]]:
    """(SOP instance, frame from 1) and the affine in LPS of every slice of a source file, by pydicom alone."""
    header = pydicom.dcmread(path, stop_before_pixels=True)
    shared = header.get("SharedFunctionalGroupsSequence")
    for number in range(int(header.get("NumberOfFrames") or 1)):
        place, turn, size = header, header, header
        if shared:
            place = header.PerFrameFunctionalGroupsSequence[number].PlanePositionSequence[0]
            turn, size = shared[0].PlaneOrientationSequence[0], shared[0].PixelMeasuresSequence[0]
        affine = np.zeros((4, 3))  # (column, row, 1) -> LPS
        cosines = np.array(turn.ImageOrientationPatient, float).reshape(2, 3)
        affine[:3, 0] = cosines[0] * float(size.PixelSpacing[1])
        affine[:3, 1] = cosines[1] * float(size.PixelSpacing[0])
        affine[:, 2] = *map(float, place.ImagePositionPatient), 1
        yield (str(header.SOPInstanceUID), number + 1), affine


def expected(labels: np.ndarray, grid: Grid, sources: Sequence[Path]) -> dict[tuple[str, int], np.ndarray]:
    """The label map under each pixel of the source, (rows, columns), looked up by its place in the patient."""
    found = {}
    voxel_of = np.linalg.inv(ras_from_lps(grid.affine))
    columns, rows = np.meshgrid(np.arange(labels.shape[0]), np.arange(labels.shape[1]))  # (rows, columns)
    pixels = np.stack([columns, rows, np.ones_like(rows)])
    for path in sources:
        for key, affine in places(path):
            voxels = np.tensordot(voxel_of @ affine, pixels, 1)[:3]
            assert np.abs(voxels - voxels.round()).max() < 0.05
            found[key] = labels[tuple(voxels.round().astype(int))]
    return found


def assert_same(seen: Seen, labels: np.ndarray, grid: Grid, sources: Sequence[Path]) -> None:
    wanted = expected(labels, grid, sources)
    assert seen.slices.keys() == wanted.keys()
    assert not seen.overlapping
    for key, pixels in wanted.items():
        np.testing.assert_array_equal(seen.slices[key], pixels, err_msg=str(key))


def stack(
    dicom_files: Any, folder: Path, directions: np.ndarray, shape: Sequence[int] = SHAPE, **attributes: Any
) -> tuple[list[Path], Grid]:
    """A series of one file a slice, sorted by position."""
    spacing, origin = (0.7, 0.8, 2.5), (-101.25, 55.5, -321.75)
    array = np.arange(np.prod(shape)).reshape(shape).astype(np.int16)
    facts = {"FrameOfReferenceUID": "1.2.3.4", "modality": "MR"} | attributes
    images = dicom_files.stack(array, origin=origin, directions=directions[:, :2], spacing=spacing, **facts)
    files = [dicom_files.save(folder / f"{k:03d}.dcm", image) for k, image in enumerate(images)]
    return files, grid_of(directions, spacing, origin, shape)


# --- tests ---


@pytest.mark.parametrize(
    "directions", [AXIAL, SAGITTAL, CORONAL, OBLIQUE], ids=["axial", "sagittal", "coronal", "oblique"]
)
@pytest.mark.parametrize("how", ["reference", "position"])
def test_every_voxel_comes_back(
    viewer: Viewer, dicom_files: Any, tmp_path: Path, directions: np.ndarray, how: str
) -> None:
    files, grid = stack(dicom_files, tmp_path / "series", directions)
    labels = blobs(SHAPE)
    write_dicom_seg(tmp_path / "seg.dcm", labels, grid, LABELS, files)
    for sources in (files, files[::-1]):  # a viewer may sort its stack either way
        seen = viewer(tmp_path / "seg.dcm", sources, how)
        assert_same(seen, labels, grid, files)
        assert "can't import frame" not in seen.log


def test_a_real_ct_of_a_liver(viewer: Viewer, shared: Path, tmp_path: Path) -> None:
    case = shared / "data/CHAOS/Train_Sets/CT/3"
    (series,) = find_series(case / "DICOM_anon")
    image = read_series(series)
    assert isinstance(image, Volume)
    truth = [np.asarray(Image.open(path)) > 0 for path in sorted((case / "Ground").glob("*.png"))]
    labels = np.stack(truth, axis=2).transpose(1, 0, 2).astype(np.uint8)  # (H, W, K) -> (I, J, K)
    labels[(image.array > 300) & (labels == 0)] = 4  # bone, in many pieces
    write_dicom_seg(tmp_path / "seg.dcm", labels, image.grid, LABELS, series.files)
    seen = viewer(tmp_path / "seg.dcm", series.files)
    assert_same(seen, labels, image.grid, series.files)


def test_names_codes_and_colours(viewer: Viewer, dicom_files: Any, tmp_path: Path) -> None:
    """Of the label too that the label map lacks."""
    files, grid = stack(dicom_files, tmp_path / "series", AXIAL)
    write_dicom_seg(tmp_path / "seg.dcm", blobs(SHAPE), grid, LABELS, files)
    segments = viewer(tmp_path / "seg.dcm", files).segments
    assert [one["number"] for one in segments] == [1, 2, 3, 4]
    assert [one["label"].lower() for one in segments] == [label.name.lower() for label in LABELS]
    for one, label in zip(segments, LABELS, strict=True):
        if label.code:
            assert (one["type"]["value"], one["type"]["scheme"]) == (label.code, "SCT")
        assert one["type"]["meaning"].lower() == label.name.lower()
        assert one["category"]["scheme"] == "SCT"
        np.testing.assert_allclose(one["rgb"], label.rgb, atol=2)  # rounded to CIELab and back


def test_an_empty_label_map_is_an_empty_segmentation(
    viewer: Viewer, dicom_files: Any, tmp_path: Path
) -> None:
    files, grid = stack(dicom_files, tmp_path / "series", OBLIQUE)
    labels = np.zeros(SHAPE, np.uint8)
    write_dicom_seg(tmp_path / "seg.dcm", labels, grid, LABELS, files)
    seen = viewer(tmp_path / "seg.dcm", files)
    assert_same(seen, labels, grid, files)
    assert len(seen.segments) == len(LABELS)


def test_a_series_without_a_frame_of_reference(viewer: Viewer, dicom_files: Any, tmp_path: Path) -> None:
    files, grid = stack(dicom_files, tmp_path / "series", SAGITTAL, FrameOfReferenceUID=None)
    labels = blobs(SHAPE)
    write_dicom_seg(tmp_path / "seg.dcm", labels, grid, LABELS, files)
    assert_same(viewer(tmp_path / "seg.dcm", files), labels, grid, files)


def test_a_volume_of_a_series_that_holds_more(viewer: Viewer, dicom_files: Any, tmp_path: Path) -> None:
    """Slices beside the segmented volume stay empty."""
    files, grid = stack(dicom_files, tmp_path / "series", AXIAL)
    part = Grid(
        (*SHAPE[:2], 4), grid.affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 2], [0, 0, 0, 1.0]])
    )
    labels = blobs(SHAPE)
    frames = [(number, 0) for number in range(2, 6)]
    write_dicom_seg(tmp_path / "seg.dcm", labels[:, :, 2:6], part, LABELS, files, frames=frames)
    outside = labels.copy()
    outside[:, :, [0, 1, 6]] = 0
    assert_same(viewer(tmp_path / "seg.dcm", files), outside, grid, files)


@pytest.mark.parametrize(("modality", "how"), [("CT", "reference"), ("MR", "reference"), ("MR", "position")])
def test_a_multi_frame_source(
    viewer: Viewer, dicom_files: Any, tmp_path: Path, modality: str, how: str
) -> None:
    """Frames in disorder."""
    labels, order = blobs(SHAPE), [3, 0, 6, 1, 5, 2, 4]
    array = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.int16)
    image = dicom_files.enhanced(array, modality, order=order, FrameOfReferenceUID="1.2.3.4")
    file = dicom_files.save(tmp_path / "source.dcm", image)
    grid = grid_of(AXIAL, (0.7, 0.8, 2.0), (-10.0, -20.0, 30.0), SHAPE)
    write_dicom_seg(tmp_path / "seg.dcm", labels, grid, LABELS, [file])
    assert_same(viewer(tmp_path / "seg.dcm", [file], how), labels, grid, [file])


def test_empty_frames_make_odd_slices_readable(viewer: Viewer, dicom_files: Any, tmp_path: Path) -> None:
    """Frames of 37 x 29 bits, as many as are of even length together: 16."""
    files, grid = stack(dicom_files, tmp_path / "series", AXIAL, shape=(37, 29, 20))
    labels = np.zeros(grid.shape, np.uint8)
    labels[:, :, 6:9] = blobs((*grid.shape[:2], 7))[:, :, 2:5]
    write_dicom_seg(tmp_path / "seg.dcm", labels, grid, LABELS, files)
    assert pydicom.dcmread(tmp_path / "seg.dcm").NumberOfFrames % 16 == 0
    assert_same(viewer(tmp_path / "seg.dcm", files), labels, grid, files)


@pytest.mark.xfail(
    strict=True,
    reason="Cornerstone 5.14 wants the bits of all frames without the byte that makes their length even (PS3.5 8.1.1), "
    "and takes frames to begin with a byte each where that has the same length: getBitmapFramesFromDataset",
)
@pytest.mark.parametrize(
    ("slices", "count"), [(7, 4), (2, 1)], ids=["refused", "taken for frames of whole bytes"]
)
def test_slices_whose_pixels_fill_no_whole_bytes(
    viewer: Viewer, dicom_files: Any, tmp_path: Path, slices: int, count: int
) -> None:
    files, grid = stack(dicom_files, tmp_path / "series", AXIAL, shape=(37, 29, slices))
    labels = blobs((*grid.shape[:2], 7))[:, :, :slices]
    labels[labels > count] = 0
    write_dicom_seg(tmp_path / "seg.dcm", labels, grid, LABELS[:count], files)
    assert_same(viewer(tmp_path / "seg.dcm", files), labels, grid, files)


@pytest.mark.xfail(
    strict=True,
    reason="Cornerstone 5.14 needs ImageOrientationPatient, which X-rays do not have: createLabelmapsFromSegImageIds",
)
def test_an_x_ray(viewer: Viewer, dicom_files: Any, tmp_path: Path) -> None:
    labels = blobs((*SHAPE[:2], 2))[:, :, :1]
    image = dicom_files.image(np.zeros(SHAPE[1::-1], np.uint16), "DX", FrameOfReferenceUID="1.2.3.4")
    file = dicom_files.save(tmp_path / "source.dcm", image)
    write_dicom_seg(tmp_path / "seg.dcm", labels, Grid(labels.shape, np.eye(4)), LABELS, [file])
    seen = viewer(tmp_path / "seg.dcm", [file])
    np.testing.assert_array_equal(seen.slices[image.SOPInstanceUID, 1], labels[:, :, 0].T)
