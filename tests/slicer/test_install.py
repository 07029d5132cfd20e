"""The installation into Slicer's Python: what is missing, what pip may touch, what is said when it fails.

pip runs for real, into an environment made for the test, with wheels made here; no index is asked.
"""

from __future__ import annotations

import base64
import gc
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import types
import venv
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import qt
import slicer
from helpers import ROOT, is_alive, run_steps

import standin
from SemanticGANSlicerLib import dialogs, install, installed, process

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")


# name -> version of the packages in Slicer's own Python, with the commit of Slicer they were read from.
PINS = json.loads((Path(__file__).parent / "slicer_pins.json").read_text(encoding="utf-8"))["slicer"]


def make_wheel(folder: Path, name: str, version: str, requires: tuple[str, ...] = ()) -> Path:
    """A wheel with one module, as PEP 427 asks for it."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
    metadata += [f"Requires-Dist: {requirement}" for requirement in requires]
    files = {
        f"{name}.py": f"version = {version!r}\n",
        f"{info}/METADATA": "\n".join(metadata) + "\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, content in files.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=").decode()
            record += f"{file},sha256={digest},{len(content.encode())}\n"
            wheel.writestr(file, content)
        wheel.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")
    return path


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a new environment that stands for Slicer's: it has pip and a "slicerown" 1.0."""
    folder = (
        tmp_path_factory.mktemp("Slicer Größe") / "python"
    )  # spaces and other letters, as in real folders
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    wheel = make_wheel(folder / "wheels", "slicerown", "1.0")
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-index", str(wheel)], check=True)
    return python


def versions_in(python: Path) -> dict[str, str]:
    run = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    )
    return dict(line.split("==") for line in run.stdout.split())


def site_of(python: Path) -> Path:
    (site,) = python.parent.parent.rglob("site-packages")
    return site


@pytest.fixture(autouse=True)
def no_record_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes a record beside the packages that it runs on."""
    monkeypatch.setattr(installed, "folder", lambda: str(tmp_path))


@pytest.fixture
def installer(environment: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[install.Plan, Path], Any]:
    """Install a plan from a folder into the environment; returns the error or None."""
    monkeypatch.setattr(
        install, "constraintLines", lambda: [f"{k}=={v}" for k, v in versions_in(environment).items()]
    )
    site = site_of(environment)
    monkeypatch.setattr(
        installed, "distributions", lambda: importlib.metadata.distributions(path=[str(site)])
    )
    monkeypatch.setattr(installed, "folder", lambda: str(site))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)

    def run(plan: install.Plan, folder: Path) -> Any:
        ends: list[Any] = []
        one = install.Installer(str(environment), lambda line: None, ends.append)
        one.installFromFolder(plan, str(folder))
        standin.pump(lambda: ends, 60)
        assert len(ends) == 1
        return ends[0]

    return run


# --- what is missing -------------------------------------------------------------------------------


def test_requirements_are_those_of_the_engine() -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    torch = [name + version for name, version in install.TORCH.items()]
    assert sorted([*install._requirementLines(), *torch]) == sorted(dependencies)
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"] == install.ENGINE


@pytest.mark.parametrize("slicer_of", PINS, ids=lambda one: one["version"])
def test_requirements_admit_what_slicer_brings_along(slicer_of: dict[str, Any]) -> None:
    """These packages are never replaced, so what Slicer pins must do."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pins = slicer_of["packages"]
    assert pins.keys() >= {"highdicom", "numpy", "pillow", "pydicom", "scipy", "simpleitk"}
    for line in install._requirementLines():
        wanted = Requirement(line)
        pin = pins.get(canonicalize_name(wanted.name))
        assert pin is None or wanted.specifier.contains(pin), f"{line}, Slicer brings {pin}"


def test_pins_are_of_the_oldest_slicer_and_of_a_newer_one() -> None:
    from SemanticGANSlicerLib import version

    versions = {tuple(map(int, one["version"].split(".")[:2])) for one in PINS}
    assert min(versions) == version.OLDEST
    assert (5, 13) in versions
    assert all(re.fullmatch("[0-9a-f]{40}", one["commit"]) for one in PINS)


