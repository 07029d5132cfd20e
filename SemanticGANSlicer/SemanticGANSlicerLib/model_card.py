"""What a model says about itself, in a window, and whether its files are what its list of hashes says."""

import hashlib
import html
import json
import os
import re

import qt
import slicer
from slicer.i18n import tr as _

from . import models, process

_MANIFEST = "configs/manifest.json"  # SHA-256 of every other file
_README = "docs/README.md"
_PIECE = 1 << 18  # bytes hashed between two events: far below what a person notices
_LONGEST_CARD = 1 << 15  # bytes that are shown; Qt takes minutes for a megabyte of *a_*a_*a_
_MOST_BYTES = 1 << 20  # of the manifest


def readCard(path):
    """The model card that lies in a model's folder or .zip, Markdown; "" when there is none."""
    try:
        with models.openedFile(path, _README) as file:
            text = file.read(_LONGEST_CARD).decode("utf-8", "replace")
            return text + "\n\n..." if file.read(1) else text
    except (ValueError, *models.UNREADABLE):
        return ""


def harmless(text):
    """Markdown without pictures and HTML: loading them from a network share tells it who asks."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", re.sub(r"!+(?=\[)", "", text))


def checkedFiles(path):
    """Compare a model's files with their hashes, a piece between two ``yield``; returns what is wrong, sentences.

    For ``process.Steps``. The engine checks the same, and more, when it loads the model.
    """
    try:
        with models.openedFile(path, _MANIFEST) as file:
            hashes = dict(json.loads(file.read(_MOST_BYTES))["files"])
    except (ValueError, *models.UNREADABLE):
        return [_("It has no readable list of hashes ({name}).").format(name=_MANIFEST)]
    problems = []
    if models.SETTINGS not in hashes:
        problems.append(_("Its list of hashes says nothing of {name}.").format(name=models.SETTINGS))
    for name, expected in sorted(hashes.items()):
        found = hashlib.sha256()
        try:
            with models.openedFile(path, name) as file:
                piece = file.read(_PIECE)
                while piece:
                    found.update(piece)
                    yield
                    piece = file.read(_PIECE)
        except (ValueError, *models.UNREADABLE):
            problems.append(_("{name} is missing or cannot be read.").format(name=name))
            continue
        if found.hexdigest() != expected:
            problems.append(_("{name} is damaged or was changed.").format(name=name))
        yield
    return problems


def warning(problems):
    """The sentence for a model whose files are not what they should be, rich text."""
    text = _("Do not trust this model: its files are not those that were exported. {problems}").format(
        problems=" ".join(problems)
    )
    return f'<span style="color: #c0392b"><b>{html.escape(text)}</b></span>'


class ModelChecks:
    """Checks each model once as long as its manifest stays, one after the other, while the window goes on.

    onChecked(model) is called when an answer is there; ``problems(model)`` gives it, None until then.
    """

    def __init__(self, onChecked):
        self._onChecked = onChecked
        self._found, self._steps, self._model = {}, None, None

    def problems(self, model):
        return self._found.get(_identity(model))

    def check(self, model):
        """Begin; another check that is under way is given up: the person has chosen another model."""
        if self.problems(model) is not None or self._model == model:
            return
        self.close()
        self._model = model
        self._steps = process.Steps(checkedFiles(model.path), self._checked)

    def close(self):
        if self._steps is not None:
            self._steps.stop()
        self._steps = self._model = None

    def _checked(self, problems, error):
        model, self._model, self._steps = self._model, None, None
        self._found[_identity(model)] = [str(error)] if error is not None else problems
        self._onChecked(model)


def _identity(model):
    file = model.path if os.path.isfile(model.path) else os.path.join(model.path, _MANIFEST)
    try:
        return model.path, os.stat(file).st_mtime_ns
    except OSError:
        return model.path, 0


class ModelCardWindow:
    """What a model was trained on, its figures, limits and licence; its own card below, where it has one."""

    def __init__(self, model, problems):
        self.window = qt.QDialog(slicer.util.mainWindow())
        self.window.setWindowTitle(_("Model {name}").format(name=model.name))
        layout = qt.QVBoxLayout(self.window)
        self.summary = qt.QLabel(model.details() + "<br>" + model.limits())
        self.summary.setWordWrap(True)
        self.check = qt.QLabel("")
        self.check.setWordWrap(True)
        self.card = qt.QTextBrowser()
        self.card.setOpenLinks(False)
        text = readCard(model.path)
        self.card.setVisible(bool(text))
        if hasattr(self.card, "setMarkdown"):  # Qt 5.14
            self.card.setMarkdown(harmless(text))
        else:
            self.card.setPlainText(text)
        close = qt.QPushButton(_("Close"))
        close.clicked.connect(lambda *unused: self.window.accept())
        for widget in (self.summary, self.check, self.card, close):
            layout.addWidget(widget)
        self.window.setMinimumWidth(640)
        self.showCheck(problems)

    def showCheck(self, problems):
        """problems: sentences, None while the files are being compared."""
        if problems is None:
            self.check.setText(_("Comparing its files with their hashes..."))
        elif problems:
            self.check.setText(warning(problems))
        else:
            self.check.setText(_("Its files are those that were exported (SHA-256)."))

    def run(self):
        self.window.exec_()
