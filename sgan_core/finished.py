"""Which cases of a batch are finished: what lets it be stopped, by a power cut too, and started again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sgan_core.evaluation.tables import json_text, write_text
from sgan_core.files import keep, sha256
from sgan_core.imaging.dicom import Series
from sgan_core.imaging.readers import files_of
from sgan_core.inputs import FINISHED, Input


def input_hash(one: Input, series: Series | None) -> str | None:
    """SHA-256 of an image's content: of its file, or of its files and what the search said of a DICOM series.

    None for a file whose voxels lie in others that its header does not name plainly. Raises OSError.
    """
    if series is None:
        files = files_of(one.path)
        if files is not None and len(files) == 1:
            return sha256(files[0])
        said = ""
    else:
        files = series.files
        said = repr((series.frames, series.warnings, series.doubts))
    if files is None:
        return None
    return hashlib.sha256(
        "\n".join([said, *map(sha256, files)]).encode("utf-8", "backslashreplace")
    ).hexdigest()


class Finished:
    """The finished cases of an output folder, a file each in its folder ``.finished``.

    made_by: what decides what comes of an image (version, model, options), plain JSON. Only a case that was made by
    the same is known here.
    """

    def __init__(self, output: Path, made_by: Mapping[str, Any]) -> None:
        self.output = output
        self.made_by = json.loads(json_text(made_by))

    def find(self, name: str, content: str | None) -> dict[str, Any] | None:
        """The part of run.json of a finished case whose image had this hash and whose results are still there.

        A result that was changed since, by hand perhaps, is kept, and the case has a warning about it.
        """
        try:
            stored = json.loads(self._record(name).read_text(encoding="utf-8"))
            case, results = stored["case"], stored["results"]
            if content is None or stored["made_by"] != self.made_by or case["input_hash"] != content:
                return None
            if stored["section"] and not self.section(name).is_file():
                return None
            changed = []
            for result, written in results.items():
                file = self.output / Path(result).name
                if not file.stat().st_size:
                    return None
                if sha256(file) != written:
                    changed.append(file.name)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None  # never finished, or not by us
        for key in ("output", "reconstruction_output"):
            case[key] = case[key] and str(self.output / Path(case[key]).name)
        case["probability_outputs"] = [str(self.output / Path(p).name) for p in case["probability_outputs"]]
        case["warnings"] += [
            f"{file} was changed since it was written and is kept; the figures are of what was written. "
            "--redo computes the case again"
            for file in changed
        ]
        return dict(case)

    def forget(self, name: str) -> None:
        """To be called before the first result of a case is replaced: until it is finished again, it is not."""
        self._record(name).unlink(missing_ok=True)

    def add(self, case: Mapping[str, Any], results: Sequence[Path], section: str | None) -> None:
        """Note a case as finished, once its results are on the disk. section: its part of the report."""
        if section is not None:
            write_text(self.section(case["case"]), section)
        for result in results:
            keep(result)
        record = {
            "made_by": self.made_by,
            "case": case,
            "results": {result.name: sha256(result) for result in results},
            "section": section is not None,
        }
        write_text(self._record(case["case"]), json_text(record))

    def section(self, name: str) -> Path:
        """The file of a case's part of the report."""
        return self.output / FINISHED / f"{name}.html"

    def _record(self, name: str) -> Path:
        return self.output / FINISHED / f"{name}.json"
