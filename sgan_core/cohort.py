"""Cases of patients, their labels and patient-wise splits, as written in cohort.json."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import dacite

from sgan_core.errors import InputError
from sgan_core.files import replacing
from sgan_core.terms import Source, read_sources

SPLITS = ("train", "validation", "test")
FILE_NAME = "cohort.json"
_PLAIN_NAME = re.compile(r"[\w+][\w+. -]{0,199}")
BUILT_IN = "phantom:"  # what the name of a built-in case begins with
# Corrections of ``Intensity``, each with the kinds of image that have what it corrects
CORRECTIONS = {
    "bias_correction": ("mr",),
    "equalise": ("xray",),
    "colour_constancy": ("dermoscopy", "face"),
}


@dataclass(frozen=True)
class Intensity:
    """How stored intensities become [-1, 1]: a fixed range (CT, in HU) or percentiles of each image.

    8-bit pictures of a modality with a fixed range are taken to show exactly that range: 0 is ``low`` and
    255 is ``high``. ``bias_correction``, ``equalise`` and ``colour_constancy`` change the image before
    (``sgan_core.imaging.intensity.prepare_intensities``); ``CORRECTIONS`` says for which modality each is.
    """

    low: float | None = None
    high: float | None = None
    unit: str = ""
    percentiles: tuple[float, float] | None = None
    central: float | None = None  # share of rows and of columns that the percentiles look at; None: all
    bias_correction: bool = False
    equalise: bool = False
    colour_constancy: bool = False

    @property
    def corrections(self) -> tuple[str, ...]:
        """Names of the corrections that are on."""
        return tuple(name for name in CORRECTIONS if getattr(self, name))


# Black borders, collimator edges and burnt-in markers lie in the outer part of a chest X-ray. With percentiles of
# the central 70 % of each side, the mean brightness of the lungs varies less between pictures than with those of
# the whole picture: standard deviation 0.127 against 0.173 in 175 pictures of Wingspan, 0.160 against 0.193 in 73
# of covid-chestxray, of a range of 2. 80 % did not help in Wingspan (0.213). See benchmarks/xray_brightness.py.
XRAY_CENTRAL = 0.7

# What each kind of image means to a model, unless its cohort or settings say otherwise. fill: outside a CT or MRI
# slice is air; an X-ray, a photograph of skin or of a face goes on beyond its border: black there would be learned
# as lung, mole or hair.
MODALITIES: dict[str, dict[str, Any]] = {
    "ct": {
        "image_channels": 1,
        "flip": False,
        "fill": "air",
        "body": True,
        "intensity": Intensity(low=-160.0, high=240.0, unit="HU"),
    },
    "mr": {
        "image_channels": 1,
        "flip": False,
        "fill": "air",
        "body": True,
        "intensity": Intensity(percentiles=(0.5, 99.5)),
    },
    "xray": {
        "image_channels": 1,
        "flip": False,
        "fill": "border",
        "body": False,
        "intensity": Intensity(percentiles=(0.5, 99.5), central=XRAY_CENTRAL),
    },
    "dermoscopy": {
        "image_channels": 3,
        "flip": True,
        "fill": "border",
        "body": False,
        "intensity": Intensity(low=0.0, high=255.0),
    },
    "face": {
        "image_channels": 3,
        "flip": True,
        "fill": "border",
        "body": False,
        "intensity": Intensity(low=0.0, high=255.0),
    },
}


@dataclass(frozen=True)
class Label:
    """One class of the label map. Value 0 is background and is not listed.

    ``value`` is the class (1 .. K) that models draw and that results hold; ``stored_values`` are the values
    of the cohort's label files that mean this class, when they are not just ``value``.
    """

    value: int
    name: str
    rgb: tuple[int, int, int]
    code: str = ""  # SNOMED CT, e.g. "10200004" for liver
    stored_values: tuple[int, ...] = ()

    @property
    def stored(self) -> tuple[int, ...]:
        """The values of this class in the cohort's label files."""
        return self.stored_values or (self.value,)


