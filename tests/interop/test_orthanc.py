"""DICOM SEG stored with its source series in a PACS (Orthanc) and fetched from it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pydicom
import pytest
from archive import Archive, check_mask, check_references, fetched, running, stored_series
from sources import Source
from tools import program


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    with running(tmp_path_factory.mktemp("orthanc")) as archive:
        yield archive


def test_segmentation_is_fetched_from_the_study_of_its_images(
    archive: Archive, source: Source, tmp_path: Path
) -> None:
    """Sent by HTTP, in the order that a workstation may have: the segmentation first."""
    for file in (source.segmentation, *source.files):
        assert archive.json_of_file("/instances", file)["Status"] == "Success"
    images, segmentation = stored_series(archive, source)
    content = fetched(archive, segmentation)
    assert content == source.segmentation.read_bytes()
    (tmp_path / "fetched.dcm").write_bytes(content)
    check_references(archive, source, images, tmp_path / "fetched.dcm")
    check_mask(source, tmp_path / "fetched.dcm")
    (instance,) = archive.json(f"/series/{segmentation}")["Instances"]
    frames = int(pydicom.dcmread(source.segmentation).NumberOfFrames)
    assert len(archive.json(f"/instances/{instance}/frames")) == frames


def test_sending_it_again_adds_nothing(archive: Archive, made: Callable[[str], Source]) -> None:
    source = made("ct")
    archive.ask("/instances", source.segmentation.read_bytes())
    before = archive.json("/statistics")["CountInstances"]
    assert archive.json_of_file("/instances", source.segmentation)["Status"] == "AlreadyStored"
    assert archive.json("/statistics")["CountInstances"] == before


def test_segmentation_travels_by_c_store(tmp_path: Path, made: Callable[[str], Source]) -> None:
    """By DICOM's own protocol, as scanners and workstations send; into an empty archive."""
    source = made("mr")
    store = program("storescu", "Debian package dcmtk")
    with running(tmp_path / "orthanc", dicom=True) as archive:
        # -R: what is sent is offered, not dcmtk's list of storage classes
        command = [store, "-R", "-aet", "TESTS", "-aec", "ORTHANC", "127.0.0.1", str(archive.dicom_port)]
        files = [str(file) for file in (*source.files, source.segmentation)]
        done = subprocess.run([*command, *files], check=False, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        images, segmentation = stored_series(archive, source)
        (tmp_path / "fetched.dcm").write_bytes(fetched(archive, segmentation))
        check_references(archive, source, images, tmp_path / "fetched.dcm")
    check_mask(source, tmp_path / "fetched.dcm")
    # The group of the file's own header is written by who stores it; all the rest is as it was sent.
    assert pydicom.dcmread(tmp_path / "fetched.dcm") == pydicom.dcmread(source.segmentation)
