"""Sample data in one click: phantom patients that the engine makes on this computer, without a download."""

import importlib.util
import os
import shutil

import qt
import slicer
from slicer.i18n import tr as _

from . import process

CATEGORY = "SemanticGAN"
SAMPLES = {  # the engine's name of the domain: sample name, (window, level) that suit it
    "ct": ("SemanticGANPhantomCT", (400.0, 40.0)),
    "t1_in": ("SemanticGANPhantomMR", None),
}


def registerSampleData(iconsFolder):
    """Add the phantoms to the module Sample Data."""
    import SampleData

    logic = SampleData.SampleDataLogic
    if hasattr(logic, "registerCustomSampleDataCategory"):  # without it the name is the title
        logic.registerCustomSampleDataCategory(CATEGORY, title=_("SemanticGAN"))
    for domain, (name, _window) in SAMPLES.items():
        logic.registerCustomSampleDataSource(
            category=CATEGORY,
            sampleName=name,
            uris="",  # nothing is downloaded
            fileNames=f"{name}.nii.gz",
            nodeNames=name,
            thumbnailFileName=os.path.join(iconsFolder, f"{name}.png"),
            customDownloader=lambda source, domain=domain: _makeAndWait(domain),
        )


def _makeAndWait(domain):
    """For Sample Data, which expects the node at once: events go on while the phantom is made."""
    loop, answer = qt.QEventLoop(), {}

    def finished(node, problem):
        answer.update(node=node, problem=problem)
        loop.quit()

    maker = SampleMaker(finished)  # noqa: F841  (keeps it alive)
    maker.start(domain)
    if not answer:
        loop.exec_()
    if answer["node"] is None:
        raise RuntimeError(answer["problem"])
    return answer["node"]


class SampleMaker:
    """Makes a phantom in a process of its own and loads it.

    onFinished(node, problem): the volume, or None and why; None and "" after ``cancel``. A phantom that was made
    before is only loaded.
    """

    def __init__(self, onFinished):
        self._onFinished, self._worker = onFinished, None

    def start(self, domain):
        """Begin; returns at once. Raises RuntimeError when the engine is not installed."""
        if importlib.util.find_spec("sgan_core") is None:
            raise RuntimeError(_("Install the engine first, in the module Segment with SemanticGAN."))
        name, _window = SAMPLES[domain]
        self._domain = domain
        self._path = os.path.join(slicer.app.cachePath, CATEGORY, f"{name}.nii.gz")
        if os.path.isfile(self._path):
            self._load()
            return
        self._making = self._path[: -len(".nii.gz")] + ".making"  # renamed when it is whole
        shutil.rmtree(self._making, ignore_errors=True)
        arguments = ["-m", "sgan_core.cli.data", "prepare", "phantom"]
        arguments += ["--output", self._making, "--domain", domain]
        # One patient to train with is the least; the test patient is one that no model has seen.
        arguments += ["--patients", "1", "--labelled", "1", "--validation", "0", "--test", "1"]
        self._worker = process.Worker(lambda event: None, self._made, plain=True)
        self._worker.start(process.pythonProgram(), process.untilEof(arguments))

    def cancel(self):
        """Stop making it; onFinished comes soon."""
        if self._worker is not None:
            self._worker.cancel()

    def close(self):
        """Stop at once, without a word."""
        if self._worker is not None and self._worker.isRunning():
            self._worker.abandon()
            shutil.rmtree(self._making, ignore_errors=True)

    def _made(self, outcome):
        images = os.path.join(self._making, "images")
        made = [name for name in os.listdir(images) if "1000000" in name] if os.path.isdir(images) else []
        if outcome.status != process.DONE or not made:
            shutil.rmtree(self._making, ignore_errors=True)
            cancelled = outcome.status == process.CANCELLED
            problem = outcome.details or outcome.message or _("The engine made no phantom.")
            self._onFinished(None, "" if cancelled else problem)
            return
        os.replace(os.path.join(images, made[0]), self._path)
        shutil.rmtree(self._making, ignore_errors=True)
        self._load()

    def _load(self):
        name, window = SAMPLES[self._domain]
        node = slicer.modules.volumes.logic().AddArchetypeVolume(self._path, name)
        if node is None:
            os.remove(self._path)  # damaged: the next try makes it anew
            self._onFinished(None, _("{path} could not be loaded. Try again.").format(path=self._path))
            return
        if window:
            node.GetDisplayNode().SetAutoWindowLevel(False)
            node.GetDisplayNode().SetWindowLevel(*window)
        slicer.util.setSliceViewerLayers(background=node, fit=True)
        self._onFinished(node, "")
