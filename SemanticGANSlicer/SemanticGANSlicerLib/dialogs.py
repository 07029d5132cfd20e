"""What is told and asked in windows of their own: why something cannot be done, and the installation."""

import html
from contextlib import contextmanager

import qt
import slicer
from slicer.i18n import tr as _

from . import install, installed, process


@contextmanager
def explained(message):
    """Show what the user can mend (ValueError, RuntimeError, OSError) below ``message``, and go on."""
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        slicer.util.errorDisplay(f"{message}\n\n{error}")


class _InstallerDialog:
    """A window with a bar and a log in which one ``Installer`` at a time is at work.

    python: a function that gives the interpreter. A subclass lays the widgets out, names the ``_buttons`` that start
    something, and has ``_onFinished(error)``.
    """

    def __init__(self, title, python):
        self._python, self._installer, self._buttons = python, None, ()
        self.window = qt.QDialog(slicer.util.mainWindow())
        self.window.setWindowTitle(title)
        self.window.setMinimumWidth(560)
        self.log = qt.QPlainTextEdit()
        self.log.setReadOnly(True)
        self.log.setVisible(False)
        self.bar = qt.QProgressBar()
        self.bar.setRange(0, 0)
        self.bar.setVisible(False)
        self.window.finished.connect(self._onWindowClosed)

    def _start(self, function):
        self._setRunning(True)
        self.log.clear()
        slicer.app.processEvents()  # PyTorch's extension waits for its own installer
        try:
            python = self._python()
        except RuntimeError as error:  # Slicer is incomplete
            self._ended(install.InstallError(str(error)))
            return
        self._installer = install.Installer(python, self.log.appendPlainText, self._ended)
        function(self._installer)

    def _ended(self, error):
        self._installer = None
        self._setRunning(False)
        self._onFinished(error)

    def _setRunning(self, running):
        for button in self._buttons:
            button.setEnabled(not running)
        self.bar.setVisible(running)
        self.log.setVisible(True)

    def _onWindowClosed(self, *unused):
        if self._installer is not None:
            self._installer.cancel()


class InstallDialog(_InstallerDialog):
    """One dialog for a plan: describe, install online or from a folder, show what happens, try again.

    python: a function that gives the interpreter. ``run`` shows it and returns whether all is installed at its end.
    """

    def __init__(self, plan, python):
        _InstallerDialog.__init__(self, _("SemanticGAN: install the engine"), python)
        self._plan, self.installed = plan, False
        layout = qt.QVBoxLayout(self.window)
        self.text = qt.QLabel(install.description(plan))
        self.text.setWordWrap(True)
        for widget in (self.text, self.bar, self.log):
            layout.addWidget(widget)
        row = qt.QHBoxLayout()
        layout.addLayout(row)
        self.onlineButton = self._button(
            row, _("Install"), _("Download and install with pip."), self.installOnline
        )
        self.folderButton = self._button(
            row,
            _("Install from folder of wheels..."),
            _(
                "Without internet: a folder with the wheels of all packages, made on another computer "
                "(see the tutorial)."
            ),
            self._chooseFolder,
        )
        self.closeButton = self._button(row, _("Cancel"), _("Install nothing."), self.close)
        self._buttons = (self.onlineButton, self.folderButton)

    def run(self):
        self.window.exec_()
        return self.installed

    def installOnline(self, *unused):
        self._start(lambda installer: installer.installOnline(self._plan))

    def installFromFolder(self, folder):
        self._start(lambda installer: installer.installFromFolder(self._plan, folder))

    def close(self, *unused):
        """Leave; while PyTorch is being installed, as soon as that has ended."""
        if self._installer is None or not self._installer.isAtTorch:
            self.window.reject()
            return
        self._installer.cancel()
        self.closeButton.setEnabled(False)
        self.text.setText(
            _(
                "Cancelled. PyTorch itself cannot be stopped while its extension installs it; nothing else is "
                "installed after it. This window closes then."
            )
        )

    def _button(self, row, text, hint, function):
        button = qt.QPushButton(text)
        button.setToolTip(hint)
        button.clicked.connect(function)
        row.addWidget(button)
        return button

    def _chooseFolder(self, *unused):
        folder = qt.QFileDialog.getExistingDirectory(self.window, _("Folder of wheels"))
        if folder:
            self.installFromFolder(folder)

    def _start(self, function):
        self.text.setText(_("Installing..."))
        _InstallerDialog._start(self, function)

    def _onFinished(self, error):
        if isinstance(error, install.Cancelled):
            self.window.reject()
            return
        if error is None:
            try:
                self._plan = install.makePlan()
            except install.InstallError as problem:
                error = problem
        if error is None and not self._plan.isEmpty:
            error = install.InstallError(
                _("Something is still missing: {what}").format(what=install.names(self._plan))
            )
        if error is None:
            self.installed = True
            self.window.accept()
            return
        self.text.setText(
            _(
                "<b>The installation failed.</b> Packages that were there keep their versions; what was added "
                "stays and serves the next try."
            )
        )
        self.log.setPlainText(f"{error}\n\n{error.details}")
        self.closeButton.setText(_("Close"))


