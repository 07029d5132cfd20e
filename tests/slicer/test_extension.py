"""The extension as a package: what CMake builds and installs, and what the Extensions Index asks of it.

CMake runs for real; ``cmake_stub`` stands in for Slicer's own CMake files. Nothing here starts Slicer.
"""

from __future__ import annotations

import ast
import configparser
import email
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

import sgan_core

ROOT = Path(__file__).resolve().parents[2]
STUB = Path(__file__).resolve().parent / "cmake_stub"
MODULE = "SemanticGANSlicer"
SCRIPTED_MODULES = Path("lib/Slicer-5.13/qt-scripted-modules")  # in a build tree and in an install tree
SHIPPED = {".py", ".ui", ".png", ".svg", ".txt", ".json", ".csv", ".md"}

# --- building with CMake ---


@dataclass(frozen=True)
class Extension:
    """A copy of the checkout and the folder where CMake builds it."""

    source: Path
    folder: Path

    def configure(self, *options: str) -> subprocess.CompletedProcess[str]:
        return run("cmake", "-S", self.source, "-B", self.folder, f"-DSlicer_DIR={STUB}", *options)

    def build(self) -> None:
        done = run("cmake", "--build", self.folder)
        assert done.returncode == 0, done.stdout + done.stderr

    def install(self, prefix: Path) -> Path:
        """The folder in which Slicer finds the module."""
        done = run("cmake", "--install", self.folder, "--prefix", prefix)
        assert done.returncode == 0, done.stdout + done.stderr
        return prefix / SCRIPTED_MODULES

    def wheels(self) -> list[Path]:
        return list((self.folder / SCRIPTED_MODULES / f"{MODULE}Lib" / "wheels").iterdir())

    def wheel(self) -> zipfile.ZipFile:
        (path,) = self.wheels()
        return zipfile.ZipFile(path)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    # No package index: a build that needs one fails here.
    environment = os.environ | {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"}
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=300, env=environment
    )


def require_cmake() -> None:
    missing = [name for name in ("cmake", "make", "cc", "c++") if shutil.which(name) is None]
    if missing:
        message = f"{', '.join(missing)} not found (Debian packages cmake, make and g++)"
        if "SGAN_REQUIRE_CMAKE" in os.environ:
            pytest.fail(message)
        pytest.skip(message)


