"""The part of the panel that shows a result: trust, volumes, doubtful slices, reconstruction, undo."""

import html
import os
from contextlib import suppress

import qt
import slicer
from slicer.i18n import tr as _

from . import importer, review
from .dialogs import explained
from .volumes import uniqueName

_TRUST_COLOURS = {"ok": "#2e7d32", "review": "#b26a00"}  # readable on light and dark


class ResultView:
    """Drives the widgets below "Result". say(text): shows a line of status.

    ``result``: what is shown, or None. Besides that of the last run, which can be undone, this is what a segmentation
    that is chosen remembers of the run that drew it (``importer.storedResult``).
    """

    def __init__(self, ui, say):
        self._ui, self._say = ui, say
        self.result = self._last = self._copyOf = self._reconstruction = None
        self._earlier = False  # whether a later run has failed
        self._doubtful, self._layers = [], {}
        self._comparison = ui.reconstructionCheckBox.toolTip
        ui.volumeTable.setColumnCount(4)
        ui.volumeTable.setHorizontalHeaderLabels(_headers())
        ui.volumeTable.horizontalHeader().setStretchLastSection(True)
        ui.volumeTable.verticalHeader().setVisible(False)
        ui.noticesLabel.setVisible(False)
        ui.doubtfulList.itemClicked.connect(self._jump)
        ui.doubtfulList.itemActivated.connect(self._jump)  # the Enter key
        ui.doubtfulList.currentRowChanged.connect(self._jump)
        ui.doubtfulList.itemChanged.connect(self._onChecked)
        ui.previousSliceButton.clicked.connect(lambda *unused: self._goBy(-1))
        ui.nextSliceButton.clicked.connect(lambda *unused: self._goBy(1))
        ui.checkedSliceButton.clicked.connect(self._onSliceChecked)
        ui.reconstructionCheckBox.toggled.connect(self._onReconstructionToggled)
        ui.fadeSlider.valueChanged.connect(self._onFade)
        ui.editButton.clicked.connect(self._onEdit)
        ui.undoButton.clicked.connect(self._onUndo)
        ui.copyTableButton.clicked.connect(self._onCopyTable)
        ui.addTableButton.clicked.connect(self._onAddTable)
        ui.openReportButton.clicked.connect(self._onOpenReport)
        ui.saveReportButton.clicked.connect(self._onSaveReport)
        ui.outputSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._onSegmentationChosen)
        ui.outputSelector.connect(
            "nodeActivated(vtkMRMLNode*)", self._onSegmentationChosen
        )  # of the same name

    def show(self, result, seconds=None, inViews=True, copyOf=None):
        """Show the result of a run in place of the former one.

        seconds: since Apply; inViews: whether the views go to it; copyOf: the volume that the segmented one is a copy
        of, made for the run: Undo removes the copy and chooses this one again.
        """
        self.forget()
        self._last, self._copyOf, self._earlier = result, copyOf, False
        result.undo.copy = result.volume if copyOf is not None else None
        if inViews:
            slicer.util.setSliceViewerLayers(background=result.volume)
        seconds = result.case["seconds"] if seconds is None else seconds
        name = uniqueName(result.segmentation)
        self._say(_("Done in {seconds:.0f} s: {name}").format(seconds=seconds, name=name))
        self._display(result)

    def _display(self, result):
        """Fill the widgets."""
        self._ui.reconstructionCheckBox.setChecked(False)
        self.result = result
        case, ui, last = result.case, self._ui, result is self._last
        self._setTitle()
        ui.resultCollapsibleButton.setEnabled(True)
        notices = "".join(f"<br>\u2022 {html.escape(text)}" for text in case["warnings"])
        ui.noticesLabel.setText("<b>{}</b>{}".format(_("Please note"), notices))
        ui.noticesLabel.setVisible(bool(notices))
        trust = case["trust"]
        verdict = _("Looks right") if trust["status"] == "ok" else _("Please review")
        ui.trustLabel.setText(
            f'<b style="color: {_TRUST_COLOURS.get(trust["status"], _TRUST_COLOURS["review"])}">{verdict}</b>: '
            f"{html.escape(trust['reason'])}"
        )
        self._fillVolumes(result)
        ui.ratioLabel.text = importer.ratioText(case)
        ui.ratioLabel.setVisible(bool(ui.ratioLabel.text))
        self._fillDoubtful(result)
        drawn = bool(case.get("reconstruction_output"))
        ui.reconstructionCheckBox.setEnabled(drawn)
        if drawn:
            hint = self._comparison
        elif last:
            hint = _("The model is a student alone: it has no generator to compare with.")
        else:
            hint = _("The reconstruction is not kept with the segmentation. Run again to compare.")
        ui.reconstructionCheckBox.setToolTip(hint)
        ui.undoButton.setEnabled(last)
        for button in (ui.openReportButton, ui.saveReportButton):
            button.setEnabled(importer.hasReport(result))
        ui.show3DButton.setSegmentationNode(result.segmentation)
        ui.resultCollapsibleButton.setVisible(True)
        ui.resultCollapsibleButton.collapsed = False

    def isEarlier(self):
        """A later run has failed: say that what is shown is not its result."""
        self._earlier = True
        if self.result is not None:
            self._setTitle()

    def comeBackTo(self, node):
        """A run on another patient has ended: show again what belongs to the segmentation that is chosen."""
        self._onSegmentationChosen(node)

    def follow(self, volume):
        """Grey the result out while another volume than its own is chosen."""
        if self.result is None:
            return
        self._ui.resultCollapsibleButton.setEnabled(volume is self.result.volume)
        self._setTitle()

    def _setTitle(self):
        earlier = self._earlier or self.result is not self._last
        title = _("Result of an earlier run: {name}") if earlier else _("Result: {name}")
        self._ui.resultCollapsibleButton.text = title.format(name=self._name())

    def _name(self):
        """What the result is called after: its volume, or its segmentation when the volume is not there."""
        return uniqueName(self.result.volume or self.result.segmentation)

    def _onSegmentationChosen(self, node):
        """Show what a segmentation remembers of its run; the last run can be come back to by choosing it again."""
        if node is None or (self.result is not None and node is self.result.segmentation):
            return
        if self._last is not None and node is self._last.segmentation:
            self._display(self._last)
            return
        stored = importer.storedResult(node)
        if stored is not None:
            self._display(stored)

    # --- volumes

    def _fillVolumes(self, result):
        table, rows = self._ui.volumeTable, importer.volumeRows(result)
        table.setRowCount(len(rows))
        segmentation = result.segmentation.GetSegmentation()
        for row, ((name, volume, voxels, code), segmentId) in enumerate(
            zip(rows, result.segmentIds, strict=True)
        ):
            millilitres = "" if volume is None else f"{volume:.1f}"
            for column, text in enumerate((name, millilitres, f"{voxels:,}", code)):
                table.setItem(row, column, qt.QTableWidgetItem(text))
            segment = segmentation.GetSegment(segmentId)
            if segment is not None:  # a person may have removed it
                swatch = qt.QPixmap(12, 12)
                swatch.fill(qt.QColor(*(round(255 * channel) for channel in segment.GetColor())))
                table.item(row, 0).setIcon(qt.QIcon(swatch))
        table.resizeColumnsToContents()
        _fit(table, len(rows), table.rowHeight(0) if rows else 0, table.horizontalHeader().height)

    def _onCopyTable(self, *unused):
        """Put the table on the clipboard, for a spreadsheet: plain numbers between tabs, the image in each row."""
        if self.result is None:
            return
        lines, image = [[_("Image"), *_headers()]], self._name()
        for name, volume, voxels, code in importer.volumeRows(self.result):
            lines.append([image, name, "" if volume is None else f"{volume:.3f}", str(voxels), code])
        text = "\n".join("\t".join(" ".join(cell.split()) for cell in line) for line in lines)
        slicer.app.clipboard().setText(text + "\n")
        self._say(_("The volumes of {name} are on the clipboard.").format(name=image))

    def _onAddTable(self, *unused):
        if self.result is not None and self.result.segmentation.GetScene() is not None:
            table = importer.addTable(self.result)
            self._say(_("The volumes are in the scene: {name}").format(name=uniqueName(table)))

    # --- report

    def _onOpenReport(self, *unused):
        with explained(_("The report cannot be opened.")):
            qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(importer.report(self.result)))

    def _onSaveReport(self, *unused):
        """The page is read first: while the dialog is open, the result of another patient may come."""
        name = self._name()
        with explained(_("The report cannot be saved.")):
            with open(importer.report(self.result), "rb") as file:
                page = file.read()
            proposed = "".join(letter if letter.isalnum() or letter in " -_" else "_" for letter in name)
            path = qt.QFileDialog.getSaveFileName(
                slicer.util.mainWindow(), _("Save report"), f"{proposed} report.html", "HTML (*.html)"
            )
            path = path[0] if isinstance(path, tuple) else path
            if path:
                self._saveReport(page, name, path)

    def _saveReport(self, page, name, path):
        part = f"{path}.part"  # so that a full disk leaves no half of a page
        try:
            with open(part, "wb") as file:
                file.write(page)
            os.replace(part, path)
        except OSError as error:
            with suppress(OSError):
                os.remove(part)
            slicer.util.errorDisplay(
                _(
                    "The report of {name} cannot be saved in {folder} ({reason}). Free some space there, or choose "
                    "another folder."
                ).format(name=name, folder=os.path.dirname(path), reason=error.strerror or error)
            )
            return
        self._say(_("The report is saved: {path}").format(path=path))

    # --- slices to look at

    def _fillDoubtful(self, result):
        self._doubtful, listed = result.doubtfulSlices(), self._ui.doubtfulList
        checked = review.checked(result.segmentation)
        blocked = listed.blockSignals(True)
        listed.clear()
        for row, (number, (_r, _a, s)) in enumerate(self._doubtful):
            listed.addItem(_("Slice {number}, S {position:.1f} mm").format(number=number, position=s))
            listed.item(row).setCheckState(qt.Qt.Checked if number in checked else qt.Qt.Unchecked)
        listed.blockSignals(blocked)
        for widget in (
            listed,
            self._ui.doubtfulLabel,
            self._ui.previousSliceButton,
            self._ui.nextSliceButton,
            self._ui.checkedSliceButton,
        ):
            widget.setVisible(bool(self._doubtful))
        self._tellWhatIsLeft()
        _fit(listed, len(self._doubtful), listed.sizeHintForRow(0), 0)

    def _checkedRows(self):
        listed = self._ui.doubtfulList
        return [row for row in range(len(self._doubtful)) if listed.item(row).checkState() == qt.Qt.Checked]

    def _tellWhatIsLeft(self):
        everything = len(self._doubtful)
        left = everything - len(self._checkedRows())
        text = _("Slices to look at, {left} of {all} left:") if left else _("Slices to look at, all checked:")
        self._ui.doubtfulLabel.setText(text.format(left=left, all=everything))

    def _jump(self, *unused):
        row = self._ui.doubtfulList.currentRow
        if 0 <= row < len(self._doubtful):
            _number, position = self._doubtful[row]
            slicer.vtkMRMLSliceNode.JumpAllSlices(
                slicer.mrmlScene, *position, slicer.vtkMRMLSliceNode.CenteredJumpSlice
            )

    def _goBy(self, step):
        """To the next slice of the list, or the one before."""
        listed = self._ui.doubtfulList
        listed.setCurrentRow(max(0, min(listed.currentRow + step, len(self._doubtful) - 1)))
        self._jump()

    def _onSliceChecked(self, *unused):
        """The slice was looked at: on to the next that was not."""
        listed, row = self._ui.doubtfulList, self._ui.doubtfulList.currentRow
        if 0 <= row < len(self._doubtful):
            listed.item(row).setCheckState(qt.Qt.Checked)
        checked, count = self._checkedRows(), len(self._doubtful)
        following = [(row + step) % count for step in range(1, count)] if row >= 0 else range(count)
        left = next((one for one in following if one not in checked), None)
        if left is not None:
            listed.setCurrentRow(left)

    def _onChecked(self, *unused):
        """Keep in the scene what was looked at, so that the review can go on another day."""
        if self.result is not None and self.result.segmentation.GetScene() is not None:
            numbers = [self._doubtful[row][0] for row in self._checkedRows()]
            review.setChecked(self.result.segmentation, numbers)
        self._tellWhatIsLeft()

    # --- reconstruction

    def _onReconstructionToggled(self, *unused):
        shown = self._ui.reconstructionCheckBox.checked
        self._ui.fadeSlider.setEnabled(shown)
        if not shown:
            self._restoreLayers()
            return
        if self.result is None:
            return
        with explained(_("The reconstruction cannot be shown.")):
            if self._reconstruction is None or self._reconstruction.GetScene() is None:
                self._reconstruction = importer.addReconstruction(self.result)
            self._layers = {
                view.GetID(): (view.GetForegroundVolumeID(), view.GetForegroundOpacity()) for view in _views()
            }
            slicer.util.setSliceViewerLayers(background=self.result.volume, foreground=self._reconstruction)
            self._onFade()
            return
        self._ui.reconstructionCheckBox.setChecked(False)

    def _restoreLayers(self):
        """Give the views the foreground back that they had, a PET for instance, where the reconstruction still is."""
        layers, self._layers = self._layers, {}
        for view in self._comparing():
            volumeId, opacity = layers.get(view.GetID(), (None, view.GetForegroundOpacity()))
            there = slicer.mrmlScene.GetNodeByID(volumeId or "") is not None
            view.SetForegroundVolumeID(volumeId if there else None)
            view.SetForegroundOpacity(opacity)

    def _comparing(self):
        """The views whose foreground is the reconstruction."""
        if self._reconstruction is None:
            return []
        mine = self._reconstruction.GetID()
        return [view for view in _views() if mine and view.GetForegroundVolumeID() == mine]

    def _onFade(self, *unused):
        for view in self._comparing():
            view.SetForegroundOpacity(self._ui.fadeSlider.value / 100.0)

    def _onEdit(self, *unused):
        if self.result is None or self.result.segmentation.GetScene() is None:
            return
        importer.openInSegmentEditor(self.result.segmentation, self.result.volume)

    # --- what comes of it

    def _onUndo(self, *unused):
        result = self.result
        if result is None or result is not self._last:
            return
        undo = result.undo
        if undo.edited and not slicer.util.confirmOkCancelDisplay(
            _("The segmentation was changed after the run. Undo takes these changes back, too."), _("Undo")
        ):
            return
        if self._last is not result:
            self._say(_("Nothing was undone: another result has come, or the scene was closed."))
            return
        copyChosen = self._copyOf is not None and self._ui.inputSelector.currentNode() is result.volume
        undo.restore()
        if copyChosen and result.volume.GetScene() is None:
            self._ui.inputSelector.setCurrentNode(self._copyOf)
        self.forget()
        self._say(_("The run was undone."))

    def forget(self):
        """Hide the result and delete its files; nodes in the scene stay."""
        if self.result is None and self._last is None:
            return
        self._ui.reconstructionCheckBox.setChecked(False)  # takes it out of the slice views
        if self._last is not None:
            self._last.discard()
        self.result = self._last = self._copyOf = self._reconstruction = None
        self._ui.resultCollapsibleButton.setVisible(False)
        self._ui.show3DButton.setSegmentationNode(None)


def _headers():
    return [_("Segment"), _("Volume (mL)"), _("Voxels"), _("SNOMED CT")]


def _views():
    return slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")


def _fit(widget, rows, rowHeight, headerHeight, most=6):
    """Make a list as high as its rows, of which ``most`` are seen at a time."""
    widget.setFixedHeight(headerHeight + min(rows, most) * rowHeight + 2 * widget.frameWidth + 2)