def test_nothing_is_missing_here() -> None:
    assert install.makePlan().isEmpty


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Versions to pretend, by name; others are as they are."""
    pretended: dict[str, str | None] = {}
    real = install._version
    monkeypatch.setattr(install, "_version", lambda name: pretended.get(name, real(name)))
    return pretended


def test_plan_names_what_is_missing(
    versions: dict[str, str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(tmp_path, "semanticgan", "0.2.0")
    monkeypatch.setattr(install, "WHEELS", str(tmp_path))
    versions.update(
        {"semanticgan": None, "torch": None, "torchvision": None, "monai": None, "highdicom": "0.1"}
    )
    plan = install.makePlan()
    assert plan.requirements == ("monai>=1.4", "highdicom>=0.27")
    assert plan.torch
    assert os.path.basename(plan.wheel) == "semanticgan-0.2.0-py3-none-any.whl"
    text = install.description(plan)
    for words in ("PyTorch", "monai, highdicom", "semanticgan-0.2.0", "GB free", "keep their versions"):
        assert words in text


def test_engine_of_another_version_is_updated(
    versions: dict[str, str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(tmp_path, "semanticgan", "9.9")
    monkeypatch.setattr(install, "WHEELS", str(tmp_path))
    assert install.makePlan().wheel.endswith("semanticgan-9.9-py3-none-any.whl")
    versions["semanticgan"] = "9.9"
    assert install.makePlan().isEmpty


def test_engine_that_is_nowhere_is_explained(
    versions: dict[str, str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "WHEELS", str(tmp_path / "none"))
    versions["semanticgan"] = None
    with pytest.raises(install.InstallError, match="Install the extension again"):
        install.makePlan()


def test_old_pytorch_is_explained(versions: dict[str, str | None]) -> None:
    versions["torch"] = "2.1.0+cu118"
    with pytest.raises(
        install.InstallError, match=r"2\.1\.0\+cu118 is installed, >=2\.6 is needed.*PyTorch Utils"
    ):
        install.makePlan()


@pytest.mark.parametrize(
    ("torchvision", "words"),
    [
        (
            None,
            "PyTorch 2.8.0 is installed without torchvision, of which >=0.21 is needed. Uninstall PyTorch",
        ),
        ("0.15.2", "PyTorch 2.8.0 is installed with torchvision 0.15.2, of which >=0.21 is needed."),
    ],
)
def test_the_culprit_is_named_when_torchvision_is_at_fault(
    torchvision: str | None, words: str, versions: dict[str, str | None]
) -> None:
    versions.update(torch="2.8.0", torchvision=torchvision)
    with pytest.raises(install.InstallError) as caught:
        install.makePlan()
    assert words in str(caught.value)
    assert "PyTorch 2.8.0 is installed, " not in str(caught.value)


def test_dialog_says_what_may_change(versions: dict[str, str | None]) -> None:
    """light-the-torch 0.8.1, by which the extension PyTorch installs, asks for pip<26.1; Slicer 5.12 brings 26.1.1."""
    for torch in (True, False):
        text = install.description(install.Plan(("needed",), "", torch))
        assert "keep their versions; pip may add packages" in text
        assert ("may replace pip itself" in text) is torch
        assert ("cannot be stopped" in text) is torch


# --- pip -------------------------------------------------------------------------------------------


def test_every_installed_package_is_pinned() -> None:
    lines = install.constraintLines()
    names = [re.split("==", line)[0].lower() for line in lines]
    assert len(names) == len(set(names))
    assert {"numpy", "simpleitk", "pydicom", "torch", "scipy"} <= set(names)
    assert "semanticgan" not in names
    import numpy

    assert f"numpy=={numpy.__version__}" in lines


def test_offline_folder_installs_with_dependencies(
    installer: Callable[..., Any], environment: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "Wheels für Slicer"
    make_wheel(folder, "needed", "3.0", ("deeper>=1", "slicerown>=0.5"))
    make_wheel(folder, "deeper", "1.5")
    make_wheel(folder, "slicerown", "2.0")  # newer than Slicer's own: must stay away
    wheel = make_wheel(tmp_path / "extension", "semanticgan_test", "0.1")
    assert installer(install.Plan(("needed>=2",), str(wheel), torch=False), folder) is None
    now = versions_in(environment)
    assert (now["needed"], now["deeper"], now["semanticgan_test"]) == ("3.0", "1.5", "0.1")
    assert now["slicerown"] == "1.0"


def test_slicers_own_packages_are_never_replaced(
    installer: Callable[..., Any], environment: Path, tmp_path: Path
) -> None:
    make_wheel(tmp_path, "greedy", "1.0", ("slicerown>=2",))
    make_wheel(tmp_path, "slicerown", "2.0")
    before = versions_in(environment)
    error = installer(install.Plan(("greedy",), "", torch=False), tmp_path)
    assert versions_in(environment) == before
    assert "stands in the way" in str(error)
    assert "slicerown" in error.details


def test_missing_wheel_is_named(installer: Callable[..., Any], environment: Path, tmp_path: Path) -> None:
    before = versions_in(environment)
    error = installer(install.Plan(("absent>=1",), "", torch=True), tmp_path)
    assert versions_in(environment) == before
    assert re.search("absent|torch", str(error))  # PyTorch comes from the folder, too
    assert "wheels for this system" in str(error)


def test_installation_can_be_retried(
    installer: Callable[..., Any], environment: Path, tmp_path: Path
) -> None:
    plan = install.Plan(("second",), "", torch=False)
    assert installer(plan, tmp_path) is not None
    make_wheel(tmp_path, "second", "1.0")
    assert installer(plan, tmp_path) is None
    assert versions_in(environment)["second"] == "1.0"


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            "disk is full",
        ),
        (
            "ERROR: Could not install packages due to an OSError: [WinError 5] Access is denied: 'C:\\x'",
            "administrator",
        ),
        (
            "WARNING: Retrying after 'NewConnectionError(...)'\nERROR: No matching distribution found",
            "HTTPS_PROXY",
        ),
        ("ERROR: ResolutionImpossible: for help visit", "stands in the way"),
        ("something nobody foresaw", "details"),
    ],
)
def test_causes_come_with_advice(output: str, words: str) -> None:
    assert words in install.explain(output)


@pytest.fixture
def silent_index() -> Iterator[str]:
    """The address of a package index that takes connections and never answers: pip waits for it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/simple"