@dataclass(frozen=True)
class Case:
    """One slice, picture or volume of a patient.

    ``image`` and ``label`` are absolute paths (an image may be the folder of a DICOM series), or
    ``phantom:DOMAIN:SEED`` for a built-in case.
    ``label`` None and ``empty`` False: unlabelled. ``empty`` True: known to hold no label at all.
    """

    id: str
    patient: str
    image: str
    label: str | None = None
    empty: bool = False
    split: str = "train"  # "train" | "validation" | "test"
    domain: str = ""
    labelled_rank: int | None = None  # orders the labelled patients: rank < N is labelled for --labelled N

    @property
    def labelled(self) -> bool:
        """Whether the truth is known: a label file, or known to be empty."""
        return self.label is not None or self.empty


@dataclass(frozen=True)
class Cohort:
    """A named set of cases that share modality, intensity rule and labels.

    ``ignored_values`` are values of the label files that count as background. ``squash``: the images were
    released squashed to a square, so models of them see every image that way, whatever its true aspect.
    ``sources``: the public data sets that the cases are of, as far as they are known.
    """

    name: str
    modality: str  # "ct" | "xray" | "dermoscopy" | "face" | "mr"
    intensity: Intensity
    labels: tuple[Label, ...]
    cases: tuple[Case, ...]
    root: Path | None = None
    ignored_values: tuple[int, ...] = ()
    squash: bool = False
    sources: tuple[Source, ...] = ()

    def select(self, split: str) -> tuple[Case, ...]:
        """The cases of one split ("train", "validation", "test"), in the cohort's order."""
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is none of {SPLITS}")
        return tuple(case for case in self.cases if case.split == split)

    @property
    def stored_values(self) -> frozenset[int]:
        """The values that label files of this cohort may hold beside background 0."""
        return frozenset(self.ignored_values).union(*(label.stored for label in self.labels))


# --- reading, writing ---


def load_cohort(path: str | Path) -> Cohort:
    """Read a cohort.json, or the cohort.json in a prepared folder.

    Paths in the file are relative to it (or absolute); the cohort's are absolute. A file that orders no
    patient by ``labelled_rank`` gets the order of ``rank_labelled``. Images and labels are not opened
    here: see ``require_files``. Raises InputError: missing, malformed, or against the rules of ``validate``.
    """
    file = Path(path)
    if file.is_dir():
        file = file / FILE_NAME
    try:
        entry = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{file}: no such file. Give a cohort.json or a folder that `sgan-data prepare` has written."
        ) from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise InputError(f"{file}: not a text file in UTF-8, so not a cohort.json.") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{file}: not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}. "
            "Mend it there, or write it anew with `sgan-data prepare`."
        ) from None
    cohort = _parse(entry, file)
    if all(case.labelled_rank is None for case in cohort.cases):
        cohort = replace(cohort, cases=rank_labelled(cohort.cases))
    validate(cohort, source=str(file))
    return cohort


def save_cohort(cohort: Cohort, path: str | Path) -> Path:
    """Write a valid cohort as JSON, paths relative to the file. Returns the file.

    path: the file, or an existing folder, which gets a cohort.json. Nothing half-written is left behind.
    Raises InputError when the cohort breaks a rule of ``validate`` or the folder cannot be written.
    """
    file = Path(path)
    if file.is_dir():
        file = file / FILE_NAME
    validate(cohort, source=cohort.name)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as partial:
            partial.write_text(_to_json(cohort, file.parent.resolve()), encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{file}: cannot be written ({error.strerror}). Choose another output folder."
        ) from None
    return file


def require_files(cohort: Cohort) -> None:
    """Check that every image and label exists. Raises InputError naming the first that does not."""
    paths = [path for case in cohort.cases for path in (case.image, case.label) if path is not None]
    # An image may be a folder: a DICOM series.
    missing = [path for path in paths if not path.startswith(BUILT_IN) and not os.path.exists(path)]
    if missing:
        others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise InputError(
            f"cohort {cohort.name}: {missing[0]} does not exist{others}. "
            "Move the files back, or prepare the cohort again."
        )


_Record = TypeVar("_Record", Intensity, Label, Case)


