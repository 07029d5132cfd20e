"""sgan-bundle: what it prints and how it ends."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sgan_core.bundle import load_bundle, save_bundle, save_with_facts, verify_bundle
from sgan_core.cli import app, segment
from sgan_core.cli.bundle import main
from sgan_core.cohort import Case, Cohort, Intensity, Label, rank_labelled, save_cohort
from sgan_core.config import EncoderConfig, ImageDiscriminatorConfig, InversionConfig, preset
from sgan_core.networks.discriminators import ImageDiscriminator
from sgan_core.networks.encoder import Encoder
from sgan_core.networks.generator import Generator
from sgan_core.networks.perceptual import make_perceptual
from sgan_core.networks.segmenter import make_student
from sgan_datasets import about


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained model."""
    torch.manual_seed(0)
    channels = {4: 8, 8: 8, 16: 8, 32: 8}
    config = preset("tiny", modality="ct", num_classes=2, size=32)
    config = dataclasses.replace(
        config,
        generator=dataclasses.replace(config.generator, channels=channels, w_dim=8, z_dim=8),
        image_discriminator=ImageDiscriminatorConfig(channels=channels),
        encoder=EncoderConfig("resnet18", 8, 8, "light", "group", stem_stride=False),
        perceptual="discriminator",
        labels=(Label(1, "liver", (200, 90, 60), "10200004"),),
    )
    judge = ImageDiscriminator(config.image_discriminator, image_channels=1)
    return save_bundle(
        tmp_path_factory.mktemp("models") / "bundle",
        name="liver-model",
        config=config,
        generator=Generator(config.generator),
        encoder=Encoder(config.encoder, size=32, image_channels=1, num_ws=config.generator.num_ws, w_dim=8),
        perceptual=make_perceptual("discriminator", image_discriminator=judge),
        facts={"cohort": "phantom", "gan_images": 4321, "gan_figures": {"frechet": 12.345678}},
    )


def test_info_tells_what_the_model_is(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(bundle)]) == 0
    shown = capsys.readouterr().out
    for part in ("liver-model", "1 liver", "phantom", "Gan images", "4321", "Gan figures frechet", "12.35"):
        assert part in shown


