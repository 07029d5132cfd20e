"""DICOM SEG read by highdicom and judged by dciodvfy, for series of every kind."""

from __future__ import annotations

import subprocess

import highdicom as hd
import numpy as np
import pydicom
from sources import MODEL, PATIENT, Source
from tools import in_order_of, opened_by_highdicom, program


def test_dciodvfy_finds_no_error(source: Source) -> None:
    command = [program("dciodvfy", "Debian package dicom3tools"), str(source.segmentation)]
    found = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")
    lines = (found.stdout + found.stderr).splitlines()
    assert "Segmentation" in lines  # the IOD that it has recognised
    assert [line for line in lines if line.startswith("Error")] == []


def test_highdicom_finds_the_labels_at_their_place(volume: Source) -> None:
    found = in_order_of(volume, opened_by_highdicom(volume.segmentation))
    np.testing.assert_array_equal(found, volume.mask)


def test_highdicom_finds_the_labels_of_a_picture_by_its_source(picture: Source) -> None:
    segmentation = hd.seg.segread(picture.segmentation)
    uid = pydicom.dcmread(picture.files[0]).SOPInstanceUID
    (found,) = segmentation.get_pixels_by_source_instance([uid], combine_segments=True)
    np.testing.assert_array_equal(found, picture.mask[:, :, 0].T)


def test_highdicom_finds_segments_by_what_they_are(source: Source) -> None:
    segmentation = hd.seg.segread(source.segmentation)
    for number, label in enumerate(source.labels, start=1):
        if label.code:
            code = hd.sr.CodedConcept(label.code, "SCT", label.name)
            assert segmentation.get_segment_numbers(segmented_property_type=code) == [number]
        segment = segmentation.get_segment_description(number)
        assert segment.segment_label == label.name
        assert segment.algorithm_type.value == "AUTOMATIC"
        assert segment.algorithm_identification.name == f"SemanticGAN {MODEL}"
        colour = hd.color.CIELabColor.from_dicom_value(segment.RecommendedDisplayCIELabValue)
        np.testing.assert_allclose(colour.to_rgb(), label.rgb, atol=1)
    algorithm = hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC
    assert segmentation.get_segment_numbers(algorithm_type=algorithm) == list(
        range(1, len(source.labels) + 1)
    )


def test_patient_and_study_are_the_sources(source: Source) -> None:
    found, first = pydicom.dcmread(source.segmentation), pydicom.dcmread(source.files[0])
    for keyword in ("StudyInstanceUID", "PatientID", "PatientName", "FrameOfReferenceUID"):
        assert found.get(keyword) == first.get(keyword), keyword
    if source.name != "chaos":
        assert str(found.PatientName) == PATIENT["PatientName"]
