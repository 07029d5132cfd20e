"""Runs of the logic with a fake worker, one for each way to end, and with the real engine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import slicer
from helpers import make_volume, voxels

import standin
from SemanticGANSlicerLib import importer, models, process, volumes
from SemanticGANSlicerLib.logic import Options, _FolderRun

FakeWorker = Callable[..., None]
MODEL = Options(model="phantom-ct-liver", quality="fast")


def start(logic: Any, volume: Any, options: Options = MODEL, **more: Any) -> SimpleNamespace:
    """Start a run; what it says is collected."""
    said = SimpleNamespace(progress=[], ends=[])
    logic.segment(
        volume,
        options,
        onProgress=lambda *values: said.progress.append(values),
        onFinished=lambda outcome, result: said.ends.append((outcome, result)),
        **more,
    )
    return said


def finish(said: SimpleNamespace, seconds: float = 60) -> tuple[Any, Any]:
    """(outcome, result) of a run, which ends exactly once."""
    standin.pump(lambda: said.ends, seconds)
    for _ in range(5):
        standin.pump(lambda: True)
    (end,) = said.ends
    return end


def temporary_files() -> list[str]:
    return sorted(os.listdir(slicer.app.temporaryPath))


@pytest.fixture(autouse=True)
def empty_temporary_folder() -> None:
    assert not [name for name in temporary_files() if name.startswith("sgan-")], "left by an earlier test"


# --- the fake worker -------------------------------------------------------------------------------


def test_success(logic: Any, ct: Any, fake_worker: FakeWorker) -> None:
    fake_worker(logic, "good")
    said = start(logic, ct)
    assert logic.isRunning()
    outcome, result = finish(said)
    assert outcome.status == process.DONE
    assert not logic.isRunning()
    np.testing.assert_array_equal(voxels(result.segmentation, 0, ct), slicer.util.arrayFromVolume(ct) > 0)
    assert (1, 4, "slice 1 to 2 of 12, step 3 of 30", 75.0) in said.progress
    assert [number for number, _position in result.doubtfulSlices()] == [1, 4, 7, 10]
    result.discard()
    assert not temporary_files()


def test_a_restriction_of_the_model_is_the_first_notice(logic: Any, ct: Any, fake_worker: FakeWorker) -> None:
    for mode, first in (
        ("restricted", "Terms of use of the model: research only <by a test>"),
        ("good", "a warning"),
    ):
        fake_worker(logic, mode)
        _outcome, result = finish(start(logic, ct))
        assert result.case["warnings"][0] == first
        assert result.case["warnings"][-1] == "a warning"
        result.discard()


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("error", "Mend it"),
        ("internal", "exit code 70"),
        ("killed", "memory"),
        ("garbage", "without a result"),
        ("silent", "without a result"),
        ("wrong-size", "voxels"),
    ],
)
def test_failure_tells_the_cause_and_leaves_the_scene(
    logic: Any, ct: Any, fake_worker: FakeWorker, mode: str, words: str
) -> None:
    fake_worker(logic, mode)
    before = standin.leaves(slicer.mrmlScene)
    outcome, result = finish(start(logic, ct))
    assert outcome.status == process.FAILED
    assert words in outcome.message
    assert result is None
    assert standin.leaves(slicer.mrmlScene) == before
    assert not temporary_files()
    fake_worker(logic, "good")  # usable again
    outcome, result = finish(start(logic, ct))
    assert outcome.status == process.DONE
    result.discard()


def test_words_of_libraries_between_the_lines_do_not_matter(
    logic: Any, ct: Any, fake_worker: FakeWorker
) -> None:
    fake_worker(logic, "garbage-then-done")
    outcome, result = finish(start(logic, ct))
    assert outcome.status == process.DONE
    result.discard()


@pytest.mark.parametrize("mode", ["listens", "deaf"])
def test_cancel_within_two_seconds(logic: Any, ct: Any, fake_worker: FakeWorker, mode: str) -> None:
    fake_worker(logic, mode)
    before = standin.leaves(slicer.mrmlScene)
    said = start(logic, ct)
    standin.pump(lambda: any("Segmenting with" in values[2] for values in said.progress))
    began = time.monotonic()
    logic.cancel()
    logic.cancel()  # an impatient person
    outcome, result = finish(said)
    assert time.monotonic() - began < 2
    assert (outcome.status, result) == (process.CANCELLED, None)
    assert standin.leaves(slicer.mrmlScene) == before
    assert not temporary_files()


def test_cancel_before_the_worker_started(logic: Any, ct: Any, fake_worker: FakeWorker) -> None:
    fake_worker(logic, "good")
    said = start(logic, ct)
    logic.cancel()
    assert finish(said)[0].status == process.CANCELLED
    assert not logic.isRunning()
    assert not temporary_files()


def test_cancel_while_the_result_is_loaded(
    logic: Any, ct: Any, fake_worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_worker(logic, "good")
    real = importer.importResult

    def slowly(*arguments: Any, **more: Any) -> Any:
        for _ in range(200):
            time.sleep(0.01)
            yield
        return (yield from real(*arguments, **more))

    monkeypatch.setattr(importer, "importResult", slowly)
    before = standin.leaves(slicer.mrmlScene)
    said = start(logic, ct)
    standin.pump(lambda: any(values[2] == "Loading the result" for values in said.progress))
    logic.cancel()
    assert finish(said)[0].status == process.CANCELLED
    assert standin.leaves(slicer.mrmlScene) == before
    assert not temporary_files()


def test_close_ends_everything_without_a_word(logic: Any, ct: Any, fake_worker: FakeWorker) -> None:
    fake_worker(logic, "deaf")
    said = start(logic, ct)
    standin.pump(lambda: any("Segmenting with" in values[2] for values in said.progress))
    pid = logic._run._worker.pid()
    logic.close()
    assert not logic.isRunning()
    standin.pump(
        lambda: not Path(f"/proc/{pid}").exists() or b"Z" in Path(f"/proc/{pid}/stat").read_bytes(), 2
    )
    assert not said.ends
    assert not temporary_files()


def test_one_run_at_a_time(logic: Any, ct: Any, fake_worker: FakeWorker) -> None:
    fake_worker(logic, "listens")
    said = start(logic, ct)
    with pytest.raises(RuntimeError, match="A run is under way"):
        start(logic, ct)
    logic.cancel()
    assert finish(said)[0].status == process.CANCELLED


def test_python_that_is_missing(logic: Any, ct: Any) -> None:
    def nowhere() -> str:
        raise RuntimeError("PythonSlicer was not found")

    logic.python = nowhere
    outcome, _result = finish(start(logic, ct))
    assert (outcome.status, outcome.message) == (process.FAILED, "PythonSlicer was not found")
    assert not temporary_files()


def test_volume_that_disappears_during_the_run(logic: Any, ct: Any, fake_worker: FakeWorker) -> None:
    fake_worker(logic, "good")
    said = start(logic, ct)
    slicer.mrmlScene.RemoveNode(ct)
    outcome, _result = finish(said)
    assert outcome.status == process.FAILED
    assert "removed from the scene" in outcome.message
    assert not slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")


def test_target_that_disappears_during_the_run(logic: Any, ct: Any, fake_worker: FakeWorker) -> None:
    """The result is not lost."""
    fake_worker(logic, "good")
    target = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "target")
    said = start(logic, ct, target=target)
    slicer.mrmlScene.RemoveNode(target)
    outcome, result = finish(said)
    assert outcome.status == process.DONE
    assert result.segmentation is not target
    result.discard()


def test_transforms_are_refused_with_advice(logic: Any, ct: Any) -> None:
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "t")
    ct.SetAndObserveTransformNodeID(transform.GetID())
    with pytest.raises(ValueError, match="CT is under a transform. Harden"):
        start(logic, ct)
    ct.SetAndObserveTransformNodeID(None)
    target = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "target")
    target.SetAndObserveTransformNodeID(transform.GetID())
    with pytest.raises(ValueError, match="target is under a transform"):
        start(logic, ct, target=target)
    assert not logic.isRunning()


def test_options_are_those_of_the_command() -> None:
    from sgan_core.cli.segment import parser

    options = Options("m", "cpu", "careful", "map-mind", (-120.5, 3.0), pieces="largest")
    args = parser().parse_args(["in.nrrd", "--output", "out", *options.arguments()])
    assert (args.model, args.device, args.quality, args.reconstruction) == ("m", "cpu", "careful", "map-mind")
    assert tuple(args.region) == (-120.5, 3.0)
    assert args.largest_component
    args = parser().parse_args(["in.nrrd", "--output", "out", *Options("m").arguments()])
    assert args.region is None
    assert args.largest_component is None
    args = parser().parse_args(["in.nrrd", "--output", "out", *Options("m", pieces="all").arguments()])
    assert args.largest_component is False


def test_a_student_alone_is_not_asked_for_a_reconstruction() -> None:
    options = Options("m", reconstruction="paper", studentAlone=True).arguments()
    assert not [option for option in options if "reconstruction" in option]


def test_folders_are_asked_for(logic: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="folder with the images"):
        logic.segmentFolder(str(tmp_path / "none"), str(tmp_path), MODEL)
    with pytest.raises(ValueError, match="folder for the results"):
        logic.segmentFolder(str(tmp_path), "", MODEL)


def test_a_restriction_is_a_notice_of_every_case_of_a_folder(
    logic: Any, fake_worker: FakeWorker, tmp_path: Path
) -> None:
    found: list[dict[str, Any]] = []
    run = _FolderRun(logic, str(tmp_path), str(tmp_path), MODEL, "nifti", None, found.append, None)
    for terms, warnings in (
        ({"restriction": "research only"}, ["Terms of use of the model: research only"]),
        ({}, []),
    ):
        run._onEvent({"event": "start", "model": "m", "device": "cpu", "labels": [], **terms})
        run._onEvent({"event": "case", "warnings": ["a warning"]})
        run._onEvent({"event": "case", "error": "broken"})
        whole, failed = found[-2:]
        assert whole["warnings"] == [*warnings, "a warning"]
        assert failed.get("warnings", []) == warnings


# --- the engine ------------------------------------------------------------------------------------


@pytest.fixture
def phantom() -> Any:
    """A phantom CT that the bundled model never saw, as a volume node; ``truth`` is its liver (K, J, I)."""
    from sgan_core.phantom import LIVER, TEST_SEEDS, make_case

    case = make_case(TEST_SEEDS + 2, "ct")
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Größe \u533b\u9662")
    slicer.util.updateVolumeFromArray(node, np.ascontiguousarray(case.image.array.transpose()))
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(case.image.grid.affine))
    node.CreateDefaultDisplayNodes()
    return SimpleNamespace(node=node, truth=case.labels.transpose() == LIVER)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def test_engine_finds_the_liver_of_a_phantom(logic: Any, phantom: Any) -> None:
    outcome, result = finish(start(logic, phantom.node), 120)
    assert outcome.status == process.DONE
    found = voxels(result.segmentation, 0, phantom.node).astype(bool)
    assert dice(found, phantom.truth) > 0.85
    (label,) = result.case["labels"]
    spacing = np.prod(phantom.node.GetSpacing())
    assert label["volume_ml"] == pytest.approx(found.sum() * spacing / 1000, rel=1e-6)
    assert result.segmentation.GetSegmentation().GetNthSegment(0).GetName() == "liver"
    assert Path(result.case["reconstruction_output"]).is_file()
    result.discard()


def test_region_is_segmented_and_nothing_else(logic: Any, phantom: Any) -> None:
    slices = np.flatnonzero(phantom.truth.any(axis=(1, 2)))
    low, high = int(slices[len(slices) // 3]), int(slices[2 * len(slices) // 3])
    positions = volumes.slicePositions(phantom.node)
    rising = volumes.ijkToRas(phantom.node)[2, 2] > 0
    ends = sorted((positions[k] if rising else positions[::-1][k]) for k in (low, high))
    options = Options("phantom-ct-liver", quality="fast", region=(float(ends[0]), float(ends[1])))
    outcome, result = finish(start(logic, phantom.node, options), 120)
    assert outcome.status == process.DONE
    found = voxels(result.segmentation, 0, phantom.node).astype(bool)
    assert set(np.flatnonzero(found.any(axis=(1, 2)))) <= set(range(low, high + 1))
    assert dice(found[low : high + 1], phantom.truth[low : high + 1]) > 0.8
    assert len(result.case["slice_centres_mm"]) == high - low + 1
    for _number, position in result.doubtfulSlices():
        assert ends[0] - 1e-3 <= position[2] <= ends[1] + 1e-3
    result.discard()


def test_engine_cancelled_in_mid_run(logic: Any, phantom: Any) -> None:
    before = standin.leaves(slicer.mrmlScene)
    said = start(logic, phantom.node, Options("phantom-ct-liver", quality="careful"))
    standin.pump(lambda: any(values[1] and values[0] > 0 for values in said.progress), 120)
    began = time.monotonic()
    logic.cancel()
    outcome, _result = finish(said)
    assert time.monotonic() - began < 2
    assert outcome.status == process.CANCELLED
    assert standin.leaves(slicer.mrmlScene) == before
    assert not temporary_files()


def test_engine_killed_in_mid_run(logic: Any, phantom: Any) -> None:
    """As the system does when memory runs out."""
    said = start(logic, phantom.node, Options("phantom-ct-liver", quality="careful"))
    standin.pump(lambda: any(values[1] and values[0] > 0 for values in said.progress), 120)
    os.kill(logic._run._worker.pid(), 9)
    outcome, _result = finish(said)
    assert outcome.status == process.FAILED
    assert "memory" in outcome.message
    assert not slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")
    assert not temporary_files()


def test_engine_out_of_memory(logic: Any, phantom: Any, tmp_path: Path) -> None:
    """Simulated: the engine's own command, in which inversion cannot allocate."""
    script = tmp_path / "poor.py"
    script.write_text(
        "import sys, torch, sgan_core.segment\n"
        "def label_slices(*a, **k): raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB')\n"
        "sgan_core.segment.label_slices = label_slices\n"
        "from sgan_core.cli.segment import main\n"
        "sys.exit(main())\n"
    )
    logic.workerArguments = [str(script)]
    outcome, _result = finish(start(logic, phantom.node), 120)
    assert outcome.status == process.FAILED
    assert "memory" in outcome.message
    assert "\n" not in outcome.message
    assert not temporary_files()