def copy_checkout(target: Path) -> Path:
    """What git would commit of the checkout, so that nothing is built inside it."""
    listed = run("git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    assert listed.returncode == 0, listed.stderr
    for name in listed.stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def fingerprint(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def module_files(source: Path) -> set[str]:
    """What the module consists of, tests inside Slicer apart, by the path that Slicer's Python knows."""
    folder = source / MODULE
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix in SHIPPED
        and path.name != "CMakeLists.txt"
        and not {"Testing", "__pycache__"} & set(path.relative_to(folder).parts)
    }


@pytest.fixture(scope="module")
def extension(tmp_path_factory: pytest.TempPathFactory) -> Extension:
    """The extension configured and built. Tests that change it put it back."""
    require_cmake()
    pytest.importorskip("setuptools", minversion="77")
    top = tmp_path_factory.mktemp("extension")
    extension = Extension(copy_checkout(top / "source"), top / "build")
    done = extension.configure(f"-DPython3_EXECUTABLE={sys.executable}", "-DBUILD_TESTING=ON")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr
    before = fingerprint(extension.source)
    extension.build()
    assert fingerprint(extension.source) == before, "building wrote into the source tree"
    return extension


@pytest.fixture(scope="module")
def installed(extension: Extension, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return extension.install(tmp_path_factory.mktemp("installed"))


@pytest.fixture
def edited(extension: Extension) -> Iterator[Extension]:
    """The extension, for a test that changes its source; afterwards the source is as it was."""
    before = {path: path.read_bytes() for path in extension.source.rglob("*") if path.is_file()}
    yield extension
    for path in extension.source.rglob("*"):
        if path.is_file() and path not in before:
            path.unlink()
    for path, content in before.items():
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)
    extension.build()


def test_every_file_of_the_module_is_where_slicer_looks(extension: Extension, installed: Path) -> None:
    expected = module_files(extension.source)
    assert {f"{MODULE}.py", f"Resources/UI/{MODULE}.ui", f"Resources/Icons/{MODULE}.png"} <= expected
    missing = {name for name in expected if not (installed / name).is_file()}
    assert not missing, f"add to {MODULE}/CMakeLists.txt: {sorted(missing)}"
    for name in expected:
        assert (installed / name).read_bytes() == (extension.source / MODULE / name).read_bytes(), name


def test_a_file_that_the_list_forgets_is_noticed(edited: Extension, tmp_path: Path) -> None:
    planted = {
        f"{MODULE}Lib/forgotten.py",
        f"{MODULE}Lib/deeper/forgotten.py",
        "Resources/UI/Forgotten.ui",
        "Resources/Icons/Forgotten.png",
        "Resources/forgotten.txt",
        "Resources/forgotten.term.json",
    }
    for name in planted:
        path = edited.source / MODULE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    edited.build()
    there = edited.install(tmp_path)
    assert {name for name in module_files(edited.source) if not (there / name).is_file()} == planted


def test_package_holds_the_module_and_one_wheel(extension: Extension, installed: Path) -> None:
    wheel = f"{MODULE}Lib/wheels/{extension.wheels()[0].name}"
    assert set(fingerprint(installed.parents[2])) == {
        (SCRIPTED_MODULES / name).as_posix() for name in module_files(extension.source) | {wheel}
    }


def test_tests_inside_slicer_are_registered(extension: Extension) -> None:
    registered = set((extension.folder / "python_unittests.txt").read_text().split())
    files = (extension.source / MODULE / "Testing" / "Python").glob("*.py")
    with_tests = {path.stem for path in files if re.search(r"^class \w+\(.*TestCase", path.read_text(), re.M)}
    assert registered == {MODULE, f"nomainwindow_qSlicer{MODULE}ModuleGenericTest"} | with_tests


@pytest.mark.parametrize("variable", ["Python3_EXECUTABLE", "PYTHON_EXECUTABLE"])
def test_either_name_of_slicers_python_will_do(extension: Extension, tmp_path: Path, variable: str) -> None:
    done = Extension(extension.source, tmp_path).configure(f"-D{variable}={sys.executable}")
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_python_is_reported_with_what_to_do(extension: Extension, tmp_path: Path) -> None:
    done = Extension(extension.source, tmp_path).configure()
    assert done.returncode != 0
    assert "-DPython3_EXECUTABLE=" in done.stderr


# --- the wheel of sgan_core ---


def test_wheel_is_the_engine_and_nothing_else(extension: Extension) -> None:
    folders = {"sgan_core": "sgan_core", "sgan_datasets": "datasets", "sgan_core/recipes": "recipes"}
    packages = {package: extension.source / folder for package, folder in folders.items()}
    expected = {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in packages.items()
        for path in folder.rglob("*")
        if path.suffix in (".py", ".j2", ".yaml") or (folder / "models" in path.parents and path.is_file())
    }
    assert {"sgan_core/models/phantom-ct-liver/models/generator.safetensors"} <= expected
    held = {name for name in extension.wheel().namelist() if ".dist-info/" not in name}
    assert held == expected


def test_setup_leaves_the_slicer_module_and_the_tests_out() -> None:
    """The wheel is built from a copy of the packages, which could not hold more; ``pip install .`` could."""
    pytest.importorskip("setuptools")
    code = f"import os, runpy, setuptools; os.chdir({str(ROOT)!r}); "
    code += "setuptools.setup = lambda packages, **_: print(*packages); runpy.run_path('setup.py')"
    done = run(sys.executable, "-c", code)
    assert {name.split(".")[0] for name in done.stdout.split()} == {"sgan_core", "sgan_datasets"}, done.stderr


def test_wheel_has_the_version_and_the_commands(extension: Extension) -> None:
    wheel = extension.wheel()
    folder = f"semanticgan-{sgan_core.__version__}.dist-info"
    fields = email.message_from_bytes(wheel.read(f"{folder}/METADATA"))
    assert fields["Version"] == sgan_core.__version__
    scripts = configparser.ConfigParser()
    scripts.read_string(wheel.read(f"{folder}/entry_points.txt").decode())
    assert scripts["console_scripts"]["sgan-segment"] == "sgan_core.cli.segment:main"
    assert f"{folder}/licenses/LICENSE.txt" in wheel.namelist()


def test_installed_wheel_is_the_built_one(extension: Extension, installed: Path) -> None:
    (wheel,) = (installed / f"{MODULE}Lib" / "wheels").iterdir()
    assert wheel.read_bytes() == extension.wheels()[0].read_bytes()


def test_installed_wheel_runs(installed: Path, tmp_path: Path) -> None:
    (wheel,) = (installed / f"{MODULE}Lib" / "wheels").iterdir()
    pip = (sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", tmp_path, wheel)
    done = run(*pip)
    assert done.returncode == 0, done.stderr
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import sgan_core, sgan_datasets; "
    code += "print(sgan_core.__file__, sgan_datasets.__file__, sgan_core.__version__)"
    done = run(sys.executable, "-I", "-c", code)
    folders = f"{tmp_path}/sgan_core/__init__.py {tmp_path}/sgan_datasets/__init__.py"
    assert done.stdout.strip() == f"{folders} {sgan_core.__version__}", done.stderr
    done = run(
        sys.executable, "-I", "-c", f"{code}; from sgan_core.cli.segment import main; main(['--help'])"
    )
    assert "usage: sgan-segment" in done.stdout, done.stderr


def test_wheel_is_not_built_again_without_a_change(extension: Extension) -> None:
    before = extension.wheels()[0].stat().st_mtime_ns
    extension.build()
    assert extension.wheels()[0].stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "name",
    [
        "sgan_core/segment.py",
        "sgan_core/report.html.j2",
        "sgan_core/models/phantom-ct-liver/configs/metadata.json",
        "datasets/__init__.py",
        "recipes/lits-liver.yaml",
    ],
)
def test_changed_source_reaches_the_wheel(edited: Extension, name: str) -> None:
    path = edited.source / name
    path.write_text(path.read_text() + "\n")
    edited.build()
    inside = name.replace("datasets/", "sgan_datasets/").replace("recipes/", "sgan_core/recipes/")
    assert edited.wheel().read(inside) == path.read_bytes()


def test_new_and_deleted_modules_reach_the_wheel(edited: Extension) -> None:
    (edited.source / "sgan_core" / "brand_new.py").write_text("")
    (edited.source / "sgan_core" / "sample.py").unlink()
    edited.build()
    names = set(edited.wheel().namelist())
    assert "sgan_core/brand_new.py" in names
    assert "sgan_core/sample.py" not in names


def test_new_version_replaces_the_wheel(edited: Extension, tmp_path: Path) -> None:
    path = edited.source / "sgan_core" / "__init__.py"
    path.write_text(path.read_text().replace(sgan_core.__version__, "9.8.7"))
    edited.build()
    names = [wheel.name for wheel in edited.wheels()]
    assert names == ["semanticgan-9.8.7-py3-none-any.whl"]
    there = edited.install(tmp_path)
    assert [wheel.name for wheel in (there / f"{MODULE}Lib" / "wheels").iterdir()] == names


# --- the Extensions Index ---

# slicer-extension-catalog-entry-schema-v1.0.2: the type of each key; no others are allowed.
KEYS = {
    "$schema": str,
    "category": str,
    "scm_url": str,
    "scm_revision": str,
    "scm_type": str,
    "build_dependencies": list,
    "dicom_support_rule": str,
    "build_subdirectory": str,
    "enabled": bool,
    "tier": int,
}
REQUIRED_KEYS = {"$schema", "category", "scm_url"}
CATEGORIES = {
    "Active Learning",
    "Analysis",
    "Image Synthesis",
    "Quantification",
    "Segmentation",
}  # those near us


@pytest.fixture(scope="module")
def entry() -> dict[str, object]:
    return json.loads((ROOT / "SemanticGAN.json").read_text(encoding="utf-8"))


def cmake_text() -> str:
    return (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")


def meta(name: str) -> str:
    """A value of EXTENSION_name; the index finds it only in the form ``set(EXTENSION_name "value")``."""
    values = re.findall(rf'^set\(EXTENSION_{name} "([^"]+)"\)', cmake_text(), re.M)
    assert len(values) == 1, name
    return values[0]


def test_catalog_entry_follows_the_schema(entry: dict[str, object]) -> None:
    assert set(entry) >= REQUIRED_KEYS
    assert set(entry) <= set(KEYS)
    for key, value in entry.items():
        assert type(value) is KEYS[key], key
    address = "https://raw.githubusercontent.com/Slicer/Slicer/main/Schemas/"
    assert entry["$schema"] == f"{address}slicer-extension-catalog-entry-schema-v1.0.2.json#"
    assert entry["category"] in CATEGORIES
    assert entry["tier"] in range(1, 6)


def test_catalog_entry_is_a_plain_text_file() -> None:
    content = (ROOT / "SemanticGAN.json").read_bytes()
    assert b"\r" not in content
    assert content.endswith(b"}\n")
    assert content.decode("ascii")


def test_extension_and_repository_have_proper_names(entry: dict[str, object]) -> None:
    (path,) = ROOT.glob("*.json")  # in the index, the name of this file is the name of the extension
    assert not path.stem.lower().startswith("slicer")
    url = urlsplit(str(entry["scm_url"]))
    assert url.scheme == "https"
    assert url.netloc == "github.com"
    assert Path(url.path).stem == f"Slicer{path.stem}"


def test_catalog_entry_agrees_with_cmake(entry: dict[str, object]) -> None:
    assert re.findall(r"project\s*\(\s*([^\s)]+)", cmake_text(), re.I)[0] == "SemanticGAN"
    assert entry["category"] == meta("CATEGORY")
    assert entry["build_dependencies"] == meta("DEPENDS").split() == ["PyTorch"]
    assert entry["scm_url"] == meta("HOMEPAGE")
    assert entry["build_subdirectory"] == "."
    raw = str(entry["scm_url"]).replace("https://github.com", "https://raw.githubusercontent.com")
    for url in (meta("ICONURL"), *meta("SCREENSHOTURLS").split()):
        assert url.startswith(f"{raw}/{entry['scm_revision']}/")


def test_description_is_one_or_two_sentences() -> None:
    assert 1 <= len(re.findall(r"\.(?= |$)", meta("DESCRIPTION"))) <= 2
    assert meta("DESCRIPTION").endswith(".")
    assert meta("CONTRIBUTORS")


def test_cmake_lists_have_what_the_extension_build_needs() -> None:
    lines = cmake_text().splitlines()
    needed = [
        "find_package(Slicer REQUIRED)",
        "include(${Slicer_USE_FILE})",
        f"add_subdirectory({MODULE})",
        "## NEXT_MODULE",  # the Extension Wizard adds modules here
        "include(${Slicer_EXTENSION_GENERATE_CONFIG})",
        "include(${Slicer_EXTENSION_CPACK})",
    ]
    positions = [lines.index(line) for line in needed]
    assert positions == sorted(positions)


@pytest.mark.parametrize("name", ["ICONURL", "SCREENSHOTURLS"])
def test_pictures_behind_the_urls_exist(name: str) -> None:
    for url in meta(name).split():
        path = ROOT / "/".join(urlsplit(url).path.split("/")[4:])  # /owner/repository/revision/path
        assert path.is_file(), f"{path.relative_to(ROOT)} is missing; EXTENSION_{name} names it"
        with Image.open(path) as picture:
            assert picture.format == "PNG"


def test_icons_are_small_pngs() -> None:
    icons = ROOT / MODULE / "Resources" / "Icons"
    for path in (ROOT / "SemanticGAN.png", icons / f"{MODULE}.png"):
        with Image.open(path) as icon:
            assert (icon.format, icon.size, icon.mode) == ("PNG", (128, 128), "RGBA")
    assert all(path.stat().st_size < 60_000 for path in icons.glob("*.png"))


def test_license_is_in_the_root_and_named_on_the_homepage() -> None:
    assert "Apache License" in (ROOT / "LICENSE.txt").read_text(encoding="utf-8")[:500]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "Apache-2.0" in readme
    assert "(LICENSE.txt)" in readme


# --- what importing the module does ---

FREE_TO_IMPORT = {*sys.stdlib_module_names, "vtk", "qt", "ctk", "slicer", "numpy", "SimpleITK"}
OWN = {MODULE, f"{MODULE}Lib"}
NEVER = {"torch", "sgan_core", "sgan_datasets"}  # they belong to the worker process
REACH_OUT = {"subprocess", "socket", "urllib", "http", "ftplib", "ssl", "ensurepip", "pip", "requests"}
REACH_OUT_CALLS = re.compile(
    r"pip_\w+|install\w*|ensure\w*|urlopen|urlretrieve|download\w*|system|popen|spawn\w*|exec\w*|"
    r"start|startDetached|import_module|__import__",
    re.I,
)


def imported(node: ast.AST) -> list[str]:
    """The top-level packages that a statement or a call imports."""
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module.split(".")[0]] if node.module and not node.level else []
    if isinstance(node, ast.Call) and dotted(node.func).split(".")[-1] in ("import_module", "__import__"):
        first = node.args[0] if node.args else None
        return [str(first.value).split(".")[0]] if isinstance(first, ast.Constant) else []
    return []


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    if isinstance(node, ast.Call):
        return dotted(node.func)
    return node.id if isinstance(node, ast.Name) else ""


def run_at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but the bodies of functions; decorators and default values run at import, and so do classes."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.Lambda):
            continue
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for part in (*child.decorator_list, *child.args.defaults, *filter(None, child.args.kw_defaults)):
                yield part
                yield from run_at_import(part)
            continue
        if isinstance(child, ast.If) and dotted(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from run_at_import(child)


def faults(code: str) -> list[str]:
    """What a file of the module does that it must leave to later, or to another process."""
    tree = ast.parse(code)
    found = []
    for node in ast.walk(tree):
        found += [f"imports {name}" for name in imported(node) if name in NEVER]
    for node in run_at_import(tree):
        names = set(imported(node)) - FREE_TO_IMPORT - OWN - NEVER
        found += [f"imports {name} at file scope" for name in sorted(names)]
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            if name.split(".")[0] in REACH_OUT or REACH_OUT_CALLS.fullmatch(name.split(".")[-1]):
                found.append(f"calls {name} at file scope")
    return found


@pytest.mark.parametrize(
    "name", sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / MODULE).rglob("*.py"))
)
def test_importing_the_module_needs_slicer_only(name: str) -> None:
    assert faults((ROOT / name).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("import torch", "imports torch"),
        ("def f():\n    from sgan_core.names import x", "imports sgan_core"),
        ("def f():\n    importlib.import_module('torch.nn')", "imports torch"),
        ("import SampleData", "imports SampleData at file scope"),
        ("try:\n    import nibabel\nexcept ImportError:\n    pass", "imports nibabel at file scope"),
        ("class A:\n    import nibabel", "imports nibabel at file scope"),
        ("from scipy.ndimage import zoom", "imports scipy at file scope"),
        ("slicer.util.pip_install('x')", "calls slicer.util.pip_install at file scope"),
        (
            "class A:\n    x = urllib.request.urlopen('x').read()",
            "calls urllib.request.urlopen at file scope",
        ),
        ("def f(x=subprocess.run('x')):\n    pass", "calls subprocess.run at file scope"),
        ("if True:\n    qt.QProcess().start('x')", "calls qt.QProcess.start at file scope"),
    ],
)
def test_such_imports_and_calls_are_noticed(code: str, fault: str) -> None:
    assert fault in faults(code)