def family(pid: int) -> list[int]:
    """A process and all below it that run."""
    return [one for one in process._withDescendants(pid) if is_alive(one)]


def wait_for_pip(pid: int) -> list[int]:
    """The worker, the watcher and pip below it, as soon as pip is there."""

    def runs_pip() -> bool:
        return any(
            "pip" in Path(f"/proc/{one}/cmdline").read_text().split("\0")[1:4]
            for one in family(pid)
            if one != pid
        )

    standin.pump(runs_pip, 30)
    return family(pid)


@pytest.mark.parametrize("kept", [True, False], ids=["dialog open", "dialog gone"])
def test_cancelled_installation_ends_at_once(
    environment: Path, silent_index: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[Any] = []
    one: Any = install.Installer(str(environment), lambda line: None, ends.append)
    monkeypatch.setattr(install, "constraintLines", list)
    one._pip(["--index-url", silent_index, "absent"])
    pids = wait_for_pip(one._worker.pid())
    assert len(pids) >= 2
    one.cancel()
    if not kept:
        del one
        gc.collect()
    standin.pump(lambda: ends and not any(map(is_alive, pids)), 5)
    assert isinstance(ends[0], install.Cancelled)
    assert not install._running


SLICER_THAT_DIES = """
import sys, time
sys.path[:0] = sys.argv[1:3]
import standin, slicer
from SemanticGANSlicerLib import install, sample_data
install.constraintLines = list
if sys.argv[3] == "pip":
    one = install.Installer(sys.argv[4], print, print)
    one._pip(["--index-url", sys.argv[5], "absent"])
else:
    one = sample_data.SampleMaker(print)
    one.start("ct")
print(one._worker.pid(), flush=True)
while True:
    slicer.app.processEvents()
    time.sleep(0.01)
"""


@pytest.mark.parametrize("what", ["pip", "phantom"])
def test_nothing_outlives_slicer(environment: Path, silent_index: str, what: str) -> None:
    folders = [str(Path(__file__).parent), str(ROOT / "SemanticGANSlicer")]
    command = [sys.executable, "-c", SLICER_THAT_DIES, *folders, what, str(environment), silent_index]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as slicer_process:
        assert slicer_process.stdout is not None
        worker = int(slicer_process.stdout.readline())
        standin.pump(lambda: len(family(worker)) >= 2, 20)
        pids = family(worker)
        slicer_process.kill()
        standin.pump(lambda: not any(map(is_alive, pids)), 3)


# --- PyTorch ---------------------------------------------------------------------------------------


def fake_pytorch_extension(monkeypatch: pytest.MonkeyPatch, install_torch: Callable[..., Any]) -> None:
    module = types.ModuleType("PyTorchUtils")
    module.PyTorchUtilsLogic = lambda: types.SimpleNamespace(installTorch=install_torch)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "PyTorchUtils", module)


