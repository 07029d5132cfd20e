"""Segment with SemanticGAN: the module as Slicer finds it. The parts are in SemanticGANSlicerLib."""

import os
import time

import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import ScriptedLoadableModule, ScriptedLoadableModuleTest

from SemanticGANSlicerLib import version

# What is loaded on every Slicer, this file and version.py, keeps to Python 3.9.
if version.isTooOld():

    class SemanticGANSlicerWidget(version.SlicerIsTooOldWidget):
        """Says which Slicer is needed."""

else:
    from SemanticGANSlicerLib.install import whyNotInstalled
    from SemanticGANSlicerLib.logic import Options, SemanticGANSlicerLogic
    from SemanticGANSlicerLib.sample_data import SampleMaker, registerSampleData
    from SemanticGANSlicerLib.widget import SemanticGANSlicerWidget  # noqa: F401  (Slicer looks for it here)


class SemanticGANSlicer(ScriptedLoadableModule):
    """What the module selector and the help show."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("Segment with SemanticGAN")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = [
            "Segmentations",
            "Volumes",
            "Terminologies",
            "SubjectHierarchy",
            "Sequences",
            "SegmentEditor",
            "SampleData",
        ]
        self.parent.contributors = ["SemanticGAN contributors"]
        self.parent.helpText = _(
            "Segments CT and MR volumes, X-rays and colour pictures with a generative model of images and "
            "their labels, and says where the model could not explain the image. Everything is computed "
            "on this computer. Needs Slicer 5.12 or newer. Research use only, not a medical device. <a "
            'href="https://github.com/SemanticGAN/SlicerSemanticGAN/blob/main/docs/slicer.md">Tutorial</a>'
        )
        self.parent.acknowledgementText = _(
            "The method is by D. Li, J. Yang, K. Kreis, A. Torralba and S. Fidler: Semantic Segmentation "
            "with Generative Models: Semi-Supervised Learning and Strong Out-of-Domain Generalization, "
            "CVPR 2021. This is an independent implementation."
        )
        icons = os.path.join(os.path.dirname(__file__), "Resources", "Icons")
        if not version.isTooOld():
            slicer.app.connect("startupCompleted()", lambda: registerSampleData(icons))


def whyNotTestable():
    """Why the self test cannot run here, "" when it can: on Slicer's factory nobody installs the engine."""
    return version.sentence() if version.isTooOld() else whyNotInstalled()


class SemanticGANSlicerTest(ScriptedLoadableModuleTest):
    """The whole path on a phantom, by the logic alone: "Reload and Test", and Testing/Python."""

    def setUp(self):
        reason = whyNotTestable()
        if reason:
            self.skipTest(reason)
        slicer.mrmlScene.Clear()

    def runTest(self):
        reason = whyNotTestable()
        if reason:  # told here, because "Reload and Test" would show a skipped test as an error
            self.delayDisplay(_("Skipped: {reason}").format(reason=reason))
            return
        self.setUp()
        self.test_phantomLiver()

    def test_phantomLiver(self):
        self.delayDisplay(_("Making a phantom patient"))
        volume = self._wait(lambda done: SampleMaker(lambda node, problem: done(node, problem)).start("ct"))
        self.delayDisplay(_("Segmenting its liver"))
        logic = SemanticGANSlicerLogic()
        options = Options(model="phantom-ct-liver", quality="fast")
        result = self._wait(
            lambda done: logic.segment(
                volume, options, onFinished=lambda outcome, found: done(found, outcome.message)
            )
        )
        (segmentId,) = result.segmentIds
        segment = result.segmentation.GetSegmentation().GetSegment(segmentId)
        self.assertEqual(segment.GetName(), "liver")
        voxels = int(slicer.util.arrayFromSegmentBinaryLabelmap(result.segmentation, segmentId, volume).sum())
        (found,) = result.case["labels"]
        self.assertEqual(voxels, found["voxels"])
        self.assertTrue(500 < found["volume_ml"] < 3000, found)  # a liver of an adult
        result.discard()
        self.delayDisplay(_("Test passed"))

    def _wait(self, start, seconds=300):
        """Start something long and let events go on until it calls done(result, problem)."""
        answer = []
        start(lambda result, problem: answer.append((result, problem)))
        end = time.monotonic() + seconds
        while not answer:
            self.assertLess(time.monotonic(), end, "no answer in time")
            slicer.app.processEvents()
            time.sleep(0.005)  # the worker has a low priority: leave it a processor
        result, problem = answer[0]
        self.assertIsNotNone(result, problem)
        return result