def test_late_imports_and_calls_are_allowed() -> None:
    code = "import slicer\nfrom . import logic\nfrom SemanticGANSlicerLib.install import x\n"
    code += "def f():\n    import SampleData\n    slicer.util.pip_install('x')\n    subprocess.run('x')\n"
    code += "g = lambda: slicer.util.pip_install('x')\n"
    assert faults(code) == []


# --- which Slicer ---

ON_AN_OLD_SLICER = """
import json, sys
sys.path[:0] = sys.argv[1:3]
import slicer, standin
standin.new_scene()
slicer.app.majorVersion, slicer.app.minorVersion = int(sys.argv[4]), int(sys.argv[5])
module, widget, meta = standin.load_module(sys.argv[3])
slicer.app.startup()
result = __import__("unittest").TestResult()
__import__("unittest").defaultTestLoader.loadTestsFromModule(module).run(result)
slicer.modules.SemanticGANSlicerInstance.runTest()
print(json.dumps({
    "label": widget.label.text,
    "help": meta.helpText,
    "samples": len(getattr(slicer.modules, "sampleDataSources", {})),
    "messages": [message.text for message in slicer.app.messages],
    "uncaught": [str(error) for error in slicer.app.uncaught],
    "skipped": [reason for _, reason in result.skipped],
    "bad": len(result.errors + result.failures),
    "loaded": [m.__file__ for n, m in sys.modules.items() if n.startswith("SemanticGANSlicer")],
}))
standin.unload(widget)
"""


