"""What a wheel of the project holds, and that its metadata keeps its word."""

from __future__ import annotations

import configparser
import email
import importlib.metadata
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import sgan_core
from sgan_core.terms import terms_of

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of a copy of the tree, so that nothing is built inside the checkout."""
    pytest.importorskip("setuptools", minversion="77")
    copy = tmp_path_factory.mktemp("wheel")
    for name in ("sgan_core", "datasets", "recipes"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    # A model of a checkout, as models/ holds them whose terms keep them out of the package.
    _write_model(copy / "models" / "ct-liver")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE.txt"):
        shutil.copy(ROOT / name, copy)
    build = "import setuptools.build_meta as backend; backend.build_wheel('dist')"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=copy, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next((copy / "dist").glob("semanticgan-*.whl")))


def _write_model(folder: Path) -> None:
    for path in ("models/student.safetensors", "configs/semanticgan.json", "docs/README.md", "LICENSE"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("made up")


def metadata(wheel: zipfile.ZipFile, name: str) -> str:
    return wheel.read(
        next(entry for entry in wheel.namelist() if entry.endswith(f".dist-info/{name}"))
    ).decode()


def test_wheel_holds_every_module(wheel: zipfile.ZipFile) -> None:
    folders = {"sgan_core": ROOT / "sgan_core", "sgan_datasets": ROOT / "datasets"}
    expected = {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in folders.items()
        for path in folder.rglob("*.py")
    }
    assert expected <= set(wheel.namelist())
    assert not [name for name in wheel.namelist() if name.startswith(("tests/", "datasets/"))]


def test_wheel_holds_the_bundled_models_and_templates(wheel: zipfile.ZipFile) -> None:
    files = [path for path in (ROOT / "sgan_core" / "models").rglob("*") if path.is_file()]
    files += (ROOT / "sgan_core").rglob("*.j2")
    kept = [path for path in files if "__pycache__" not in path.parts]
    assert {path.relative_to(ROOT).as_posix() for path in kept} <= set(wheel.namelist())


def test_wheel_holds_the_recipes(wheel: zipfile.ZipFile) -> None:
    files = {file.name for file in (ROOT / "recipes").iterdir()}
    held = {name for name in wheel.namelist() if name.startswith("sgan_core/recipes/")}
    assert held == {f"sgan_core/recipes/{name}" for name in files}


def test_wheel_holds_no_weights_with_a_restriction(wheel: zipfile.ZipFile) -> None:
    """Neither those beside the package, nor any that were put into it."""
    assert not [name for name in wheel.namelist() if "ct-liver" in name and "phantom-ct-liver" not in name]
    models = {name.rsplit("/", 2)[0] for name in wheel.namelist() if name.endswith(".safetensors")}
    assert "sgan_core/models/phantom-ct-liver" in models
    for model in models:
        terms = terms_of(json.loads(wheel.read(f"{model}/configs/semanticgan.json"))["facts"])
        assert terms.licence in ("Apache-2.0", "MIT", "CC0-1.0"), model  # that may be sold, too
        assert not terms.restriction, model
        assert terms.licence == "Apache-2.0" or terms.sources, f"{model}: learned from images of nobody?"


def test_wheel_is_small_enough_to_ship(wheel: zipfile.ZipFile) -> None:
    assert sum(entry.compress_size for entry in wheel.infolist()) < 20e6


def test_version_is_that_of_the_package(wheel: zipfile.ZipFile) -> None:
    fields = email.message_from_string(metadata(wheel, "METADATA"))
    assert fields["Version"] == sgan_core.__version__
    assert fields["License-Expression"] == "Apache-2.0"
    assert [name for name in wheel.namelist() if name.endswith("LICENSE.txt")]


def test_requirements_have_no_upper_bound(wheel: zipfile.ZipFile) -> None:
    fields = email.message_from_string(metadata(wheel, "METADATA"))
    assert not [need for need in fields.get_all("Requires-Dist") if re.search(r"<|==|~=", need.split(";")[0])]


def test_every_command_leads_to_a_main(wheel: zipfile.ZipFile) -> None:
    scripts = configparser.ConfigParser()
    scripts.read_string(metadata(wheel, "entry_points.txt"))
    commands = dict(scripts["console_scripts"])
    names = ("benchmark", "bundle", "data", "demo", "evaluate", "sample", "segment", "train")
    assert set(commands) >= {f"sgan-{name}" for name in names}
    for target in commands.values():
        module, function = target.split(":")
        assert function == "main"
        assert callable(importlib.import_module(module).main)


def test_installed_package_is_this_tree() -> None:
    for name, folder in {"sgan_core": "sgan_core", "sgan_datasets": "datasets"}.items():
        found = importlib.util.find_spec(name)
        assert found is not None, f"{name} is not installed; run `make test` or `pip install -e .[test]`"
        assert Path(str(found.origin)).resolve() == ROOT / folder / "__init__.py"
    assert importlib.metadata.version("semanticgan") == sgan_core.__version__


def test_the_folder_of_data_sets_shadows_no_package() -> None:
    """``datasets`` is a well-known package: the wheel must not bring one of that name."""
    top = importlib.metadata.distribution("semanticgan").read_text("top_level.txt") or ""
    assert sorted(top.split()) == ["sgan_core", "sgan_datasets"]
