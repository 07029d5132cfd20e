"""sgan-train: from slices to a bundle, stopped and resumed on the way."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sgan_core.bundle import load_bundle
from sgan_core.cli import bundle, data, segment
from sgan_core.cli.progress import Progress
from sgan_core.cli.train import main
from sgan_core.errors import Cancelled, InputError
from sgan_core.terms import terms_of
from sgan_core.training import loop
from sgan_core.training.loop import load_checkpoint, save_checkpoint
from sgan_core.training.run import Run, claimed

Leftovers = Callable[[Path], list[str]]
Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def command(disc_cohort: Path, toy_settings: Path) -> list[str]:
    """A run of 48 images on the discs; ``--output`` and what differs are added."""
    return ["--modality", "ct", "--data", str(disc_cohort), "--config", str(toy_settings), "--device", "cpu"]


@pytest.fixture(scope="module")
def finished(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that ended; no test changes it."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    assert main([*command, "--output", str(run)]) == 0
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A run that ended, to go on with."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def facts(run: Path) -> dict[str, Any]:
    return load_bundle(run / "bundle").facts


# --- a run -----------------------------------------------------------------------------------------


def test_run_folder_holds_everything(finished: Path, leftovers: Leftovers) -> None:
    for path in ("config.yaml", "log.jsonl", "bundle/configs/semanticgan.json", "checkpoints/gan.pt"):
        assert (finished / path).is_file(), path
    assert list((finished / "samples").glob("*.png"))
    assert leftovers(finished) == []
    figures = [line for line in log(finished) if line["stage"] == "gan" and "frechet" in line]
    assert figures[-1]["images"] == 48
    assert 0 <= figures[-1]["label_agreement"] <= 1
    last = {line["stage"]: line for line in log(finished)}
    assert 0 <= last["encoder"]["validation_dice"] <= 1
    assert 0 <= last["student"]["student_shifted_dice"] <= 1
    assert list(dict.fromkeys(line["stage"] for line in log(finished))) == ["student", "gan", "encoder"]


def test_bundle_says_what_it_was_trained_on(finished: Path) -> None:
    told = facts(finished)
    assert (told["cohort"], told["gan_images"], told["encoder_images"]) == ("discs", 48, 24)
    assert (told["labelled_patients"], told["slices"], told["labelled_slices"]) == (2, 24, 8)
    (source,) = told["use"]["sources"]
    assert (source["name"], source["licence"]) == ("discs", "free")


def test_bundle_segments_a_slice(finished: Path, disc_cohort: Path, tmp_path: Path) -> None:
    options = ["--model", str(finished / "bundle"), "--output", str(tmp_path / "out")]
    assert segment.main([str(disc_cohort / "p5_0.png"), *options]) == 0
    assert (tmp_path / "out" / "p5_0_seg.png").is_file()


# --- resume ----------------------------------------------------------------------------------------


def test_resume_goes_on_to_the_new_limit(command: list[str], run: Path) -> None:
    assert main([*command, "--output", str(run), "--resume", "--max-images", "64"]) == 0
    assert facts(run)["gan_images"] in (48, 64)  # the better of both by label quality
    assert max(line["images"] for line in log(run) if line["stage"] == "gan") == 64


def test_resume_without_a_limit_keeps_the_runs_own(command: list[str], toy_settings: Path, run: Path) -> None:
    without_settings = [part for part in command if part not in ("--config", str(toy_settings))]
    assert main([*without_settings, "--output", str(run), "--resume"]) == 0
    assert max(line["images"] for line in log(run) if line["stage"] == "gan") == 48


def test_folder_with_a_run_is_not_overwritten(command: list[str], run: Path, capsys: Output) -> None:
    before = (run / "checkpoints" / "gan.pt").read_bytes()
    assert main([*command, "--output", str(run)]) == 2
    assert "Pass --resume to continue it, or another --output" in capsys.readouterr().err
    assert (run / "checkpoints" / "gan.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("option", "setting"),
    [(["--labelled", "1"], "labelled"), (["--seed", "7"], "seed"), (["--size", "64"], "generator.size")],
)
def test_resume_changes_nothing_but_limits(
    option: list[str], setting: str, command: list[str], run: Path, capsys: Output
) -> None:
    assert main([*command, "--output", str(run), "--resume", *option]) == 2
    assert f"{setting} differs from the run's config.yaml" in capsys.readouterr().err


def test_an_encoder_is_never_bundled_with_a_generator_that_it_does_not_know(
    command: list[str], run: Path, capsys: Output
) -> None:
    """Stage 1 went on: the bundle stays as it was until the encoder has begun anew."""
    bundled = load_bundle(run / "bundle")
    best = run / "checkpoints" / "gan_best.pt"
    state = load_checkpoint(best)
    with torch.no_grad():
        state["generator"]["mapping.layers.0.weight"].mul_(1.5)
    save_checkpoint(state, best)
    assert main([*command, "--output", str(run), "--resume", "--stage", "student"]) == 0
    assert "until the encoder has learned today's generator" in capsys.readouterr().err
    assert load_bundle(run / "bundle").hash == bundled.hash
    assert main([*command, "--output", str(run), "--resume", "--stage", "encoder"]) == 0
    found = load_bundle(run / "bundle")
    assert torch.allclose(found.encoder.mean_w, found.generator.mean_w, atol=1e-3)
    assert not torch.allclose(found.encoder.mean_w, bundled.encoder.mean_w, atol=1e-3)


@pytest.fixture
def other_cohort(disc_cohort: Path, tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], None]], Path]:
    """The discs' cohort with something changed, in a folder of its own; the images stay where they are."""

    def make(change: Callable[[dict[str, Any]], None]) -> Path:
        table = json.loads((disc_cohort / "cohort.json").read_text())
        for case in table["cases"]:
            case |= {
                key: str((disc_cohort / case[key]).resolve()) for key in ("image", "label") if case.get(key)
            }
        change(table)
        folder = tmp_path / "elsewhere"
        folder.mkdir()
        (folder / "cohort.json").write_text(json.dumps(table))
        return folder

    return make


