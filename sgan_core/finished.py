"""Which cases of a batch are finished: what lets it be stopped, by a power cut too, and started again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from sgan_core.errors import InputError
from sgan_core.evaluation.tables import json_text, write_text
from sgan_core.files import FINISHED, keep, replacing, sha256, unfinished
from sgan_core.imaging.dicom import Series
from sgan_core.imaging.guards import require_file
from sgan_core.imaging.readers import files_of, read_image, read_labels
from sgan_core.inputs import Input


def input_hash(one: Input, series: Series | None) -> str | None:
    """SHA-256 of an image's content: of its file, or of its files and what the search said of a DICOM series.

    None for a file whose voxels lie in others that its header does not name plainly. Raises OSError, and InputError
    for what is no file.
    """
    if series is None:
        require_file(one.path)
        files = files_of(one.path)
        if files is not None and len(files) == 1:
            return sha256(files[0])
        said = ""
    else:
        files = series.files
        said = repr((series.frames, series.doubts))
    if files is None:
        return None
    return hashlib.sha256(
        "\n".join([said, *map(sha256, files)]).encode("utf-8", "backslashreplace")
    ).hexdigest()


def stamps(one: Input, series: Series | None) -> list[tuple[int, int]]:
    """Size and time of an image's files, to see whether they changed since they were hashed. Raises OSError."""
    files = series.files if series is not None else files_of(one.path) or (one.path,)
    return [(found.st_size, found.st_mtime_ns) for found in map(Path.stat, files)]


class Finished:
    """The finished cases of an output folder, a file each in its folder ``.finished``.

    made_by: what decides what comes of an image (version, model, options), plain JSON. Only a case that was made by
    the same is known here.
    """

    def __init__(self, output: Path, made_by: Mapping[str, Any]) -> None:
        self.output = output
        self.made_by = json.loads(json_text(made_by))

    def check_folder(self) -> None:
        """Raise InputError where the notes cannot be kept."""
        folder = self.output / FINISHED
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise InputError(f"{folder}: not a folder; finished cases are noted there. Remove it.")

    def find(self, name: str, content: str | None) -> dict[str, Any] | None:
        """The part of run.json of a finished case whose image had this hash and whose results are still there.

        A label map that was changed since, by hand perhaps, is kept, and the case has a warning about it.
        """
        try:
            stored = self._note(name)
            case, results, section = stored["case"], stored["results"], stored["section"]
            if content is None or stored["made_by"] != self.made_by or case["input_hash"] != content:
                return None
            if section is not None and sha256(self.section(name)) != section:
                return None
            files = {self.output / Path(result).name: written for result, written in results.items()}
            changed = [file for file, written in files.items() if sha256(file) != written]
            if not _is_whole(case, name) or any(map(_is_lost, files)) or any(map(_is_damaged, changed)):
                return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None  # never finished, or not by us
        for key in ("output", "reconstruction_output"):
            case[key] = case[key] and str(self.output / Path(case[key]).name)
        case["probability_outputs"] = [str(self.output / Path(p).name) for p in case["probability_outputs"]]
        case["warnings"] += [
            f"{file.name} was changed since it was written and is kept; the figures are of what was written. "
            "--redo computes the case again"
            for file in changed
        ]
        return dict(case)

    @contextmanager
    def writing(self, name: str, results: Sequence[str]) -> Iterator[list[str]]:
        """Around the writing of a case's results: until ``add`` it is unfinished, as before when the block fails.

        A result that was changed since it was written is moved aside, which the sentences it gives say. results: the
        names of files that may come, for a search that must not take them for images.
        """
        said = []
        record = self._record(name)
        before = record.read_bytes() if record.is_file() else None
        former, written = self._former(name)
        case = {"case": name, "output": None, "probability_outputs": list(results)}
        note = {"made_by": None, "case": case, "results": {}, "former": former | written, "section": None}
        write_text(record, json_text(note))
        try:
            for result, digest in written.items():
                file = self.output / Path(result).name
                if (
                    file.name in results
                    and not file.is_symlink()
                    and file.is_file()
                    and sha256(file) != digest
                ):
                    kept = file.with_name(f"{file.name}.before")
                    file.replace(kept)
                    said.append(
                        f"{file.name} had been changed since it was written; that one is now {kept.name}"
                    )
            with unfinished(record) if before is None else nullcontext():
                yield said
        except BaseException:
            if before is not None:
                with replacing(record) as partial:
                    partial.write_bytes(before)
            else:
                record.unlink(missing_ok=True)
                with suppress(OSError):  # other notes are in it
                    record.parent.rmdir()
            raise

    def _former(self, name: str) -> tuple[dict[str, str], dict[str, str]]:
        """Results with their hashes of unfinished runs before the last finished one, and of that one."""
        try:
            note = self._note(name)
            return (
                {str(result): str(digest) for result, digest in note.get("former", {}).items()},
                {str(result): str(digest) for result, digest in note["results"].items()},
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return {}, {}

    def add(self, case: Mapping[str, Any], results: Sequence[Path], section: str | None) -> None:
        """Note a case as finished, once its results are on the disk. section: its part of the report.

        What an earlier run left under the name goes: no other patient's files stay beside the new ones.
        """
        former, _ = self._former(case["case"])
        names = {result.name for result in results}
        for old, digest in former.items():
            file = self.output / Path(old).name
            if file.name not in names and not file.is_symlink() and file.is_file() and sha256(file) == digest:
                file.unlink()
        if section is not None:
            write_text(self.section(case["case"]), section)
            keep(self.section(case["case"]))
        for result in results:
            keep(result)
        record = {
            "made_by": self.made_by,
            "case": case,
            "results": {result.name: sha256(result) for result in results},
            "section": None if section is None else sha256(self.section(case["case"])),
        }
        write_text(self._record(case["case"]), json_text(record))

    def _note(self, name: str) -> dict[str, Any]:
        note: dict[str, Any] = json.loads(self._record(name).read_text(encoding="utf-8"))
        return note

    def section(self, name: str) -> Path:
        """The file of a case's part of the report."""
        return self.output / FINISHED / f"{name}.html"

    def _record(self, name: str) -> Path:
        return self.output / FINISHED / f"{name}.json"


def _is_lost(file: Path) -> bool:
    return file.is_symlink() or not file.stat().st_size


def _is_damaged(file: Path) -> bool:
    """Whether a result that is no longer what was written cannot be read."""
    try:
        if file.suffix == ".dcm":
            from sgan_core.imaging.dicom.seg import read_dicom_seg  # highdicom takes a while to load

            read_dicom_seg(file)
        elif "_seg." in file.name:
            read_labels(file, values=None)
        else:
            read_image(file)
    except InputError:
        return True
    return False


def _is_whole(case: Mapping[str, Any], name: str) -> bool:
    """Whether a part of run.json is of this case and has what is told of it."""
    paths = [case["output"], *case["probability_outputs"], case["reconstruction_output"] or ""]
    figures = [(label["name"], label["voxels"], label["volume_ml"]) for label in case["labels"]]
    return (
        case["case"] == name
        and case["status"] == "done"
        and all(isinstance(one, str) for one in (*paths, *case["warnings"], case["trust"]["status"]))
        and isinstance(case["warnings"], list)
        and all(isinstance(voxels, int) for _, voxels, _ in figures)
        and isinstance(case["seconds"], int | float)
        and {"reconstruction_error", "trust", "soft_dice_confidence", "cardiothoracic_ratio", "method"}
        <= case.keys()
    )
