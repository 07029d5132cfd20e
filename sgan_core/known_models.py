"""Which models are there, and what a model's settings say about it: without loading any weights."""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sgan_core import __version__
from sgan_core.config import TrainConfig
from sgan_core.errors import InputError
from sgan_core.files import sha256
from sgan_core.terms import one_line, terms_of

log = logging.getLogger(__name__)

SCHEMA = 1  # of semanticgan.json and manifest.json
MANIFEST = "configs/manifest.json"  # SHA-256 of every other file; its own is the identity of the bundle
SETTINGS = "configs/semanticgan.json"  # config and facts: what our own commands read

MODELS = Path(__file__).parent / "models"  # the models that the package brings along
VARIABLE = "SGAN_MODELS"  # the environment's name for the user's own folder of models
AGAIN = "Copy, download or export the model again."
_MOST_BYTES = 16 << 20  # of a JSON file of a model
_ZIP_BYTES = 4 << 30  # unpacked; the official model takes 1 GiB in single precision
_ZIP_MEMBERS = 1000


# --- where models are --------------------------------------------------------------------------------


@dataclass(frozen=True)
class KnownModel:
    """A folder that may hold a model, in one of the known folders."""

    name: str  # of the folder: what ``--model`` takes
    folder: Path
    place: str  # "bundled" | "checkout" | "user"


def checkout() -> Path | None:
    """The repository that the package runs from; None when it was installed as a copy of its own."""
    root = Path(__file__).resolve().parents[1]
    return root if (root / "pyproject.toml").is_file() and (root / "setup.py").is_file() else None


def places() -> list[tuple[str, Path]]:
    """The folders that are looked through for a model's name, in this order, the first one wins.

    "bundled": what the package brings along; "checkout": ``models/`` of the repository, where the package runs from
    one (its terms may keep a model out of the package); "user": the folder that ``SGAN_MODELS`` names.
    """
    found = [("bundled", MODELS)]
    if (root := checkout()) is not None:
        found.append(("checkout", root / "models"))
    own = os.environ.get(VARIABLE)
    if own and Path(own).resolve() not in (folder.resolve() for _, folder in found):
        found.append(("user", Path(own)))
    return found


def known_models() -> dict[str, KnownModel]:
    """The models of the known folders by name. Nothing is opened: a damaged one is found out when it is read."""
    found: dict[str, KnownModel] = {}
    for model in _candidates():
        if (model.folder / SETTINGS).is_file():
            found.setdefault(model.name, model)
    return found


def survey() -> tuple[list[dict[str, Any]], list[str]]:
    """What the known models say about themselves, see ``summary``, and a line about each that cannot be used."""
    known = known_models()
    summaries, problems = [], []
    if (own := os.environ.get(VARIABLE)) and not Path(own).is_dir():
        problems.append(
            f"{one_line(own)}: no such folder; {VARIABLE} names it. Make it, or unset {VARIABLE}."
        )
    for model in _candidates():
        winner = known.get(model.name, model)
        try:
            if winner == model:
                summaries.append(summary(model))
            else:
                problems.append(
                    f"{model.folder}: hidden by {winner.folder} of the same name. Rename it, or give its path."
                )
        except InputError as error:
            problems.append(error.message)
    return summaries, [one_line(problem, 600) for problem in problems]


def _candidates() -> Iterator[KnownModel]:
    for place, folder in places():
        try:
            names = sorted(path.name for path in folder.iterdir() if path.is_dir())
        except OSError:  # not there, or not ours to read
            continue
        yield from (KnownModel(name, folder / name, place) for name in names if not name.startswith("."))


def summary(model: KnownModel) -> dict[str, Any]:
    """What a model segments, learned from, reached and may be used for, as plain data.

    ``figures`` are those of its own validation patients. Reads its settings only. Raises InputError.
    """
    if not (model.folder / SETTINGS).is_file():
        raise InputError(f"{model.folder}: not a model, {SETTINGS} is missing. Take it out of the folder.")
    settings = read_settings(model.folder)
    config: TrainConfig = settings["config"]
    facts = settings["facts"]
    terms = terms_of(facts)
    numbers = {"labelled_patients", "slices"}
    figures = {"student_dice", "student_shifted_dice", "validation_dice"}
    return {
        "name": one_line(model.name),
        "place": model.place,
        "folder": str(model.folder),
        "modality": one_line(config.modality),
        "size_px": config.student_size,  # of masks, as ``describe`` says it
        "labels": [one_line(label.name) for label in config.labels],
        "student_alone": settings["student_alone"],
        "trained_on": {"cohort": one_line(facts.get("cohort"))} | _numbers(facts, numbers),
        "figures": _numbers(facts, figures),
        "licence": terms.licence,
        "restriction": terms.restriction,
        "sources": [asdict(source) for source in terms.sources],
    }


def _numbers(facts: dict[str, Any], names: set[str]) -> dict[str, int | float]:
    """Those of the facts that are numbers as they should be."""
    kept = {name: facts.get(name) for name in sorted(names)}
    return {
        name: value
        for name, value in kept.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12
    }


# --- reading -------------------------------------------------------------------------------------------