def _rename(table: dict[str, Any]) -> None:
    table["name"] = "other hospital"


def _one_to_validation(table: dict[str, Any]) -> None:
    patient = next(c["patient"] for c in table["cases"] if c["split"] == "train" and not c.get("label"))
    for case in table["cases"]:
        if case["patient"] == patient:
            case["split"] = "validation"


def _without_one(table: dict[str, Any]) -> None:
    del table["cases"][-1]


def _other_labels(table: dict[str, Any]) -> None:
    case = next(case for case in table["cases"] if case.get("label"))
    other = next(c["label"] for c in table["cases"] if c.get("label") and c["label"] != case["label"])
    case["label"] = other


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_other_labels, "has other cases, patients, splits or labels"),
        (_rename, r"started with the cohort '.+', 'other hospital' is another"),
        (_one_to_validation, "has other cases, patients, splits or labels"),
        (_without_one, "has other cases, patients, splits or labels"),
    ],
)
def test_resume_with_another_cohort_is_refused(
    command: list[str], run: Path, other_cohort: Callable[..., Path], capsys: Output, change: Any, words: str
) -> None:
    options = [*command, "--output", str(run), "--resume", "--max-images", "64"]
    options[options.index("--data") + 1] = str(other_cohort(change))
    before = (run / "checkpoints" / "gan.pt").read_bytes()
    assert main(options) == 2
    assert re.search(words, capsys.readouterr().err)
    assert (run / "checkpoints" / "gan.pt").read_bytes() == before


@pytest.mark.parametrize(
    "content", ["[" * 60_000, "[]", '{"name": "x"}', "\\xff", '{"name": "' + "x" * 10**5 + '"}']
)
def test_a_damaged_note_of_the_cohort_is_said(
    command: list[str], run: Path, capsys: Output, content: str
) -> None:
    (run / "cohort.json").write_text(content)
    assert main([*command, "--output", str(run), "--resume", "--max-images", "64"]) == 2
    error = capsys.readouterr().err
    assert "cohort.json: damaged" in error
    assert len(error) < 2000


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_not_read_as_the_note_of_the_cohort(
    command: list[str], run: Path, capsys: Output, kind: str
) -> None:
    """A pipe would be waited for without end."""
    (run / "cohort.json").unlink()
    if kind == "folder":
        (run / "cohort.json").mkdir()
    elif hasattr(os, "mkfifo"):
        os.mkfifo(run / "cohort.json")
    else:
        pytest.skip("no named pipes in folders on this system")
    assert main([*command, "--output", str(run), "--resume", "--max-images", "64"]) == 2
    assert "cohort.json: damaged" in capsys.readouterr().err


