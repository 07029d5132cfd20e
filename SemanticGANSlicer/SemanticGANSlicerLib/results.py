"""The part of the panel that shows a result: trust, volumes, doubtful slices, reconstruction, undo."""

import html

import qt
import slicer
from slicer.i18n import tr as _

from . import importer
from .dialogs import explained
from .volumes import uniqueName

_TRUST_COLOURS = {"ok": "#2e7d32", "review": "#b26a00"}  # readable on light and dark


class ResultView:
    """Drives the widgets below "Result". say(text): shows a line of status. ``result``: what is shown, or None."""

    def __init__(self, ui, say):
        self._ui, self._say = ui, say
        self.result = self._reconstruction = None
        self._earlier = False  # whether a later run has failed
        self._doubtful = []
        self._comparison = ui.reconstructionCheckBox.toolTip
        ui.volumeTable.setColumnCount(4)
        ui.volumeTable.setHorizontalHeaderLabels(
            [_("Segment"), _("Volume (mL)"), _("Voxels"), _("SNOMED CT")]
        )
        ui.volumeTable.horizontalHeader().setStretchLastSection(True)
        ui.volumeTable.verticalHeader().setVisible(False)
        ui.doubtfulList.itemClicked.connect(self._onDoubtfulClicked)
        ui.doubtfulList.itemActivated.connect(self._onDoubtfulClicked)  # the Enter key
        ui.reconstructionCheckBox.toggled.connect(self._onReconstructionToggled)
        ui.fadeSlider.valueChanged.connect(self._onFade)
        ui.editButton.clicked.connect(self._onEdit)
        ui.undoButton.clicked.connect(self._onUndo)

    def show(self, result, seconds, inViews=True):
        """Show a result in place of the former one. seconds: since Apply; inViews: whether the views go to it."""
        self.forget()
        self.result, self._earlier = result, False
        node, case, ui = result.segmentation, result.case, self._ui
        if inViews:
            slicer.util.setSliceViewerLayers(background=result.volume)
        status = _("Done in {seconds:.0f} s: {name}").format(seconds=seconds, name=uniqueName(node))
        self._say("\n".join([status, *(_("Warning: {text}").format(text=text) for text in case["warnings"])]))
        trust = case["trust"]
        verdict = _("Looks right") if trust["status"] == "ok" else _("Please review")
        ui.trustLabel.setText(
            f'<b style="color: {_TRUST_COLOURS.get(trust["status"], _TRUST_COLOURS["review"])}">{verdict}</b>: '
            f"{html.escape(trust['reason'])}"
        )
        self._fillVolumes(result)
        self._fillDoubtful(result)
        drawn = bool(case.get("reconstruction_output"))
        ui.reconstructionCheckBox.setEnabled(drawn)
        ui.reconstructionCheckBox.setToolTip(
            self._comparison
            if drawn
            else _("The model is a student alone: it has no generator to compare with.")
        )
        ui.show3DButton.setSegmentationNode(node)
        ui.resultCollapsibleButton.setVisible(True)
        ui.resultCollapsibleButton.collapsed = False

    def isEarlier(self):
        """A later run has failed: say that what is shown is not its result."""
        self._earlier = True
        if self.result is not None:
            self._setTitle()

    def follow(self, volume):
        """Grey the result out while another volume than its own is chosen."""
        if self.result is None:
            return
        self._ui.resultCollapsibleButton.setEnabled(volume is self.result.volume)
        self._setTitle()

    def _setTitle(self):
        title = _("Result of an earlier run: {name}") if self._earlier else _("Result: {name}")
        self._ui.resultCollapsibleButton.text = title.format(name=uniqueName(self.result.volume))

    def _fillVolumes(self, result):
        table = self._ui.volumeTable
        table.setRowCount(len(result.labels))
        found = {volume["value"]: volume for volume in result.case["labels"]}
        segmentation = result.segmentation.GetSegmentation()
        for row, (label, segmentId) in enumerate(zip(result.labels, result.segmentIds, strict=True)):
            volume = found[label["value"]]
            millilitres = "" if volume["volume_ml"] is None else f"{volume['volume_ml']:.1f}"
            for column, text in enumerate(
                (label["name"], millilitres, f"{volume['voxels']:,}", label.get("code", ""))
            ):
                table.setItem(row, column, qt.QTableWidgetItem(text))
            colour = segmentation.GetSegment(segmentId).GetColor()
            swatch = qt.QPixmap(12, 12)
            swatch.fill(qt.QColor(*(round(255 * channel) for channel in colour)))
            table.item(row, 0).setIcon(qt.QIcon(swatch))
        table.resizeColumnsToContents()
        _fit(
            table,
            len(result.labels),
            table.rowHeight(0) if result.labels else 0,
            table.horizontalHeader().height,
        )

    def _fillDoubtful(self, result):
        slices, listed = result.doubtfulSlices(), self._ui.doubtfulList
        listed.clear()
        self._doubtful = slices
        for number, (_r, _a, s) in slices:
            listed.addItem(_("Slice {number}, S {position:.1f} mm").format(number=number, position=s))
        for widget in (listed, self._ui.doubtfulLabel):
            widget.setVisible(bool(slices))
        _fit(listed, len(slices), listed.sizeHintForRow(0), 0)

    def _onDoubtfulClicked(self, *unused):
        row = self._ui.doubtfulList.currentRow
        if 0 <= row < len(self._doubtful):
            _number, position = self._doubtful[row]
            slicer.vtkMRMLSliceNode.JumpAllSlices(
                slicer.mrmlScene, *position, slicer.vtkMRMLSliceNode.CenteredJumpSlice
            )

    def _onReconstructionToggled(self, *unused):
        shown = self._ui.reconstructionCheckBox.checked
        self._ui.fadeSlider.setEnabled(shown)
        if shown and self.result is not None:
            with explained(_("The reconstruction cannot be shown.")):
                if self._reconstruction is None or self._reconstruction.GetScene() is None:
                    self._reconstruction = importer.addReconstruction(self.result)
                slicer.util.setSliceViewerLayers(
                    background=self.result.volume, foreground=self._reconstruction
                )
                self._onFade()
                return
            self._ui.reconstructionCheckBox.setChecked(False)
        slicer.util.setSliceViewerLayers(foreground=None)

    def _onFade(self, *unused):
        slicer.util.setSliceViewerLayers(foregroundOpacity=self._ui.fadeSlider.value / 100.0)

    def _onEdit(self, *unused):
        """Open the result in the Segment Editor: its node is the editor module's own, as in its selectParameterNode."""
        if self.result is None or self.result.segmentation.GetScene() is None:
            return
        editor = slicer.mrmlScene.GetSingletonNode("SegmentEditor", "vtkMRMLSegmentEditorNode")
        if editor is None:
            editor = slicer.vtkMRMLSegmentEditorNode()
            editor.SetSingletonTag("SegmentEditor")
            editor = slicer.mrmlScene.AddNode(editor)
        editor.SetAndObserveSegmentationNode(self.result.segmentation)
        editor.SetAndObserveSourceVolumeNode(self.result.volume)
        slicer.util.selectModule("SegmentEditor")

    def _onUndo(self, *unused):
        if self.result is None:
            return
        undo = self.result.undo
        if undo.edited and not slicer.util.confirmOkCancelDisplay(
            _("The segmentation was changed after the run. Undo takes these changes back, too."), _("Undo")
        ):
            return
        undo.restore()
        self.forget()
        self._say(_("The run was undone."))

    def forget(self):
        """Hide the result and delete its files; nodes in the scene stay."""
        if self.result is None:
            return
        self._ui.reconstructionCheckBox.setChecked(False)  # takes it out of the slice views
        self.result.discard()
        self.result = self._reconstruction = None
        self._ui.resultCollapsibleButton.setVisible(False)
        self._ui.show3DButton.setSegmentationNode(None)


def _fit(widget, rows, rowHeight, headerHeight, most=6):
    """Make a list as high as its rows, of which ``most`` are seen at a time."""
    widget.setFixedHeight(headerHeight + min(rows, most) * rowHeight + 2 * widget.frameWidth + 2)
