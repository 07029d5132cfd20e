"""The tab Batch: a folder in, a folder of results out, by the same worker."""

import os

import qt
import slicer
from slicer.i18n import tr as _

from . import process
from .dialogs import explained
from .progress import ProgressView


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
        headers = [_("Case"), _("Trust"), _("Volumes (mL)"), _("Seconds"), _("Result")]
        ui.batchTable.setColumnCount(len(headers))
        ui.batchTable.setHorizontalHeaderLabels(headers)
        ui.batchTable.verticalHeader().setVisible(False)
        ui.batchTable.horizontalHeader().setStretchLastSection(True)
        ui.batchInputPathLineEdit.currentPathChanged.connect(self._onPathsChanged)
        ui.batchOutputPathLineEdit.currentPathChanged.connect(self._onPathsChanged)
        ui.batchRunButton.clicked.connect(self._onRun)
        ui.batchCancelButton.clicked.connect(self._onCancel)
        ui.batchTable.cellDoubleClicked.connect(self._onRowOpened)
        ui.batchReportButton.clicked.connect(lambda *unused: _open(os.path.join(self._output, "report.html")))
        ui.batchFolderButton.clicked.connect(lambda *unused: _open(self._output))

    def isRunning(self):
        return self._running

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
            self._running = False
        ui.batchRunButton.setEnabled(p is not None and bool(p.batchInput and p.batchOutput) and not busy)
        ui.batchCancelButton.setEnabled(self._running)
        finished = bool(self._cases) and not self._running
        ui.batchReportButton.setEnabled(
            finished and os.path.isfile(os.path.join(self._output, "report.html"))
        )
        ui.batchFolderButton.setEnabled(bool(self._cases))
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

    def _onRun(self, *unused):
        p = self._parameterNode
        if p is None or not self._ensureInstalled():
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
            volumes = ", ".join(
                f"{label['name']} {label['volume_ml']:.1f}"
                for label in case["labels"]
                if label["volume_ml"] is not None
            )
            file = os.path.basename(case["output"])
            texts = [case["trust"]["status"], volumes, f"{case['seconds']:.0f}", file]
            hint = case["trust"]["reason"]
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
        """Load a case's image and segmentation."""
        case = self._cases[row]
        if case["status"] != "done" or case["output"].endswith(".dcm") or os.path.isdir(case["input"]):
            slicer.util.infoDisplay(
                _("DICOM is opened with the module DICOM: import the folder of images and the results.")
            )
            return
        with explained(_("The case cannot be loaded.")):
            volume = slicer.util.loadVolume(case["input"])
            slicer.util.loadSegmentation(case["output"])
            slicer.util.setSliceViewerLayers(background=volume, fit=True)


def _open(path):
    qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(path))
