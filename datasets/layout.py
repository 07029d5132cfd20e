"""Finding, pairing and joining the files of a data set's official folders."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from sgan_core.errors import InputError
from sgan_core.imaging import guards
from sgan_core.imaging.pictures import open_picture
from sgan_core.names import natural
from sgan_datasets.source import Problem

# --- folders and files ---


def find_folder(root: Path, candidates: Sequence[str]) -> Path | None:
    """The first of the candidate folders below root, "/" between their parts, "." for root itself.

    Case does not matter: archives unpacked elsewhere change it. None when there is none.
    """
    return next((found for c in candidates if (found := _below(root, c)) and found.is_dir()), None)


def require_folder(root: Path, candidates: Sequence[str], name: str) -> Path:
    """As ``find_folder``. Raises InputError saying what was looked for in data set ``name``."""
    found = find_folder(root, candidates)
    if found is None:
        raise _not_found(root, candidates, name, "folder")
    return found


def require_file(root: Path, candidates: Sequence[str], name: str) -> Path:
    """The first of the candidate files below root. Raises InputError as ``require_folder`` does."""
    for candidate in candidates:
        found = _below(root, candidate)
        if found and found.is_file():
            return found
    raise _not_found(root, candidates, name, "file")


def files_of(folder: Path, endings: Sequence[str]) -> dict[str, Path]:
    """Files directly in a folder by name without its ending, in natural order.

    endings: e.g. (".png", ".jpg"), or ("_mask.png",); case does not matter, the first that fits is taken
    off. Hidden files are left out, such as the ._ files that macOS adds; of two files with one name the
    first stays. Empty when there is no such folder.
    """
    if not folder.is_dir():
        return {}
    found: dict[str, Path] = {}
    for name in sorted(os.listdir(folder), key=natural):
        ending = next((e for e in endings if name.lower().endswith(e.lower())), None)
        if ending is not None and not name.startswith("."):
            found.setdefault(name[: len(name) - len(ending)], folder / name)
    return found


def absolute(path: Path) -> str:
    """The absolute path as a cohort holds it; links are kept."""
    return os.path.abspath(path)


def safe_id(text: str) -> str:
    """The text as a plain name: letters, digits, "-", "_", "." and "+", other signs become "_"."""
    return re.sub(r"[^A-Za-z0-9_.+-]", "_", text).lstrip(".-")[:200] or "_"


def _below(root: Path, candidate: str) -> Path | None:
    here = root
    for part in Path(candidate).parts:
        exact = here / part
        if not exact.exists():
            try:
                same = sorted(name for name in os.listdir(here) if name.lower() == part.lower())
            except OSError:
                return None
            if not same:
                return None
            exact = here / same[0]
        here = exact
    return here


def _not_found(root: Path, candidates: Sequence[str], name: str, kind: str) -> InputError:
    if not root.is_dir():
        return InputError(f"{root}: no such folder. Give the folder of the unpacked data set {name}.")
    looked_for = " or ".join(candidates)
    return InputError(
        f"{root}: not the data set {name}, the {kind} {looked_for} is missing. Give the folder that holds it."
    )


# --- tables ---


def read_csv(path: Path, columns: Collection[str] = ()) -> list[dict[str, str]]:
    """The rows of a table with a header line, fields separated by "," or ";", blanks around them off.

    Raises InputError: file that cannot be read, not text in UTF-8, or without one of the columns.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Check the path.") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a table in UTF-8. Get the original file again.") from None
    header = text.split("\n", 1)[0]
    delimiter = ";" if header.count(";") > header.count(",") else ","
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise InputError(f"{path}: damaged table ({error}). Get the original file again.") from None
    names = [name.strip() for name in lines[0]] if lines else []
    if missing := [column for column in columns if column not in names]:
        raise InputError(
            f"{path}: no column {missing[0]!r}; found are {', '.join(names) or 'none'}. "
            "Get the original file again."
        )
    rows = [dict(zip(names, (field.strip() for field in line), strict=False)) for line in lines[1:] if line]
    return [{name: row.get(name, "") for name in names} for row in rows]


# --- pairs ---


def missing_pairs(images: Mapping[str, Path], masks: Mapping[str, Path]) -> list[Problem]:
    """A problem for each image without mask, and for each mask without image."""
    return without(images, masks, "mask") + without(masks, images, "image")


def without(files: Mapping[str, Path], others: Collection[str], what: str) -> list[Problem]:
    """A problem for each file whose name is not among the others; what: what is missing then, e.g. "mask"."""
    return [
        Problem("missing", f"{path}: no {what} belongs to it.")
        for name, path in files.items()
        if name not in others
    ]


# --- masks ---


def read_mask(path: str | Path) -> np.ndarray:
    """Where a mask picture is bright (grey > 127, palettes resolved): (H, W) bool, upright as images are.

    Raises InputError: missing or damaged file, several pages.
    """
    guards.require_file(Path(path))
    return np.asarray(open_picture(Path(path))[0].convert("L")) > 127


def read_union(paths: Iterable[str | Path], value: int = 1) -> np.ndarray:
    """``value`` where any of the masks is bright, else 0: (H, W) uint8.

    Raises InputError: as ``read_mask``, or masks that differ in size.
    """
    joined: np.ndarray | None = None
    for path in paths:
        mask = read_mask(path)
        if joined is not None and mask.shape != joined.shape:
            raise InputError(
                f"{path}: {mask.shape[1]} x {mask.shape[0]} pixels, the masks beside it are "
                f"{joined.shape[1]} x {joined.shape[0]}. Get the original files again."
            )
        joined = mask if joined is None else joined | mask
    if joined is None:
        raise ValueError("no mask to join")
    return joined.astype(np.uint8) * np.uint8(value)


def picture_shape(path: str | Path) -> tuple[int, int]:
    """(H, W) of a picture as ``read_picture`` gives it, from the file's header.

    Raises InputError: missing or damaged file.
    """
    with _opened(path) as picture:
        on_its_side = picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (picture.width, picture.height) if on_its_side else (picture.height, picture.width)


def resize_nearest(labels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Labels (H, W) at another size: each pixel takes the label at its centre."""
    if labels.shape == shape:
        return labels
    rows = (np.arange(shape[0]) * 2 + 1) * labels.shape[0] // (2 * shape[0])
    columns = (np.arange(shape[1]) * 2 + 1) * labels.shape[1] // (2 * shape[1])
    return labels[np.ix_(rows, columns)]


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """A picture file, opened by its content; what goes wrong while it is open is an InputError."""
    try:
        with Image.open(path) as picture:
            yield picture
    except FileNotFoundError:
        raise InputError(f"{path}: no such file. Check the path.") from None
    except (OSError, EOFError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: truncated, damaged or not a picture. Copy or export it again.") from error