@pytest.fixture(scope="module")
def on_slicer() -> Callable[[int, int], dict[str, Any]]:
    """What happens to the module in a Slicer of another version, in a process of its own."""

    def start(major: int, minor: int) -> dict[str, Any]:
        folders = (str(ROOT / "tests" / "slicer"), str(ROOT / MODULE), str(ROOT / MODULE / f"{MODULE}.py"))
        done = run(sys.executable, "-c", ON_AN_OLD_SLICER, *folders, str(major), str(minor))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return start


@pytest.mark.parametrize("version", [(5, 8), (5, 10)])
def test_older_slicer_gets_one_sentence(
    version: tuple[int, int], on_slicer: Callable[[int, int], dict[str, Any]]
) -> None:
    found = on_slicer(*version)
    sentence = (
        "Segment with SemanticGAN needs Slicer 5.12 or newer, this is {}.{}. Please install a newer Slicer."
    )
    sentence = sentence.format(*version)
    assert found["label"] == sentence
    assert found["skipped"] == [sentence]  # by the test driver
    assert found["messages"] == [f"Skipped: {sentence}"]  # by "Reload and Test"
    assert (found["uncaught"], found["bad"], found["samples"]) == ([], 0, 0)
    paths = [Path(path) for path in found["loaded"]]
    assert {path.name for path in paths} == {f"{MODULE}.py", "__init__.py", "version.py"}
    for path in paths:  # 5.8 has Python 3.9
        assert too_new_for_python_3_9(path.read_text(encoding="utf-8")) == []