def test_a_cohort_that_was_moved_is_the_same(
    command: list[str], run: Path, other_cohort: Callable[..., Path]
) -> None:
    options = [*command, "--output", str(run), "--resume", "--max-images", "64"]
    options[options.index("--data") + 1] = str(other_cohort(lambda table: None))
    assert main(options) == 0


def test_resume_of_a_run_of_an_earlier_version_goes_on(command: list[str], run: Path) -> None:
    (run / "cohort.json").unlink()
    assert main([*command, "--output", str(run), "--resume", "--max-images", "64"]) == 0


def test_resume_with_nothing_there_starts(command: list[str], tmp_path: Path) -> None:
    assert main([*command, "--output", str(tmp_path / "run"), "--resume", "--max-images", "4"]) == 0
    assert (tmp_path / "run" / "bundle").is_dir()


def test_damaged_checkpoint_is_named(command: list[str], run: Path, capsys: Output) -> None:
    checkpoint = run / "checkpoints" / "gan.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert main([*command, "--output", str(run), "--resume", "--max-images", "64"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "gan.pt: not a readable checkpoint" in error


# --- stopping --------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signal that reaches a handler in this process")
@pytest.mark.parametrize(
    ("stage", "number"), [("gan", signal.SIGTERM), ("encoder", signal.SIGINT), ("preparing", signal.SIGTERM)]
)
def test_signal_saves_and_resume_finishes(
    stage: str,
    number: signal.Signals,
    command: list[str],
    tmp_path: Path,
    leftovers: Leftovers,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Output,
) -> None:
    show = Progress.__call__

    def spy(self: Progress, done: int, total: int, message: str) -> None:
        show(self, done, total, message)
        if message.startswith(stage):
            os.kill(os.getpid(), number)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "__call__", spy)
        assert main([*command, "--output", str(run)]) == 3
    assert capsys.readouterr().err.splitlines()[-1].startswith("sgan-train: cancelled: stopped")
    assert leftovers(run) == []
    assert (run / "bundle").exists() == (stage != "preparing")  # the student was there before
    assert stage == "preparing" or load_bundle(run / "bundle").inverter is None
    assert main([*command, "--output", str(run), "--resume"]) == 0
    assert facts(run)["gan_images"] == 48
    assert facts(run)["encoder_images"] == 24


