"""The module's self-test, run by Slicer's test driver (and by tests/slicer over stand-ins)."""

import unittest

import slicer

import SemanticGANSlicer


class SemanticGANSlicerSelfTest(unittest.TestCase):
    """Makes a phantom, segments it with the real worker and the bundled model, looks at the segmentation."""

    def setUp(self):
        reason = SemanticGANSlicer.whyNotTestable()
        if reason:
            self.skipTest(reason)
        slicer.mrmlScene.Clear()

    def test_wholePathOnThePhantom(self):
        SemanticGANSlicer.SemanticGANSlicerTest().runTest()