def test_model_that_is_missing(logic: Any, phantom: Any, tmp_path: Path) -> None:
    outcome, _result = finish(start(logic, phantom.node, Options(str(tmp_path / "gone"))), 120)
    assert outcome.status == process.FAILED
    assert "no such model" in outcome.message


def test_engine_with_a_student_alone(logic: Any, tmp_path: Path) -> None:
    import dataclasses

    from sgan_core.bundle import save_bundle
    from sgan_core.cohort import Label
    from sgan_core.config import preset
    from sgan_core.networks.segmenter import make_student

    config = preset("tiny", modality="ct", num_classes=2, size=32)
    student = dataclasses.replace(config.student_train, channels=(4, 8))
    config = dataclasses.replace(config, student_train=student, labels=(Label(1, "liver", (200, 90, 60)),))
    model = save_bundle(
        tmp_path / "alone", name="alone", config=config, student=make_student(config), facts={}
    )
    assert models.readModel(str(model)).studentAlone
    volume = make_volume(np.random.default_rng(0).integers(-1000, 400, (3, 24, 36)).astype(np.int16), "scan")
    outcome, result = finish(start(logic, volume, Options(str(model), studentAlone=True)), 120)
    assert outcome.status == process.DONE, outcome
    assert result.case["reconstruction_output"] is None
    assert "student alone" in result.case["trust"]["reason"]
    result.discard()