def _parse(entry: Any, file: Path) -> Cohort:
    if not isinstance(entry, dict):
        raise InputError(f"{file}: a cohort is a JSON object, not a {type(entry).__name__}.")
    required = {"name": str, "modality": str, "intensity": dict, "labels": list, "cases": list}
    unknown = sorted(entry.keys() - required.keys() - {"ignored_values", "squash", "sources"})
    if unknown:
        raise InputError(f"{file}: unknown key {unknown[0]!r}; a cohort has {', '.join(required)}.")
    for key, kind in required.items():
        if not isinstance(entry.get(key), kind):
            found = "missing" if key not in entry else f"a {type(entry[key]).__name__}"
            raise InputError(f"{file}: {key!r} is {found}, a {kind.__name__} is needed.")
    ignored = entry.get("ignored_values", [])
    if not isinstance(ignored, list) or not all(isinstance(value, int) for value in ignored):
        raise InputError(f"{file}: 'ignored_values' is a list of whole numbers.")
    if not isinstance(entry.get("squash", False), bool):
        raise InputError(f"{file}: 'squash' is true or false.")
    root = file.parent.resolve()
    cases = [_record(Case, case, f"{file}: cases[{i}]") for i, case in enumerate(entry["cases"])]
    return Cohort(
        name=entry["name"],
        modality=entry["modality"],
        intensity=_record(Intensity, entry["intensity"], f"{file}: intensity"),
        labels=tuple(
            _record(Label, label, f"{file}: labels[{i}]") for i, label in enumerate(entry["labels"])
        ),
        cases=tuple(
            replace(case, image=_absolute(case.image, root), label=case.label and _absolute(case.label, root))
            for case in cases
        ),
        root=root,
        ignored_values=tuple(ignored),
        squash=entry.get("squash", False),
        sources=read_sources(entry.get("sources", []), f"{file}: sources"),
    )


def _record(kind: type[_Record], entry: Any, where: str) -> _Record:
    if not isinstance(entry, dict):
        raise InputError(f"{where}: an object is needed, not a {type(entry).__name__}.")
    try:
        return dacite.from_dict(kind, entry, dacite.Config(strict=True, cast=[tuple]))
    except (dacite.DaciteError, TypeError) as error:
        raise InputError(f"{where}: {error}.") from None


def _absolute(path: str, root: Path) -> str:
    return path if path.startswith(BUILT_IN) else os.path.normpath(root / path)


def _relative(path: str, root: Path) -> str:
    if path.startswith(BUILT_IN):
        return path
    # Symbolic links among the folders would make ".." lead elsewhere; the file itself may stay a link.
    absolute = Path(path).parent.resolve() / Path(path).name
    with suppress(ValueError):  # another drive on Windows: stays absolute
        absolute = Path(os.path.relpath(absolute, root))
    return absolute.as_posix()


def _to_json(cohort: Cohort, root: Path) -> str:
    """JSON with one case a line, so that cohorts of thousands of slices stay readable and comparable."""
    rule = asdict(cohort.intensity).items()
    intensity = {key: value for key, value in rule if value is not None and value is not False}
    labels = [asdict(label) for label in cohort.labels]
    for label in labels:
        if not label["stored_values"]:
            del label["stored_values"]
    head: dict[str, Any] = {
        "name": cohort.name,
        "modality": cohort.modality,
        "intensity": intensity,
        "labels": labels,
    }
    if cohort.ignored_values:
        head["ignored_values"] = list(cohort.ignored_values)
    if cohort.squash:
        head["squash"] = True
    if cohort.sources:
        head["sources"] = [asdict(source) for source in cohort.sources]
    cases = [
        asdict(
            replace(case, image=_relative(case.image, root), label=case.label and _relative(case.label, root))
        )
        for case in cohort.cases
    ]
    lines = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)},\n" for key, value in head.items()]
    rows = ",\n".join("  " + json.dumps(case, ensure_ascii=False) for case in cases)
    return "{\n" + "".join(lines) + f'"cases": [\n{rows}\n]\n}}\n'


# --- rules ---


def validate(cohort: Cohort, *, source: str) -> None:
    """Check the rules that hold for every cohort; files are not opened.

    Known modality; a usable intensity rule that fits it; classes 1 .. K and their stored values each meaning
    one thing; at least one class when a case is labelled; ids that are plain names, each once; no patient in
    two splits; one labelled_rank for each labelled training patient.
    source: what the message begins with, usually the file. Raises InputError.
    """
    if cohort.modality not in MODALITIES:
        raise InputError(
            f"{source}: modality {cohort.modality!r} is unknown; choose one of {', '.join(MODALITIES)}."
        )
    _check_intensity(cohort.intensity, source)
    check_corrections(cohort.intensity, cohort.modality, source=source)
    _check_labels(cohort, source)
    _check_cases(cohort.cases, source)
    _check_ranks(cohort.cases, source)