def too_new_for_python_3_9(code: str) -> list[str]:
    """What Python 3.9 cannot read, or fails at when it imports or runs it."""
    try:
        tree = ast.parse(code, feature_version=(3, 9))
    except SyntaxError as error:
        return [str(error)]
    found = []
    for node in ast.walk(tree):
        annotations = [getattr(node, name, None) for name in ("annotation", "returns")]
        for part in (one for annotation in annotations if annotation for one in ast.walk(annotation)):
            if isinstance(part, ast.BinOp) and isinstance(part.op, ast.BitOr):
                found.append(f"line {part.lineno}: A | B as a type")
        if isinstance(node, ast.Match):
            found.append("match")
        if isinstance(node, ast.Call):
            keywords = {keyword.arg for keyword in node.keywords}
            if dotted(node.func).split(".")[-1] == "dataclass" and keywords & {"slots", "kw_only"}:
                found.append("dataclass of Python 3.10")
            if dotted(node.func) == "zip" and "strict" in keywords:
                found.append("zip of Python 3.10")
    return found


@pytest.mark.parametrize(
    "code",
    [
        "class A:\n    x: int | None = None",
        "def f(x: tuple | None):\n    pass",
        "match x:\n    case 1:\n        pass",
        "@dataclass(slots=True)\nclass A:\n    pass",
        "zip(a, b, strict=True)",
    ],
)
def test_what_python_3_9_cannot_run_is_noticed(code: str) -> None:
    assert too_new_for_python_3_9(code)


