"""The list of models: what the panel knows about a model without the engine, and what it remembers."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import qt
import slicer
from helpers import ROOT, run_steps

import standin
from SemanticGANSlicerLib import model_card, models

BUNDLED = ROOT / "sgan_core" / "models" / "phantom-ct-liver"
KNOWN = len(models.knownModels())


def copy_of_the_bundled_model(folder: Path) -> Path:
    shutil.copytree(BUNDLED / "configs", folder / "configs")
    return folder


def test_bundled_model_is_listed_with_what_it_says_about_itself() -> None:
    model = next(one for one in models.knownModels() if one.name == "phantom-ct-liver")
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
        "assert models.knownModels(); bad = [n for n in sys.modules if n.split('.')[0] in ('torch', 'sgan_core')]\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    folders = [str(ROOT / "tests" / "slicer"), str(ROOT / "SemanticGANSlicer")]
    run = subprocess.run([sys.executable, "-c", code, *folders], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_models_with_a_name_are_those_of_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The panel looks for itself, without the engine: both have to find the same."""
    from sgan_core.known_models import known_models

    for name in ("zz-mine", "phantom-ct-liver", ".hidden"):  # the second hides behind the bundled one
        copy_of_the_bundled_model(tmp_path / name)
    (tmp_path / "holiday").mkdir()
    monkeypatch.setenv("SGAN_MODELS", str(tmp_path))
    found = {model.reference: model.path for model in models.knownModels()}
    assert found == {name: str(model.folder) for name, model in known_models().items()}
    assert list(found) == list(known_models())
    assert found["zz-mine"] == str(tmp_path / "zz-mine")
    assert found["phantom-ct-liver"] == str(BUNDLED)
    (tmp_path / "zz-mine" / "configs" / "semanticgan.json").write_text("{")
    assert "zz-mine" not in {model.reference for model in models.knownModels()}  # and the others are there


