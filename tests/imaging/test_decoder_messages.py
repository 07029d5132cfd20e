"""What decoders say while they read: none of it on the terminal, all of it in one sentence, nothing of a patient."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit

from sgan_core.errors import InputError
from sgan_core.imaging.decoder_messages import heard, stdout_as_stderr
from sgan_core.imaging.dicom.pixels import let_libjpeg_speak
from sgan_core.imaging.image import Picture, Volume
from sgan_core.imaging.readers import read_image, read_labels

Files = Any  # tests/conftest.py
Capture = pytest.CaptureFixture[str]  # of file descriptors
NOISE = np.random.default_rng(0).integers(0, 20, (64, 64))
PICTURE = (np.add.outer(np.arange(64) * 2, 40 * np.sin(np.arange(64) / 5)) + 60 + NOISE).astype(np.uint8)


def jpeg(pixels: np.ndarray = PICTURE) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=92)
    return stream.getvalue()


def with_extra_bytes(content: bytes) -> bytes:
    """Before the end marker."""
    return content[:-2] + b"\x12" * 12 + content[-2:]


def broken_off(content: bytes) -> bytes:
    """Two thirds, with an end marker: what a program leaves that closes a file as if it were whole."""
    return content[: len(content) * 2 // 3] + b"\xff\xd9"


def damaged_fax(path: Path) -> Path:
    """A TIFF of Group 4 codes with some overwritten."""
    Image.fromarray(PICTURE > 120).save(path, compression="group4")
    content = bytearray(path.read_bytes())
    content[40:44] = b"\x55\x12\xaa\x77"
    path.write_bytes(content)
    return path


def said_of(image: Volume | Picture) -> tuple[list[str], list[str]]:
    """Warnings and doubts that repeat a decoder."""
    return tuple(
        [text for text in texts if "the decoder said" in text] for texts in (image.warnings, image.doubts)
    )  # type: ignore[return-value]


# --- real files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_extra_bytes, "extraneous bytes before marker 0xd9"),
        (broken_off, "premature end of data segment"),
    ],
)
def test_damaged_jpeg_is_doubted(
    tmp_path: Path, capfd: Capture, change: Callable[[bytes], bytes], words: str
) -> None:
    path = tmp_path / "xray.jpg"
    path.write_bytes(change(jpeg()))
    told, doubts = said_of(read_image(path))
    assert (told, len(doubts)) == ([], 1)
    assert doubts[0].startswith('xray.jpg: the decoder said: "Corrupt JPEG data: ')
    assert words in doubts[0]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("pixels", [PICTURE, np.stack([PICTURE] * 3, axis=2)])
@pytest.mark.parametrize("change", [with_extra_bytes, broken_off])
def test_gdcm_says_of_a_jpeg_what_itk_says(
    pixels: np.ndarray, change: Callable[[bytes], bytes], capfd: Capture
) -> None:
    """As it is heard on Windows."""
    with heard() as said:
        let_libjpeg_speak(change(jpeg(pixels)), 64, 64, pixels.size // 64**2)
    assert [line.startswith("Corrupt JPEG data: ") for line in said.lines] == [True]
    assert capfd.readouterr() == ("", "")


def test_sound_jpegs_are_read_without_a_word(tmp_path: Path, capfd: Capture) -> None:
    picture = Image.fromarray(np.stack([PICTURE, PICTURE.T, PICTURE[::-1]], axis=2))
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "progressive": {"progressive": True},
        "restarts": {"restart_marker_blocks": 2},
        "profile": {"icc_profile": bytes(range(256))},
    }
    for name, options in kinds.items():
        picture.save(tmp_path / f"{name}.jpg", **options)
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg")
    picture.convert("L").save(tmp_path / "gr\u00e4u.jpg")
    for path in sorted(tmp_path.iterdir()):
        image = read_image(path)
        assert (image.warnings, image.doubts) == ((), ()), path.name
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("change", [with_extra_bytes, broken_off])
def test_damaged_jpeg_in_dicom_is_doubted_once_for_the_series(
    dicom_files: Files, tmp_path: Path, capfd: Capture, change: Callable[[bytes], bytes]
) -> None:
    images = dicom_files.stack(np.stack([PICTURE.T] * 3, axis=2).astype(np.uint8))
    for number, image in enumerate(images):
        path = dicom_files.save(tmp_path / "scan" / f"{number}.dcm", image)
        image.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        image.PixelData = encapsulate([change(jpeg())])
        image["PixelData"].is_undefined_length = True
        image.save_as(path, enforce_file_format=True)
    volume = read_image(tmp_path / "scan")
    told, doubts = said_of(volume)
    assert (told, len(doubts)) == ([], 1)
    assert doubts[0].startswith('scan: the decoder said: "Corrupt JPEG data: ')
    assert capfd.readouterr().err == ""


def test_jpeg_2000_without_its_end_is_refused_with_what_the_decoder_said(
    dicom_files: Files, tmp_path: Path, capfd: Capture
) -> None:
    openjpeg = pytest.importorskip("openjpeg.utils")
    image = dicom_files.image(PICTURE, "DX")
    path = dicom_files.save(tmp_path / "one.dcm", image)
    image.file_meta.TransferSyntaxUID = JPEG2000Lossless
    image.PixelData = encapsulate([openjpeg.encode_array(PICTURE, bits_stored=8)[:-20]])
    image["PixelData"].is_undefined_length = True
    image.save_as(path, enforce_file_format=True)
    with pytest.raises(InputError, match=r'\. The decoder said: "Tile part length size inconsistent'):
        read_image(path)
    assert capfd.readouterr().err == ""


def test_private_tag_of_a_tiff_is_not_worth_a_word(tmp_path: Path, capfd: Capture) -> None:
    tags = ImageFileDirectory_v2()
    tags[65111] = "private"
    Image.fromarray(PICTURE).save(tmp_path / "a.tif", tiffinfo=tags, compression="tiff_lzw")
    image = read_image(tmp_path / "a.tif")
    assert (image.warnings, image.doubts) == ((), ())
    assert capfd.readouterr().err == ""


def test_damaged_tiff_is_doubted(tmp_path: Path, capfd: Capture) -> None:
    told, doubts = said_of(read_image(damaged_fax(tmp_path / "fax.tif")))
    assert (told, len(doubts)) == ([], 1)
    assert 'fax.tif: the decoder said: "Fax4Decode: Bad code word' in doubts[0]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("compression", ["jpeg", "packbits"])
def test_tiff_whose_warnings_pillow_keeps_to_itself_is_doubted(
    tmp_path: Path, capfd: Capture, compression: str
) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(PICTURE).save(path, compression=compression)
    content = bytearray(path.read_bytes())
    third = len(content) // 3
    content[third : third + 20] = np.random.default_rng(0).integers(0, 256, 20, np.uint8).tobytes()
    path.write_bytes(content)
    _, doubts = said_of(read_image(path))
    assert len(doubts) == 1
    assert capfd.readouterr().err == ""


def test_cut_metaimage_is_refused_with_what_the_decoder_said(tmp_path: Path, capfd: Capture) -> None:
    header = (
        "ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    )
    path = tmp_path / "a.mha"
    path.write_bytes(header.encode() + b"\1\0" * 50)
    with pytest.raises(
        InputError, match=r'The decoder said: ".*data not read completely" \(1 more line\)\.$'
    ):
        read_image(path)
    assert capfd.readouterr().err == ""


def test_skewed_nrrd_and_odd_dicom_header_leave_the_terminal_alone(
    dicom_files: Files, tmp_path: Path, capfd: Capture
) -> None:
    header = (
        "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 4 4 4\nencoding: raw\n"
        "endian: little\nspace directions: (1,0,0) (0.6,2,0) (0,0,3)\nspace origin: (0,0,0)\n\n"
    )
    (tmp_path / "a.nrrd").write_bytes(header.encode() + np.arange(64, dtype="<i2").tobytes())
    read_image(tmp_path / "a.nrrd")
    image = dicom_files.place(dicom_files.image(PICTURE.astype(np.int16)), (0, 0, 0))
    image.SliceThickness = 3
    content = dicom_files.save(tmp_path / "a.dcm", image).read_bytes()
    name = content.index(b"SECRET^Name")
    wrong = content[: name - 4] + b"UL" + content[name - 2 :]  # another VR, whose length does not fit
    (tmp_path / "a.dcm").write_bytes(wrong)
    volume = read_image(tmp_path / "a.dcm")
    assert "SECRET" not in repr((volume.warnings, volume.doubts))
    assert capfd.readouterr().err == ""


def test_label_picture_says_it_in_its_remarks(tmp_path: Path, capfd: Capture) -> None:
    remarks: list[str] = []
    read_labels(damaged_fax(tmp_path / "fax.tif"), values={1}, remarks=remarks)
    assert [text.startswith("fax.tif: the decoder said: ") for text in remarks] == [True]
    assert capfd.readouterr().err == ""


# --- what is caught --------------------------------------------------------------------------------


def test_all_ways_of_speaking_are_heard(capfd: Capture) -> None:
    with heard() as said:
        os.write(2, b"from C\n")
        warnings.warn_explicit("from a library", UserWarning, "PIL/x.py", 1)
        logging.getLogger("PIL.TiffImagePlugin").warning("from its %s", "log")
    assert set(said.lines) == {"from C", "from a library", "from its log"}
    assert capfd.readouterr().err == ""


def test_what_is_for_programmers_is_shown_as_ever() -> None:
    with pytest.warns(DeprecationWarning, match="use another"), heard() as said:
        warnings.warn("use another", DeprecationWarning, stacklevel=1)
    assert said.lines == ()


def test_details_of_a_library_go_where_they_went(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("PIL").setLevel(logging.DEBUG)
    try:
        with caplog.at_level(logging.DEBUG), heard() as said:
            logging.getLogger("PIL.PngImagePlugin").debug("a chunk")
    finally:
        logging.getLogger("PIL").setLevel(logging.NOTSET)
    assert said.lines == ()
    assert "a chunk" in caplog.messages


def test_the_outermost_catches(capfd: Capture) -> None:
    with heard() as outer:
        with heard() as inner:
            os.write(2, b"in\n")
        os.write(2, b"out\n")
    assert (outer.lines, inner.lines) == (("in", "out"), ())
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_another_thread_is_not_held_up(capfd: Capture) -> None:
    def read() -> None:
        with heard():
            pass

    with heard():
        thread = threading.Thread(target=read)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.skipif(
    sys.platform == "win32", reason="stdout_as_stderr is POSIX only; Windows reads JPEG without it"
)
def test_stdout_is_back_when_reads_of_two_threads_overlap(capfd: Capture) -> None:
    first, second = stdout_as_stderr(), stdout_as_stderr()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    os.write(1, b"of a decoder\n")  # the second is still reading
    second.__exit__(None, None, None)
    os.write(1, b"results\n")
    assert capfd.readouterr() == ("results\n", "of a decoder\n")


def test_results_are_printed_after_several_threads_have_read(tmp_path: Path) -> None:
    for number in range(64):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg())
    code = (
        "import sys, pathlib; from concurrent.futures import ThreadPoolExecutor;"
        "from sgan_core.imaging.readers import read_image;"
        "files = list(pathlib.Path(sys.argv[1]).glob('*.jpg'));"
        "print(len(list(ThreadPoolExecutor(8).map(read_image, files * 4))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "256\n")


def test_more_than_a_pipe_holds_blocks_nothing(capfd: Capture) -> None:
    with heard() as said:
        for row in range(20_000):
            os.write(2, f"bad row {row}\n".encode())
    assert said.lines[0] == "bad row 0"
    assert capfd.readouterr().err == ""


def test_after_an_exception_the_terminal_is_back_and_the_log_says_it(
    capfd: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    @heard()
    def read() -> None:
        os.write(2, b"it was bad\n")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        read()
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"
    assert "the decoder said: it was bad" in caplog.messages


def test_an_input_error_takes_it_along() -> None:
    @heard()
    def read() -> None:
        os.write(2, b"first\nbad Huffman code\nlast\n")
        raise InputError("a.jpg: damaged. Copy it again.")

    with pytest.raises(InputError) as caught:
        read()
    expected = 'a.jpg: damaged. Copy it again. The decoder said: "bad Huffman code" (2 more lines).'
    assert (caught.value.message, str(caught.value)) == (expected, expected)


def test_descriptors_do_not_add_up(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc here, to count descriptors in")
    path = damaged_fax(tmp_path / "fax.tif")
    read_image(path)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(200):
        read_image(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_takes_less_than_a_millisecond() -> None:
    def once() -> float:
        start = time.perf_counter()
        with heard():
            pass
        return time.perf_counter() - start

    assert min(once() for _ in range(50)) < 1e-3


@pytest.mark.parametrize("prelude", ["os.close(2)", "sys.stderr = None", "os.close(2); sys.stderr = None"])
def test_reads_without_a_console(tmp_path: Path, prelude: str) -> None:
    path = damaged_fax(tmp_path / "fax.tif")
    code = (
        f"import os, sys; {prelude}\n"
        "from sgan_core.imaging.readers import read_image\n"
        f"print(read_image({str(path)!r}).array.shape, len(os.listdir('/proc/self/fd')) < 12)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "(1, 64, 64) True\n", "")


# --- how it is worded ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("Invalid value for VR PN: 'O'Brien^Pat'.", "Invalid value for VR PN: ...."),
        ('Value "19010203\nDoe^Jane" is odd', "Value ... is odd"),
        ("Unknown encoding 'never closed SECRET", "Unknown encoding ..."),
        ("/home/jane doe/scans/a.tif: Cannot open", "a.tif: Cannot open"),
        (r"C:\Users\Jane Doe\a.tif: Cannot open", "a.tif: Cannot open"),
        ("1/2 of it and 3/4", "1/2 of it and 3/4"),
        ("GDCMImageIO (0x55e27c0bbab0): \x1b\x07odd", "GDCMImageIO: odd"),
        ("Can't read it", "Can't read it"),
        ("y" * 300, "y" * 157 + "..."),
    ],
)
def test_neither_values_nor_places_are_told(written: str, told: str) -> None:
    with heard() as said:
        warnings.warn_explicit(written, UserWarning, "lib.py", 1)
    assert said.lines == (told,)


def test_nothing_remains_of_what_is_harmless_or_of_itks_headings() -> None:
    with heard() as said:
        os.write(
            2,
            b"WARNING: In /build/ITK/x.cxx, line 12\nTIFFReadDirectory: Warning, Unknown field with tag 7\n",
        )
    assert said.lines == ()


@pytest.mark.parametrize(
    ("line", "doubted"),
    [
        ("Premature end of JPEG file", True),
        ("Corrupt JPEG data: bad Huffman code", True),
        ("ZIPDecode: Not enough data: data truncated", True),
        ("Tile part length size inconsistent with stream length", True),
        ("Corrupt EXIF data. Expecting to read 2 bytes but only got 0.", False),
        ("Invalid TIFF directory; tags are not sorted in ascending order", False),
        ("Unknown Adobe color transform code 7", False),
    ],
)
def test_damage_is_doubted_the_rest_is_a_warning(line: str, doubted: bool) -> None:
    with heard() as said:
        os.write(2, f"{line}\n".encode())
    told = said.told(Picture(np.zeros((1, 2, 2))), "a.jpg")
    assert (len(told.warnings), len(told.doubts)) == ((0, 1) if doubted else (1, 0))
