"""A run from a volume of the scene to a segmentation in the scene."""

import errno
import os
import shutil
import tempfile
from dataclasses import dataclass, replace

import slicer
from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleLogic

from . import importer, process, volumes
from .parameters import SemanticGANSlicerParameterNode


@dataclass(frozen=True)
class Options:
    """Settings of a run, as ``sgan-segment`` knows them. region: (from, to) in mm along S, None: the whole volume.

    studentAlone: the model has no generator, so there is no reconstruction to ask for. standardNames, show3D: of
    segments in the scene, see ``importer.importResult``.
    """

    model: str
    device: str = "auto"
    quality: str = "standard"
    reconstruction: str = "auto"
    region: tuple | None = None
    pieces: str = "auto"
    studentAlone: bool = False
    standardNames: bool = False
    show3D: bool = False

    def arguments(self):
        """The options of the command."""
        arguments = ["--model", self.model, "--device", self.device, "--quality", self.quality]
        if not self.studentAlone:
            arguments += ["--reconstruction", self.reconstruction]
        if self.region is not None:
            arguments.append("--region={!r},{!r}".format(*map(float, self.region)))
        arguments += {"auto": [], "largest": ["--largest-component"], "all": ["--no-largest-component"]}[
            self.pieces
        ]
        return arguments


class SemanticGANSlicerLogic(ScriptedLoadableModuleLogic):
    """What the module can do without a window: ``segment`` a volume, ``segmentFolder``, ``cancel``.

    One run at a time. Everything long happens in a process of its own or in small pieces between events.
    """

    def __init__(self):
        ScriptedLoadableModuleLogic.__init__(self)
        importer.loadTerminology()
        self.python = process.pythonProgram  # a test puts another worker here
        self.workerArguments = ["-m", "sgan_core.cli.segment"]
        self._run = None

    def getParameterNode(self):
        return SemanticGANSlicerParameterNode(super().getParameterNode())

    def isRunning(self):
        return self._run is not None

    def segment(self, volume, options, target=None, onProgress=None, onFinished=None, onText=None):
        """Segment a volume into ``target``, or a new segmentation; returns at once.

        onProgress(done, total, message, secondsLeft or None) while it runs; onFinished(outcome, result) once at
        the end, with a ``importer.Result`` when the outcome's status is "done". Until then the scene is unchanged.
        onText(text) gets what the engine writes beside that, for a log.

        What the user does meanwhile is never in the way of a patient: a target that was removed or that belongs to
        another volume by then is left alone, and the result comes in a segmentation of its own.
        Raises ValueError, saying what to do, when the volume cannot be segmented, RuntimeError during another run.
        """
        volumes.checkVolume(volume)
        if volume.GetScene() is None:
            raise ValueError(_("{name} was removed from the scene.").format(name=volumes.uniqueName(volume)))
        if volume.GetParentTransformNode() is not None:
            raise ValueError(
                _(
                    "{name} is under a transform. Harden the transform first (module Transforms), or "
                    "segment a copy."
                ).format(name=volumes.uniqueName(volume))
            )
        if target is not None and target.GetParentTransformNode() is not None:
            raise ValueError(
                _("{name} is under a transform. Harden it first, or create a new segmentation.").format(
                    name=volumes.uniqueName(target)
                )
            )
        if target is not None and not volumes.takesMasks(target):
            raise ValueError(
                _(
                    "{name} consists of surfaces, which keep no mask. Make the binary label map its source "
                    "representation in the module Segmentations, or create a new segmentation."
                ).format(name=volumes.uniqueName(target))
            )
        self._begin(_VolumeRun(self, volume, target, options, onProgress, onFinished, onText))

    def segmentFolder(
        self, source, output, options, fileFormat="nifti", onProgress=None, onCase=None, onFinished=None
    ):
        """Segment every image of a folder into files; returns at once.

        onCase(case: dict) gets the record of each image when it is done; onFinished(outcome, None) comes at the
        end. Raises ValueError when a folder is missing.
        """
        if not os.path.isdir(source):
            raise ValueError(_("Choose the folder with the images to segment."))
        if not str(output).strip() or str(output) == ".":
            raise ValueError(_("Choose a folder for the results."))
        self._begin(_FolderRun(self, source, output, options, fileFormat, onProgress, onCase, onFinished))

    def cancel(self):
        """Ask the run to end; onFinished comes when it has."""
        if self._run is not None:
            self._run.cancel()

    def close(self):
        """End the run at once, without calling anybody: the scene or the application goes away."""
        if self._run is not None:
            run, self._run = self._run, None
            run.close()

    def _begin(self, run):
        if self._run is not None:
            raise RuntimeError(_("A run is under way. Wait for it, or cancel it."))
        self._run = run
        try:
            run.start()
        except Exception:
            self.close()
            raise

    def _ended(self, run):
        if self._run is run:
            self._run = None