def _check_intensity(intensity: Intensity, source: str) -> None:
    if intensity.percentiles is not None:
        low, high = intensity.percentiles
        if intensity.low is not None or intensity.high is not None:
            raise InputError(f"{source}: intensity has a range and percentiles; keep one of them.")
        if not 0 <= low < high <= 100:
            raise InputError(f"{source}: intensity percentiles {low}, {high} are not 0 <= low < high <= 100.")
    elif intensity.low is None or intensity.high is None:
        raise InputError(f"{source}: intensity needs low and high, or percentiles.")
    elif not -math.inf < intensity.low < intensity.high < math.inf:
        raise InputError(f"{source}: intensity range {intensity.low}, {intensity.high} is not low < high.")
    if intensity.central is not None and intensity.percentiles is None:
        raise InputError(
            f"{source}: intensity has 'central' but no percentiles, whose part of the image it is."
        )
    if intensity.central is not None and not 0 < intensity.central <= 1:
        raise InputError(f"{source}: intensity central {intensity.central} is not in 0 < share <= 1.")


def check_corrections(intensity: Intensity, modality: str, *, source: str) -> None:
    """Refuse a correction of something that images of the modality do not have. Raises InputError."""
    for name in intensity.corrections:
        if modality not in CORRECTIONS[name]:
            kinds = " and ".join(CORRECTIONS[name])
            raise InputError(
                f"{source}: {name} is for {kinds} images, the modality is {modality}; leave it out."
            )


def _check_labels(cohort: Cohort, source: str) -> None:
    values = [label.value for label in cohort.labels]
    names = [label.name for label in cohort.labels]
    stored = [value for label in cohort.labels for value in label.stored] + list(cohort.ignored_values)
    if (repeated := _repeated(values)) is not None:
        raise InputError(f"{source}: two labels have the value {repeated}; give each its own.")
    if not values and any(case.labelled for case in cohort.cases):
        raise InputError(f"{source}: no label, but labelled cases; name the classes that they show.")
    if sorted(values) != list(range(1, len(values) + 1)):
        raise InputError(
            f"{source}: label values are {sorted(values)}, 1, 2, ... without gaps are needed; "
            "what the files hold instead goes into stored_values."
        )
    if (repeated := _repeated(names)) is not None:
        raise InputError(f"{source}: two labels are named {repeated!r}; give each its own name.")
    if (repeated := _repeated(stored)) is not None:
        raise InputError(f"{source}: the stored value {repeated} means two labels; keep it in one of them.")
    if wrong := [value for value in stored if not 0 < value < 256]:
        raise InputError(
            f"{source}: stored value {wrong[0]} is not in 1 .. 255 (0 is background in every file)."
        )
    if wrong_rgb := [label for label in cohort.labels if not all(0 <= c <= 255 for c in label.rgb)]:
        raise InputError(f"{source}: colour {wrong_rgb[0].rgb} of {wrong_rgb[0].name} is not in 0 .. 255.")


def _check_cases(cases: Collection[Case], source: str) -> None:
    if (repeated := _repeated(case.id for case in cases)) is not None:
        raise InputError(f"{source}: two cases have the id {repeated!r}; give each its own.")
    if not cases:
        raise InputError(f"{source}: no case; a cohort needs at least one image.")
    if any(case.empty for case in cases) and all(case.label is None for case in cases):
        raise InputError(
            f"{source}: no labelled case, only empty ones. At least one needs a label file; with `sgan-data "
            "prepare custom`, check --labels."
        )
    split_of: dict[str, str] = {}
    for case in cases:
        # Results are named after ids: an id must not lead out of the folder they are written to.
        if not _PLAIN_NAME.fullmatch(case.id):
            raise InputError(
                f"{source}: the id {case.id!r} is not a plain name; use letters, digits, '-', '_', '.', '+' "
                "and spaces, beginning with none of '.', '-' and ' '."
            )
        if case.split not in SPLITS:
            raise InputError(
                f"{source}: case {case.id} is in the split {case.split!r}; splits are {', '.join(SPLITS)}."
            )
        if split_of.setdefault(case.patient, case.split) != case.split:
            raise InputError(
                f"{source}: patient {case.patient} is in {split_of[case.patient]} and in {case.split} "
                f"(case {case.id}). A patient belongs to one split: move all of the patient's cases to one."
            )
        if case.empty and case.label is not None:
            raise InputError(f"{source}: case {case.id} is empty and has a label file; keep one of them.")


