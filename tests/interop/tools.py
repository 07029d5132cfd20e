"""Other tools, asked what they find in a file of ours, and what they find compared with what must be there."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
import SimpleITK as sitk
from sources import Source

NEAR_MM = 1e-3


# --- are they there? ---


def program(name: str, where: str) -> str:
    """The path of a program; ``where`` says what installs it."""
    # Programs of Python packages lie beside Python; /usr/sbin is not on every user's PATH.
    folders = (str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin")
    found = shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        _missing(name, where)
    return str(found)


def require_package(module: str, package: str) -> None:
    """Of Python."""
    if find_spec(module) is None:
        _missing(package, f"Python package {package}")


def _missing(what: str, where: str) -> None:
    """Skip the test, or fail where all tools must be there."""
    message = f"{what} not found ({where})"
    if "SGAN_REQUIRE_INTEROP" in os.environ:
        pytest.fail(message)
    pytest.skip(message)


# --- what they find ---


@dataclass(frozen=True, eq=False)
class Opened:
    """Voxels as a tool gives them."""

    values: np.ndarray  # three axes, in the tool's order
    affine_lps: np.ndarray  # (4, 4): indices -> mm, voxel centres


def opened_by_itk(path: Path) -> Opened:
    """By SimpleITK, which counts in LPS."""
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return Opened(sitk.GetArrayFromImage(image).transpose(), affine)


def opened_by_highdicom(path: Path) -> Opened:
    """A DICOM SEG of slices, as one label map."""
    volume = hd.seg.segread(path).get_volume(combine_segments=True)
    return Opened(volume.array, volume.affine)


def unpack_by_dcmqi(segmentation: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """A DICOM SEG as NRRD files, 1.nrrd for its first segment, and a JSON of what they are."""
    command = [program("segimage2itkimage", "Python package dcmqi"), *options, "--outputType", "nrrd"]
    folder.mkdir()
    return subprocess.run(
        [*command, "--inputDICOM", str(segmentation), "--outputDirectory", str(folder)],
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
    )


def described_by_dcmqi(folder: Path) -> list[list[dict[str, Any]]]:
    """What its JSON says of the segments, file by file."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    return list(meta["segmentAttributes"])


# --- and whether it is right ---


def in_order_of(source: Source, opened: Opened) -> np.ndarray:
    """What a tool found, in the order of the source's voxels (I, J, K).

    The tool may count its axes in another order and from the other end. Fails where its volume is not the
    source's: outer corners of both must be the same points, to ``NEAR_MM``.
    """
    assert source.affine_lps is not None
    to_found = np.linalg.inv(opened.affine_lps) @ source.affine_lps
    turn = np.rint(to_found[:3, :3]).astype(int)
    axes = np.abs(turn).argmax(axis=0)  # of each axis of the source, the tool's
    alike = sorted(axes) == [0, 1, 2] and np.abs(turn).sum() == 3
    assert alike, f"voxels differ in size or direction: {to_found.round(3).tolist()}"
    values = opened.values.transpose(axes)
    size = np.array(source.mask.shape)
    assert values.shape == source.mask.shape
    backward = turn[axes, range(3)] < 0
    for ends in itertools.product((0, 1), repeat=3):
        corner = ends * size - 0.5
        same = np.empty(3)
        same[axes] = np.where(backward, size - 1 - corner, corner)
        apart = source.affine_lps[:3] @ [*corner, 1] - opened.affine_lps[:3] @ [*same, 1]
        assert np.linalg.norm(apart) < NEAR_MM, f"corner {ends} lies {np.linalg.norm(apart):.4f} mm off"
    return np.flip(values, np.flatnonzero(backward).tolist())