class _Run:
    """What runs have in common: the worker, its events, one end."""

    def __init__(self, logic, options, onProgress, onFinished, onText=None):
        self._logic, self._options, self._onText = logic, options, onText
        self._onProgress = onProgress or (lambda done, total, message, left: None)
        self._onFinished = onFinished or (lambda outcome, result: None)
        self._worker = self._steps = None
        self._labels, self._restriction = [], ""
        self._closed = False

    def _startWorker(self, arguments):
        self._worker = process.Worker(self._onEvent, self._workerFinished, onText=self._onText)
        fixed = ["--json-progress", "--cancel-on-eof", "--low-priority"]
        self._worker.start(self._logic.python(), [*self._logic.workerArguments, *arguments, *fixed])

    def _onEvent(self, event):
        if self._closed:
            return
        if event["event"] == "hello":
            self._onProgress(0, 0, _("Starting: loading PyTorch and the model"), None)
        elif event["event"] == "start":
            self._labels, self._restriction = event["labels"], event.get("restriction", "")
            self._onProgress(0, 0, _("Segmenting with {model} on {device}").format(**event), None)
        elif event["event"] == "progress":
            self._onProgress(event["done"], event["total"], event["message"], event.get("eta_s"))
        elif event["event"] == "case":
            self._onCase(event)

    def _onCase(self, case):
        pass

    def _tellTerms(self, case):
        """Put the model's terms of use before a case's warnings."""
        if self._restriction:
            notice = _("Terms of use of the model: {text}").format(text=self._restriction)
            case["warnings"] = [notice, *case.get("warnings", [])]

    def cancel(self):
        if self._worker is not None and self._worker.isRunning():
            self._worker.cancel()
        else:  # between two pieces of preparing the volume or loading the result
            self._end(process.Outcome(process.CANCELLED))

    def close(self):
        self._closed = True
        if self._steps is not None:
            self._steps.stop()
        if self._worker is not None:
            self._worker.abandon()
        self._cleanUp()
        self._letGo()

    def _end(self, outcome, result=None):
        if self._closed:
            return
        self._closed = True
        if self._steps is not None:
            self._steps.stop()
        self._cleanUp()
        self._logic._ended(self)
        onFinished = self._onFinished
        self._letGo()
        onFinished(outcome, result)

    def _letGo(self):
        """Hold no volume any more: PythonQt may hold this run for longer than it lasts."""
        self._onProgress = self._onFinished = self._onText = self._worker = self._steps = None

    def _fail(self, error):
        self._end(process.Outcome(process.FAILED, str(error)))

    def _cleanUp(self):
        pass