def test_pytorch_is_left_to_its_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    fake_pytorch_extension(monkeypatch, lambda **options: asked.append(options) or object())
    install.installTorch()
    assert asked == [
        {
            "askConfirmation": False,
            "torchVersionRequirement": ">=2.6",
            "torchvisionVersionRequirement": ">=0.21",
        }
    ]


def test_missing_pytorch_extension_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PyTorchUtils", None)
    ends: list[Any] = []
    install.Installer(sys.executable, lambda line: None, ends.append).installOnline(
        install.Plan((), "", torch=True)
    )
    assert "Extensions Manager" in str(ends[0])


def test_failure_of_the_pytorch_extension_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: Any) -> None:
        raise RuntimeError("no GPU driver")

    fake_pytorch_extension(monkeypatch, fail)
    with pytest.raises(install.InstallError, match="no GPU driver"):
        install.installTorch()
    fake_pytorch_extension(monkeypatch, lambda **options: None)
    with pytest.raises(install.InstallError, match="was not installed"):
        install.installTorch()


# --- the dialog ------------------------------------------------------------------------------------


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[install.Plan]:
    """What ``makePlan`` finds, one after the other; the last one stays."""
    found: list[install.Plan] = []
    monkeypatch.setattr(install, "makePlan", lambda: found.pop(0) if len(found) > 1 else found[0])
    return found


def test_dialog_describes_before_it_does_anything(environment: Path, plans: list[install.Plan]) -> None:
    plan = install.Plan(("needed>=2",), "", torch=False)
    dialog = dialogs.InstallDialog(plan, lambda: pytest.fail("nothing was asked for yet"))
    assert "needed" in dialog.text.text
    assert not dialog.installed
    dialog.close()


def test_dialog_shows_the_cause_and_can_try_again(
    environment: Path, tmp_path: Path, plans: list[install.Plan], installer: Callable[..., Any]
) -> None:
    plan = install.Plan(("third",), "", torch=False)
    plans[:] = [install.Plan((), "", torch=False)]  # after success nothing is missing
    dialog = dialogs.InstallDialog(plan, lambda: str(environment))
    dialog.installFromFolder(str(tmp_path))
    assert not dialog.onlineButton.enabled
    standin.pump(lambda: dialog.onlineButton.enabled, 60)
    assert "failed" in dialog.text.text
    assert "third" in dialog.log.toPlainText()
    assert not dialog.installed
    make_wheel(tmp_path, "third", "1.0")
    dialog.installFromFolder(str(tmp_path))
    standin.pump(lambda: dialog.installed, 60)


