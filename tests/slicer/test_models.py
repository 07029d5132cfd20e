"""The list of models: what the panel knows about a model without the engine, and what it remembers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import slicer
from helpers import ROOT

from SemanticGANSlicerLib import models

BUNDLED = ROOT / "sgan_core" / "models" / "phantom-ct-liver"


def copy_of_the_bundled_model(folder: Path) -> Path:
    shutil.copytree(BUNDLED / "configs", folder / "configs")
    return folder


def test_bundled_model_is_listed_with_what_it_says_about_itself() -> None:
    (model,) = models.bundledModels()
    assert (model.reference, model.name, model.modality) == ("phantom-ct-liver", "phantom-ct-liver", "ct")
    assert [(one.name, one.rgb) for one in model.labels] == [("liver", (221, 130, 101))]
    facts = json.loads((BUNDLED / "configs" / "semanticgan.json").read_text())["facts"]
    text = model.details()
    for words in (
        "CT",
        "data set phantom",
        "8 labelled patients",
        "Apache-2.0",
        "rgb(221, 130, 101)",
        "liver",
    ):
        assert words in text
    assert f"{facts['student_dice']:.2f}" in text


def test_a_student_alone_says_what_it_cannot(tmp_path: Path) -> None:
    folder = copy_of_the_bundled_model(tmp_path / "model")
    file = folder / "configs" / "semanticgan.json"
    settings = json.loads(file.read_text())
    for told, alone in ((None, False), (False, False), (True, True)):  # older models do not say
        if told is not None:
            file.write_text(json.dumps(settings | {"student_alone": told}))
        model = models.readModel(str(folder))
        assert model.studentAlone is alone
        assert ("cannot reconstruct nor judge" in model.details()) is alone


def test_listing_models_imports_no_engine() -> None:
    """In a process of its own: this one has torch from tests/conftest.py."""
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; import standin; from SemanticGANSlicerLib import models\n"
        "assert models.bundledModels(); bad = [n for n in sys.modules if n.split('.')[0] in ('torch', 'sgan_core')]\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    folders = [str(ROOT / "tests" / "slicer"), str(ROOT / "SemanticGANSlicer")]
    run = subprocess.run([sys.executable, "-c", code, *folders], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("inside", ["", "liver/"])
def test_zip_is_read_without_unpacking(inside: str, tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(BUNDLED / "configs" / "semanticgan.json", f"{inside}configs/semanticgan.json")
    model = models.readModel(str(path))
    assert (model.name, model.reference) == ("phantom-ct-liver", str(path))
    assert [file.name for file in tmp_path.iterdir()] == ["model.zip"]


def test_text_of_a_model_cannot_bring_markup(tmp_path: Path) -> None:
    folder = copy_of_the_bundled_model(tmp_path / "model")
    settings = json.loads((folder / "configs" / "semanticgan.json").read_text())
    settings["facts"]["licence"] = "<img src=x>"
    settings["facts"]["cohort"] = "<b>x</b>"
    settings["config"]["labels"][0]["name"] = "<script>"
    (folder / "configs" / "semanticgan.json").write_text(json.dumps(settings))
    text = models.readModel(str(folder)).details()
    for markup in ("<img", "<b>", "<script>"):
        assert markup not in text


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"name": 1, "config": {"labels": [{"value": "x"}]}}', "\x00"]
)
def test_what_is_no_model_is_explained(content: str, tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "semanticgan.json").write_text(content)
    with pytest.raises(ValueError, match="is not a model of SemanticGAN"):
        models.readModel(str(tmp_path))


def test_files_that_are_no_model_are_explained(tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("no zip")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    for name in ("text.zip", "empty.zip", "absent"):
        with pytest.raises(ValueError, match="is not a model of SemanticGAN"):
            models.readModel(str(tmp_path / name))


def test_opened_models_are_remembered_newest_first_while_they_exist(tmp_path: Path) -> None:
    settings = slicer.app.userSettings()
    paths = [str(copy_of_the_bundled_model(tmp_path / name)) for name in ("a", "b Größe", "c")]
    for path in (*paths, paths[0]):
        models.rememberModel(settings, path)
    assert [model.reference for model in models.rememberedModels(settings)] == [paths[0], paths[2], paths[1]]
    shutil.rmtree(paths[2])
    assert [model.reference for model in models.rememberedModels(settings)] == [paths[0], paths[1]]


@pytest.mark.parametrize("stored", ["", "not json", "3", '["", 3]'])
def test_damaged_memory_is_forgotten(stored: str) -> None:
    settings = slicer.app.userSettings()
    settings.setValue("SemanticGAN/Models", stored)
    assert models.rememberedModels(settings) == []