class _VolumeRun(_Run):
    """Volume -> file -> worker -> segmentation.

    What the result is called and where it goes is settled at the start, as what is selected and shown then.
    """

    def __init__(self, logic, volume, target, options, onProgress, onFinished, onText):
        super().__init__(logic, options, onProgress, onFinished, onText)
        self._volume, self._target = volume, target
        self._drawnOn = volumes.drawnOn(target) if target is not None else None
        self._frame = volumes.frameName(volume)
        self._grid = volumes.grid(volume)
        self._folder = ""
        self._kept = False  # the folder, for the reconstruction in it

    def start(self):
        self._onProgress(0, 0, _("Preparing the volume"), None)
        try:
            self._folder = tempfile.mkdtemp(prefix="sgan-", dir=slicer.app.temporaryPath)
        except OSError as error:
            raise ValueError(self._explained(error)) from error
        self._steps = process.Steps(volumes.writeInput(self._volume, self._folder), self._written)

    def _written(self, path, error):
        if error is not None:
            self._fail(error)
            return
        try:
            files = [path, "--output", self._results(), "--format", "nifti"]
            also = [] if self._options.studentAlone else ["--save-reconstruction"]
            self._startWorker(files + also + self._options.arguments())
        except RuntimeError as problem:
            self._fail(problem)

    def _results(self):
        return os.path.join(self._folder, "out")

    def _workerFinished(self, outcome):
        if self._closed:
            return
        if outcome.status != process.DONE:
            self._end(self._named(outcome))
            return
        try:
            case = importer.readCase(self._results())
        except ValueError as error:
            self._fail(error)
            return
        self._onProgress(0, 0, _("Loading the result"), None)
        self._steps = process.Steps(self._import(case), self._imported)

    def _named(self, outcome):
        """An outcome whose message names the volume in place of the file that the worker was given."""
        path, name = (
            os.path.join(self._folder, volumes.inputName(self._volume)),
            volumes.uniqueName(self._volume),
        )
        return replace(outcome, message=outcome.message.replace(path, name))

    def _import(self, case):
        yield from volumes.removeInput(case["input"])
        volumes.checkGrid(self._volume, self._grid)
        target = self._target
        if self._options.region is not None:
            case["warnings"] = [_partOnly(self._options.region), *case["warnings"]]
        self._tellTerms(case)
        if target is not None and not volumes.isStillOf(target, self._drawnOn):
            target = None  # gone, another volume's or elsewhere by now
        return (
            yield from importer.importResult(
                case,
                self._labels,
                self._volume,
                target,
                self._frame,
                standardNames=self._options.standardNames,
                show3D=self._options.show3D,
            )
        )

    def _imported(self, result, error):
        if error is not None:
            self._fail(error)
            return
        self._kept = True
        result.folder = self._folder
        self._end(process.Outcome(process.DONE), result)

    def _fail(self, error):
        super()._fail(self._explained(error))

    def _explained(self, error):
        """An error in the user's terms: a full disk with its folder and what to do."""
        if not isinstance(error, OSError) or error.errno != errno.ENOSPC:
            return error
        return _(
            "The disk is full: {folder} needs room for the volume and its result. Free some space there, or "
            "choose another temporary folder (Edit > Application Settings > Modules), and apply again."
        ).format(folder=slicer.app.temporaryPath)

    def _cleanUp(self):
        if self._folder and not self._kept:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _letGo(self):
        super()._letGo()
        self._volume = self._target = self._drawnOn = None


def _partOnly(region):
    return _(
        "Only the region from S {low:g} mm to S {high:g} mm was segmented; the volumes are those in it."
    ).format(low=min(region), high=max(region))


class _FolderRun(_Run):
    """Folder of images -> worker -> folder of results."""

    def __init__(self, logic, source, output, options, fileFormat, onProgress, onCase, onFinished):
        super().__init__(logic, options, onProgress, onFinished)
        self._source, self._output, self._format, self._caseDone = source, output, fileFormat, onCase

    def start(self):
        files = [self._source, "--output", self._output, "--format", self._format]
        self._startWorker(files + self._options.arguments())

    def _onCase(self, case):
        self._tellTerms(case)
        if self._caseDone is not None:
            self._caseDone(case)

    def _workerFinished(self, outcome):
        self._end(outcome)