def test_a_model_steers_no_terminal(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = load_bundle(bundle)
    steering = "\x1b[2J\x9b31m\u202eliver"
    hostile = whole.facts | {"cohort": steering, steering: steering}
    save_with_facts(tmp_path / "hostile", whole, hostile, name=steering)
    assert main(["info", str(tmp_path / "hostile")]) == 0
    assert main(["info", f"{tmp_path}/{steering}"]) == 2
    said = "".join(capsys.readouterr())
    assert "liver" in said
    assert not {"\x1b", "\x9b", "\u202e"} & set(said)


def test_messages_steer_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    def command(_: argparse.Namespace) -> None:
        logging.getLogger("sgan_core").info("\x1b[2J\u202ea model\ton\ntwo lines")

    assert app.run(command, app.Parser("sgan-x", description="", examples=""), []) == 0
    assert capsys.readouterr().err == " [2J a model\ton\ntwo lines\n"


def test_info_as_json(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(bundle), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["name"] == "liver-model"
    assert described["facts"]["gan_images"] == 4321
    assert len(described["hash"]) == 64


def test_whole_model_verifies(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(bundle)]) == 0
    assert "whole" in capsys.readouterr().out


def test_zip_of_a_model_verifies(bundle: Path, tmp_path: Path) -> None:
    assert main(["verify", shutil.make_archive(str(tmp_path / "model"), "zip", bundle)]) == 0


def test_damaged_model_fails_with_every_reason(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    (copy / "models" / "encoder.safetensors").unlink()
    (copy / "models" / "generator.safetensors").write_bytes(b"oops")
    assert main(["verify", str(copy)]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "encoder.safetensors: missing" in errors
    assert "generator.safetensors: damaged" in errors


@pytest.mark.parametrize("action", ["info", "verify"])
def test_unknown_model_is_wrong_input(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([action, "no-such-model"]) == 2
    assert "no-such-model: no such model" in capsys.readouterr().err


def test_info_tells_what_a_student_alone_cannot(
    student_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(student_bundle)]) == 0
    capsys.readouterr()
    assert main(["info", str(student_bundle), "--json"]) == 0
    can = "segments; cannot reconstruct, cannot judge its masks: each is to be reviewed"
    assert json.loads(capsys.readouterr().out)["can"] == can
    assert main(["info", str(student_bundle)]) == 0
    assert "cannot reconstruct" in capsys.readouterr().out


# --- list ------------------------------------------------------------------------------------------


def test_list_shows_bundled_models_and_those_of_the_user(
    restricted_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(restricted_bundle, tmp_path / "my-liver")
    (tmp_path / "broken" / "configs").mkdir(parents=True)
    (tmp_path / "broken" / "configs" / "semanticgan.json").write_text("{")
    monkeypatch.setenv("SGAN_MODELS", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["list"]) == 0
    shown = capsys.readouterr()
    table = " ".join(shown.out.replace("│", " ").split())
    for words in ("phantom-ct-liver", "Apache-2.0", "my-liver", "CC BY-NC-SA 4.0", "research only", "0.950"):
        assert words in table
    (line,) = shown.err.splitlines()
    assert str(tmp_path / "broken") in line
    assert main(["list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = [model["name"] for model in found["models"]]
    assert names == ["chest-xray-thorax", "phantom-ct-liver", "skin-lesion", "ct-liver", "my-liver"]
    assert len(found["problems"]) == 1
    assert main(["verify", "my-liver"]) == 0  # a name works where a path does


def test_list_needs_no_torch() -> None:
    check = (
        "from sgan_core.cli.bundle import main; code = main(['list']) or main(['list', '--json']); "
        "import sys; sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "phantom-ct-liver" in done.stdout


# --- describe --------------------------------------------------------------------------------------

RESTRICTION = "research only, not for commercial use"


def weights(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / "models").iterdir()}


def test_describe_puts_the_terms_everywhere_and_leaves_the_weights(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, card = tmp_path / "liver", tmp_path / "card.md"
    card.write_text("## Who made it\n\nA made-up clinic in Köln.\n", encoding="utf-8")
    options = ["--licence", "CC BY-NC-SA 4.0", "--restriction", RESTRICTION, "--card", str(card)]
    options += ["--source", "lits", "--source", "chaos-ct", "--name", "ct-liver", "--output", str(output)]
    assert main(["describe", str(bundle), *options]) == 0
    assert weights(output) == weights(bundle)
    assert verify_bundle(output) == []
    loaded = load_bundle(output)
    assert loaded.name == "ct-liver"
    assert loaded.facts["licence"] == "CC BY-NC-SA 4.0"
    assert [source["name"] for source in loaded.facts["use"]["sources"]] == ["lits", "chaos-ct"]
    assert loaded.facts["gan_images"] == 4321
    readme = (output / "docs" / "README.md").read_text(encoding="utf-8")
    assert readme.index(RESTRICTION) < readme.index("A made-up clinic in Köln.") < readme.index("## Labels")
    assert "Bilic et al." in readme
    assert RESTRICTION in (output / "LICENSE").read_text(encoding="utf-8")
    metadata = json.loads((output / "configs" / "metadata.json").read_text(encoding="utf-8"))
    assert RESTRICTION in metadata["copyright"]
    assert RESTRICTION in metadata["intended_use"]
    assert "lits" in metadata["data_source"]
    capsys.readouterr()
    assert main(["info", str(output)]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"Restriction {RESTRICTION}" in shown
    assert "Images of lits; licence: non-commercial" in shown


def test_described_again_a_model_keeps_its_card_and_its_terms(bundle: Path, tmp_path: Path) -> None:
    card = tmp_path / "card.md"
    card.write_text("A made-up clinic.")
    first, second = tmp_path / "first", tmp_path / "second"
    options = ["--restriction", RESTRICTION, "--source", "lits", "--source", "jsrt", "--card", str(card)]
    options += ["--output", str(first)]
    assert main(["describe", str(bundle), *options]) == 0
    assert main(["describe", str(first), "--licence", "free", "--output", str(second)]) == 0
    facts = load_bundle(second).facts
    assert facts["use"] == load_bundle(first).facts["use"]
    assert facts["use"]["sources"][1]["citation"] == about("jsrt").citation
    assert facts["licence"] == "free"
    assert "A made-up clinic." in (second / "docs" / "README.md").read_text()
    assert main(["describe", str(second), "--restriction", "", "--output", str(second)]) == 0
    assert set(load_bundle(second).facts["use"]) == {"sources"}


def test_described_in_its_run_a_model_says_that_it_will_not_last(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(bundle, run / "bundle")
    options = ["describe", str(run / "bundle"), "--licence", "free", "--output", str(run / "bundle")]
    assert main(options) == 0
    assert "--resume" not in capsys.readouterr().err
    (run / "terms.json").write_text("{}")  # what every run has beside its model
    assert main(options) == 0
    assert "writes it anew when it goes on (--resume)" in capsys.readouterr().err


def test_describe_says_which_labels_are_one_piece(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["describe", str(bundle), "--output", str(tmp_path / "new"), "--one-piece"]
    assert main([*options, "liver"]) == 0
    assert load_bundle(tmp_path / "new").one_piece == (1,)
    assert load_bundle(bundle).one_piece == ()
    assert main([*options, "spleen"]) == 2
    assert "--one-piece 'spleen': the model's labels are liver." in capsys.readouterr().err


def test_described_with_nothing_new_a_model_is_the_same(bundle: Path, tmp_path: Path) -> None:
    assert main(["describe", str(bundle), "--output", str(tmp_path / "same")]) == 0
    files = {path.relative_to(bundle): path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    for path, content in files.items():
        assert (tmp_path / "same" / path).read_bytes() == content


def test_only_the_student_of_a_whole_model(
    taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "student"
    known = load_bundle(taught)
    facts = known.facts | {"student_dice": 0.9, "gan_figures": {"frechet": 1.0}, "validation_dice": 0.8}
    whole = save_with_facts(tmp_path / "whole", known, facts)
    assert main(["describe", str(whole), "--student-only", "--output", str(output)]) == 0
    assert weights(output) == {"student.safetensors": weights(whole)["student.safetensors"]}
    assert verify_bundle(output) == []
    loaded = load_bundle(output)
    assert loaded.inverter is None
    assert loaded.facts["student_dice"] == 0.9
    assert not [key for key in loaded.facts if key.startswith(("trust", "gan", "encoder", "validation"))]
    assert json.loads((output / "configs" / "semanticgan.json").read_text())["student_alone"] is True
    picture = np.arange(1024).reshape(32, 32) // 4
    Image.fromarray(picture.astype(np.uint8)).save(tmp_path / "slice.png")
    options = ["--model", str(output), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert segment.main([str(tmp_path / "slice.png"), *options]) == 0
    (case,) = json.loads((tmp_path / "out" / "run.json").read_text())["cases"]
    assert case["trust"]["status"] == "review"


def test_describe_refuses_what_it_cannot(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def says(*options: str) -> str:
        assert main(["describe", str(bundle), "--output", str(tmp_path / "new"), *options]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    (tmp_path / "latin.md").write_bytes(b"K\xf6ln")
    (tmp_path / "long.md").write_text("x" * (1 << 18) + "x")
    assert "has no student" in says("--student-only")
    assert "--name '../liver'" in says("--name", "../liver")
    assert "--licence: one line" in says("--licence", "two\nlines")
    assert "--licence: one line" in says("--licence", "")
    assert "--restriction: one line" in says("--restriction", "x" * 301)
    assert "not a readable text" in says("--card", str(tmp_path / "absent.md"))
    assert "not a readable text" in says("--card", str(tmp_path / "latin.md"))
    assert "a card has at most" in says("--card", str(tmp_path / "long.md"))
    assert "invalid choice: 'lits2'" in says("--source", "lits2")
    assert not (tmp_path / "new").exists()


# --- calibrate -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder: slices of 32 px with a disc; 4 patients to train on, 3 with labels to validate."""
    folder = tmp_path_factory.mktemp("discs")
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:32, :32]
    cases = []
    for number in range(4 * 8 + 3 * 8):
        split = "train" if number < 32 else "validation"
        row, column, radius = random.uniform(10, 22, 2).tolist() + [random.uniform(4, 8)]
        disc = (rows - row) ** 2 + (columns - column) ** 2 < radius**2
        image = np.where(disc, 190, 60) + random.normal(0, 12, disc.shape)
        name, files = f"c{number}", [folder / f"{number}.png", folder / f"{number}_label.png"]
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(files[0])
        Image.fromarray(disc.astype(np.uint8)).save(files[1])
        cases.append(Case(name, f"p{number // 8}", str(files[0]), str(files[1]), split=split))
    labels = (Label(1, "disc", (200, 90, 60)),)
    save_cohort(Cohort("discs", "ct", Intensity(-160.0, 240.0, "HU"), labels, rank_labelled(cases)), folder)
    return folder


@pytest.fixture(scope="module")
def taught(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with an untrained student and trust as an older version calibrated it."""
    loaded = load_bundle(bundle)
    config = dataclasses.replace(
        loaded.config,
        student_train=dataclasses.replace(loaded.config.student_train, channels=(4, 8)),
        inversion=InversionConfig(steps=2, check_steps=1),
    )
    return save_bundle(
        tmp_path_factory.mktemp("models") / "bundle",
        name="disc-model",
        config=config,
        generator=loaded.generator,
        encoder=loaded.encoder,
        perceptual=loaded.perceptual,
        student=make_student(config),
        facts={"cohort": "discs", "trust": {"fast": {"features": []}}, "trust_fast_auc_wrong": 0.9},
    )


def test_calibrate_brings_an_older_model_up_to_date(
    taught: Path,
    cohort: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sgan_core.training.calibrate.SLICES", 48)  # seconds in place of minutes
    assert main(["info", str(taught)]) == 0
    assert "calibrated by an older version" in " ".join(capsys.readouterr().out.split())
    output = tmp_path / "new"
    options = ["--data", str(cohort), "--output", str(output), "--device", "cpu"]
    assert main(["calibrate", str(taught), *options]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(output)
    before, after = load_bundle(taught), load_bundle(output)
    assert verify_bundle(output) == []
    assert after.hash != before.hash
    for file in (taught / "models").iterdir():
        assert (output / "models" / file.name).read_bytes() == file.read_bytes()
    assert {method: list(part) for method, part in after.facts["trust"].items()} == {
        "student": ["fast", "standard", "careful"],
        "encoder": ["fast"],
    }
    assert "trust_fast_auc_wrong" not in after.facts
    assert after.facts["trust_student_fast_patients"] == 3.0
    assert (after.config, after.facts["cohort"]) == (before.config, "discs")
    assert main(["info", str(output)]) == 0
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "calibrated for the masks of the student at fast, standard, careful and of the encoder" in told


def test_calibrate_refuses_before_the_long_work(
    bundle: Path,
    taught: Path,
    student_bundle: Path,
    cohort: Path,
    disc_cohort: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def says(model: Path, data: Path, output: Path) -> str:
        options = ["--data", str(data), "--output", str(output), "--device", "cpu"]
        assert main(["calibrate", str(model), *options]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    (tmp_path / "holiday.jpg").write_bytes(b"picture")
    with monkeypatch.context() as patch:
        patch.setattr(
            "sgan_core.training.calibrate.slices_of_model", lambda *_, **__: pytest.fail("too late")
        )
        assert "holds something that is not a model" in says(taught, cohort, tmp_path)
        assert "has no student" in says(bundle, cohort, tmp_path / "new")
        assert "is a student alone" in says(student_bundle, cohort, tmp_path / "new")
        entry = json.loads((cohort / "cohort.json").read_text(encoding="utf-8"))
        entry["labels"].append({"value": 2, "name": "square", "rgb": [1, 2, 3]})
        (tmp_path / "cohort.json").write_text(json.dumps(entry), encoding="utf-8")
        assert "disc-model draws liver, the cohort discs has disc/square" in says(
            taught, tmp_path / "cohort.json", tmp_path / "new"
        )
    # Four slices of one validation patient.
    assert "fewer than 24 slices of labelled validation patients" in says(
        taught, disc_cohort, tmp_path / "new"
    )
    assert not (tmp_path / "new").exists()


def test_help_needs_no_torch() -> None:
    check = (
        "from sgan_core.cli.bundle import main; main(['--help']); "
        "import sys; sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "sgan-bundle info phantom-ct-liver" in done.stdout
