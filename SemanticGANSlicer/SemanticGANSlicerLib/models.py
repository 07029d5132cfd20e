"""The models to choose from: those of the engine, and folders and .zip files that the user opened."""

import html
import importlib.util
import json
import lzma
import os
import zipfile
import zlib
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import qt
from slicer.i18n import tr as _

SETTINGS = "configs/semanticgan.json"  # inside a model
_MOST_BYTES = 16 << 20  # of that file
# What a damaged or hostile .zip and its JSON raise, beside ValueError
UNREADABLE = (
    OSError,
    EOFError,
    AttributeError,
    KeyError,
    TypeError,
    OverflowError,  # of 1e999 as a number
    RuntimeError,  # it is encrypted, compressed in an unknown way, or nested too deeply
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)
_REMEMBERED = "SemanticGAN/Models"  # key of the application's settings
_LONGEST = 300  # letters of a text about terms of use that are shown
_MODALITIES = {"ct": "CT", "mr": "MR", "xray": "X-ray", "dermoscopy": "dermoscopy", "face": "faces"}


def modalityName(modality):
    """A modality in words; one that no model names stays as it is, such as PT of DICOM."""
    return _MODALITIES.get(modality, modality)


def firstOf(models):
    """The model that is chosen until the user chooses: of CT, as most volumes are, where there is one."""
    return next((model for model in models if model.modality == "ct"), models[0])


@dataclass(frozen=True)
class Label:
    """A class that a model draws."""

    value: int
    name: str
    rgb: tuple


@dataclass(frozen=True)
class Model:
    """What the panel says about a model. reference: what the engine is given as --model.

    studentAlone: it has no generator, so it cannot reconstruct an image nor judge its mask. path: its folder or .zip.
    """

    reference: str
    name: str
    modality: str
    labels: tuple
    facts: dict
    studentAlone: bool = False
    path: str = ""

    def details(self):
        """What it was trained on, its labels with colours and its licence, as rich text."""
        training = [
            modalityName(self.modality),
            _("data set {name}").format(name=self._fact("cohort")),
        ]
        if "labelled_patients" in self.facts:
            training.append(_("{n} labelled patients").format(n=self._fact("labelled_patients")))
        lines = [_("Trained on: {what}").format(what=html.escape(", ".join(training)))]
        if self.restriction():
            lines.insert(
                0, "<b>{}</b>".format(_("Terms of use: {text}").format(text=html.escape(self.restriction())))
            )
        if self.studentAlone:
            lines.append(
                _("A student alone: it segments, but cannot reconstruct nor judge, so review every result.")
            )
        figure = self.facts.get("student_dice", self.facts.get("validation_dice"))
        if isinstance(figure, float):
            lines.append(_("DICE on its own validation patients: {dice}").format(dice=f"{figure:.2f}"))
        swatch = '<span style="color: rgb({}, {}, {})">&#9632;</span> {}'
        labels = (swatch.format(*label.rgb, html.escape(label.name)) for label in self.labels)
        lines.append(_("Labels: {labels}").format(labels="&nbsp; ".join(labels)))
        lines.append(
            _("Licence of the weights: {licence}").format(licence=html.escape(self._fact("licence")))
        )
        return "<br>".join(lines)

    def restriction(self):
        """What its terms forbid or ask for, on one line; "" when nothing."""
        use = self.facts.get("use")
        text = use.get("restriction") if isinstance(use, dict) else None
        return _oneLine(text) if isinstance(text, str) else ""

    def limits(self):
        """What it does not know, rich text."""
        return _(
            "It knows the anatomy, the kind of image and the scanners that it was trained on. On other images it "
            "draws a mask all the same, which may be wrong. Research use only, not a medical device."
        )

    def _fact(self, name):
        return _oneLine(str(self.facts.get(name, _("not stated"))))


def _oneLine(text):
    """A text without what steers a display, cut: a panel that draws a book stands still."""
    return " ".join("".join(one if one.isprintable() else " " for one in text[:_LONGEST]).split())


