"""DICOM SEG opened by dcmqi, the library with which 3D Slicer and many pipelines read it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sources import MODEL, Source
from tools import described_by_dcmqi, in_order_of, opened_by_itk, unpack_by_dcmqi

from sgan_core.imaging.terminology import PRIVATE_SCHEME


def test_every_segment_lies_where_its_label_does(volume: Source, tmp_path: Path) -> None:
    """One file a segment, of an absent label too."""
    done = unpack_by_dcmqi(volume.segmentation, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    for number, label in enumerate(volume.labels, start=1):
        found = in_order_of(volume, opened_by_itk(tmp_path / "out" / f"{number}.nrrd"))
        np.testing.assert_array_equal(found != 0, volume.mask == label.value)
    assert len(list((tmp_path / "out").glob("*.nrrd"))) == len(volume.labels)


def test_segments_come_as_one_label_map(volume: Source, tmp_path: Path) -> None:
    """Ours do not overlap, so that one file holds them all, by their numbers."""
    done = unpack_by_dcmqi(volume.segmentation, tmp_path / "out", "--mergeSegments")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "out").glob("*.nrrd")] == ["1.nrrd"]
    found = in_order_of(volume, opened_by_itk(tmp_path / "out" / "1.nrrd"))
    np.testing.assert_array_equal(found, volume.mask)
    (segments,) = described_by_dcmqi(tmp_path / "out")
    assert [segment["labelID"] for segment in segments] == [label.value for label in volume.labels]


def test_the_description_has_names_codes_colours_and_the_algorithm(volume: Source, tmp_path: Path) -> None:
    unpack_by_dcmqi(volume.segmentation, tmp_path / "out")
    found = described_by_dcmqi(tmp_path / "out")
    for number, ((segment,), label) in enumerate(zip(found, volume.labels, strict=True), start=1):
        assert segment["labelID"] == number
        assert segment["SegmentLabel"] == label.name
        kind = segment["SegmentedPropertyTypeCodeSequence"]
        assert kind["CodingSchemeDesignator"] == ("SCT" if label.code else PRIVATE_SCHEME)
        assert not label.code or kind["CodeValue"] == label.code
        assert kind["CodeMeaning"] == label.name
        category = segment["SegmentedPropertyCategoryCodeSequence"]
        altered = label.name.startswith(
            "Tumor"
        )  # a morphologically altered structure, else an anatomical one
        assert category["CodeValue"] == ("49755003" if altered else "123037004")
        np.testing.assert_allclose(segment["recommendedDisplayRGBValue"], label.rgb, atol=1)
        assert segment["SegmentAlgorithmType"] == "AUTOMATIC"
        assert segment["SegmentAlgorithmName"] == f"SemanticGAN {MODEL}"


def test_images_without_a_place_are_not_for_dcmqi(picture: Source, tmp_path: Path) -> None:
    """It makes volumes only and refuses X-rays: an open request of dcmqi since 2017, whose end will be seen here."""
    done = unpack_by_dcmqi(picture.segmentation, tmp_path / "out")
    assert done.returncode != 0
    assert "Plane Orientation (Patient) is missing" in done.stdout + done.stderr
