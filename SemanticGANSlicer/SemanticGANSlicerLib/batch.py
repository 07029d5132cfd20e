"""The tab Batch: a folder in, a folder of results out, by the same worker; or volumes of the scene, one by one."""

import os

import qt
import slicer
from slicer.i18n import tr as _

from . import importer, process
from .dialogs import explained
from .progress import ProgressView
from .volumes import uniqueName

_FOLDER, _SCENE = 0, 1  # rows of the box "Source"
_NODE_ID = qt.Qt.UserRole


class BatchTab:
    """Drives the widgets of the tab.

    options(): what was chosen in the tab Segment; ensureInstalled(): whether the engine is there;
    onChange(): called when a run starts or ends.
    """

    def __init__(self, ui, logic, options, ensureInstalled, onChange):
        self.ui, self.logic = ui, logic
        self._options, self._ensureInstalled, self._onChange = options, ensureInstalled, onChange
        self._progress = ProgressView(ui.batchProgressBar, ui.batchStatusLabel)
        self._parameterNode, self._running, self._cases, self._output = None, False, [], ""
        self._waiting, self._names = (
            [],
            {},
        )  # ids of volumes that are still to be segmented; names at the start
        headers = [_("Case"), _("Trust"), _("Volumes (mL)"), _("Seconds"), _("Result")]
        ui.batchTable.setColumnCount(len(headers))
        ui.batchTable.setHorizontalHeaderLabels(headers)
        ui.batchTable.verticalHeader().setVisible(False)
        ui.batchTable.horizontalHeader().setStretchLastSection(True)
        ui.batchSourceComboBox.currentIndexChanged.connect(self._onSourceChosen)
        ui.batchVolumeList.itemChanged.connect(lambda *unused: self.updateButtons())
        ui.inputSelector.connect("nodeAdded(vtkMRMLNode*)", lambda *unused: self.updateButtons())
        ui.tabWidget.currentChanged.connect(lambda *unused: self.updateButtons())
        self._onSourceChosen()
        ui.batchInputPathLineEdit.currentPathChanged.connect(self._onPathsChanged)
        ui.batchOutputPathLineEdit.currentPathChanged.connect(self._onPathsChanged)
        ui.batchRunButton.clicked.connect(self._onRun)
        ui.batchCancelButton.clicked.connect(self._onCancel)
        ui.batchTable.cellDoubleClicked.connect(self._onRowOpened)
        ui.batchReportButton.clicked.connect(lambda *unused: _open(os.path.join(self._output, "report.html")))
        ui.batchFolderButton.clicked.connect(lambda *unused: _open(self._output))

    def isRunning(self):
        return self._running

    def sceneCloses(self):
        """The next scene has other volumes under the same ids: no tick and no row may speak of them."""
        if self._running:
            self._running, self._waiting = False, []
            self._progress.stop(_("Cancelled: the scene was closed."))
        blocked = self.ui.batchVolumeList.blockSignals(True)
        self.ui.batchVolumeList.clear()
        self.ui.batchVolumeList.blockSignals(blocked)
        if any("volumeId" in case for case in self._cases):
            self._cases = []
            self.ui.batchTable.setRowCount(0)

    def setParameterNode(self, node):
        """Follow a parameter node, or none."""
        self._parameterNode = None  # the boxes below do not write into it meanwhile
        if node is not None:
            self.ui.batchInputPathLineEdit.setCurrentPath(node.batchInput)
            self.ui.batchOutputPathLineEdit.setCurrentPath(node.batchOutput)
        self._parameterNode = node

    def updateButtons(self):
        ui, p = self.ui, self._parameterNode
        busy = self.logic.isRunning()
        if not busy:
            self._running, self._waiting = False, []
        self._listVolumes()
        ready = (
            bool(self._chosenVolumes()) if self._fromScene() else bool(p and p.batchInput and p.batchOutput)
        )
        ui.batchRunButton.setEnabled(p is not None and ready and not busy)
        ui.batchCancelButton.setEnabled(self._running)
        for widget in (ui.batchSourceComboBox, ui.batchVolumeList):
            widget.setEnabled(not self._running)
        finished = bool(self._cases) and not self._running
        ui.batchReportButton.setEnabled(
            finished and bool(self._output) and os.path.isfile(os.path.join(self._output, "report.html"))
        )
        ui.batchFolderButton.setEnabled(bool(self._cases and self._output))
        try:
            chosen = self._options() if p is not None else None
        except ValueError as error:
            ui.batchModelLabel.setText(str(error))
            return
        if chosen is not None:
            ui.batchModelLabel.setText(
                _("Model {model}, quality {quality}, as in the tab Segment").format(
                    model=os.path.basename(chosen.model), quality=chosen.quality
                )
            )

    def _onPathsChanged(self, *unused):
        if self._parameterNode is not None:
            self._parameterNode.batchInput = self.ui.batchInputPathLineEdit.currentPath
            self._parameterNode.batchOutput = self.ui.batchOutputPathLineEdit.currentPath
            self.updateButtons()

    # --- volumes of the scene

    def _fromScene(self):
        return self.ui.batchSourceComboBox.currentIndex == _SCENE

    def _onSourceChosen(self, *unused):
        ui, scene = self.ui, self._fromScene()
        for widget in (ui.batchVolumeListLabel, ui.batchVolumeList):
            widget.setVisible(scene)
        for widget in (
            ui.batchInputPathLineEditLabel,
            ui.batchInputPathLineEdit,
            ui.batchOutputPathLineEditLabel,
            ui.batchOutputPathLineEdit,
            ui.batchFormatComboBoxLabel,
            ui.batchFormatComboBox,
        ):
            widget.setVisible(not scene)
        ui.batchRunButton.setText(_("Segment the volumes") if scene else _("Segment the folder"))
        self.updateButtons()

    def _listVolumes(self):
        """Let the list follow the scene; ticks stay."""
        listed = self.ui.batchVolumeList
        volumes = [
            node
            for kind in ("vtkMRMLScalarVolumeNode", "vtkMRMLVectorVolumeNode")
            for node in slicer.util.getNodesByClass(kind)
            if node.GetClassName() == kind and not node.GetHideFromEditors()
        ]
        wanted = [(node.GetID(), uniqueName(node), _place(node)) for node in volumes]
        items = [listed.item(row) for row in range(listed.count)]
        if wanted == [(item.data(_NODE_ID), item.text(), item.toolTip()) for item in items]:
            return
        ticked, blocked = self._chosenVolumes(), listed.blockSignals(True)
        listed.clear()
        for row, (nodeId, name, place) in enumerate(wanted):
            listed.addItem(name)
            listed.item(row).setData(_NODE_ID, nodeId)
            listed.item(row).setToolTip(place)
            listed.item(row).setCheckState(qt.Qt.Checked if nodeId in ticked else qt.Qt.Unchecked)
        listed.blockSignals(blocked)

    def _chosenVolumes(self):
        listed = self.ui.batchVolumeList
        items = [listed.item(row) for row in range(listed.count)]
        return [item.data(_NODE_ID) for item in items if item.checkState() == qt.Qt.Checked]

    def _runScene(self):
        """Segment the ticked volumes one after the other, each into a segmentation of its own."""
        options = self._options()
        self._listVolumes()  # a volume may have gone, or have another name, since
        self._cases, self._output = [], ""
        self.ui.batchTable.setRowCount(0)
        self._waiting = self._chosenVolumes()
        self._names = {one: uniqueName(slicer.mrmlScene.GetNodeByID(one)) for one in self._waiting}
        self._progress.start()
        self._next(options)

    def _next(self, options):
        while self._waiting:
            volumeId = self._waiting.pop(0)
            volume = slicer.mrmlScene.GetNodeByID(volumeId)
            try:
                if volume is None:
                    raise ValueError(_("The volume was removed from the scene."))
                self.logic.segment(
                    volume,
                    options,
                    onProgress=lambda *progress, which=volumeId: self._showProgress(which, *progress),
                    onFinished=lambda outcome, result, which=volumeId: self._onVolumeFinished(
                        which, outcome, result, options
                    ),
                )
            except (ValueError, RuntimeError, OSError) as error:
                self._addFailed(volumeId, str(error))
                continue
            self._running = True
            self._onChange()
            return
        self._onFinished(process.Outcome(process.DONE), None)

    def _showProgress(self, volumeId, done, total, message, secondsLeft):
        number, count = len(self._cases) + 1, len(self._names)
        which = _("{name} ({number} of {count}): ").format(
            name=self._names[volumeId], number=number, count=count
        )
        self._progress.show(done, total, which + message, secondsLeft)

    def _onVolumeFinished(self, volumeId, outcome, result, options):
        if outcome.status == process.CANCELLED:
            self._waiting = []
            self._onFinished(outcome, None)
            return
        if outcome.status == process.DONE:
            nodes = {"volumeId": volumeId, "segmentationId": result.segmentation.GetID()}
            name = uniqueName(result.segmentation)
            self._addCase({**result.case, "case": self._names[volumeId], "output": name, **nodes})
            result.discard()  # the review is in the scene, see ``review``
        else:
            self._addFailed(volumeId, outcome.message)
        self._next(options)

    def _addFailed(self, volumeId, error):
        failed = {"case": self._names[volumeId], "status": "failed", "error": error, "warnings": []}
        self._addCase(failed | {"volumeId": volumeId})

    def _openVolume(self, case):
        """Show a volume with its segmentation, and its review in the tab Segment."""
        nodes = [slicer.mrmlScene.GetNodeByID(case[name]) for name in ("volumeId", "segmentationId")]
        if None in nodes:
            slicer.util.infoDisplay(_("{name} is not in the scene any more.").format(name=case["case"]))
            return
        slicer.util.setSliceViewerLayers(background=nodes[0], fit=True)
        if self._parameterNode is not None:
            self._parameterNode.inputVolume, self._parameterNode.outputSegmentation = nodes

    # --- run

    def _onRun(self, *unused):
        if self._parameterNode is None or not self._ensureInstalled():
            return
        p = self._parameterNode
        if p is None or self.logic.isRunning():  # changed while the dialog was open
            return
        if self._fromScene():
            with explained(_("The volumes cannot be segmented.")):
                self._runScene()
            return
        with explained(_("The folder cannot be segmented.")):
            self._cases, self._output = [], p.batchOutput
            self.ui.batchTable.setRowCount(0)
            self._progress.start()
            try:
                self.logic.segmentFolder(
                    p.batchInput,
                    p.batchOutput,
                    self._options(),
                    fileFormat=p.batchFormat,
                    onProgress=self._progress.show,
                    onCase=self._addCase,
                    onFinished=self._onFinished,
                )
            except Exception:
                self._progress.stop("")
                raise
            self._running = True
        self._onChange()

    def _onCancel(self, *unused):
        if self._running:
            self._progress.say(_("Cancelling..."))
            self.logic.cancel()

    def _addCase(self, case):
        self._cases.append(case)
        table = self.ui.batchTable
        row = table.rowCount
        table.setRowCount(row + 1)
        if case["status"] == "done":
            volumes = [
                f"{label['name']} {label['volume_ml']:.1f}"
                for label in case["labels"]
                if label["volume_ml"] is not None
            ]
            volumes = ", ".join(filter(None, [*volumes, importer.ratioText(case)]))
            file = case["output"] if "volumeId" in case else os.path.basename(case["output"])
            texts = [case["trust"]["status"], volumes, f"{case['seconds']:.0f}", file]
            hint = "\n".join([case["trust"]["reason"], *case["warnings"]])
        else:
            texts, hint = [_("failed"), "", "", ""], case["error"]
        for column, text in enumerate([case["case"], *texts]):
            item = qt.QTableWidgetItem(text)
            item.setToolTip(hint)
            table.setItem(row, column, item)
        table.resizeColumnsToContents()

    def _onFinished(self, outcome, unused):
        self._running = False
        failed = sum(case["status"] != "done" for case in self._cases)
        done = len(self._cases) - failed
        if outcome.status == process.DONE:
            text = _("{done} segmented, {failed} failed.").format(done=done, failed=failed)
        elif outcome.status == process.CANCELLED:
            text = _("Cancelled; {done} finished cases are kept.").format(done=done)
        else:
            text = _("Failed; {done} finished cases are kept.").format(done=done)
            slicer.util.errorDisplay(
                _("The folder could not be segmented.") + "\n\n" + outcome.message,
                detailedText=outcome.details or None,
            )
        self._progress.stop(text)
        self._onChange()

    def _onRowOpened(self, row, column):
        """Show a case: load its image and segmentation, or say why it failed."""
        case = self._cases[row]
        if case["status"] != "done":
            slicer.util.errorDisplay(
                _("{name} was not segmented.").format(name=case["case"]) + "\n\n" + case["error"]
            )
            return
        if "volumeId" in case:
            self._openVolume(case)
            return
        if case["output"].endswith(".dcm") or os.path.isdir(case["input"]):
            slicer.util.infoDisplay(
                _("DICOM is opened with the module DICOM: import the folder of images and the results.")
            )
            return
        with explained(_("The case cannot be loaded.")):
            volume = slicer.util.loadVolume(case["input"])
            slicer.util.loadSegmentation(case["output"])
            slicer.util.setSliceViewerLayers(background=volume, fit=True)


def _place(node):
    """Where a node is in the subject hierarchy, from the patient on."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    item, names = hierarchy.GetItemByDataNode(node) if hierarchy is not None else 0, []
    while item and item != hierarchy.GetSceneItemID():
        names.insert(0, hierarchy.GetItemName(item))
        item = hierarchy.GetItemParent(item)
    return " / ".join(names)


def _open(path):
    qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(path))