def test_killed_run_is_resumed(command: list[str], toy_settings: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(toy_settings.read_text(encoding="utf-8")) | {"checkpoint_minutes": 1e-4}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    run, checkpoint = tmp_path / "run", tmp_path / "run" / "checkpoints" / "gan.pt"
    options = [*command, "--config", str(tmp_path / "settings.yaml"), "--output", str(run)]
    program = [sys.executable, "-m", "sgan_core.cli.train", *options, "--max-images", "100000000"]
    with subprocess.Popen(program, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 240
        while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert process.poll() is None, "ended before its first checkpoint"
        process.kill()
    assert checkpoint.exists()
    assert main([*options, "--resume", "--max-images", "8"]) == 0
    assert facts(run)["gan_images"] >= 4


def test_time_is_up(command: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    limits = ["--max-images", "100000000", "--max-minutes", "0.02"]
    assert main([*command, "--output", str(run), *limits]) == 0
    assert facts(run)["gan_images"] < 100_000


# --- for programs ----------------------------------------------------------------------------------


def events(text: str) -> list[dict[str, Any]]:
    """What was said on stdout, each line one event."""
    return [json.loads(line) for line in text.splitlines()]


def of(kind: str, told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in told if event["event"] == kind]


def test_events_tell_the_whole_run(command: list[str], tmp_path: Path, capsys: Output) -> None:
    run = tmp_path / "run"
    assert main([*command, "--output", str(run), "--json-progress"]) == 0
    told = events(capsys.readouterr().out)
    kinds = [event["event"] for event in told]
    assert (kinds[0], kinds[-1]) == ("hello", "done")
    assert told[0]["pid"] == os.getpid()
    (start,) = of("start", told)
    assert start == {
        "event": "start",
        "output": str(run),
        "stages": ["student", "gan", "encoder"],
        "device": "CPU, 1 thread",
        "size": 32,
        "labelled": 2,
        "images": 24,
        "resumed": False,
    }
    assert told[-1] == {"event": "done", "output": str(run), "bundle": str(run / "bundle")}
    assert of("progress", told)[0]["stage"] == "prepare"
    before = kinds.index("start")
    assert {event["stage"] for event in told[:before] if event["event"] == "progress"} <= {"prepare"}
    assert [
        {key: value for key, value in event.items() if key != "event"} for event in of("log", told)
    ] == log(run)
    bundles = of("bundle", told)
    assert [(event["path"], event["student_alone"]) for event in bundles] == [
        (str(run / "bundle"), True),
        (str(run / "bundle"), False),
        (str(run / "bundle"), False),
    ]


def test_events_show_quality_and_pictures(command: list[str], tmp_path: Path, capsys: Output) -> None:
    run = tmp_path / "run"
    assert main([*command, "--output", str(run), "--json-progress"]) == 0
    told = events(capsys.readouterr().out)
    last = {line["stage"]: line for line in log(run)}
    dice = {event["stage"]: event["dice"] for event in of("validation", told)}
    assert dice == {
        "student": pytest.approx(last["student"]["student_dice"], rel=1e-5),
        "encoder": pytest.approx(last["encoder"]["validation_dice"], rel=1e-5),
    }
    shown = [(event["stage"], event["kind"], event["images"]) for event in of("picture", told)]
    assert shown == [("student", "validation", 24), ("gan", "samples", 48), ("encoder", "validation", 24)]
    for event in of("picture", told):
        assert Path(event["path"]) == run / "samples" / f"{event['stage']}_{event['images']:08d}.png"
        assert Path(event["path"]).read_bytes().startswith(b"\x89PNG")


def test_without_validation_patients_no_quality_is_claimed(
    command: list[str], other_cohort: Callable[..., Path], tmp_path: Path, capsys: Output
) -> None:
    def all_train(table: dict[str, Any]) -> None:
        for case in table["cases"]:
            case |= {"split": "train", "labelled_rank": None}

    options = [*command, "--output", str(tmp_path / "run"), "--stage", "student", "--json-progress"]
    options[options.index("--data") + 1] = str(other_cohort(all_train))
    assert main(options) == 0
    told = events(capsys.readouterr().out)
    assert of("validation", told) == []
    (picture,) = of("picture", told)
    assert Path(picture["path"]).is_file()
    assert [line["student_dice"] for line in of("log", told) if "student_dice" in line] == [None]
    assert [event["student_alone"] for event in of("bundle", told)] == [True, True]


def test_errors_are_events(command: list[str], run: Path, capsys: Output) -> None:
    assert main([*command, "--output", str(run), "--json-progress"]) == 2
    told = events(capsys.readouterr().out)
    assert told[-1]["event"] == "error"
    assert (told[-1]["code"], told[-1]["details"]) == (2, "")
    assert "Pass --resume to continue it, or another --output" in told[-1]["message"]


def test_a_file_stops_and_resume_finishes(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    run, stop = tmp_path / "run", tmp_path / "stop"
    show = Progress.__call__

    def spy(self: Progress, done: int, total: int, message: str) -> None:
        show(self, done, total, message)
        if message.startswith("gan"):
            stop.touch()

    monkeypatch.setattr(loop, "_LOOK_EVERY_S", 0.0)
    options = [*command, "--output", str(run), "--stop-file", str(stop), "--json-progress"]
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "__call__", spy)
        assert main(options) == 3
    told = events(capsys.readouterr().out)
    assert told[-1] == {
        "event": "error",
        "message": "cancelled: stopped after 4 images; continue with --resume",
        "code": 3,
        "details": "",
    }
    assert (run / "bundle").is_dir()  # the student
    assert main([*options, "--resume"]) == 2  # the file is still there
    assert "is there already" in events(capsys.readouterr().out)[-1]["message"]
    stop.unlink()
    assert main([*options, "--resume"]) == 0
    told = events(capsys.readouterr().out)
    assert of("start", told)[0]["resumed"] is True
    assert facts(run)["gan_images"] == 48


def test_the_file_that_stops_is_looked_for_once_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stop = loop.StopSignal(tmp_path / "stop")
    assert not stop
    (tmp_path / "stop").touch()
    now[0] += 0.9
    assert not stop
    now[0] += 0.2
    assert stop
    (tmp_path / "stop").unlink()
    assert stop  # asked is asked


def test_a_disk_that_does_not_answer_is_no_wish_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with pytest.raises(InputError, match="Choose another file"):
        loop.StopSignal(tmp_path / ("x" * 300))
    (tmp_path / "disk").symlink_to(tmp_path)
    stop = loop.StopSignal(tmp_path / "disk" / "stop")
    (tmp_path / "disk").unlink()
    (tmp_path / "disk").symlink_to("x" * 300)  # looking there raises OSError
    assert not stop
    (tmp_path / "disk").unlink()
    (tmp_path / "disk").symlink_to(tmp_path)
    (tmp_path / "stop").touch()
    now[0] += 1.1
    assert stop


def test_two_trainings_in_one_folder_are_refused(command: list[str], run: Path, capsys: Output) -> None:
    other = Run(run, torch.device("cpu"))
    with claimed(other):
        assert main([*command, "--output", str(run), "--resume", "--max-images", "64"]) == 2
        assert "another sgan-train is at work there" in capsys.readouterr().err
    assert main([*command, "--output", str(run), "--resume", "--max-images", "64"]) == 0


@pytest.mark.parametrize("option", ["--print-config", "--dry-run"])
def test_what_is_printed_is_no_event(command: list[str], option: str, capsys: Output) -> None:
    assert main([*command, option, "--json-progress"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "leave it out with --print-config and --dry-run" in printed.err


@pytest.mark.skipif(sys.platform == "win32", reason="os.nice is POSIX")
def test_low_priority_lets_others_go_first(tmp_path: Path) -> None:
    code = "import os, sys; from sgan_core.cli import train; train.main(sys.argv[1:]); print(os.nice(0))"
    options = ["--modality", "ct", "--data", str(tmp_path / "absent"), "--output", str(tmp_path / "out")]
    before = os.nice(0)
    for more, expected in ([], before), (["--low-priority"], before + 10):
        done = subprocess.run(
            [sys.executable, "-c", code, *options, *more], capture_output=True, text=True, check=False
        )
        assert int(done.stdout) == min(19, expected)


# --- stages ----------------------------------------------------------------------------------------


def test_one_stage_after_the_other(command: list[str], tmp_path: Path, capsys: Output) -> None:
    run = tmp_path / "run"
    assert main([*command, "--output", str(run), "--stage", "gan"]) == 0
    assert not (run / "bundle").exists()
    assert main([*command, "--output", str(run), "--stage", "encoder"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(run / "bundle")
    assert facts(run)["gan_images"] == 48
    # Now there is an encoder to continue or to spare.
    assert main([*command, "--output", str(run), "--stage", "encoder"]) == 2


def test_a_student_is_of_use_while_the_rest_is_not_trained_yet(
    command: list[str], disc_cohort: Path, tmp_path: Path, capsys: Output
) -> None:
    run, bundle = tmp_path / "run", tmp_path / "run" / "bundle"

    def segmented(name: str) -> dict[str, Any]:
        options = ["--model", str(bundle), "--output", str(tmp_path / name), "--device", "cpu"]
        assert segment.main([str(disc_cohort / "p5_0.png"), *options]) == 0
        cases = json.loads((tmp_path / name / "run.json").read_text(encoding="utf-8"))["cases"]
        return dict(cases[0])

    assert main([*command, "--output", str(run), "--stage", "student"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(bundle)
    first = load_bundle(bundle)
    assert first.inverter is None
    assert (first.facts["student_images"], first.facts["labelled_slices"]) == (24, 8)
    assert first.one_piece == (1,)  # what is asked for is a disc
    case = segmented("first")
    assert (case["method"], case["trust"]["status"]) == ("student", "review")
    assert "student alone" in case["trust"]["reason"]

    assert main([*command, "--output", str(run), "--stage", "gan"]) == 0
    assert load_bundle(bundle).hash == first.hash  # a generator without an encoder cannot judge
    assert main([*command, "--output", str(run), "--resume"]) == 0
    whole = load_bundle(bundle)
    assert whole.hash != first.hash
    assert whole.inverter is not None
    assert whole.facts["gan_images"] == 48
    assert whole.facts["trust"] == {}  # four validation slices are too few
    case = segmented("whole")
    assert case["reconstruction_error"]["case"] > 0
    assert case["trust"]["reason"] == "the model carries no calibration of trust; check the mask"


def test_all_stages_leave_the_student_in_the_bundle_when_the_gan_begins(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, seen = tmp_path / "run", []

    def train_gan(run: Any, *_: Any) -> None:
        seen.append(load_bundle(run.folder / "bundle").inverter)
        raise Cancelled("enough")

    monkeypatch.setattr("sgan_core.training.run._train_gan", train_gan)
    assert main([*command, "--output", str(run)]) == 3
    assert seen == [None]


def test_encoder_needs_a_gan(command: list[str], tmp_path: Path, capsys: Output) -> None:
    assert main([*command, "--output", str(tmp_path / "run"), "--stage", "encoder"]) == 2
    assert "gan.pt: no such checkpoint" in capsys.readouterr().err


def test_growing_from_a_smaller_run(command: list[str], finished: Path, tmp_path: Path) -> None:
    grown = {"generator": {"size": 64, "channels": {4: 8, 8: 8, 16: 8, 32: 8, 64: 8}}}
    grown["image_discriminator"] = {"channels": grown["generator"]["channels"]}  # type: ignore[assignment]
    settings = yaml.safe_load(Path(command[5]).read_text(encoding="utf-8"))
    for part, values in grown.items():
        settings[part] |= values
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    options = [*command, "--config", str(tmp_path / "settings.yaml"), "--output", str(tmp_path / "run")]
    assert main([*options, "--stage", "gan", "--init-from", str(finished), "--max-images", "8"]) == 0
    assert (tmp_path / "run" / "checkpoints" / "gan.pt").is_file()


def test_a_training_begins_with_a_model(command: list[str], finished: Path, tmp_path: Path) -> None:
    """The student of 8 more images is near the model's; one that began anew is not. The bundle can be gone on with."""
    few = tmp_path / "few.yaml"
    settings = yaml.safe_load(Path(command[5]).read_text(encoding="utf-8"))
    settings.setdefault("student_train", {})["max_images"] = 8
    few.write_text(yaml.safe_dump(settings), encoding="utf-8")
    options = [*command, "--config", str(few), "--stage", "student"]
    assert main([*options, "--output", str(tmp_path / "a"), "--init-from", str(finished / "bundle")]) == 0
    assert main([*options, "--output", str(tmp_path / "b"), "--seed", "77"]) == 0
    model, begun, anew = (
        load_bundle(run / "bundle").student for run in (finished, tmp_path / "a", tmp_path / "b")
    )

    def apart(student: Any) -> float:
        pairs = zip(student.parameters(), model.parameters(), strict=True)
        return sum(float((one - other).square().sum()) for one, other in pairs)

    assert apart(begun) < 0.2 * apart(anew)
    # The first is whole again, its generator and encoder as they were; the second is a student alone.
    whole, first = load_bundle(tmp_path / "a" / "bundle"), load_bundle(finished / "bundle")
    for name in ("generator", "encoder"):
        own, others = (getattr(bundle, name).state_dict() for bundle in (whole, first))
        assert all(torch.allclose(own[key], others[key], atol=1e-3) for key in own), name
    assert whole.facts["gan_images"] == first.facts["gan_images"]
    assert load_bundle(tmp_path / "b" / "bundle").inverter is None


def test_a_generator_is_added_to_a_student_that_came_alone(
    command: list[str], finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = [*command, "--output", str(run), "--max-images", "8"]
    assert main([*options, "--stage", "gan", "--init-from", str(finished / "bundle")]) == 0
    own = load_bundle(finished / "bundle").student

    def is_the_models(student: Any) -> bool:
        pairs = zip(student.parameters(), own.parameters(), strict=True)
        return all(torch.allclose(one, other, atol=1e-3) for one, other in pairs)

    alone = load_bundle(run / "bundle")
    assert alone.inverter is None
    assert is_the_models(alone.student)
    assert alone.facts["student_of"] == "bundle, discs"
    assert main([*options, "--stage", "encoder"]) == 0
    whole = load_bundle(run / "bundle")
    assert whole.inverter is not None
    assert is_the_models(whole.student)
    begun = copy.deepcopy(list(whole.student.parameters()))
    few = tmp_path / "few.yaml"
    settings = yaml.safe_load(Path(command[5]).read_text(encoding="utf-8"))
    settings.setdefault("student_train", {})["max_images"] = 8
    few.write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert (
        main([*options, "--stage", "student", "--config", str(few)]) == 0
    )  # it begins with what was adopted
    taught = load_bundle(run / "bundle").student
    moved = [float((one - other).abs().mean()) for one, other in zip(taught.parameters(), begun, strict=True)]
    assert 0.0 < max(moved) < 0.05


def test_terms_of_use_stay_with_weights_that_are_trained_on(
    command: list[str], finished: Path, tmp_path: Path
) -> None:
    """Also through a run that has no model yet, and when the run is resumed without its origin."""
    model, first, last = (str(tmp_path / name) for name in ("model", "first", "last"))
    told = ["--licence", "CC BY-NC-SA 4.0", "--restriction", "research only", "--output", model]
    assert bundle.main(["describe", str(finished / "bundle"), *told, "--source", "lits"]) == 0
    gan = [*command, "--stage", "gan", "--max-images", "8", "--output", first]
    assert main([*gan, "--init-from", model]) == 0
    assert main([*gan, "--resume"]) == 0
    assert main([*command, "--stage", "student", "--output", last, "--init-from", first]) == 0
    found = terms_of(facts(tmp_path / "last"))
    assert found.restriction == "research only"
    assert found.licence.startswith("not stated")
    assert "CC BY-NC-SA 4.0" in found.licence
    assert [source.name for source in found.sources] == ["lits", "discs"]


# --- settings --------------------------------------------------------------------------------------


def printed_config(capsys: Output, *options: str) -> dict[str, Any]:
    assert main(["--print-config", *options]) == 0
    values: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return values


def test_printed_config_is_read_back(command: list[str], tmp_path: Path, capsys: Output) -> None:
    first = printed_config(capsys, *command, "--labelled", "1", "--seed", "5", "--max-images", "99")
    assert (first["labelled"], first["seed"], first["gan"]["max_images"]) == (1, 5, 99)
    assert first["labels"][0]["name"] == "disc"
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(first), encoding="utf-8")
    again = printed_config(capsys, *command, "--config", str(tmp_path / "own.yaml"))
    assert again == first


def test_option_beats_the_settings_file(command: list[str], tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "own.yaml").write_text("seed: 3\nlabelled: 2\n")
    options = [*command, "--config", str(tmp_path / "own.yaml")]
    config = printed_config(capsys, *options, "--seed", "5")
    assert (config["seed"], config["labelled"]) == (5, 2)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("- a\n- b\n", "expected a table of settings"),
        ("seed: [", "not readable YAML"),
        ("sead: 3", "sead"),
        ("gan: {batch: 1}", "batch is 1"),
        ("generator: {size: 48}", "size is 48"),
        ("generator: 3", "config:"),
        ("preset: huge", "preset is 'huge'"),
    ],
)
def test_wrong_settings_file(
    text: str, reason: str, disc_cohort: Path, tmp_path: Path, capsys: Output
) -> None:
    (tmp_path / "own.yaml").write_text(text)
    options = ["--modality", "ct", "--data", str(disc_cohort), "--config", str(tmp_path / "own.yaml")]
    assert main([*options, "--output", str(tmp_path / "run")]) == 2
    assert reason in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_dry_run_tells_the_cost(command: list[str], tmp_path: Path, capsys: Output) -> None:
    assert main([*command, "--output", str(tmp_path / "run"), "--dry-run"]) == 0
    costs = json.loads(capsys.readouterr().out)
    wanted = {"generator_m_parameters", "gan_seconds_per_step", "encoder_seconds_per_step", "memory_mb"}
    assert wanted | {"gan_hours", "encoder_hours"} <= costs.keys()
    assert all(value is None or value > 0 for value in costs.values())
    assert not (tmp_path / "run").exists()


def test_small_preset_on_a_cpu_says_what_it_is(capsys: Output, disc_cohort: Path) -> None:
    options = ["--modality", "ct", "--data", str(disc_cohort), "--device", "cpu", "--print-config"]
    assert main(options) == 0
    printed = capsys.readouterr()
    assert "using 'tiny' (64 px, student 128 px)" in printed.err
    assert yaml.safe_load(printed.out)["generator"]["size"] == 64


# --- data ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["xray", "dermoscopy", "face"])
def test_modality_without_data_gets_advice(modality: str, tmp_path: Path, capsys: Output) -> None:
    assert main(["--modality", modality, "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"--modality {modality} needs --data" in error
    assert "sgan-data list" in error
    assert not (tmp_path / "run").exists()


def test_ct_without_data_is_the_phantom_and_says_so(capsys: Output) -> None:
    assert main(["--modality", "ct", "--preset", "tiny", "--print-config"]) == 0
    printed = capsys.readouterr()
    assert "built-in phantom patients" in printed.err
    assert [label["name"] for label in yaml.safe_load(printed.out)["labels"]] == ["liver"]


def test_other_modality_than_the_cohorts_is_a_warning(disc_cohort: Path, capsys: Output) -> None:
    options = ["--modality", "xray", "--preset", "tiny", "--data", str(disc_cohort), "--print-config"]
    assert main(options) == 0
    assert "warning: the cohort is ct, --modality says xray" in capsys.readouterr().err


def test_no_time_is_refused(command: list[str], tmp_path: Path, capsys: Output) -> None:
    assert main([*command, "--output", str(tmp_path / "run"), "--max-minutes", "0"]) == 2
    assert "give a positive number of minutes" in capsys.readouterr().err


# --- recipes ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two phantom patients as files; with validation patients, trust would be calibrated for minutes."""
    folder = tmp_path_factory.mktemp("phantoms")
    options = ["--patients", "2", "--labelled", "2", "--validation", "0", "--output", str(folder)]
    assert data.main(["prepare", "phantom", *options]) == 0
    return folder


@pytest.mark.slow
def test_recipe_of_the_bundled_model_trains(
    phantoms: Path, toy_settings: Path, tmp_path: Path, capsys: Output
) -> None:
    run = tmp_path / "run"
    recipe = [
        "--recipe",
        "phantom-ct-liver",
        "--data",
        str(phantoms),
        "--output",
        str(run),
        "--device",
        "cpu",
    ]
    assert main([*recipe, "--config", str(toy_settings), "--labelled", "2"]) == 0
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert (config["modality"], config["preset"], config["labelled"]) == ("ct", "tiny", 2)
    assert config["gan"]["max_images"] == 48  # of the file, which wins
    assert [source["name"] for source in facts(run)["use"]["sources"]] == ["phantom"]
    assert capsys.readouterr().out.splitlines()[-1] == str(run / "bundle")
    assert main([*recipe, "--resume"]) == 0  # goes on with the run's own settings
    assert yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")) == config


def test_options_win_over_the_recipe(disc_cohort: Path, tmp_path: Path, capsys: Output) -> None:
    def shown(*options: str) -> dict[str, Any]:
        recipe = ["--recipe", "lits-liver", "--data", str(disc_cohort), "--device", "cpu"]
        assert main([*recipe, "--print-config", "--output", str(tmp_path / "new"), *options]) == 0
        return dict(yaml.safe_load(capsys.readouterr().out))

    found = shown()
    assert (found["preset"], found["labelled"], found["gan"]["max_images"]) == ("tiny", 8, 180_000)
    assert found["encoder_train"]["max_images"] == 60_000
    own = tmp_path / "own.yaml"
    own.write_text("gan: {max_images: 7, batch: 4}\n", encoding="utf-8")
    found = shown("--config", str(own), "--labelled", "2", "--preset", "small")
    assert (found["preset"], found["labelled"], found["gan"]["max_images"]) == ("small", 2, 7)
    assert found["encoder_train"]["max_images"] == 60_000
    assert shown("--config", str(own), "--max-images", "9")["gan"]["max_images"] == 9


def test_recipe_for_other_labels_is_a_warning(disc_cohort: Path, tmp_path: Path, capsys: Output) -> None:
    options = ["--data", str(disc_cohort), "--print-config", "--output", str(tmp_path)]
    assert main(["--recipe", "lits-liver", *options]) == 0
    assert "the recipe is for liver, the cohort has disc." in capsys.readouterr().err


def test_recipe_without_data_says_how_to_prepare_them(tmp_path: Path, capsys: Output) -> None:
    assert main(["--recipe", "lits-liver", "--output", str(tmp_path / "run")]) == 2
    first, *lines = capsys.readouterr().err.splitlines()
    assert first.endswith("--recipe lits-liver needs --data, prepared like this:")
    assert "  sgan-data prepare lits LiTS --output data/lits" in lines
    assert any("chaos-mr" in line for line in lines)
    assert not (tmp_path / "run").exists()


def test_recipes_are_listed_with_what_was_measured(capsys: Output) -> None:
    assert main(["--recipe", "list"]) == 0
    out = capsys.readouterr().out
    assert "DICE 0.918: student, CT, 4 validation patients" in out
    assert "DICE not measured yet: student, JSRT, validation patients" in out


def test_neither_modality_nor_recipe_is_wrong(tmp_path: Path, capsys: Output) -> None:
    assert main(["--output", str(tmp_path / "run")]) == 2
    assert "--modality is needed" in capsys.readouterr().err