def test_colour_picture_with_a_colour_model(logic: Any, tmp_path: Path) -> None:
    """As for dermoscopy: an untrained model, so only shape, geometry and labels count."""
    import dataclasses

    import torch

    from sgan_core.bundle import save_bundle
    from sgan_core.cohort import Label
    from sgan_core.config import EncoderConfig, ImageDiscriminatorConfig, InversionConfig, preset
    from sgan_core.networks.discriminators import ImageDiscriminator
    from sgan_core.networks.encoder import Encoder
    from sgan_core.networks.generator import Generator
    from sgan_core.networks.perceptual import make_perceptual

    config = preset("tiny", modality="dermoscopy", num_classes=2, size=32)
    channels = {4: 8, 8: 8, 16: 8, 32: 8}
    config = dataclasses.replace(
        config,
        generator=dataclasses.replace(config.generator, channels=channels, w_dim=8, z_dim=8),
        image_discriminator=ImageDiscriminatorConfig(channels=channels),
        encoder=EncoderConfig("resnet18", 8, 8, "light", "group", stem_stride=False),
        inversion=InversionConfig(steps=2),
        perceptual="discriminator",
        labels=(Label(1, "lesion", (200, 90, 60), "49755003"),),
    )
    torch.manual_seed(0)
    generator = Generator(config.generator)
    judge = ImageDiscriminator(config.image_discriminator, image_channels=3)
    encoder = Encoder(config.encoder, size=32, image_channels=3, num_ws=config.generator.num_ws, w_dim=8)
    model = save_bundle(
        tmp_path / "derm",
        name="derm",
        config=config,
        generator=generator,
        encoder=encoder,
        perceptual=make_perceptual("discriminator", image_discriminator=judge),
        facts={"cohort": "none"},
    )
    pixels = np.random.default_rng(0).integers(0, 255, (1, 24, 36, 3), dtype=np.uint8)
    photo = make_volume(pixels, "photo", "vtkMRMLVectorVolumeNode", turned=False)
    outcome, result = finish(start(logic, photo, Options(str(model))), 120)
    assert outcome.status == process.DONE, outcome
    assert result.case["grid"]["shape"] == [24, 36]
    assert result.segmentation.GetSegmentation().GetNthSegment(0).GetName() == "lesion"
    assert int(voxels(result.segmentation, 0, photo).sum()) == result.case["labels"][0]["voxels"]
    assert result.doubtfulSlices() == []
    shown = importer.addReconstruction(result)
    assert slicer.util.arrayFromVolume(shown).shape == (1, 24, 36, 3)
    result.discard()
