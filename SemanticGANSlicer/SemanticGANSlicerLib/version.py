"""Which Slicer the module needs. Loaded before all else, so it must run in the Python 3.9 of Slicer 5.8."""

import qt
import slicer
from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleWidget

# 5.12 is the first with pydicom 3 and highdicom, which the engine reads DICOM by, and with
# SampleData's registerCustomSampleDataCategory; 5.8 has Python 3.9, too old for the engine.
OLDEST = (5, 12)


def isTooOld():
    """Whether this Slicer is older than the module needs."""
    return (slicer.app.majorVersion, slicer.app.minorVersion) < OLDEST


def sentence():
    """What is shown on a Slicer that is too old."""
    return _(
        "Segment with SemanticGAN needs Slicer {needed} or newer, this is {found}. Please install a newer Slicer."
    ).format(needed="{}.{}".format(*OLDEST), found=f"{slicer.app.majorVersion}.{slicer.app.minorVersion}")


class SlicerIsTooOldWidget(ScriptedLoadableModuleWidget):
    """In place of the panel: one sentence."""

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        self.label = qt.QLabel(sentence())
        self.label.setWordWrap(True)
        self.layout.addWidget(self.label)
        self.layout.addStretch(1)