def read_settings(folder: Path) -> dict[str, Any]:
    """Name, config (a TrainConfig), facts and student_alone of a model's folder. Raises InputError."""
    file = folder / SETTINGS
    table = read_json(file)
    name, config, facts = (table.get(key) for key in ("name", "config", "facts"))
    if not (isinstance(name, str) and isinstance(config, dict) and isinstance(facts, dict)):
        raise InputError(f"{file}: name, config or facts are missing. {AGAIN}")
    try:
        parsed = TrainConfig.from_dict(config)
    except InputError as error:
        raise InputError(f"{file}: {error}. The model may be of another version of semanticgan.") from error
    alone = table.get("student_alone") is True
    return {"name": name, "config": parsed, "facts": facts, "student_alone": alone}


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object of our schema. Raises InputError."""
    try:
        with file.open("rb") as stream:
            content = stream.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES >> 20} MiB")
        table = json.loads(content)
    except FileNotFoundError:
        raise InputError(f"{file}: missing. {AGAIN}") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}). {AGAIN}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: damaged, not JSON ({error}). {AGAIN}") from None
    schema = table.get("schema") if isinstance(table, dict) else None
    if schema != SCHEMA:
        raise InputError(
            f"{file}: schema version {schema}, this version of semanticgan ({__version__}) reads {SCHEMA}. "
            "Update semanticgan, or choose another model."
        )
    return dict(table)


# --- finding ---------------------------------------------------------------------------------------


def find_bundle(reference: str | Path) -> Path:
    """The folder of a model: a folder, a .zip (unpacked, until the program ends) or the name of a known model.

    A model's folder in the working directory comes before a known model of its name, and a warning says so.
    Raises InputError when there is no such model, listing those that there are, or the .zip is not safe.
    """
    path, named = Path(reference), known_models().get(str(reference))
    if path.is_dir() and not (named and not (path / SETTINGS).is_file()):
        if named and not path.samefile(named.folder):
            log.warning(
                "%s: the folder of that name here is taken, not the known model; for that one give %s",
                one_line(named.name),
                named.folder,
            )
        return _bundle_folder(path)
    if path.is_file():
        if not zipfile.is_zipfile(path):
            raise InputError(f"{path}: neither a model folder nor a .zip of one.")
        return _unpacked(path)
    if named:
        return named.folder
    names = ", ".join(map(one_line, known_models())) or "none"
    raise InputError(
        f"{reference}: no such model. Give a folder, a .zip, or a model that sgan-bundle list shows ({names})."
    )


def _bundle_folder(folder: Path) -> Path:
    if (folder / SETTINGS).is_file():
        return folder
    hint = f" Did you mean {folder / 'bundle'}?" if (folder / "bundle" / SETTINGS).is_file() else ""
    raise InputError(f"{folder}: not a model, {SETTINGS} is missing.{hint}")


_unpacked_by_hash: dict[str, Path] = {}


def _unpacked(path: Path) -> Path:
    content = sha256(path)
    if content not in _unpacked_by_hash:
        # Private and new: a known place could have been filled by another user of the machine.
        place = Path(tempfile.mkdtemp(prefix="sgan-model-"))
        atexit.register(shutil.rmtree, place, ignore_errors=True)
        try:
            with zipfile.ZipFile(path) as archive:
                for member in _checked_members(archive, path):
                    _unpack(archive, member, place)
        except InputError:
            raise
        except OSError as error:
            where = f"{path}: cannot be unpacked to {place.parent}"
            raise InputError(f"{where} ({error.strerror}). Free some space.") from error
        except Exception as error:  # each compression method has errors of its own
            raise InputError(f"{path}: damaged ({error}). Copy or download it again.") from error
        _unpacked_by_hash[content] = _bundle_root(place, path)
    return _unpacked_by_hash[content]


def _checked_members(archive: zipfile.ZipFile, path: Path) -> Iterator[zipfile.ZipInfo]:
    """The files of an archive, once it is known that all of them may be unpacked."""
    members = archive.infolist()
    for member in members:
        name = member.orig_filename  # as in the file: ZipInfo already mends some names
        if not inside(name.rstrip("/")):
            raise InputError(f"{path}: {name!r} in it leads out of the model. Do not use this file.")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise InputError(f"{path}: {name!r} in it is a link; a model holds plain files only.")
    if len({member.filename.casefold() for member in members}) < len(members):
        raise InputError(f"{path}: two files in it have the same name. Do not use this file.")
    size = sum(member.file_size for member in members)  # reading stops there, whatever the data would become
    if len(members) > _ZIP_MEMBERS or size > _ZIP_BYTES:
        raise InputError(f"{path}: {len(members)} files of {size / 2**20:.0f} MiB; too big for a model.")
    return (member for member in members if not member.is_dir())


def inside(name: str) -> bool:
    """Whether a path of an archive or manifest stays inside its folder on every system."""
    parts = PurePosixPath(name).parts
    return bool(parts) and ".." not in parts and not re.search(r'^/|[\\:*?"<>|\x00-\x1f]', name)


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, place: Path) -> None:
    target = place / member.filename
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, target.open("xb") as copy:
        shutil.copyfileobj(source, copy)


def _bundle_root(place: Path, path: Path) -> Path:
    """The archive holds the bundle itself, or its folder."""
    roots = [file.parent.parent for pattern in (SETTINGS, f"*/{SETTINGS}") for file in place.glob(pattern)]
    if not roots:
        raise InputError(f"{path}: not a model, {SETTINGS} is missing in it.")
    return roots[0]
