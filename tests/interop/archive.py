"""Runs Orthanc, a DICOM archive, for the time of a test, on this computer alone; looks at what it holds."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
from sources import Source
from tools import in_order_of, opened_by_highdicom, program

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never by a proxy
_STARTS = 3  # another program may take a free port before Orthanc does
_SECONDS = 60


@dataclass(frozen=True)
class Archive:
    """A running Orthanc."""

    http_port: int
    dicom_port: int

    def ask(self, path: str, body: bytes | None = None) -> bytes:
        """GET a path of its REST interface, or POST a body to it."""
        with _OPENER.open(f"http://127.0.0.1:{self.http_port}{path}", body, timeout=_SECONDS) as answer:
            return bytes(answer.read())

    def json(self, path: str, question: Any = None) -> Any:
        """The answer to a GET, or to a POST of a question."""
        return json.loads(self.ask(path, None if question is None else json.dumps(question).encode()))

    def json_of_file(self, path: str, file: Path) -> Any:
        """The answer to a POST of a file."""
        return json.loads(self.ask(path, file.read_bytes()))

    def find(self, level: str, **query: str) -> list[str]:
        """The archive's own identifiers of what fits: keywords and values as in a C-FIND."""
        return list(self.json("/tools/find", {"Level": level, "Query": query}))


@contextmanager
def running(folder: Path, *, dicom: bool = False) -> Iterator[Archive]:
    """Orthanc with an empty store below a folder; it has ended, whatever happens, when the block is left.

    dicom: whether it takes images by C-STORE, too; from this computer only.
    """
    command = [program("Orthanc", "Debian package orthanc")]
    if setpriv := shutil.which("setpriv"):
        command = [setpriv, "--pdeathsig", "KILL", *command]  # also when the tests themselves are killed
    for start in range(_STARTS):
        place = folder / f"start{start}"
        archive = Archive(_free_port(), _free_port())
        (place / "store").mkdir(parents=True)
        (place / "orthanc.json").write_text(
            json.dumps(_configuration(archive, place, dicom)), encoding="utf-8"
        )
        with (place / "log.txt").open("wb") as log:
            process = subprocess.Popen(
                [*command, str(place / "orthanc.json")], stdout=log, stderr=log, cwd=place
            )
        try:
            if _answers(archive, process):
                yield archive
                return
        finally:
            process.kill()
            process.wait()
    raise RuntimeError(f"Orthanc does not start: {(place / 'log.txt').read_text(errors='replace')[-2000:]}")


def _configuration(archive: Archive, place: Path, dicom: bool) -> dict[str, Any]:
    return {
        "Name": "tests",
        "StorageDirectory": str(place / "store"),
        "IndexDirectory": str(place / "store"),
        "HttpPort": archive.http_port,
        "DicomPort": archive.dicom_port,
        "DicomAet": "ORTHANC",
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomServerEnabled": dicom,  # it cannot be told to listen to this computer alone, so it asks who sends
        "DicomAlwaysAllowStore": False,
        "DicomCheckModalityHost": True,
        "DicomModalities": {"tests": ["TESTS", "127.0.0.1", 104]},
        "Plugins": [],
    }


def _free_port() -> int:
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _answers(archive: Archive, process: subprocess.Popen[bytes]) -> bool:
    """Wait until it does; False when it ends instead, or takes too long."""
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            archive.ask("/system")
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
        else:
            return True
    return False


# --- what it holds ---


def stored_series(archive: Archive, source: Source) -> tuple[str, str]:
    """Orthanc's identifiers of the source series and of ours, in the one study that holds both."""
    ours = pydicom.dcmread(source.segmentation)
    study_uid = str(ours.StudyInstanceUID)
    (study,) = archive.find("Study", StudyInstanceUID=study_uid)
    assert len(archive.json(f"/studies/{study}")["Series"]) == 2
    (images,) = archive.find(
        "Series", SeriesInstanceUID=str(pydicom.dcmread(source.files[0]).SeriesInstanceUID)
    )
    (segmentation,) = archive.find("Series", StudyInstanceUID=study_uid, Modality="SEG")
    for series in (images, segmentation):
        assert archive.json(f"/series/{series}")["ParentStudy"] == study
    assert len(archive.json(f"/series/{images}")["Instances"]) == len(source.files)
    return images, segmentation


def fetched(archive: Archive, series: str) -> bytes:
    """The one file of a series."""
    (instance,) = archive.json(f"/series/{series}")["Instances"]
    return archive.ask(f"/instances/{instance}/file")


def check_references(archive: Archive, source: Source, images: str, file: Path) -> None:
    """What the segmentation refers to is the stored series, image by image."""
    (referenced,) = pydicom.dcmread(file).ReferencedSeriesSequence
    assert archive.find("Series", SeriesInstanceUID=str(referenced.SeriesInstanceUID)) == [images]
    known = {
        archive.json(f"/instances/{instance}")["MainDicomTags"]["SOPInstanceUID"]
        for instance in archive.json(f"/series/{images}")["Instances"]
    }
    assert {str(item.ReferencedSOPInstanceUID) for item in referenced.ReferencedInstanceSequence} == known
    assert len(known) == len(source.files)


def check_mask(source: Source, file: Path) -> None:
    """A file that was fetched holds the mask, at its place."""
    if source.affine_lps is None:
        segmentation = hd.seg.segread(file)
        uid = pydicom.dcmread(source.files[0]).SOPInstanceUID
        (found,) = segmentation.get_pixels_by_source_instance([uid], combine_segments=True)
        np.testing.assert_array_equal(found, source.mask[:, :, 0].T)
    else:
        np.testing.assert_array_equal(in_order_of(source, opened_by_highdicom(file)), source.mask)
