"""The panel: what the clinician sees and presses. What it does is in the logic."""

import html
import os
import sys
import time
from dataclasses import dataclass

import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleWidget
from slicer.util import VTKObservationMixin

from . import importer, models, process, review, sample_data, volumes
from .batch import BatchTab
from .dialogs import InstallationDialog, InstallDialog, explained
from .install import InstallError, makePlan
from .logic import Options, SemanticGANSlicerLogic
from .model_card import ModelCardWindow, ModelChecks, warning
from .probe import DeviceProbe
from .progress import ProgressView
from .results import ResultView
from .train import TrainTab


@dataclass
class _Started:
    """What there was when Apply was pressed. copy: the hardened copy of ``volume`` that is segmented, or None."""

    volume: object
    copy: object
    inView: object
    seconds: float


class SemanticGANSlicerWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The module's panel: tab Segment here, tabs Batch and Train in ``BatchTab`` and ``TrainTab``."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self._parameterNode = self._guiTag = self._volume = None
        self._maker = self._probe = None
        self._models = []
        self._checks = ModelChecks(self._onModelChecked)
        self._card = None  # the window, while it is open

    # --- life of the panel

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        panel = slicer.util.loadUI(self.resourcePath("UI/SemanticGANSlicer.ui"))
        self.layout.addWidget(panel)
        self.ui = slicer.util.childWidgetVariables(panel)
        panel.setMRMLScene(slicer.mrmlScene)
        self.logic = SemanticGANSlicerLogic()
        self._progress = ProgressView(self.ui.progressBar, self.ui.statusLabel)
        self._batch = BatchTab(self.ui, self.logic, self._options, self._ensureInstalled, self._updateButtons)
        self._result = ResultView(self.ui, self._progress.stop)
        file = self.resourcePath("UI/SemanticGANTrain.ui")
        self._train = TrainTab(self.ui.tabWidget, file, self.logic, self._ensureInstalled, self._takeModel)
        self._prepareWidgets()
        self._connectWidgets()
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self._onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self._onSceneEndClose)
        self._listModels()
        self.initializeParameterNode()
        self._checkInstallation()

    def cleanup(self):
        """Slicer ends or the module is reloaded: nothing keeps running."""
        self._stopEverything()
        self._train.close()
        self._result.forget()
        self.setParameterNode(None)
        self.removeObservers()

    def onReload(self):
        """Slicer reads the module's file anew; here the library, too."""
        for name in [name for name in sys.modules if name.split(".")[0] == __package__]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)

    def enter(self):
        self.initializeParameterNode()
        self._checkInstallation()
        self._train.enter()

    def exit(self):
        """Another module is shown; a run goes on."""
        self.setParameterNode(None)

    def _onSceneStartClose(self, caller, event):
        self._batch.sceneCloses()
        self._stopEverything()
        self._train.sceneCloses()
        self._result.forget()
        self.setParameterNode(None)
        self._progress.stop("")

    def _onSceneEndClose(self, caller, event):
        if self.parent.isEntered:
            self.initializeParameterNode()

    def _stopEverything(self):
        self.logic.close()
        self._checks.close()
        for part in (self._maker, self._probe):
            if part is not None:
                part.close()
        self._maker = self._probe = None

    def _prepareWidgets(self):
        ui = self.ui
        menu = qt.QMenu(ui.openModelButton)
        menu.addAction(_("Folder...")).triggered.connect(
            lambda *unused: self._openModel(models.openModelFolder())
        )
        menu.addAction(_("Zip file...")).triggered.connect(
            lambda *unused: self._openModel(models.openModelArchive())
        )
        menu.addSeparator()
        self._forgetAction = menu.addAction(_("Remove the chosen one from the list"))
        self._forgetAction.triggered.connect(lambda *unused: self._forgetModel())
        ui.openModelButton.setMenu(menu)
        ui.deviceFoundLabel.setVisible(False)
        self._installationButton = qt.QPushButton(_("Installation..."))
        self._installationButton.setFlat(True)
        self._installationButton.setToolTip(
            _("Versions of the engine and its packages; install them again, or remove them.")
        )
        ui.tabWidget.setCornerWidget(self._installationButton)

    def _connectWidgets(self):
        ui = self.ui
        ui.installButton.clicked.connect(lambda *unused: self._ensureInstalled())
        self._installationButton.clicked.connect(lambda *unused: self._showInstallation())
        ui.sampleCtButton.clicked.connect(lambda *unused: self._makeSample("ct"))
        ui.sampleMrButton.clicked.connect(lambda *unused: self._makeSample("t1_in"))
        ui.modelComboBox.currentIndexChanged.connect(self._onModelChosen)
        ui.modelCardButton.clicked.connect(lambda *unused: self._showCard())
        ui.optionsCollapsibleButton.contentsCollapsed.connect(self._onOptionsToggled)
        ui.regionCheckBox.toggled.connect(self._onRegionToggled)
        ui.regionFromHereButton.clicked.connect(lambda *unused: self._takePosition(ui.regionFromSpinBox))
        ui.regionToHereButton.clicked.connect(lambda *unused: self._takePosition(ui.regionToSpinBox))
        for selector in (ui.inputSelector, ui.outputSelector):
            selector.connect("nodeActivated(vtkMRMLNode*)", self._onActivated)
        ui.applyButton.clicked.connect(self._onApply)
        ui.cancelButton.clicked.connect(self._onCancel)

    # --- parameters

    def initializeParameterNode(self):
        self.setParameterNode(self.logic.getParameterNode())
        if not self._parameterNode.inputVolume:
            self._parameterNode.inputVolume = volumes.volumeInView()

    def setParameterNode(self, node):
        if self._parameterNode is not None:
            self._parameterNode.disconnectGui(self._guiTag)
            self.removeObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self._onParametersModified)
        self._parameterNode = node
        self._batch.setParameterNode(node)
        if node is not None:
            self._volume = node.inputVolume
            self._guiTag = node.connectGui(self.ui)
            self.addObserver(node, vtk.vtkCommand.ModifiedEvent, self._onParametersModified)
            self._showModel()
        self._updateButtons()

    def _onParametersModified(self, caller=None, event=None):
        self._followVolume()
        self._showModel()
        self._updateButtons()

    def _followVolume(self):
        """Another volume gets a segmentation of its own, unless one of its own is chosen already."""
        p = self._parameterNode
        volume, target = p.inputVolume, p.outputSegmentation
        if volume is self._volume:
            return
        self._volume = volume
        if target is not None and volumes.drawnOn(target) not in (None, volume):
            p.outputSegmentation = None

    def _options(self):
        """The options of both tabs. Raises ValueError when there is no model."""
        if not self._models:
            raise ValueError(_("No model: install the engine, or open a model."))
        p, model = self._parameterNode, self._chosenModel()
        return Options(
            model=model.reference,
            device=p.device,
            quality=p.quality,
            reconstruction=p.reconstruction,
            region=(p.regionFrom, p.regionTo) if p.regionEnabled else None,
            pieces=p.pieces,
            studentAlone=model.studentAlone,
            standardNames=p.standardNames,
            show3D=p.show3D,
        )

    # --- installation

    def _checkInstallation(self):
        """What is missing, a Plan; None when it cannot be installed, which the banner then says."""
        problem, plan = "", None
        try:
            plan = makePlan()
            if not plan.isEmpty:
                problem = _("The engine is not installed yet. Apply asks before it installs anything.")
        except InstallError as error:
            problem = str(error)
        self.ui.installLabel.setText(problem)
        self.ui.installFrame.setVisible(bool(problem))
        return plan

    def _ensureInstalled(self):
        """Whether the engine is there, after asking to install it when it is not."""
        plan = self._checkInstallation()
        if plan is None:
            slicer.util.errorDisplay(self.ui.installLabel.text)
            return False
        if plan.isEmpty:
            return True
        installed = InstallDialog(plan, self.logic.python).run()
        self._afterInstallation()
        return installed

    def _showInstallation(self):
        """Versions, install again, uninstall; not while the engine is at work."""
        if self.logic.isRunning() or self._maker is not None or self._train.isBusy():
            slicer.util.infoDisplay(_("A run is under way. Wait for it, or cancel it."))
            return
        InstallationDialog(self.logic.python).run()
        self._afterInstallation()

    def _afterInstallation(self):
        self._checkInstallation()
        self._listModels()
        self._showModel()
        self._updateButtons()

    def _onOptionsToggled(self, *unused):
        """The first look at the options asks the engine which device "auto" is."""
        plan = self._checkInstallation()
        if self._probe is None and plan is not None and plan.isEmpty:
            self.ui.deviceFoundLabel.setVisible(True)
            self.ui.deviceFoundLabel.setText(_("auto: looking..."))
            self._probe = DeviceProbe(self.logic.python, self.ui.deviceFoundLabel.setText)

    # --- models and samples

    def _listModels(self):
        """Fill the chooser: models that have a name, then those that were opened."""
        found = {model.reference: model for model in models.knownModels()}
        for model in models.rememberedModels(slicer.app.userSettings()):
            found.setdefault(model.reference, model)
        self._models = list(found.values())
        box = self.ui.modelComboBox
        blocked = box.blockSignals(True)
        box.clear()
        for model in self._models:
            box.addItem(model.name if model.reference == model.name else f"{model.name} ({model.reference})")
        box.blockSignals(blocked)

    def _chosenModel(self):
        wanted = self._parameterNode.model if self._parameterNode is not None else ""
        return next(
            (model for model in self._models if model.reference == wanted), models.firstOf(self._models)
        )

    def _showModel(self):
        """Let the chooser and the text below follow the parameter."""
        self.ui.modelCardButton.setEnabled(bool(self._models))
        self._forgetAction.setEnabled(False)
        if not self._models:
            self.ui.modelDetailsLabel.setText(_("No model yet."))
            return
        model = self._chosenModel()
        box = self.ui.modelComboBox
        blocked = box.blockSignals(True)
        box.setCurrentIndex(self._models.index(model))
        box.blockSignals(blocked)
        choice = self.ui.reconstructionComboBox
        choice.setEnabled(not model.studentAlone)
        choice.setToolTip(
            _("This model is a student alone: it has no generator.")
            if model.studentAlone
            else self.ui.reconstructionComboBoxLabel.toolTip
        )
        self._forgetAction.setEnabled(model.reference == model.path)  # one that was opened
        text = model.details()
        self._checks.check(model)
        if self._checks.problems(model):
            text = warning(self._checks.problems(model)) + "<br>" + text
        wanted = self._parameterNode.model if self._parameterNode is not None else ""
        if wanted and wanted != model.reference:  # a scene of another computer
            text = (
                html.escape(
                    _("{model} is not on this computer; open it, or go on with this one.").format(
                        model=wanted
                    )
                )
                + "<br>"
                + text
            )
        self.ui.modelDetailsLabel.setText(text)

    def _onModelChosen(self, *unused):
        index = self.ui.modelComboBox.currentIndex
        if self._parameterNode is not None and 0 <= index < len(self._models):
            self._parameterNode.model = self._models[index].reference

    def _openModel(self, path):
        """Add a model's folder or .zip to the list and choose it."""
        if not path:
            return
        path = os.path.abspath(path)
        inside = os.path.join(path, "bundle")  # training wrote it there
        if os.path.isdir(inside) and not os.path.isdir(os.path.join(path, "configs")):
            path = inside
        with explained(_("The model cannot be opened.")):
            models.readModel(path)
            models.rememberModel(slicer.app.userSettings(), path)
            self._listModels()
            self._parameterNode.model = path
            self._showModel()
            self._updateButtons()

    def _forgetModel(self):
        """Take the chosen model off the list; its files stay."""
        models.forgetModel(slicer.app.userSettings(), self._chosenModel().path)
        self._listModels()
        if self._parameterNode is not None:
            self._parameterNode.model = ""
        self._showModel()
        self._updateButtons()

    def _showCard(self):
        model = self._chosenModel()
        self._card = ModelCardWindow(model, self._checks.problems(model))
        self._card.run()
        self._card = None

    def _onModelChecked(self, model):
        if self._card is not None:
            self._card.showCheck(self._checks.problems(model))
        self._showModel()

    def _takeModel(self, path):
        """A model was trained: it is in the list from now on, and chosen."""
        with explained(_("The trained model cannot be opened.")):
            models.readModel(path)
            models.rememberModel(slicer.app.userSettings(), path)
            self._listModels()
            self.logic.getParameterNode().model = path
            self._showModel()
            self._updateButtons()

    def _makeSample(self, domain):
        if self._maker is not None or not self._ensureInstalled():
            return
        self._progress.show(0, 0, _("Making a phantom patient on this computer"))
        self._maker = sample_data.SampleMaker(self._onSample)
        self._updateButtons()
        try:
            self._maker.start(domain)
        except RuntimeError as error:
            self._onSample(None, str(error))

    def _onSample(self, node, problem):
        self._maker = None
        if node is None and not problem:
            self._progress.stop(_("Cancelled; the scene is as it was."))
        elif node is None:
            self._progress.stop(_("The sample could not be made."))
            slicer.util.errorDisplay(_("The sample could not be made."), detailedText=problem)
        else:
            self._progress.stop(_("Loaded {name}. Press Apply.").format(name=volumes.uniqueName(node)))
            if self._parameterNode is not None:
                self._parameterNode.inputVolume = node
        self._updateButtons()

    # --- region

    def _onRegionToggled(self, *unused):
        """The first use proposes the whole volume."""
        p = self._parameterNode
        if p is None:
            return
        p.regionEnabled = self.ui.regionCheckBox.checked  # first: the others bring the box up to date with it
        unset = p.regionFrom == p.regionTo == 0.0
        if p.regionEnabled and unset and p.inputVolume is not None and p.inputVolume.GetImageData():
            positions = volumes.slicePositions(p.inputVolume)
            p.regionFrom, p.regionTo = float(positions[0]), float(positions[-1])
        self._updateButtons()

    def _takePosition(self, box):
        """Put the position of the red slice view into a box."""
        view = slicer.mrmlScene.GetSingletonNode("Red", "vtkMRMLSliceNode")
        if view is not None:
            box.setValue(view.GetSliceToRAS().GetElement(2, 3))

    # --- run

    def _updateButtons(self):
        ui, p = self.ui, self._parameterNode
        volume = p.inputVolume if p is not None else None
        running, busy = self.logic.isRunning(), self._maker is not None
        ready = volume is not None and not running and not busy
        ui.applyButton.setEnabled(ready)
        if volume is None:
            hint = _("Select a volume, or load sample data.")
        else:
            hint = _("Segment {name}.").format(name=volumes.uniqueName(volume))
        ui.applyButton.setToolTip(_("A run is under way.") if running or busy else hint)
        ui.cancelButton.setEnabled((running or busy) and not self._batch.isRunning())
        region = p is not None and p.regionEnabled
        for widget in (
            ui.regionFromSpinBox,
            ui.regionToSpinBox,
            ui.regionFromHereButton,
            ui.regionToHereButton,
        ):
            widget.setEnabled(region)
        for widget in (ui.sampleCtButton, ui.sampleMrButton):
            widget.setEnabled(not running and not busy)
        self._batch.updateButtons()
        self._result.follow(volume)
        hint = self._hint(volume)
        ui.hintLabel.setText(hint)
        ui.hintLabel.setVisible(bool(hint))

    def _hint(self, volume):
        """What speaks against the chosen model for the chosen volume, in words; "" when nothing does."""
        if volume is None or not self._models:
            return ""
        trained, (found, certain) = self._chosenModel().modality, volumes.modality(volume)
        if not found or found == trained or not trained:
            return ""
        says = (
            _("{name} is {found}, as its DICOM header says") if certain else _("{name} looks like {found}")
        ).format(name=volumes.uniqueName(volume), found=models.modalityName(found))
        return _(
            "{says}; the model was trained on {trained}. It may be segmented all the same: look at every slice of the "
            "result."
        ).format(says=says, trained=models.modalityName(trained))

    def _onApply(self, *unused):
        if self._parameterNode is None or not self._ensureInstalled():
            return
        if self._parameterNode is None or self.logic.isRunning():  # changed while the dialog was open
            return
        with explained(_("The volume cannot be segmented.")):
            options = self._options()
            chosen, target = self._selected()
            volumes.checkVolume(chosen)
            target = self._ofThisFrame(target, chosen)
            if not self._mayChange(target, chosen):
                return
            volume, copied = self._withoutTransform(chosen)
            if volume is None:
                return
            started = _Started(chosen, volume if copied else None, volumes.volumeInView(), time.monotonic())
            self._progress.start()
            self._log(
                _("{volume}, model {model}").format(volume=volumes.uniqueName(volume), model=options.model)
            )
            try:
                self.logic.segment(
                    volume,
                    options,
                    target=target,
                    onProgress=self._onProgress,
                    onText=self._log,
                    onFinished=lambda outcome, result: self._onFinished(outcome, result, started),
                )
            except Exception:
                self._progress.stop("")
                if copied:
                    volumes.removeNode(volume)
                raise
        self._updateButtons()

    def _onProgress(self, done, total, message, secondsLeft):
        self._progress.show(done, total, message, secondsLeft)
        if not total:  # a stage of the run; steps of the optimisation would fill the log
            self._log(message)

    def _log(self, text):
        """Add lines to the log, each with the time of day."""
        now = time.strftime("%H:%M:%S")
        for line in text.splitlines():
            if line.strip():
                self.ui.logText.appendPlainText(f"{now} {line}")

    def _onActivated(self, *unused):
        """A person chose a row, perhaps that of another node of the same name."""
        if self._parameterNode is not None:
            self._selected()

    def _selected(self):
        """(volume, segmentation) that the selectors show, which count.

        The parameters are brought up to them first: a selector of Qt 6 says nothing when the choice goes from one node
        to another of the same name.
        """
        ui, p = self.ui, self._parameterNode
        if ui.inputSelector.currentNode() is not p.inputVolume:
            p.inputVolume = ui.inputSelector.currentNode()  # lets go of the former one's segmentation, too
        if ui.outputSelector.currentNode() is not p.outputSegmentation:
            p.outputSegmentation = ui.outputSelector.currentNode()
        return p.inputVolume, p.outputSegmentation

    def _mayChange(self, target, volume):
        """Whether a run on a volume may change a segmentation: one that is not the volume's own is asked about."""
        if target is None:
            return True
        owner, empty = volumes.drawnOn(target), not target.GetSegmentation().GetNumberOfSegments()
        if owner is volume:
            return self._mayReplace(target, importer.corrected(target))
        if owner is None and empty:
            return True
        belongs = (
            _("{segmentation} is a segmentation of {owner}.")
            if owner is not None
            else _("It is not known which volume {segmentation} belongs to.")
        )
        question = _(
            "{belongs} You are about to segment {volume} into it.\n\nOK: it becomes the segmentation of {volume}, "
            'what an earlier run drew in it is replaced.\nCancel: do nothing. To keep both, choose "Create new '
            'segmentation" below Segmentation.'
        ).format(
            belongs=belongs.format(
                segmentation=volumes.uniqueName(target),
                owner=volumes.uniqueName(owner) if owner is not None else "",
            ),
            volume=volumes.uniqueName(volume),
        )
        return slicer.util.confirmOkCancelDisplay(question, _("Segmentation of another volume"))

    def _ofThisFrame(self, target, volume):
        """A segmentation of another frame of the same sequence stays what its name says: None in its place."""
        if target is None or volumes.drawnOn(target) is not volume:
            return target
        return target if review.frame(target) in ("", volumes.frameName(volume)) else None

    def _mayReplace(self, target, corrected):
        """Whether a run may replace segments that a person has corrected."""
        if not corrected:
            return True
        question = _(
            "{segmentation} was corrected by hand: {segments}.\n\nOK: the run replaces what was corrected.\nCancel: do "
            'nothing. To keep it, choose "Create new segmentation" below Segmentation.'
        ).format(segmentation=volumes.uniqueName(target), segments=", ".join(corrected))
        return slicer.util.confirmOkCancelDisplay(question, _("Corrections"))

    def _withoutTransform(self, volume):
        """(volume, False) as it is; under a transform (a hardened copy, True), (None, False) if not wanted."""
        if volume.GetParentTransformNode() is None:
            return volume, False
        question = _(
            "{name} is under the transform {transform}. The model needs the image where it shows the "
            "patient.\n\nOK: segment a copy of the volume with the transform hardened into it.\nCancel: "
            "do nothing. To keep one volume, harden the transform in the module Transforms."
        ).format(
            name=volumes.uniqueName(volume), transform=volumes.uniqueName(volume.GetParentTransformNode())
        )
        if not slicer.util.confirmOkCancelDisplay(question, _("Volume under a transform")):
            return None, False
        if volume.GetScene() is None:
            raise ValueError(_("{name} was removed from the scene.").format(name=volumes.uniqueName(volume)))
        return volumes.hardenedCopy(volume), True

    def _onCancel(self, *unused):
        if self._maker is not None:
            self._maker.cancel()
        elif self.logic.isRunning():
            self._progress.say(_("Cancelling..."))
            self.logic.cancel()

    def _onFinished(self, outcome, result, started):
        copy, stillChosen = started.copy, self._isChosen(started.volume)
        if outcome.status == process.DONE:
            # Another patient may have been looked at meanwhile: then nothing that the user sees or chose is changed.
            there = stillChosen and self.parent.isEntered
            show = there and volumes.volumeInView() in (started.volume, started.inView, copy)
            self._log("\n".join([_("done"), *result.case["warnings"]]))
            self._result.show(
                result,
                time.monotonic() - started.seconds,
                inViews=show,
                copyOf=started.volume if copy is not None else None,
            )
            if stillChosen:
                parameters = self.logic.getParameterNode()
                if copy is not None:
                    parameters.inputVolume = copy  # the next run needs no copy of its own
                parameters.outputSegmentation = result.segmentation
            else:
                self._result.comeBackTo(self.ui.outputSelector.currentNode())
            if not there:
                _notify(_("{volume} is segmented.").format(volume=volumes.uniqueName(result.volume)))
        else:
            self._log(outcome.message or outcome.status)
            if copy is not None:
                volumes.removeNode(copy)
            self._result.isEarlier()
            if outcome.status == process.CANCELLED:
                self._progress.stop(_("Cancelled; the scene is as it was."))
            else:
                self._progress.stop(_("Failed; the scene is as it was."))
                slicer.util.errorDisplay(
                    _("The segmentation of {volume} failed.").format(
                        volume=volumes.uniqueName(started.volume)
                    )
                    + "\n\n"
                    + outcome.message,
                    detailedText=outcome.details or None,
                )
        self._updateButtons()

    def _isChosen(self, volume):
        """Whether a volume is still the input; what the selector shows counts while it is seen."""
        shown = self._parameterNode is None or self.ui.inputSelector.currentNode() is volume
        return shown and self.logic.getParameterNode().inputVolume is volume


def _notify(text):
    """Tell someone who is elsewhere in Slicer, or in another program."""
    window = slicer.util.mainWindow()
    if window is not None:
        slicer.util.showStatusMessage(text, 10000)
        qt.QApplication.alert(window)
