"""Which scan to label next: the unlabelled ones by how little the model trusts its own segmentation of them."""

import os

import qt
import slicer
from slicer.i18n import tr as _

from . import importer, labelled, process
from .dialogs import explained
from .progress import ProgressView

_OFFERED = "SemanticGAN.Offered"  # attribute of segmentations that were opened from here


def ranked(cases):
    """(case, figure) of the segmented cases, the least trusted first.

    The figure is the trust score when the model judges all of them, else the confidence of its student (the DICE that
    it expects of its own mask); cases without one come last.
    """
    done = [case for case in cases if case.get("status") == "done"]
    trust = [(case.get("trust") or {}).get("score") for case in done]
    if not done or None in trust:
        trust = [case.get("soft_dice_confidence") for case in done]
    return sorted(
        zip(done, trust, strict=True),
        key=lambda pair: (pair[1] is None, pair[1] if pair[1] is not None else 0.0, pair[0]["case"]),
    )


class NextScan:
    """Drives the widgets of "Which scan to label next".

    source(): (folder of unlabelled scans, model, folder for the predictions, files that are labelled by now), raises
    ValueError; onChange(): called when a look begins or ends, and when a scan was opened.
    """

    def __init__(self, ui, logic, source, onChange):
        self.ui, self.logic = ui, logic
        self._source, self._onChange = source, onChange
        self._progress = ProgressView(ui.trainNextProgressBar, ui.trainNextStatusLabel)
        self._worker = self._steps = None
        self._labels, self._cases, self._ranked, self._labelled = [], [], [], set()
        headers = [_("Scan"), _("Trust"), _("Why")]
        ui.trainNextTable.setColumnCount(len(headers))
        ui.trainNextTable.setHorizontalHeaderLabels(headers)
        ui.trainNextTable.horizontalHeader().setStretchLastSection(True)
        ui.trainNextTable.verticalHeader().setVisible(False)
        ui.trainNextButton.clicked.connect(self._onLook)
        ui.trainNextCancelButton.clicked.connect(self._onCancel)
        ui.trainEditButton.clicked.connect(self._onEdit)

    def isRunning(self):
        return self._worker is not None or self._steps is not None

    def updateButtons(self, possible):
        self.ui.trainNextButton.setEnabled(possible and not self.isRunning())
        self.ui.trainNextCancelButton.setEnabled(self._worker is not None)
        self.ui.trainEditButton.setEnabled(bool(self._ranked) and not self.isRunning())

    def close(self):
        """End at once, without a word."""
        if self._worker is not None:
            worker, self._worker = self._worker, None
            worker.abandon()
        self.stopLoading()

    def stopLoading(self):
        """The scene goes away."""
        if self._steps is not None:
            self._steps.stop()
            self._steps = None
            self._progress.stop("")

    def _onLook(self, *unused):
        with explained(_("The scans cannot be looked through.")):
            folder, model, output, self._labelled = self._source()
            self._cases = []
            self._fill()
            self._progress.start()
            self._worker = process.Worker(self._onEvent, self._onFinished)
            arguments = [folder, "--model", model, "--output", output, "--format", "nifti", "--no-report"]
            arguments += ["--quality", "fast", "--json-progress", "--cancel-on-eof", "--low-priority"]
            try:
                self._worker.start(self.logic.python(), [*self.logic.workerArguments, *arguments])
            except RuntimeError:
                self._worker = None
                self._progress.stop("")
                raise
        self._onChange()

    def _onCancel(self, *unused):
        if self._worker is not None:
            self._progress.say(_("Cancelling..."))
            self._worker.cancel()

    def _onEvent(self, event):
        if event["event"] == "hello":
            self._progress.show(0, 0, _("Starting: loading PyTorch and the model"))
        elif event["event"] == "start":
            self._labels = event["labels"]
        elif event["event"] == "progress":
            self._progress.show(event["done"], event["total"], event["message"], event.get("eta_s"))
        elif event["event"] == "case":
            self._cases.append(event)

    def _onFinished(self, outcome):
        self._worker = None
        self._fill()
        failed = sum(case.get("status") != "done" for case in self._cases)
        if outcome.status == process.FAILED:
            self._progress.stop(_("Failed."))
            slicer.util.errorDisplay(
                _("The unlabelled scans could not be segmented.") + "\n\n" + outcome.message,
                detailedText=outcome.details or None,
            )
        elif outcome.status == process.CANCELLED:
            self._progress.stop(_("Cancelled; {n} scans are finished.").format(n=len(self._ranked)))
        elif not self._ranked:
            self._progress.stop(_("No unlabelled scan is left."))
        else:
            text = _("{n} scans; the first is the one to label next.").format(n=len(self._ranked))
            self._progress.stop(text + (" " + _("{n} failed.").format(n=failed) if failed else ""))
        self._onChange()

    def _fill(self):
        self._ranked = [
            pair for pair in ranked(self._cases) if os.path.abspath(pair[0]["input"]) not in self._labelled
        ]
        table = self.ui.trainNextTable
        table.setRowCount(len(self._ranked))
        for row, (case, figure) in enumerate(self._ranked):
            texts = [case["case"], "" if figure is None else f"{figure:.2f}", case["trust"]["reason"]]
            for column, text in enumerate(texts):
                item = qt.QTableWidgetItem(text)
                item.setToolTip(case["input"])
                table.setItem(row, column, item)
        table.resizeColumnsToContents()
        if self._ranked:
            table.selectRow(0)

    def _onEdit(self, *unused):
        row = max(0, self.ui.trainNextTable.currentRow())
        if row >= len(self._ranked):
            return
        case, _figure = self._ranked[row]
        if os.path.isdir(case["input"]):
            slicer.util.infoDisplay(
                _(
                    "DICOM is opened with the module DICOM: import the folder, and segment it in the tab Segment."
                )
            )
            return
        with explained(_("The scan cannot be opened.")):
            known = _openedBefore(case)
            if known is not None:
                _edit(*known)
                return
            volume = slicer.util.loadVolume(case["input"])
            self._progress.show(0, 0, _("Loading the segmentation"))
            self._steps = process.Steps(
                importer.importResult(case, self._labels, volume), lambda *end: self._opened(volume, *end)
            )
        self._onChange()

    def _opened(self, volume, result, error):
        self._steps = None
        self._progress.stop("")
        if error is not None:
            slicer.util.errorDisplay(_("The scan cannot be opened.") + f"\n\n{error}")
        else:
            importer.handOver(result)
            result.segmentation.SetAttribute(_OFFERED, "1")  # ticked by the person, when it is right
            _edit(result.segmentation, volume)
        self._onChange()


def _openedBefore(case):
    """(segmentation, volume) of a case that is among the labelled ones of the scene already, or None."""
    path = os.path.abspath(case["input"])
    for segmentation, volume in labelled.candidates():
        if volume is not None and segmentation.GetAttribute(_OFFERED) and labelled.fileOf(volume) == path:
            return segmentation, volume
    return None


def _edit(segmentation, volume):
    slicer.util.setSliceViewerLayers(background=volume, fit=True)
    importer.openInSegmentEditor(segmentation, volume)
