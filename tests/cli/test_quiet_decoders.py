"""The installed command on files that make decoders talk: every line on stderr is ours, one warning a file."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit

PICTURE = np.random.default_rng(0).integers(60, 200, (40, 40), np.uint8)


def run(arguments: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("sgan-segment")), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def damaged_jpeg() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PICTURE).save(stream, "JPEG", quality=95)
    content = stream.getvalue()
    return content[: len(content) * 2 // 3] + b"\xff\xd9"


def compressed(dicom_files: Any, path: Path, content: bytes, syntax: str) -> None:
    image = dicom_files.image(PICTURE, "DX")
    dicom_files.save(path, image)
    image.file_meta.TransferSyntaxUID = syntax
    image.PixelData = encapsulate([content])
    image["PixelData"].is_undefined_length = True
    image.save_as(path, enforce_file_format=True)


def noisy_files(folder: Path, dicom_files: Any) -> Path:
    """Pictures, a volume and DICOM: bad_* are for review, gone_* cannot be read, fine_* is as good as any."""
    openjpeg = pytest.importorskip("openjpeg.utils")  # writes JPEG 2000
    folder.mkdir()
    (folder / "bad_jpeg.jpg").write_bytes(damaged_jpeg())
    fax = folder / "bad_fax.tif"
    Image.fromarray(np.add.outer(np.arange(64), np.arange(64)) % 20 > 9).save(fax, compression="group4")
    content = bytearray(fax.read_bytes())
    content[40:44] = b"\x55\x12\xaa\x77"
    fax.write_bytes(content)
    tags = ImageFileDirectory_v2()
    tags[65111] = "private"
    Image.fromarray(PICTURE).save(folder / "fine_tag.tif", tiffinfo=tags, compression="tiff_lzw")
    lzw = folder / "gone_lzw.tif"
    Image.fromarray(PICTURE).save(lzw, compression="tiff_lzw")
    content = bytearray(lzw.read_bytes())
    content[400:420] = bytes(range(20))
    lzw.write_bytes(content)
    header = (
        "ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    )
    (folder / "gone_cut.mha").write_bytes(header.encode() + b"\1\0" * 50)
    compressed(dicom_files, folder / "dicom_1" / "bad.dcm", damaged_jpeg(), JPEGBaseline8Bit)
    cut = openjpeg.encode_array(PICTURE, bits_stored=8)[:-300]
    compressed(dicom_files, folder / "dicom_2" / "gone.dcm", cut, JPEG2000Lossless)
    return folder


def test_decoders_do_not_reach_the_terminal_and_are_told_once(
    tiny_bundle: Path, dicom_files: Any, tmp_path: Path
) -> None:
    folder = noisy_files(tmp_path / "in", dicom_files)
    done = run([folder, "--model", tiny_bundle, "--output", tmp_path / "out", "--steps", "2"])

    first, *lines = done.stderr.splitlines()
    assert (done.returncode, first.startswith("tiny-ct-liver on ")) == (1, True)
    ours = re.compile(
        r"sgan-segment: (warning|error): |\d+/\d+ \w+ \(\d of 7\): "
    )  # the latter when it takes long
    assert [line for line in lines if not ours.match(line)] == []
    said = [line for line in lines if "the decoder said" in line.lower()]
    for name in ("bad_jpeg.jpg", "bad_fax.tif", "bad.dcm", "gone_lzw.tif", "gone_cut.mha", "gone.dcm"):
        assert [name in line for line in said].count(True) == 1, name
    assert len(said) == 6
    for case in json.loads((tmp_path / "out" / "run.json").read_text())["cases"]:
        name = Path(case["input"]).name
        told = [text for text in case["warnings"] if "the decoder said" in text]
        assert len(told) == (name in ("bad_jpeg.jpg", "bad_fax.tif", "bad.dcm")), name
        assert not told or case["trust"]["status"] == "review", name


PRELUDE = """
import logging, os, sys, threading
from sgan_core.cli import app
from sgan_core.imaging.decoder_messages import heard
def main(options):
    with heard() as said:
        {inside}
    print(said.lines)
sys.exit(app.run(main, app.Parser("prog"), []))
"""


def inside_a_read(line: str) -> subprocess.CompletedProcess[str]:
    code = PRELUDE.format(inside=line)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_our_messages_pass_whichever_thread_writes_them() -> None:
    done = inside_a_read(
        "thread = threading.Thread(target=logging.getLogger('sgan_core').warning, args=['ours']); thread.start(); "
        "thread.join(); print('too', file=sys.stderr); os.write(2, b'theirs')"
    )
    assert (done.returncode, done.stdout) == (0, "('theirs',)\n")
    assert done.stderr == "prog: warning: ours\ntoo\n"


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT"])
def test_a_crash_in_a_decoder_is_not_silent(name: str) -> None:
    done = inside_a_read(f"import signal; os.kill(os.getpid(), signal.{name}); signal.pause()")
    assert done.returncode == -getattr(signal, name)
    assert done.stderr.startswith("Fatal Python error: ")
    assert "in main" in done.stderr
