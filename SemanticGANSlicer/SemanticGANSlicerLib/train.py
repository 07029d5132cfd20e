"""The tab Train: a model from a handful of labelled scans, by the same commands as on a terminal."""

import json
import os

import qt
import slicer
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from . import labelled, process, trainrun, volumes
from .curve import curvePixmap
from .dialogs import explained
from .nextscan import NextScan
from .progress import ProgressView
from .trainrun import TrainRun

_SETTINGS = "SemanticGAN/Train"  # key of the application's settings
_PICTURE_WIDTH = 440  # px
_PROBLEMS = 3  # column of the table of cases
_SOON_MSEC = 150  # so that many nodes that come at once are listed once


class TrainTab(VTKObservationMixin):
    """Loads its widgets into a tab and drives them.

    tabs: the QTabWidget; file: the .ui file; ensureInstalled(): whether the engine is there; onModel(path): called
    with a trained model. Training itself runs in a process of its own, which outlives this one.
    """

    def __init__(self, tabs, file, logic, ensureInstalled, onModel):
        VTKObservationMixin.__init__(self)
        panel = slicer.util.loadUI(file)
        tabs.addTab(panel, _("Train"))
        self.ui, self.logic = slicer.util.childWidgetVariables(panel), logic
        self._ensureInstalled, self._onModel = ensureInstalled, onModel
        self.dataArguments = ["-m", "sgan_core.cli.data"]  # a test puts other programs here
        self.trainArguments = ["-m", "sgan_core.cli.train"]
        self._checkProgress = ProgressView(self.ui.trainCheckProgressBar, self.ui.trainCheckLabel)
        self._trainProgress = ProgressView(self.ui.trainProgressBar, self.ui.trainStatusLabel)
        self._steps = self._worker = self._request = self._written = None
        # What the check said; its number of labelled patients, as long as nothing was trained on them.
        self._lines, self._found = [], None
        self._run, self._shown, self._told = None, {}, trainrun.NONE
        self._nodes = []  # IDs of the rows of segmentations
        self.next = NextScan(self.ui, logic, self._unlabelled, self._onScanChange)
        self._prepareTables()
        self._restore()
        self._connect(tabs)
        self.refresh()
        self._find()

    # --- life of the tab

    def enter(self):
        """The module is shown."""
        self.refresh()
        if self._run is None or not self._run.isActive():
            self._find()

    def isBusy(self):
        """Whether the engine is at work for this tab, in Slicer or beside it."""
        return self.isChecking() or self.next.isRunning() or self._run is not None and self._run.isActive()

    def close(self):
        """Slicer ends or the module is reloaded. Training goes on; nothing else does."""
        self._soon.stop()
        self._stopCheck()
        self.next.close()
        if self._run is not None:
            self._run.close()
        self.removeObservers()

    def sceneCloses(self):
        """What reads the scene ends."""
        if self._steps is not None:
            self._stopCheck()
            self._checkProgress.stop(_("Cancelled: the scene was closed."))
        self.next.stopLoading()
        self._updateButtons()

    def _prepareTables(self):
        ui = self.ui
        for table, headers in (
            (ui.trainSegmentationsTable, (_("Segmentation"), _("Volume"), _("Segments"))),
            (
                ui.trainCaseTable,
                (
                    _("Case"),
                    _("Scan"),
                    _("Used for"),
                    _("Problems"),
                    _("Orientation"),
                    _("Intensity"),
                    _("Labelled voxels"),
                ),
            ),
        ):
            table.setColumnCount(len(headers))
            table.setHorizontalHeaderLabels(list(headers))
            table.horizontalHeader().setStretchLastSection(True)
            table.verticalHeader().setVisible(False)
        ui.trainCaseTable.setVisible(False)

    def _connect(self, tabs):
        ui = self.ui
        self._soon = qt.QTimer(
            ui.trainCheckButton
        )  # goes with the panel: PythonQt holds what is connected until then
        self._soon.setSingleShot(True)
        self._soon.setInterval(_SOON_MSEC)
        self._soon.timeout.connect(self.refresh)
        for event in (slicer.mrmlScene.NodeAddedEvent, slicer.mrmlScene.NodeRemovedEvent):
            self.addObserver(slicer.mrmlScene, event, self._refreshSoon)
        tabs.currentChanged.connect(self._refreshSoon)
        ui.trainSegmentationsTable.itemChanged.connect(self._onTicked)
        ui.trainFolderPathLineEdit.currentPathChanged.connect(self._onFolderChanged)
        ui.trainAllCheckBox.toggled.connect(lambda *unused: self._updateButtons())
        ui.trainUnlabelledPathLineEdit.currentPathChanged.connect(lambda *unused: self._updateButtons())
        ui.trainCheckButton.clicked.connect(self._onCheck)
        ui.trainCheckCancelButton.clicked.connect(self._onCancelCheck)
        ui.trainButton.clicked.connect(self._onTrain)
        ui.trainPauseButton.clicked.connect(self._onPause)

    def _refreshSoon(self, *unused):
        self._soon.start()

    # --- settings, kept between sessions

    def _restore(self):
        ui = self.ui
        try:
            kept = json.loads(slicer.app.userSettings().value(_SETTINGS, "{}"))
        except (TypeError, ValueError):
            kept = {}
        kept = kept if isinstance(kept, dict) else {}
        for name, edit in self._texts().items():
            if isinstance(kept.get(name), str):
                edit.setText(kept[name])
        for name, edit in self._folders().items():
            edit.setCurrentPath(kept[name] if isinstance(kept.get(name), str) else "")
        if not ui.trainFolderPathLineEdit.currentPath:
            ui.trainFolderPathLineEdit.setCurrentPath(_defaultFolder())
        if isinstance(kept.get("minutes"), int):
            ui.trainMinutesSpinBox.setValue(kept["minutes"])
        if isinstance(kept.get("modality"), str):
            ui.trainModalityComboBox.setCurrentText(kept["modality"])

    def _remember(self):
        kept = {name: edit.text for name, edit in self._texts().items()}
        kept.update({name: edit.currentPath for name, edit in self._folders().items()})
        kept["minutes"] = self._minutes()
        kept["modality"] = self.ui.trainModalityComboBox.currentText
        slicer.app.userSettings().setValue(_SETTINGS, json.dumps(kept))

    def _texts(self):
        ui = self.ui
        return {
            "labels": ui.trainLabelsLineEdit,
            "images": ui.trainImagesLineEdit,
            "labelFiles": ui.trainLabelFilesLineEdit,
            "patient": ui.trainPatientLineEdit,
        }

    def _folders(self):
        ui = self.ui
        return {
            "pairs": ui.trainPairsPathLineEdit,
            "unlabelled": ui.trainUnlabelledPathLineEdit,
            "folder": ui.trainFolderPathLineEdit,
        }

    def _folder(self):
        return os.path.abspath(self.ui.trainFolderPathLineEdit.currentPath.strip() or _defaultFolder())

    # --- labelled segmentations

    def refresh(self, *unused):
        """List the segmentations of the scene."""
        table, found = self.ui.trainSegmentationsTable, labelled.candidates()
        blocked = table.blockSignals(True)
        table.setRowCount(len(found))
        self._nodes = [node.GetID() for node, _volume in found]
        for row, (node, volume) in enumerate(found):
            names = ", ".join(labelled.segmentNames(node))
            for column, text in enumerate(
                (volumes.uniqueName(node), volumes.uniqueName(volume) if volume else "", names)
            ):
                table.setItem(row, column, qt.QTableWidgetItem(text))
            on = qt.Qt.Checked if labelled.isTicked(node) else qt.Qt.Unchecked
            table.item(row, 0).setCheckState(on)
        table.resizeColumnsToContents()
        table.blockSignals(blocked)
        self._updateButtons()

    def _onTicked(self, item, *unused):
        row = item.row()
        node = slicer.mrmlScene.GetNodeByID(self._nodes[row]) if row < len(self._nodes) else None
        if node is None or item.column() != 0:
            return
        on = item.checkState() == qt.Qt.Checked
        labelled.tick(node, on)
        if on and not self.ui.trainLabelsLineEdit.text.strip():  # most want all of them
            self.ui.trainLabelsLineEdit.setText(", ".join(labelled.segmentNames(node)))

    def _asked(self):
        """What the widgets ask for. Raises ValueError."""
        ui = self.ui
        request = labelled.Request(
            modality=ui.trainModalityComboBox.currentText,
            labels=labelled.parseLabels(ui.trainLabelsLineEdit.text),
            segmentations=tuple(node for node, _v in labelled.candidates() if labelled.isTicked(node)),
            pairs=ui.trainPairsPathLineEdit.currentPath.strip(),
            images=ui.trainImagesLineEdit.text,
            labelFiles=ui.trainLabelFilesLineEdit.text,
            patient=ui.trainPatientLineEdit.text,
            unlabelled=ui.trainUnlabelledPathLineEdit.currentPath.strip(),
        )
        labelled.checkRequest(request)
        return request

    # --- check

    def isChecking(self):
        return self._steps is not None or self._worker is not None

    def _onCheck(self, *unused):
        if not self._ensureInstalled():
            return
        with explained(_("The data cannot be checked.")):
            request, folder = self._asked(), self._folder()
            self._run.refuseChanged()
            if self._run.canResume() and not self._askToReplace():
                return
            labelled.claimFolder(folder)
            self._remember()
            self._run.forget()
            self._request, self._found = request, None
            self.ui.trainCaseTable.setVisible(False)
            self._checkProgress.start()
            self._steps = process.Steps(
                labelled.writeSource(
                    request,
                    os.path.join(folder, "source"),
                    lambda done, total, name: self._checkProgress.show(
                        done, total, _("Writing {name}").format(name=name)
                    ),
                ),
                self._sourceWritten,
            )
        self._updateButtons()

    def _askToReplace(self):
        return slicer.util.confirmOkCancelDisplay(
            _(
                "Check makes the data anew. The training in this folder then cannot be resumed; its model, if there "
                "is one already, is kept. For both choose another folder of the run."
            ),
            _("Check the data anew"),
        )

    def _sourceWritten(self, written, error):
        self._steps = None
        if error is not None:
            self._checkEnded(_("The data could not be written."), str(error))
            return
        self._written, self._lines = written, []
        source, request = os.path.join(self._folder(), "source"), self._request
        arguments = ["prepare", "custom", source, "--images", labelled.IMAGES, "--labels", labelled.LABELS]
        arguments += ["--patient", labelled.PATIENT, "--modality", request.modality]
        arguments += [f"--name={os.path.basename(self._folder())}", "--output", self._cohort(), "--json"]
        arguments += ["--label", *(f"{value}={name}" for value, name in request.labels)]
        self._checkProgress.show(0, 0, _("Looking at the images and labels"))
        self._worker = process.Worker(
            lambda event: self._lines.append(event["text"]), self._checked, plain=True
        )
        try:
            self._worker.start(self.logic.python(), [*self.dataArguments, *arguments])
        except RuntimeError as problem:
            self._worker = None
            self._checkEnded(_("The data could not be checked."), str(problem))

    def _cohort(self):
        return os.path.join(self._folder(), "cohort")

    def _checked(self, outcome):
        self._worker = None
        if outcome.status == process.CANCELLED:
            self._checkEnded(_("Cancelled."))
            return
        try:
            found = json.loads("\n".join(self._lines))
            counts, cases, problems = found["splits"], found["cases"], found["problems"]
            text = _describeCounts(counts)
            rows = [self._caseRow(case) for case in cases]
            errors = [one["text"] for one in problems if one["severity"] == "error"]
            errors += [
                one["text"] for case in cases for one in case["problems"] if one["severity"] == "error"
            ]
            patients = int(counts["train"]["labelled_patients"])
        except (AttributeError, KeyError, TypeError, ValueError):
            details = outcome.details or outcome.message or "\n".join(self._lines)
            self._checkEnded(_("The data cannot be used."), _lastWords(details), details)
            return
        self._fillCases(rows)
        lines = [text, *(one["text"] for one in problems)]
        if self._written.leftOut:
            lines.append(
                _("{n} files that are no image on their own are left out, e.g. {file}").format(
                    n=len(self._written.leftOut), file=self._written.leftOut[0]
                )
            )
        if outcome.status != process.DONE and not errors:
            errors.append(outcome.message)
            lines.append(outcome.message)
        if errors:
            lines.append(_("Mend the errors, then check again."))
        else:
            self._found = patients
        self._checkEnded("\n".join(lines))

    def _checkEnded(self, text, problem="", details=""):
        self._checkProgress.stop(text)
        if problem:
            slicer.util.errorDisplay(f"{text}\n\n{problem}", detailedText=details or None)
        self._updateButtons()

    def _caseRow(self, case):
        """The texts of a case."""
        name = self._written.names.get(case["name"], "")
        use = case["split"] if case["labelled"] else _("{split}, unlabelled").format(split=case["split"])
        spacing = " x ".join(f"{one:.3g}" for one in case.get("spacing_mm") or [])
        where = " ".join(filter(None, (case.get("orientation") or "", f"({spacing} mm)" if spacing else "")))
        light = case.get("intensity") or {}
        isRead = light.get("p99") is not None  # what cannot be read has no figures
        intensity = "{:.4g} ... {:.4g}".format(light["p1"], light["p99"]) if isRead else ""
        voxels = ", ".join(f"{name} {count:,}" for name, count in (case.get("label_voxels") or {}).items())
        problems = "; ".join(one["text"] for one in case["problems"])
        return [case["name"], name, use, problems, where, intensity, voxels]

    def _fillCases(self, rows):
        table = self.ui.trainCaseTable
        table.setRowCount(len(rows))
        for row, texts in enumerate(rows):
            for column, text in enumerate(texts):
                item = qt.QTableWidgetItem(text)
                item.setToolTip(texts[_PROBLEMS])
                table.setItem(row, column, item)
        table.resizeColumnsToContents()
        table.setVisible(True)

    def _onCancelCheck(self, *unused):
        if self._worker is not None:
            self._worker.kill()
        elif self._steps is not None:
            self._stopCheck()
            self._checkEnded(_("Cancelled."))

    def _stopCheck(self):
        if self._steps is not None:
            self._steps.stop()
        if self._worker is not None:
            self._worker.abandon()
        self._steps = self._worker = None

    # --- training

    def _onFolderChanged(self, *unused):
        self._found = None
        self._find()

    def _find(self):
        """Follow the run of the chosen folder, if there is one."""
        folder = self._folder()
        if self._run is not None:
            if self._run.folder == folder and self._run.record is not None and not self._run.hasChanged():
                return
            self._run.close()
        self._told, self._shown = trainrun.NONE, {}
        self._run = TrainRun(folder, lambda: self.logic.python(), lambda: self.trainArguments, self._onRun)
        self._onRun()

    def _stage(self):
        return "all" if self.ui.trainAllCheckBox.checked else "student"

    def _minutes(self):
        return int(self.ui.trainMinutesSpinBox.value)

    def _onTrain(self, *unused):
        if not self._ensureInstalled():
            return
        with explained(_("Training cannot be started.")):
            self._remember()
            if self._found is not None:
                self._run.start(self._request.modality, self._found, self._stage(), self._minutes())
                self._found = None
            else:
                self._run.resume("all", self._minutes())
        self._updateButtons()

    def _onPause(self, *unused):
        with explained(_("Training cannot be paused or resumed.")):
            if self._run.isActive():
                self._run.pause()
            elif self._ensureInstalled():
                stage = "all" if self.ui.trainAllCheckBox.checked else self._run.record["stage"]
                self._run.resume(stage, self._minutes())
        self._updateButtons()

    def _onRun(self):
        """Show what the run has come to."""
        run = self._run
        if run.record is not None and not run.isFound:  # nothing is known yet of what went on before
            self._trainProgress.show(0, 0, _("Looking at the training in this folder"))
            self._updateButtons()
            return
        if run.isActive():
            self._trainProgress.show(*run.progress)
            if run.status == trainrun.PAUSING:
                self._trainProgress.say(_("Saving, then pausing..."))
        elif run.status == trainrun.PAUSED:
            self._trainProgress.stop(_("Paused; everything is saved. Resume goes on from here."))
        elif run.status == trainrun.FAILED:
            self._trainProgress.stop(_("Training failed: {reason}").format(reason=run.message))
        elif run.status == trainrun.DONE:
            self._trainProgress.stop(
                _("Trained. The model is in the chooser of the tab Segment: {path}").format(path=run.bundle)
            )
        else:
            self._trainProgress.stop("")
        self._showCurve(run)
        self._showPicture(self.ui.trainSamplesLabel, run.pictures.get("samples"))
        self._showPicture(self.ui.trainValidationLabel, run.pictures.get("validation"))
        self._updateButtons()
        before, self._told = self._told, run.status
        if run.status == trainrun.DONE and os.path.isdir(run.bundle) and not run.taken():
            self._onModel(run.bundle)
        elif run.status == trainrun.FAILED and before in trainrun.ACTIVE:  # not when it is only found again
            slicer.util.errorDisplay(
                _("Training failed.") + "\n\n" + run.message, detailedText=run.details or None
            )

    def _showCurve(self, run):
        what, points = run.curve()
        key = (what, len(points), points[-1] if points else None)
        label = self.ui.trainCurveLabel
        label.setVisible(bool(points))
        if points and self._shown.get("curve") != key:
            self._shown["curve"] = key
            dice = what == "dice"
            title = (
                _("DICE on validation patients: {value}") if dice else _("Loss of training: {value}")
            ).format(value=f"{points[-1][1]:.3g}")
            label.setPixmap(curvePixmap(title, points, *((0.0, 1.0) if dice else ())))

    def _showPicture(self, label, path):
        try:
            key = (path, os.path.getmtime(path)) if path and os.path.isfile(path) else None
        except OSError:
            key = None
        if key is None:
            label.setVisible(False)
        elif self._shown.get(label.objectName) != key:
            pixmap = qt.QPixmap(path)
            if pixmap.isNull():
                return  # half written: the next look shows it
            self._shown[label.objectName] = key
            if pixmap.width() > _PICTURE_WIDTH:
                pixmap = pixmap.scaledToWidth(_PICTURE_WIDTH, qt.Qt.SmoothTransformation)
            label.setPixmap(pixmap)
            label.setVisible(True)

    # --- which scan to label next

    def _unlabelled(self):
        """(folder of unlabelled scans, model, folder for the predictions, files that are labelled by now)."""
        folder = self.ui.trainUnlabelledPathLineEdit.currentPath.strip()
        if not os.path.isdir(folder):
            raise ValueError(_("Choose the folder of unlabelled scans."))
        ticked = (volume for node, volume in labelled.candidates() if volume and labelled.isTicked(node))
        known = {labelled.fileOf(volume) for volume in ticked}
        return folder, self._run.bundle, os.path.join(self._folder(), "predictions"), known

    def _onScanChange(self):
        self.refresh()

    def _updateButtons(self):
        ui, run = self.ui, self._run
        active, checking = run is not None and run.isActive(), self.isChecking()
        ui.trainCheckButton.setEnabled(not active and not checking)
        ui.trainCheckCancelButton.setEnabled(checking)
        ui.trainFolderPathLineEdit.setEnabled(not checking)
        fresh = self._found is not None
        goesOn = run is not None and run.canGoOn() and ui.trainAllCheckBox.checked
        ui.trainButton.setEnabled(not active and not checking and (fresh or goesOn))
        resumes = run is not None and run.canResume()
        ui.trainPauseButton.setText(_("Resume") if resumes and not active else _("Pause"))
        ui.trainPauseButton.setEnabled(
            not checking
            and (run is not None and run.status in (trainrun.STARTING, trainrun.RUNNING) or resumes)
        )
        model = run is not None and bool(run.bundle) and os.path.isdir(run.bundle)
        self.next.updateButtons(model and bool(ui.trainUnlabelledPathLineEdit.currentPath.strip()))


def _defaultFolder():
    home = os.path.expanduser("~")
    documents = os.path.join(home, "Documents")
    return os.path.join(documents if os.path.isdir(documents) else home, "SemanticGAN training")


def _describeCounts(splits):
    """The numbers of images in words."""
    lines = [
        _("{split}: {labelled} labelled, {unlabelled} unlabelled").format(
            split={"train": _("To learn from"), "validation": _("To validate")}.get(name, name),
            labelled=int(counts["labelled"]),
            unlabelled=int(counts["unlabelled"]),
        )
        for name, counts in splits.items()
        if counts["labelled"] or counts["unlabelled"]
    ]
    return "; ".join(lines)


def _lastWords(output):
    """The last line of what a command printed: its error message."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else ""
