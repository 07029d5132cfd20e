"""Stand-ins for slicer.app and for the dialogs of slicer.util: nothing opens, everything is recorded."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import slicer
from PySide6 import QtCore, QtGui, QtWidgets

from .files import IOManager


class Message(NamedTuple):
    """One dialog that Slicer would have shown."""

    kind: str  # error, warning, info, confirmOkCancel, confirmYesNo, confirmRetryClose, message, delay
    text: str
    detailedText: str | None


class SignalHub:
    """``connect("signal(args)", f)`` of an object that only a test makes fire."""

    def __init__(self) -> None:
        self.connections: list[tuple[str, Callable[..., Any]]] = []

    def connect(self, signal: str, callback: Callable[..., Any]) -> bool:
        """Call back when the signal fires."""
        self.connections.append((signal, callback))
        return True

    def disconnect(self, signal: str, callback: Callable[..., Any]) -> bool:
        """End a connection."""
        if (signal, callback) not in self.connections:
            return False
        self.connections.remove((signal, callback))
        return True

    def fire(self, signal: str, *values: Any) -> None:
        """Call all who wait for the signal."""
        for _, callback in [link for link in self.connections if link[0] == signal]:
            callback(*values)


class Application(SignalHub):
    """What modules use of qSlicerApplication, with what tests need to look at and to set."""

    applicationName = mainApplicationName = mainApplicationDisplayName = "Slicer"
    applicationVersion = "5.13.0"
    majorVersion, minorVersion = 5, 13
    revision = "standin"
    platform = "linux-amd64"
    documentationBaseUrl = "https://slicer.readthedocs.io/en/latest/"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.slicerHome, self.temporaryPath, self.cachePath = (
            self._folder(folder, name) for name in ("home", "temporary", "cache")
        )
        self.slicerUserSettingsFilePath = str(folder / "settings" / "standin" / "Slicer.ini")
        QtCore.QCoreApplication.setOrganizationName("standin")
        QtCore.QCoreApplication.setApplicationName("Slicer")
        ini = QtCore.QSettings.Format.IniFormat
        QtCore.QSettings.setDefaultFormat(ini)  # so that qt.QSettings() are the settings of Slicer
        QtCore.QSettings.setPath(ini, QtCore.QSettings.Scope.UserScope, str(folder / "settings"))
        self._settings = QtCore.QSettings()
        self._modules = SignalHub()
        self._io = IOManager()
        self._options = SimpleNamespace(testingEnabled=False)
        self.reset()

    @staticmethod
    def _folder(folder: Path, name: str) -> str:
        (folder / name).mkdir(parents=True, exist_ok=True)
        return str(folder / name)

    def reset(self) -> None:
        """Forget settings, recorded dialogs, answers, translations and connections."""
        self.messages: list[Message] = []
        self.answers: list[bool] = []  # to the next questions, first one first
        self.default_answer = True  # when there are no answers left
        self.selected_modules: list[str] = []
        self.uncaught: list[BaseException] = []  # errors of slots and observers, which Qt and VTK only print
        self.translations: dict[str, str] = {}  # English text -> what translate() returns
        self.connections.clear()
        self._options.testingEnabled = False
        self._settings.clear()
        self._settings.sync()
        while QtWidgets.QApplication.overrideCursor() is not None:
            QtWidgets.QApplication.restoreOverrideCursor()

    # of qSlicerApplication

    def userSettings(self) -> QtCore.QSettings:
        """Settings in an .ini file of a temporary folder."""
        return self._settings

    settings = revisionUserSettings = userSettings

    def commandOptions(self) -> Any:
        """Only ``testingEnabled``, which a test may set."""
        return self._options

    def testingEnabled(self) -> bool:
        """Whether Slicer was started with --testing."""
        return self._options.testingEnabled

    def mrmlScene(self) -> Any:
        """The scene."""
        return slicer.mrmlScene

    def applicationLogic(self) -> Any:
        """The real vtkSlicerApplicationLogic of the scene."""
        return slicer.modules.application_logic

    def moduleLogic(self, name: str) -> Any:
        """A real module logic."""
        return getattr(slicer.modules, name.lower()).logic()

    def moduleManager(self) -> SignalHub:
        """Knows only connections."""
        return self._modules

    def coreIOManager(self) -> IOManager:
        """Reads and writes volumes and segmentations."""
        return self._io

    ioManager = coreIOManager

    def layoutManager(self) -> None:
        """There are no views."""

    def processEvents(self, *_flags: Any) -> None:
        """Let Qt work."""
        QtWidgets.QApplication.processEvents()

    def setOverrideCursor(self, cursor: Any) -> None:
        """Look at it with QApplication.overrideCursor()."""
        QtWidgets.QApplication.setOverrideCursor(QtGui.QCursor(cursor))

    def restoreOverrideCursor(self) -> None:
        """Undo one setOverrideCursor."""
        QtWidgets.QApplication.restoreOverrideCursor()

    def pauseRender(self) -> None:
        """There are no views."""

    def resumeRender(self) -> None:
        """There are no views."""

    def clipboard(self) -> QtGui.QClipboard:
        """Of Qt."""
        return QtWidgets.QApplication.clipboard()

    def translate(self, _context: str, text: str) -> str:
        """Of ``translations``, else the text itself."""
        return self.translations.get(text, text)

    def moduleDocumentationUrl(self, name: str) -> str:
        """As in Slicer."""
        return f"{self.documentationBaseUrl}user_guide/modules/{name.lower()}.html"

    def startupEnvironment(self) -> dict[str, str]:
        """The environment from before Slicer changed it."""
        return dict(os.environ)

    # for tests

    def startup(self) -> None:
        """What Slicer does when its window is there."""
        self.fire("startupCompleted()")

    def record(self, kind: str, text: str, detailed_text: str | None = None) -> None:
        """Note a dialog."""
        self.messages.append(Message(kind, text, detailed_text))

    def answer(self) -> bool:
        """The next answer of the person."""
        return self.answers.pop(0) if self.answers else self.default_answer


def install() -> None:
    """Set slicer.app and replace the dialogs of slicer.util."""
    folder = tempfile.mkdtemp(prefix="slicer-standin-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    slicer.app = Application(Path(folder))
    _keep_uncaught_errors()
    util = slicer.util
    for kind, level in (("error", logging.ERROR), ("warning", logging.WARNING), ("info", logging.INFO)):
        setattr(util, f"{kind}Display", _display(kind, level))
    for kind in ("confirmOkCancel", "confirmYesNo", "confirmRetryClose"):
        setattr(util, f"{kind}Display", _question(kind))
    util.messageBox = _message_box
    util.delayDisplay = _delay_display
    util.mainWindow = lambda verbose=True: None
    util.selectModule = _select_module


def _display(kind: str, level: int) -> Callable[..., None]:
    def display(
        text: str, windowTitle: Any = None, parent: Any = None, standardButtons: Any = None, **kw: Any
    ) -> None:
        logging.log(level, text)
        slicer.app.record(kind, text, kw.get("detailedText"))

    return display


def _question(kind: str) -> Callable[..., bool]:
    def ask(text: str, windowTitle: Any = None, parent: Any = None, **keywords: Any) -> bool:
        slicer.app.record(kind, text, keywords.get("detailedText"))
        if slicer.app.testingEnabled():
            return kind != "confirmRetryClose"  # Slicer asks nobody then
        return slicer.app.answer()

    return ask


def _message_box(text: str, parent: Any = None, **keywords: Any) -> QtWidgets.QMessageBox.StandardButton:
    slicer.app.record("message", text, keywords.get("detailedText"))
    return QtWidgets.QMessageBox.StandardButton.Ok


def _delay_display(message: str, autoCloseMsec: int = 1000, parent: Any = None, **_keywords: Any) -> None:
    slicer.app.record("delay", message)
    slicer.app.processEvents()


def _select_module(module: Any) -> None:
    slicer.app.selected_modules.append(module if isinstance(module, str) else module.name)


def _keep_uncaught_errors() -> None:
    previous = sys.excepthook

    def keep(kind: Any, error: BaseException, traceback: Any) -> None:
        slicer.app.uncaught.append(error)
        previous(kind, error, traceback)

    sys.excepthook = keep