def knownModels():
    """The models that have a name: those that the engine brings along and finds; none while it is not installed.

    The same folders in the same order as ``sgan_core.known_models``, which is not imported here: Python would keep the
    engine of this moment, whatever is installed later.
    """
    package = importlib.util.find_spec("sgan_core")  # looks for it, without importing
    if package is None or not package.submodule_search_locations:
        return []
    engine = list(package.submodule_search_locations)[0]
    folders, root = [os.path.join(engine, "models")], os.path.dirname(os.path.realpath(engine))
    if all(os.path.isfile(os.path.join(root, name)) for name in ("pyproject.toml", "setup.py")):
        folders.append(os.path.join(root, "models"))
    folders.append(os.environ.get("SGAN_MODELS", ""))
    found = {}
    for folder in folders:
        try:
            names = sorted(os.listdir(folder))
        except OSError:  # not there, or not ours to read
            continue
        for name in names:
            path = os.path.join(folder, name)
            if (
                not name.startswith(".")
                and name not in found
                and os.path.isfile(os.path.join(path, SETTINGS))
            ):
                found[name] = path
    models = []
    for name, path in found.items():
        with suppress(ValueError):  # damaged; sgan-bundle list says how
            models.append(readModel(path, reference=name))
    return models


def readModel(path, reference=None):
    """What a model's folder or .zip says about itself; the engine checks the rest when it loads it.

    Raises ValueError saying what is wrong and what to do.
    """
    try:
        settings = json.loads(_readSettings(path))
        labels = tuple(
            Label(int(label["value"]), str(label["name"]), tuple(int(channel) for channel in label["rgb"]))
            for label in settings["config"]["labels"]
        )
        name, modality, facts = (
            str(settings["name"]),
            str(settings["config"]["modality"]),
            dict(settings["facts"]),
        )
    except (ValueError, *UNREADABLE) as error:
        raise ValueError(
            _(
                '{path} is not a model of SemanticGAN ({reason}). Choose the folder "bundle" that '
                "training wrote, or a .zip of it."
            ).format(path=path, reason=str(error) or type(error).__name__)
        ) from error
    alone = settings.get("student_alone") is True
    return Model(reference or path, name, modality, labels, facts, alone, path)


def _readSettings(path):
    with openedFile(path, SETTINGS) as file:
        return file.read(_MOST_BYTES)


@contextmanager
def openedFile(path, name):
    """A file inside a model's folder or .zip, to read bytes from. Raises ValueError or what ``UNREADABLE`` holds."""
    if name.startswith("/") or ".." in name.split("/") or "\\" in name or ":" in name:
        raise ValueError(_("{name} leads out of the model").format(name=name))
    if os.path.isdir(path):
        with open(os.path.join(path, name), "rb") as file:
            yield file
        return
    with zipfile.ZipFile(path) as archive:
        depth = name.count("/") + 1  # the archive holds the model itself, or its folder
        found = [
            one
            for one in archive.namelist()
            if one == name or one.count("/") == depth and one.endswith("/" + name)
        ]
        if not found:
            raise ValueError(_("{name} is missing in it").format(name=name))
        with archive.open(found[0]) as file:
            yield file


def rememberedModels(settings):
    """The models that were opened earlier and are still there. settings: a QSettings."""
    models = []
    for path in _paths(settings):
        try:
            models.append(readModel(path))
        except ValueError:
            continue  # moved or deleted since; it comes back with its file
    return models


def rememberModel(settings, path):
    """Put a model's path at the head of the list that is kept between sessions."""
    paths = [path] + [known for known in _paths(settings) if known != path]
    settings.setValue(_REMEMBERED, json.dumps(paths))


def forgetModel(settings, path):
    """Take a model off that list; its files stay."""
    settings.setValue(_REMEMBERED, json.dumps([known for known in _paths(settings) if known != path]))


def _paths(settings):
    try:
        paths = json.loads(settings.value(_REMEMBERED, "[]"))
    except (TypeError, ValueError):
        return []
    return [path for path in paths if isinstance(path, str)] if isinstance(paths, list) else []


def openModelFolder(parent=None):
    """Ask for a model's folder; empty when the user leaves."""
    return qt.QFileDialog.getExistingDirectory(parent, _("Open the folder of a model"))


def openModelArchive(parent=None):
    """Ask for a model's .zip; empty when the user leaves."""
    found = qt.QFileDialog.getOpenFileName(parent, _("Open a model"), "", _("Models (*.zip)"))
    return found[0] if isinstance(found, tuple) else found  # Slicer's Qt gives the path alone
