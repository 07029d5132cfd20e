"""Readers on files that were damaged at random: they read, or say InputError, soon and in little memory."""

from __future__ import annotations

import gzip
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from pydicom.uid import RLELossless

from sgan_core.errors import InputError
from sgan_core.imaging.readers import read_image

TRIALS = 200
MOST_BYTES = 64e6  # the files are of some kilobytes
MOST_SECONDS = 2.0

INTERESTING = [0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF]


def damage(content: bytes, header: int, rng: np.random.Generator) -> bytes:
    """Flip, overwrite, insert, remove or cut bytes in the first ``header`` bytes."""
    damaged = bytearray(content)
    for _ in range(rng.integers(1, 6)):
        at, length = int(rng.integers(0, header)), int(rng.integers(1, 9))
        kind = rng.integers(0, 6)
        if kind == 0:
            damaged[at : at + 1] = bytes([content[at] ^ (1 << int(rng.integers(0, 8)))])
        elif kind == 1:
            damaged[at : at + length] = bytes(rng.choice(INTERESTING, length).astype(np.uint8))
        elif kind == 2:
            damaged[at : at + length] = rng.bytes(length)
        elif kind == 3:
            damaged[at:at] = rng.bytes(length)
        elif kind == 4:
            del damaged[at : at + length]
        elif rng.integers(0, 4) == 0:
            del damaged[int(rng.integers(0, len(damaged))) :]
    return bytes(damaged)


def check(content: bytes, path: Path) -> bool:
    """Whether a damaged file could be read. Anything but success and InputError fails."""
    path.write_bytes(content)
    start = time.monotonic()
    tracemalloc.reset_peak()
    try:
        read_image(path)
    except InputError as error:
        return "SECRET" in str(error) and pytest.fail(str(error))
    finally:
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
        assert time.monotonic() - start < MOST_SECONDS
    return True


def run(path: Path, make: Callable[[np.random.Generator], bytes], trials: int = TRIALS) -> list[bool]:
    tracemalloc.start()
    try:
        outcomes = []
        for seed in range(trials):
            content = make(np.random.default_rng(seed))
            try:
                outcomes.append(check(content, path))
            except Exception as error:
                kept = path.with_name(f"seed-{seed}-{path.name}")
                kept.write_bytes(content)
                raise AssertionError(f"seed {seed} ({kept}): {error!r}") from error
        return outcomes
    finally:
        tracemalloc.stop()


def samples(dicom_files: Any, folder: Path) -> list[bytes]:
    """A classic, an enhanced, a compressed and a colour image."""
    rng = np.random.default_rng(0)
    grey = rng.integers(-1000, 1000, (12, 11, 1)).astype(np.int16)
    (classic,) = dicom_files.stack(grey, SliceThickness=2, RescaleSlope=1, RescaleIntercept=0, EchoTime=2)
    frames = rng.integers(0, 2000, (6, 5, 4)).astype(np.uint16)
    enhanced = dicom_files.enhanced(frames, shared=False, echo_times=[1, 2, 1, 2])
    (compressed,) = dicom_files.stack(grey, SliceThickness=2)
    colour = dicom_files.image(rng.integers(0, 256, (8, 9, 3)).astype(np.uint8), "XC")
    images = [(classic,), (enhanced,), (compressed, RLELossless), (colour,)]
    return [dicom_files.save(folder / "sample", *image).read_bytes() for image in images]


def test_damaged_dicom_bytes(dicom_files: Any, tmp_path: Path) -> None:
    contents = samples(dicom_files, tmp_path)

    def make(rng: np.random.Generator) -> bytes:
        content = contents[int(rng.integers(0, len(contents)))]
        return damage(content, min(len(content), 1500), rng)

    outcomes = run(tmp_path / "file.dcm", make)
    assert any(outcomes)  # some damage does not matter
    assert not all(outcomes)