def _check_ranks(cases: Collection[Case], source: str) -> None:
    ranks: dict[str, set[int | None]] = defaultdict(set)
    for case in cases:
        ranks[case.patient].add(case.labelled_rank)
    mixed = [patient for patient, found in ranks.items() if len(found) > 1]
    if mixed:
        raise InputError(
            f"{source}: the cases of patient {mixed[0]} have different labelled_rank; one a patient."
        )
    ranked = {patient: next(iter(found)) for patient, found in ranks.items() if found != {None}}
    if (repeated := _repeated(ranked.values())) is not None:
        raise InputError(f"{source}: two patients have the labelled_rank {repeated}; give each its own.")
    trained = _labelled_patients(case for case in cases if case.split == "train")
    if wrong := sorted(ranked.keys() ^ trained):
        raise InputError(
            f"{source}: patient {wrong[0]} {'has' if wrong[0] in ranked else 'lacks'} a labelled_rank. "
            "Labelled patients of the split train have one, others do not; "
            "leave all out to have them ordered."
        )


def _repeated(values: Iterable[Hashable]) -> Hashable | None:
    seen: set[Hashable] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


# --- splits ---


def assign_splits(
    cases: Iterable[Case], *, validation: float | Collection[str] = 0.2, seed: int = 0
) -> tuple[Case, ...]:
    """Divide patients between train and validation; cases of the split test stay there.

    validation: names of patients, or the share (0 .. 1) of the labelled patients, drawn by the seed; a
    share above 0 draws at least one and leaves at least one. Raises InputError for a name that is unknown
    or in the test split.
    """
    cases = tuple(cases)
    free = [case for case in cases if case.split != "test"]
    if isinstance(validation, float | int):
        labelled = _shuffled(_labelled_patients(free), f"validation:{seed}")
        count = max(1, round(validation * len(labelled))) if validation > 0 else 0
        chosen = set(labelled[: min(count, len(labelled) - 1)])
    else:
        chosen = set(validation)
        known = {case.patient for case in free}
        if unknown := sorted(chosen - known):
            raise InputError(
                f"validation patient {unknown[0]!r} is not among the {len(known)} patients "
                f"({_some(known)}); names are what the patient expression finds."
            )
    return tuple(
        case
        if case.split == "test"
        else replace(case, split="validation" if case.patient in chosen else "train")
        for case in cases
    )


def rank_labelled(cases: Iterable[Case], *, seed: int = 0) -> tuple[Case, ...]:
    """Order the labelled training patients once, by the seed: sets of the first N are nested.

    The order of two patients does not depend on the other patients, so a cohort may grow.
    """
    cases = tuple(cases)
    order = _shuffled(_labelled_patients(c for c in cases if c.split == "train"), f"labelled:{seed}")
    ranks = {patient: rank for rank, patient in enumerate(order)}
    return tuple(replace(case, labelled_rank=ranks.get(case.patient)) for case in cases)


def labelled_patients(cohort: Cohort, count: int | None = None) -> set[str]:
    """The training patients whose labels may be used for ``--labelled count``; None: all that are labelled.

    The first 8 are among the first 20. Raises InputError when there are fewer than asked, or none.
    """
    ranks = {c.patient: c.labelled_rank for c in cohort.cases if c.labelled_rank is not None}
    if not ranks:
        raise InputError(
            f"cohort {cohort.name}: no labelled case in the split train; training needs at least one."
        )
    if count is None:
        return set(ranks)
    if count < 1:
        raise InputError(f"{count} labelled patients asked for; at least 1 is needed.")
    if count > len(ranks):
        raise InputError(
            f"cohort {cohort.name}: {count} labelled patients asked for, the split train has {len(ranks)}. "
            f"Use --labelled {len(ranks)} or less."
        )
    return set(sorted(ranks, key=lambda patient: ranks[patient])[:count])


def _labelled_patients(cases: Iterable[Case]) -> set[str]:
    return {case.patient for case in cases if case.labelled}


def _shuffled(patients: Iterable[str], salt: str) -> list[str]:
    """Patients in an order that only their own names and the salt decide, on any machine and version."""
    return sorted(patients, key=lambda patient: hashlib.sha256(f"{salt}:{patient}".encode()).digest())


def _some(names: Iterable[str], limit: int = 8) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:limit]) + (", ..." if len(ordered) > limit else "")