class InstallationDialog(_InstallerDialog):
    """Which versions are installed; installs what this module added again, or removes it to free its space.

    python: a function that gives the interpreter.
    """

    def __init__(self, python):
        _InstallerDialog.__init__(self, _("SemanticGAN: installation"), python)
        self._steps = None
        layout = qt.QVBoxLayout(self.window)
        self.versions, self.space = qt.QLabel(""), qt.QLabel("")
        self.space.setWordWrap(True)
        for widget in (self.versions, self.space, self.bar, self.log):
            layout.addWidget(widget)
        row = qt.QHBoxLayout()
        layout.addLayout(row)
        self.againButton = qt.QPushButton(_("Install again"))
        self.againButton.setToolTip(
            _("Puts the engine and the packages that this module added back, in the same versions.")
        )
        self.uninstallButton = qt.QPushButton(_("Uninstall..."))
        self.uninstallButton.setToolTip(_("Removes what this module added, to free its space."))
        self.closeButton = qt.QPushButton(_("Close"))
        for button, function in (
            (self.againButton, self._again),
            (self.uninstallButton, self._uninstall),
            (self.closeButton, lambda *unused: self.window.reject()),
        ):
            button.clicked.connect(function)
            row.addWidget(button)
        self._buttons = (self.againButton, self.uninstallButton)
        self._refresh()

    def run(self):
        self.window.exec_()

    def _refresh(self):
        cells = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}&nbsp;&nbsp;</td>" for cell in row) + "</tr>"
            for row in install.versionRows()
        )
        self.versions.setText(f"<table>{cells}</table>")
        self._removable = installed.removable()
        self.againButton.setEnabled(bool(install.bundledWheel() or installed.record()))
        self.uninstallButton.setEnabled(bool(self._removable))
        self._sayMegabytes(None)
        self._steps = process.Steps(
            installed.sizes(self._removable), lambda size, error: self._sayMegabytes(size)
        )

    def _sayMegabytes(self, size):
        if not self._removable:
            self.space.setText(
                _("This module added no package to {folder}.").format(folder=installed.folder())
            )
            return
        megabytes = "" if size is None else _(", {size:.0f} MB").format(size=size / 1e6)
        self.space.setText(
            _(
                "This module added {count} packages to {folder} that nothing else needs{megabytes}. Packages of "
                "Slicer and of other extensions stay; the module PyTorch Utils removes a PyTorch that it installed."
            ).format(count=len(self._removable), folder=installed.folder(), megabytes=megabytes)
        )

    def _again(self, *unused):
        self._start(lambda installer: installer.installAgain())

    def _uninstall(self, *unused):
        question = _(
            "Remove {names}?\n\nAnother extension that used one of them without asking for it would have to "
            "install it again. Models that you trained or opened stay."
        ).format(names=", ".join(self._removable))
        if slicer.util.confirmOkCancelDisplay(question, _("Uninstall")):
            self._start(lambda installer: installer.uninstall(list(self._removable)))

    def _onFinished(self, error):
        self._refresh()
        if isinstance(error, install.Cancelled):
            return
        self.log.appendPlainText(_("Done.") if error is None else f"{error}\n\n{error.details}")

    def _onWindowClosed(self, *unused):
        if self._steps is not None:
            self._steps.stop()
        _InstallerDialog._onWindowClosed(self)