VALUES = {
    "Rows": [0, 1, 11, 13, 65535],
    "Columns": [0, 12, 65535],
    "NumberOfFrames": [0, -1, 2, 10**6, 2**31 - 1, "x"],
    "BitsAllocated": [0, 1, 8, 12, 16, 32, 64, 65535],
    "BitsStored": [0, 1, 12, 17, 65535],
    "HighBit": [0, 3, 15, 40, 65535],
    "SamplesPerPixel": [0, 2, 3, 4],
    "PixelRepresentation": [0, 1, 7],
    "PlanarConfiguration": [1, 9],
    "PhotometricInterpretation": ["", "RGB", "PALETTE COLOR", "YBR_FULL_422", "MONOCHROME1", "?"],
    "ImagePositionPatient": [["1e30", "0", "0"], ["nan", "0", "0"], ["1", "2"], [], ["x", "y", "z"]],
    "ImageOrientationPatient": [["0"] * 6, ["1"] * 6, ["1e308"] * 6, ["1", "0", "0"]],
    "PixelSpacing": [["0", "0"], ["-1", "1"], ["inf", "1"], ["1"], ["1e-300", "1e-300"]],
    "SliceThickness": ["0", "-3", "x", "1e300"],
    "RescaleSlope": ["0", "1e300", "-1", "x", "nan"],
    "RescaleIntercept": ["1e300", "-99999999999", "0.5", "x"],
    "EchoTime": ["x", "nan", "-1"],
    "SeriesNumber": ["99999999999999", "x", "-1"],
    "SpecificCharacterSet": ["nonsense", "ISO 2022 IR 87"],
    "SOPClassUID": ["", "1.2.3", "x"],
    "SeriesInstanceUID": ["", "not a uid"],
}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_dicom_attributes_that_make_no_sense(
    dicom_files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pydicom

    contents = samples(dicom_files, tmp_path)
    monkeypatch.setattr(pydicom.config.settings, "writing_validation_mode", pydicom.config.IGNORE)
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.IGNORE)

    def make(rng: np.random.Generator) -> bytes:
        path = tmp_path / "sample"
        path.write_bytes(contents[int(rng.integers(0, len(contents)))])
        dataset = pydicom.dcmread(path)
        for keyword in rng.choice(list(VALUES), int(rng.integers(1, 4)), replace=False):
            value = VALUES[keyword][int(rng.integers(0, len(VALUES[keyword])))]
            text = "\\".join(map(str, value)) if isinstance(value, list) else value
            vr = pydicom.datadict.dictionary_VR(keyword)
            binary = vr == "US"
            # As text, whatever the attribute's type: that is how it stands in the file.
            dataset[keyword] = pydicom.DataElement(
                keyword, vr if binary else "LO", text if binary else str(text)
            )
        dataset.save_as(path, implicit_vr=False, little_endian=True)
        return path.read_bytes()

    outcomes = run(tmp_path / "file.dcm", make, 100)
    assert any(outcomes)
    assert not all(outcomes)


def test_damaged_folder(dicom_files: Any, tmp_path: Path) -> None:
    stack = dicom_files.stack(np.random.default_rng(0).integers(0, 99, (6, 5, 8)).astype(np.int16))
    dicom_files.save_all(tmp_path / "series", stack)
    victim = tmp_path / "series" / "0003"
    whole = victim.read_bytes()
    read = 0
    for seed in range(40):
        victim.write_bytes(damage(whole, len(whole), np.random.default_rng(seed)))
        try:
            read_image(tmp_path / "series")
            read += 1
        except InputError:
            pass
    assert 0 < read < 40


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_damaged_nifti_header(tmp_path: Path, suffix: str) -> None:
    image = nib.Nifti1Image(np.random.default_rng(0).integers(-99, 99, (6, 5, 4)).astype(np.int16), np.eye(4))
    image.header.set_slope_inter(2.0, 1.0)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a comment"))
    content = image.to_bytes()

    def make(rng: np.random.Generator) -> bytes:
        damaged = damage(content, 400, rng)
        return gzip.compress(damaged) if suffix == ".nii.gz" else damaged

    outcomes = run(tmp_path / f"file{suffix}", make)
    assert any(outcomes)
    assert not all(outcomes)


def test_damaged_gzip_stream(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.random.default_rng(0).integers(-99, 99, (6, 5, 4)).astype(np.int16), np.eye(4))
    content = gzip.compress(image.to_bytes())
    assert not any(run(tmp_path / "file.nii.gz", lambda rng: damage(content[20:], 200, rng), 50))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_that_announces_too_much_costs_no_memory(tmp_path: Path, suffix: str) -> None:
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    content = bytearray(image.to_bytes())
    content[42:48] = np.array([2000, 2000, 2000], "<i2").tobytes()

    def make(_rng: np.random.Generator) -> bytes:
        return gzip.compress(content) if suffix == ".nii.gz" else bytes(content)

    assert run(tmp_path / f"file{suffix}", make, 1) == [False]
