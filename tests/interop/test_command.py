"""What sgan-segment writes for a real CT is one mask to every tool, in every format."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import pytest
from archive import check_mask, check_references, fetched, running, stored_series
from sources import LIVER, MODEL, Source, chaos_slices
from tools import (
    Opened,
    described_by_dcmqi,
    in_order_of,
    opened_by_highdicom,
    opened_by_itk,
    unpack_by_dcmqi,
)

if TYPE_CHECKING:
    from mrml import Slicer

FORMATS = {"dicom-seg": "_seg.dcm", "nrrd": "_seg.seg.nrrd", "nifti": "_seg.nii.gz"}


def segment(folder: Path, kind: str, *options: str) -> dict[str, Any]:
    """Run the command; returns what run.json says of the case."""
    command = [str(Path(sys.executable).with_name("sgan-segment")), str(folder / "series"), "--model", MODEL]
    command += ["--quality", "fast", "--format", kind, "--output", str(folder / kind), *options]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    (case,) = json.loads((folder / kind / "run.json").read_text(encoding="utf-8"))["cases"]
    return case


@pytest.fixture(scope="module")
def segmented(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> tuple[Source, dict[str, Any]]:
    """Seven slices of CHAOS segmented once a format; the mask is that of the NIfTI file, as nibabel reads it."""
    folder = tmp_path_factory.mktemp("command")
    slices = chaos_slices(folder, shared, slice(39, 46))
    if slices is None:
        pytest.skip("CHAOS CT 3 is not in the shared data")
    files, drawn, matrix = slices
    segment(folder, "dicom-seg", "--no-report")
    segment(folder, "nrrd", "--no-report")
    case = segment(folder, "nifti", "--no-report", "--probabilities", "--save-reconstruction")
    paths = {kind: folder / kind / f"series{end}" for kind, end in FORMATS.items()}
    source = Source(
        "command", files, drawn, matrix, (LIVER,), paths["dicom-seg"], paths["nrrd"], paths["nifti"]
    )
    image = nib.load(paths["nifti"])
    opened = Opened(np.asarray(image.dataobj), np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine)
    return replace(source, mask=in_order_of(source, opened)), case


def test_the_mask_is_a_liver(segmented: tuple[Source, dict[str, Any]], shared: Path, tmp_path: Path) -> None:
    """Else the other tests compare nothing: it lies where the organisers drew it, and a flip would take it away."""
    source, _ = segmented
    slices = chaos_slices(tmp_path, shared, slice(39, 46))
    assert slices is not None
    drawn = slices[1]
    dice, *others = (
        2 * (np.flip(source.mask, axes) & drawn).sum() / (source.mask.sum() + drawn.sum())
        for axes in ((), (0,), (1,), (0, 1))
    )
    assert dice > max(others) + 0.1, (dice, others)


def test_dicom_seg_is_the_same_mask_to_dcmqi_and_highdicom(
    segmented: tuple[Source, dict[str, Any]], tmp_path: Path
) -> None:
    source, case = segmented
    np.testing.assert_array_equal(in_order_of(source, opened_by_highdicom(source.segmentation)), source.mask)
    done = unpack_by_dcmqi(source.segmentation, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    opened = opened_by_itk(tmp_path / "out" / "1.nrrd")
    np.testing.assert_array_equal(in_order_of(source, opened), source.mask)
    voxel_ml = abs(np.linalg.det(opened.affine_lps[:3, :3])) / 1000
    assert opened.values.sum() * voxel_ml == pytest.approx(case["labels"][0]["volume_ml"], rel=1e-3)
    ((liver,),) = described_by_dcmqi(tmp_path / "out")
    assert (liver["SegmentLabel"], liver["SegmentAlgorithmType"]) == ("liver", "AUTOMATIC")
    assert liver["SegmentAlgorithmName"] == f"SemanticGAN {MODEL}"
    assert liver["SegmentedPropertyTypeCodeSequence"]["CodeValue"] == LIVER.code
    np.testing.assert_allclose(liver["recommendedDisplayRGBValue"], LIVER.rgb, atol=1)


def test_the_mask_and_its_volume_are_the_same_in_slicer(
    segmented: tuple[Source, dict[str, Any]], slicer: Slicer
) -> None:
    source, case = segmented
    (liver,) = slicer.segments(source.image)
    np.testing.assert_array_equal(in_order_of(source, liver.opened), source.mask)
    assert (liver.name, liver.kind[:2]) == ("liver", ("SCT", LIVER.code))
    assert liver.volume_ml == pytest.approx(case["labels"][0]["volume_ml"], rel=1e-3)


def test_probabilities_and_reconstruction_lie_on_the_mask_in_slicer(
    segmented: tuple[Source, dict[str, Any]], slicer: Slicer
) -> None:
    source, case = segmented
    (path,) = case["probability_outputs"]
    probability = in_order_of(source, slicer.volume(Path(path), as_labels=False))
    assert np.sum((probability > 0.5) != (source.mask == 1)) < 1e-3 * source.mask.sum()  # but for rounding
    path = case["reconstruction_output"]
    reconstruction = in_order_of(source, slicer.volume(Path(path), as_labels=False))  # HU
    assert reconstruction[source.mask == 1].mean() > reconstruction[source.mask == 0].mean() + 50


def test_the_segmentation_of_a_real_series_is_fetched_from_its_study(
    segmented: tuple[Source, dict[str, Any]], tmp_path: Path
) -> None:
    """CHAOS is anonymised: patient, study and frame of reference are what the anonymiser left."""
    source, _ = segmented
    with running(tmp_path / "orthanc") as archive:
        for file in (*source.files, source.segmentation):
            assert archive.json_of_file("/instances", file)["Status"] == "Success"
        images, segmentation = stored_series(archive, source)
        (tmp_path / "fetched.dcm").write_bytes(fetched(archive, segmentation))
        check_references(archive, source, images, tmp_path / "fetched.dcm")
    check_mask(source, tmp_path / "fetched.dcm")