def test_closing_the_dialog_stops_pip(
    environment: Path, plans: list[install.Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = install.Plan(("never",), "", torch=False)
    plans[:] = [plan]
    dialog = dialogs.InstallDialog(plan, lambda: str(environment))
    monkeypatch.setattr(install, "constraintLines", list)
    dialog.installFromFolder(str(environment.parent))
    worker = dialog._installer._worker
    dialog.window.show()
    dialog.close()
    standin.pump(lambda: not worker.isRunning())


@pytest.mark.parametrize("by", ["Cancel", "window"])
@pytest.mark.parametrize("fails", [False, True])
def test_cancel_while_pytorch_installs_stops_what_comes_after(
    by: str, fails: bool, plans: list[install.Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in Slicer: the extension's installer works in the GUI process and lets events go on between its lines."""
    plans[:] = [install.Plan(("needed",), "", torch=True)]
    dialog = dialogs.InstallDialog(plans[0], lambda: sys.executable)
    pip: list[Any] = []
    monkeypatch.setattr(install.Installer, "_pip", lambda self, arguments: pip.append(arguments))
    seen: list[tuple[bool, str, bool]] = []

    def torch_installs(**options: Any) -> object:
        if by == "Cancel":
            dialog.closeButton.click()
        else:
            dialog.window.reject()
        slicer.app.processEvents()
        seen.append((dialog.window.visible, dialog.text.text, dialog.closeButton.enabled))
        if fails:
            raise RuntimeError("no GPU driver")
        return object()

    fake_pytorch_extension(monkeypatch, torch_installs)
    qt.QTimer.singleShot(0, dialog.installOnline)
    assert dialog.run() is False
    assert (pip, dialog._installer) == ([], None)
    assert not dialog.window.visible
    ((visible, text, enabled),) = seen
    if by == "Cancel":
        assert visible
        assert "PyTorch itself cannot be stopped" in text
        assert not enabled
    assert not slicer.app.messages


def test_without_cancel_pip_follows_pytorch(
    plans: list[install.Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    pip: list[Any] = []
    monkeypatch.setattr(install.Installer, "_pip", lambda self, arguments: pip.append(arguments))
    fake_pytorch_extension(monkeypatch, lambda **options: object())
    one = install.Installer(sys.executable, lambda line: None, lambda error: pytest.fail(str(error)))
    one.installOnline(install.Plan(("needed",), "", torch=True))
    assert pip == [["needed"]]
    assert not one.isAtTorch


def test_apply_asks_once_when_the_engine_is_missing(
    panel: Any, ct: Any, plans: list[install.Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    from SemanticGANSlicerLib import widget

    plans[:] = [install.Plan(("needed",), "", torch=False)]
    shown: list[install.Plan] = []

    class Dialog:
        def __init__(self, plan: install.Plan, python: Any) -> None:
            shown.append(plan)

        def run(self) -> bool:
            return False  # the person says no

    monkeypatch.setattr(widget, "makePlan", install.makePlan)
    monkeypatch.setattr(widget, "InstallDialog", Dialog)
    panel.ui.applyButton.click()
    assert shown == plans
    assert not panel.logic.isRunning()
    assert panel.ui.installLabel.text.startswith("The engine is not installed yet")
    assert not slicer.app.messages


def test_engine_that_cannot_be_installed_is_told_in_the_banner(
    panel: Any, ct: Any, versions: dict[str, str | None]
) -> None:
    versions["torch"] = "1.13"
    panel.ui.applyButton.click()
    assert "PyTorch 1.13 is installed" in panel.ui.installLabel.text
    assert slicer.app.messages[-1].kind == "error"
    assert not panel.logic.isRunning()


def test_probe_tells_the_device_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    from SemanticGANSlicerLib.probe import DeviceProbe

    texts: list[str] = []
    probe = DeviceProbe(process.pythonProgram, texts.append)
    standin.pump(lambda: texts, 60)
    assert re.match(r"auto: (CPU, \d+ threads?|CUDA GPU .+|Apple GPU .+)$", texts[0])
    del probe


def test_probe_of_a_broken_engine_says_so() -> None:
    from SemanticGANSlicerLib.probe import DeviceProbe

    texts: list[str] = []
    probe = DeviceProbe(lambda: "/no/such/python", texts.append)
    standin.pump(lambda: texts)
    assert "did not answer" in texts[0]
    del probe


# --- what was added, and can go again --------------------------------------------------------------


@pytest.fixture
def own_environment(environment: Path, tmp_path: Path) -> Path:
    """A copy of the environment for a test that removes packages."""
    folder = tmp_path / "Slicer" / "python"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    shutil.copytree(site_of(environment), site_of(python), dirs_exist_ok=True, symlinks=True)
    (site_of(python) / "semanticgan-added.json").unlink(missing_ok=True)
    return python


@pytest.fixture
def in_own(own_environment: Path, installer: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Let an Installer do something in the own environment; returns the error or None."""
    site = site_of(own_environment)
    monkeypatch.setattr(
        installed, "distributions", lambda: importlib.metadata.distributions(path=[str(site)])
    )
    monkeypatch.setattr(installed, "folder", lambda: str(site))
    monkeypatch.setattr(
        install, "constraintLines", lambda: [f"{k}=={v}" for k, v in versions_in(own_environment).items()]
    )

    def run(what: Callable[[install.Installer], None]) -> Any:
        ends: list[Any] = []
        one = install.Installer(str(own_environment), lambda line: None, ends.append)
        what(one)
        standin.pump(lambda: ends, 60)
        return ends[0]

    return run


def install_needed(in_own: Callable[..., Any], wheels: Path) -> None:
    make_wheel(wheels, "asked", "3.0", ("beneath>=1", "slicerown>=0.5"))
    make_wheel(wheels, "beneath", "1.5")
    plan = install.Plan(("asked>=2",), "", torch=False)
    assert in_own(lambda one: one.installFromFolder(plan, str(wheels))) is None


def test_only_what_was_added_is_removed(
    in_own: Callable[..., Any], own_environment: Path, tmp_path: Path
) -> None:
    before = versions_in(own_environment)
    install_needed(in_own, tmp_path / "wheels")
    assert installed.record() == {"asked": "3.0", "beneath": "1.5"} == installed.removable()
    assert run_steps(installed.sizes(["asked", "beneath"])) > 0
    assert in_own(lambda one: one.uninstall(list(installed.removable()))) is None
    assert versions_in(own_environment) == before
    assert "slicerown" in before
    assert installed.record() == {}
    assert not list(site_of(own_environment).glob("semanticgan-added*"))


def test_what_others_need_or_changed_stays(
    in_own: Callable[..., Any], own_environment: Path, tmp_path: Path
) -> None:
    """Another extension comes later: it needs a package that we added, and changes the version of another."""
    wheels = tmp_path / "wheels"
    make_wheel(wheels, "lonely", "1.0")
    make_wheel(wheels, "changed", "1.0")
    install_needed(in_own, wheels)
    plan = install.Plan(("lonely", "changed"), "", torch=False)
    assert in_own(lambda one: one.installFromFolder(plan, str(wheels))) is None
    assert set(installed.removable()) == {"asked", "beneath", "lonely", "changed"}
    other = tmp_path / "other"
    make_wheel(other, "extension", "1.0", ("Asked>=1", 'lonely; extra == "more"'))
    make_wheel(other, "changed", "2.0")
    names = ["extension", "changed==2.0"]
    pip = [own_environment, "-m", "pip", "install", "-q", "--no-index", "--find-links", other]
    subprocess.run([*pip, "--find-links", wheels, *names], check=True)
    assert installed.removable() == {"lonely": "1.0"}  # beneath is needed by asked, which stays


def test_a_failed_installation_is_recorded_as_far_as_it_came(
    in_own: Callable[..., Any], own_environment: Path, tmp_path: Path
) -> None:
    wheel = make_wheel(tmp_path, "half", "1.0")
    code = "import subprocess, sys; pip = [sys.executable, '-m', 'pip', 'install', '--no-index']; "
    code += f"subprocess.run([*pip, {str(wheel)!r}], check=True); sys.exit(1)"
    assert in_own(lambda one: one._run(["-c", code])) is not None
    assert versions_in(own_environment)["half"] == "1.0"
    assert installed.record() == {"half": "1.0"}


def test_what_another_extension_installs_meanwhile_is_its_own(
    in_own: Callable[..., Any], own_environment: Path, tmp_path: Path
) -> None:
    wheels, site = (
        [make_wheel(tmp_path, name, "1.0") for name in ("mine", "theirs")],
        site_of(own_environment),
    )
    code = "import subprocess, sys, zipfile; pip = [sys.executable, '-m', 'pip', 'install', '--no-index']; "
    code += f"zipfile.ZipFile({str(wheels[1])!r}).extractall({str(site)!r}); "
    code += f"sys.exit(subprocess.run([*pip, {str(wheels[0])!r}]).returncode)"
    assert in_own(lambda one: one._run(["-c", code])) is None
    assert {"mine", "theirs"} <= versions_in(own_environment).keys()
    assert installed.record() == {"mine": "1.0"}


def test_a_record_that_was_tampered_with_gives_pip_no_options(
    in_own: Callable[..., Any], own_environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_needed(in_own, tmp_path / "wheels")
    file = site_of(own_environment) / "semanticgan-added.json"
    hostile = {
        "--index-url": "http://evil",
        "-r/tmp/x": "",
        "evil": "1.0",
        "beneath; touch x": "1.5",
        "slicerown": "9",
    }
    file.write_text(json.dumps({"packages": {"asked": "3.0", "beneath": 1.5, **hostile}}))
    ran: list[list[str]] = []
    monkeypatch.setattr(install.Installer, "_run", lambda self, arguments: ran.append(arguments))
    install.Installer("", print, print).installAgain()
    (arguments,) = ran
    assert arguments[arguments.index("--no-deps") + 1 :] == [
        "asked==3.0",
        *filter(None, [install.bundledWheel()]),
    ]
    assert installed.removable() == {"asked": "3.0"}


def test_damaged_packages_are_installed_again(
    in_own: Callable[..., Any], own_environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = tmp_path / "wheels"
    install_needed(in_own, wheels)
    site = site_of(own_environment)
    (site / "asked.py").write_text("damaged")
    (site / "slicerown.py").write_text("changed by its owner")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels).replace(" ", "%20"))
    make_wheel(wheels, "slicerown", "2.0")
    assert in_own(lambda one: one.installAgain()) is None
    assert (site / "asked.py").read_text() == "version = '3.0'\n"
    assert (site / "slicerown.py").read_text() == "changed by its owner"
    assert versions_in(own_environment)["slicerown"] == "1.0"
    assert installed.record() == {"asked": "3.0", "beneath": "1.5"}


def test_pytorch_is_never_put_back_by_us() -> None:
    names = ["torch", "torchvision", "triton", "nvidia-cublas-cu12", "semanticgan", "monai", "nibabel"]
    assert [name for name in names if install._isOurs(name)] == ["monai", "nibabel"]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"packages": 3}', '{"packages": ["a"]}', "\x00", "[" * 100_000]
)
def test_damaged_record_removes_nothing(text: str) -> None:
    (Path(installed.folder()) / "semanticgan-added.json").write_text(text)
    assert installed.record() == {} == installed.removable()


def test_record_that_cannot_be_written_is_no_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(installed, "folder", lambda: str(tmp_path / "absent"))
    installed.remember({}, {"numpy"})
    assert installed.record() == {}


@pytest.mark.parametrize("kind", ["install", "installation"])
def test_a_slicer_without_its_python_is_told_in_the_dialog(kind: str) -> None:
    def missing() -> str:
        raise RuntimeError("PythonSlicer was not found beside Slicer.")

    if kind == "install":
        dialog: Any = dialogs.InstallDialog(install.Plan(("numpy>=1",), "", False), missing)
        dialog.installOnline()
        buttons = (dialog.onlineButton, dialog.folderButton)
    else:
        dialog = dialogs.InstallationDialog(missing)
        dialog._start(lambda installer: pytest.fail("there is nothing to start it with"))
        buttons = (dialog.closeButton,)
    assert "PythonSlicer was not found" in dialog.log.plainText
    assert dialog.bar.isHidden()
    assert all(button.enabled for button in buttons)


def test_window_of_the_installation(
    in_own: Callable[..., Any], own_environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("asked>=2\nslicerown\nabsent\n")
    monkeypatch.setattr(install, "REQUIREMENTS", str(requirements))
    dialog = dialogs.InstallationDialog(lambda: str(own_environment))
    assert not dialog.uninstallButton.enabled
    assert "added no package" in dialog.space.text
    dialog.window.reject()
    install_needed(in_own, tmp_path / "wheels")
    assert install.versionRows()[3:] == [
        ("asked", "3.0", "added by this module"),
        ("slicerown", "1.0", "of Slicer or another extension"),
        ("absent", "", "missing"),
    ]
    dialog = dialogs.InstallationDialog(lambda: str(own_environment))
    standin.pump(lambda: "MB" in dialog.space.text)
    assert "added 2 packages" in dialog.space.text
    assert "3.0" in dialog.versions.text
    slicer.app.answers = [False]
    dialog.uninstallButton.click()
    assert dialog._installer is None
    assert "asked" in versions_in(own_environment)
    slicer.app.answers = [True]
    dialog.uninstallButton.click()
    assert not dialog.againButton.enabled
    standin.pump(lambda: dialog._installer is None, 60)
    assert "asked" in slicer.app.messages[-1].text
    assert not {"asked", "beneath"} & versions_in(own_environment).keys()
    assert "Done." in dialog.log.toPlainText()
    assert not dialog.uninstallButton.enabled
    dialog.window.reject()


def test_installation_opens_from_the_panel_but_not_during_a_run(
    panel: Any, ct: Any, fake_worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(dialogs.InstallationDialog, "run", lambda self: shown.append(self.versions.text))
    panel._installationButton.click()
    assert "semanticgan" in shown[0]
    fake_worker(panel, "listens")
    panel.ui.applyButton.click()
    panel._installationButton.click()
    assert len(shown) == 1
    assert "A run is under way" in slicer.app.messages[-1].text
    panel.logic.close()
    slicer.app.messages.clear()
    monkeypatch.setattr(panel._train, "isBusy", lambda: True)  # training, or a look through the scans
    panel._installationButton.click()
    assert len(shown) == 1
    assert "A run is under way" in slicer.app.messages[-1].text