def test_the_version_is_named_wherever_one_reads_what_is_needed() -> None:
    for name in ("README.md", "docs/slicer.md", f"{MODULE}/{MODULE}.py"):
        assert "Slicer 5.12 or newer" in " ".join((ROOT / name).read_text(encoding="utf-8").split()), name


def test_needed_modules_are_dependencies() -> None:
    """Slicer loads them before ours, and does not load ours without them."""
    tree = ast.parse((ROOT / MODULE / f"{MODULE}.py").read_text(encoding="utf-8"))
    (names,) = (
        ast.literal_eval(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and dotted(node.targets[0]) == "self.parent.dependencies"
    )
    used = {"Segmentations", "Volumes", "Terminologies", "SubjectHierarchy", "Sequences", "SegmentEditor"}
    assert set(names) == used | {"SampleData"}


def test_samples_need_no_titles_of_categories(monkeypatch: pytest.MonkeyPatch) -> None:
    import slicer

    import standin
    from SemanticGANSlicerLib import sample_data

    standin.reset()
    monkeypatch.delattr(standin.sample_data.SampleDataLogic, "registerCustomSampleDataCategory")
    sample_data.registerSampleData("icons")
    assert [one.sampleName for one in slicer.modules.sampleDataSources[sample_data.CATEGORY]] == [
        "SemanticGANPhantomCT",
        "SemanticGANPhantomMR",
    ]
    standin.reset()


def test_self_tests_skip_where_the_engine_is_not_installed(
    panel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Slicer's factory, which builds and tests extensions without their Python packages."""
    import unittest

    import slicer

    import SemanticGANSlicer
    from SemanticGANSlicerLib import install

    reason = "The engine is not installed; missing: monai>=1.4, PyTorch"
    plan = install.Plan(("monai>=1.4",), "", torch=True)
    monkeypatch.setattr(install, "makePlan", lambda: plan)
    spec = importlib.util.spec_from_file_location(
        "self_test", ROOT / MODULE / "Testing" / "Python" / f"{MODULE}SelfTest.py"
    )
    assert spec is not None
    assert spec.loader is not None
    inside = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(inside)
    for module in (SemanticGANSlicer, inside):
        result = unittest.TestResult()
        unittest.defaultTestLoader.loadTestsFromModule(module).run(result)
        assert result.wasSuccessful(), result.errors + result.failures
        assert [why for _test, why in result.skipped] == [reason]
    SemanticGANSlicer.SemanticGANSlicerTest().runTest()
    assert slicer.app.messages[-1].text == f"Skipped: {reason}"


RELOAD = """
import sys
sys.path[:0] = sys.argv[1:2]
from pathlib import Path
import slicer, standin
standin.new_scene()
module, panel, meta = standin.load_module(sys.argv[2])
file = Path(sys.argv[2]).parent / "SemanticGANSlicerLib" / "models.py"
text = file.read_text()
assert "Trained on: {what}" in text and panel.ui.modelDetailsLabel.text.startswith("Trained on: CT")
file.write_text(text.replace("Trained on: {what}", "It has seen this: {what}"))
panel.onReload()
assert meta.widget is not panel and slicer.modules.SemanticGANSlicerWidget is meta.widget
assert panel._parameterNode is None, "the former panel is cleaned up"
assert meta.widget.ui.modelDetailsLabel.text.startswith("It has seen this: CT"), meta.widget.ui.modelDetailsLabel.text
standin.unload(meta.widget)
assert not slicer.app.uncaught
"""


def test_reload_reads_the_library_too(tmp_path: Path) -> None:
    """In a process of its own, on a copy: the file of the library is changed between."""
    shutil.copytree(ROOT / MODULE, tmp_path / MODULE, ignore=shutil.ignore_patterns("__pycache__"))
    module = tmp_path / MODULE / f"{MODULE}.py"
    done = run(sys.executable, "-c", RELOAD, str(ROOT / "tests" / "slicer"), str(module))
    assert done.returncode == 0, done.stderr