def test_a_folder_that_cannot_be_read_hides_no_other_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tab would not open at all."""
    listed = os.listdir

    def listdir(folder: str) -> list[str]:
        if folder == str(tmp_path):
            raise PermissionError(13, "Permission denied", folder)
        return listed(folder)

    monkeypatch.setattr(models.os, "listdir", listdir)
    monkeypatch.setenv("SGAN_MODELS", str(tmp_path))
    assert "phantom-ct-liver" in {model.reference for model in models.knownModels()}


def test_a_licence_of_a_book_is_cut(tmp_path: Path) -> None:
    folder = copy_of_the_bundled_model(tmp_path / "model")
    file = folder / "configs" / "semanticgan.json"
    settings = json.loads(file.read_text())
    settings["facts"] |= {"licence": "x" * 100_000, "cohort": "y" * 100_000}
    file.write_text(json.dumps(settings))
    assert len(models.readModel(str(folder)).details()) < 2000


def test_models_of_a_checkout_have_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sgan_core" / "models").mkdir(parents=True)
    copy_of_the_bundled_model(tmp_path / "models" / "ct-liver")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "sgan_core")])
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: spec)
    assert models.knownModels() == []  # beside an installed package, models/ is somebody else's
    for name in ("pyproject.toml", "setup.py"):
        (tmp_path / name).write_text("")
    assert [model.reference for model in models.knownModels()] == ["ct-liver"]


def test_terms_of_use_stand_first_and_bring_no_markup(tmp_path: Path) -> None:
    folder = copy_of_the_bundled_model(tmp_path / "model")
    file = folder / "configs" / "semanticgan.json"
    settings = json.loads(file.read_text())
    assert "Terms of use" not in models.readModel(str(folder)).details()
    for use, shown in (
        (
            {"restriction": "research only,\nnot <i>for</i> sale"},
            "research only, not &lt;i&gt;for&lt;/i&gt; sale",
        ),
        ({"restriction": "x" * 1000}, "x" * 300),
        ({"restriction": 7}, None),
        ("free", None),
    ):
        settings["facts"]["use"] = use
        file.write_text(json.dumps(settings))
        text = models.readModel(str(folder)).details()
        if shown is None:
            assert "Terms of use" not in text
        else:
            assert text.startswith(f"<b>Terms of use: {shown}</b>")


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


def test_opened_model_can_be_forgotten(tmp_path: Path) -> None:
    settings = slicer.app.userSettings()
    paths = [str(copy_of_the_bundled_model(tmp_path / name)) for name in ("a", "b Größe")]
    for path in paths:
        models.rememberModel(settings, path)
    models.forgetModel(settings, paths[1])
    assert [model.reference for model in models.rememberedModels(settings)] == [paths[0]]
    models.forgetModel(settings, "/never/there")
    assert [model.reference for model in models.rememberedModels(settings)] == [paths[0]]
    assert Path(paths[1], "configs").is_dir()  # the files stay


def test_chosen_model_is_removed_from_the_list(panel: Any, tmp_path: Path) -> None:
    panel._showModel()
    assert not panel._forgetAction.enabled  # one of the engine
    folder = str(copy_of_the_bundled_model(tmp_path / "mine"))
    panel._openModel(folder)
    assert panel.ui.modelComboBox.count == KNOWN + 1
    assert panel._forgetAction.enabled
    panel._forgetAction.trigger()
    assert panel.ui.modelComboBox.count == KNOWN
    assert panel._parameterNode.model == ""
    assert not panel._forgetAction.enabled
    panel._listModels()
    assert panel.ui.modelComboBox.count == KNOWN


def zipped(folder: Path, path: Path, inside: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.rglob("*"):
            if file.is_file():
                archive.write(file, inside + file.relative_to(folder).as_posix())
    return path


@pytest.mark.parametrize("kind", ["folder", "zip", "zip of the folder"])
def test_files_are_compared_with_their_hashes(kind: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(BUNDLED, tmp_path / "model"))

    def problems() -> list[str]:
        path = folder
        if kind != "folder":
            path = zipped(folder, tmp_path / "model.zip", "model/" if kind != "zip" else "")
        return run_steps(model_card.checkedFiles(str(path)))

    assert problems() == []
    weights = folder / "models" / "student.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (folder / "LICENSE").unlink()
    assert problems() == [
        "LICENSE is missing or cannot be read.",
        "models/student.safetensors is damaged or was changed.",
    ]
    (folder / "configs" / "manifest.json").unlink()
    assert problems() == ["It has no readable list of hashes (configs/manifest.json)."]


def test_list_of_hashes_cannot_lead_out_of_the_model(tmp_path: Path) -> None:
    folder = copy_of_the_bundled_model(tmp_path / "model")
    (tmp_path / "secret").write_text("")
    digest = hashlib.sha256(b"").hexdigest()
    names = ["../secret", str(tmp_path / "secret"), "models\\..\\x", "C:x"]
    (folder / "configs" / "manifest.json").write_text(json.dumps({"files": dict.fromkeys(names, digest)}))
    found = run_steps(model_card.checkedFiles(str(folder)))
    assert found[0] == "Its list of hashes says nothing of configs/semanticgan.json."
    assert sorted(found[1:]) == sorted(f"{name} is missing or cannot be read." for name in names)


def test_pieces_are_small_enough_for_the_window(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    with open(tmp_path / "big", "wb") as file:
        file.truncate(64 << 20)
    (tmp_path / "configs" / "semanticgan.json").touch()
    hashes = {"big": "0", "configs/semanticgan.json": hashlib.sha256(b"").hexdigest()}
    (tmp_path / "configs" / "manifest.json").write_text(json.dumps({"files": hashes}))
    pieces, found, times = model_card.checkedFiles(str(tmp_path)), None, []
    while found is None:
        began = time.thread_time()  # of the processor: others may use it, too
        try:
            next(pieces)
        except StopIteration as end:
            found = end.value
        times.append(time.thread_time() - began)
    assert found == ["big is damaged or was changed."]
    assert len(times) > 100
    assert max(times) < 0.1


def test_warning_when_a_model_is_not_what_was_exported(
    panel: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(BUNDLED, tmp_path / "model"))
    panel._openModel(str(folder))
    standin.pump(lambda: panel._checks.problems(panel._chosenModel()) is not None, 20)
    assert "Do not trust" not in panel.ui.modelDetailsLabel.text
    panel._parameterNode.model = "phantom-ct-liver"
    (folder / "docs" / "README.md").write_text("a lie")
    manifest = folder / "configs" / "manifest.json"
    os.utime(manifest, ns=(0, 1))  # as a copy of another day
    panel._parameterNode.model = str(folder)
    standin.pump(lambda: panel._checks.problems(panel._chosenModel()) is not None, 20)
    text = panel.ui.modelDetailsLabel.text
    assert "Do not trust this model" in text
    assert "docs/README.md is damaged or was changed." in text
    seen = []
    monkeypatch.setattr(model_card.ModelCardWindow, "run", lambda self: seen.append(self.check.text))
    panel.ui.modelCardButton.click()
    assert "docs/README.md is damaged" in seen[0]


def test_card_shows_figures_limits_licence_and_the_models_own(
    panel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(model_card.ModelCardWindow, "run", lambda self: seen.append(self))
    standin.pump(lambda: panel._checks.problems(panel._chosenModel()) is not None, 20)
    panel.ui.modelCardButton.click()
    (card,) = seen
    assert "8 labelled patients" in card.summary.text
    assert "DICE on its own validation patients: 0.95" in card.summary.text
    assert "Apache-2.0" in card.summary.text
    assert "may be wrong" in card.summary.text
    assert card.check.text == "Its files are those that were exported (SHA-256)."
    assert "structures of about a model pixel are lost" in card.card.toPlainText()
    assert not card.card.isHidden()


def test_card_of_a_model_without_one(tmp_path: Path) -> None:
    model = models.readModel(str(copy_of_the_bundled_model(tmp_path / "model")))
    card = model_card.ModelCardWindow(model, None)
    assert card.card.isHidden()
    assert "Comparing" in card.check.text
    card.showCheck(["x is damaged or was changed."])
    assert "Do not trust" in card.check.text


@pytest.mark.parametrize("kind", ["bits", "short", "encrypted", "method", "nested", "infinite", "list"])
def test_a_hostile_model_is_explained(tmp_path: Path, kind: str) -> None:
    """Also one that is remembered: the panel opens without it."""
    path = tmp_path / "model.zip"
    text = (BUNDLED / "configs" / "semanticgan.json").read_text()
    value = re.compile(r'"value": *1')
    assert value.search(text)
    text = {
        "nested": '{"a":' + "[" * 100_000,
        "infinite": value.sub('"value": 1e999', text),
        "list": '{"config": {"labels": [[]]}}',
    }.get(kind, text)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("configs/semanticgan.json", "configs/manifest.json", "docs/README.md"):
            archive.writestr(name, text)
    content = bytearray(path.read_bytes())
    for begin, local in ((content.find(b"PK\1\2"), False), (0, True)):
        while begin >= 0 and kind in ("encrypted", "method"):
            flags, method = (begin + 6, begin + 8) if local else (begin + 8, begin + 10)
            content[flags if kind == "encrypted" else method] = 1 if kind == "encrypted" else 99
            begin = content.find(b"PK\3\4" if local else b"PK\1\2", begin + 4)
    if kind == "bits":
        for start in (60, 500):
            content[start : start + 60] = os.urandom(60)
    if kind == "short":
        content = content[: len(content) // 2]
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a model"):
        models.readModel(str(path))
    settings = qt.QSettings(str(tmp_path / "settings.ini"), qt.QSettings.IniFormat)
    models.rememberModel(settings, str(path))
    assert models.rememberedModels(settings) == []
    assert isinstance(model_card.readCard(str(path)), str)
    assert run_steps(model_card.checkedFiles(str(path))) != []


def test_a_list_of_nothing_vouches_for_nothing(tmp_path: Path) -> None:
    folder = copy_of_the_bundled_model(tmp_path / "model")
    (folder / "configs" / "manifest.json").write_text('{"files": {}}')
    assert run_steps(model_card.checkedFiles(str(folder))) == [
        "Its list of hashes says nothing of configs/semanticgan.json."
    ]


def test_a_card_loads_no_pictures_and_no_html(tmp_path: Path) -> None:
    folder = copy_of_the_bundled_model(tmp_path / "model")
    (folder / "docs").mkdir(exist_ok=True)
    (folder / "docs" / "README.md").write_text(
        "# Liver\n\n![a](file://evil/share/x.png) ![b][c]\n<img src='file://evil/share/y.png'>\n"
        "<script>x()</script> !![d](z.png) a < b\n\n[c]: file://evil/share/w.png\n"
    )
    asked = []

    class Watched(qt.QTextBrowser):
        def loadResource(self, kind: int, url: Any) -> Any:  # noqa: N802 (Qt's name)
            asked.append(url.toString())
            return None

    browser = Watched()
    browser.setMarkdown(model_card.harmless(model_card.readCard(str(folder))))
    browser.resize(400, 300)
    browser.grab()
    assert asked == []
    shown = browser.toPlainText()
    assert shown.startswith("Liver")
    assert "a < b" in shown
    assert "<script>" in shown
    browser.setMarkdown("![a](file://evil/share/x.png)")
    browser.grab()
    assert asked  # the test would see it


def test_a_card_of_a_book_is_cut(tmp_path: Path) -> None:
    """Its beginning: Qt takes minutes for as much."""
    folder = copy_of_the_bundled_model(tmp_path / "model")
    (folder / "docs").mkdir(exist_ok=True)
    (folder / "docs" / "README.md").write_text("word " * 100_000)
    card = model_card.ModelCardWindow(models.readModel(str(folder)), None)
    assert len(card.card.toPlainText()) < 33_000
    assert card.card.toPlainText().endswith("\n...")
    (folder / "docs" / "README.md").write_text("![x](file://evil/y.png) *liver*")
    card = model_card.ModelCardWindow(models.readModel(str(folder)), None)
    assert card.card.toPlainText() == "x liver"
    assert not card.card.openLinks


def test_the_first_model_of_ct_is_chosen_until_the_user_chooses() -> None:
    """The list is sorted by name; most volumes are CT."""
    known = models.knownModels()
    assert known[0].modality != "ct"
    assert models.firstOf(known).name == "phantom-ct-liver"
    others = [one for one in known if one.modality != "ct"]
    assert models.firstOf(others) is others[0]
