"""``make check-pythonqt``: fetches and builds PythonQt with ctk's widgets, then runs the panel on them.

usage: python tests/pythonqt/run.py [arguments of pytest]     with the environment of ``make test-slicer``

First ``check_panel.py`` beside this file, then those tests of ``tests/slicer`` that ask nothing of a stand-in widget.

Everything goes into build/pythonqt (PYTHONQT_BUILD=FOLDER: elsewhere); the first time takes minutes, the next seconds.
Without internet: PYTHONQT_SOURCES=FOLDER takes the clones PythonQt, CTK and Slicer, bare or not, from a folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = Path(os.environ.get("PYTHONQT_BUILD", ROOT / "build" / "pythonqt")).resolve()

APT = "apt-get install g++ make qtbase5-dev qtbase5-private-dev qttools5-dev libqt5svg5-dev python3-dev"
# What the panel uses of Qt; a wrapper of the others would only take time.
QT_PARTS = "PythonQtCore PythonQtGui PythonQtUiTools"


SHARED = ("test_batch_tab.py", "test_models.py", "test_panel.py", "test_process.py", "test_train_tab.py")
NOTHING_CHOSEN = 5  # pytest's code when -k leaves no test


@dataclass(frozen=True)
class Source:
    """A repository at one commit; the commit is its own checksum. folders: all that is needed of it, () is all."""

    name: str
    url: str
    commit: str
    folders: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        return BUILD / "sources" / self.name

    def fetch(self) -> None:
        """Bring the commit here, unless it is here; nothing else of the history comes along."""
        if not (self.path / ".git").exists():
            self._git("init", "--quiet", str(self.path), here=False)
        if self._head() != self.commit:
            print(f"fetching {self.name} {self.commit[:10]}", flush=True)
            local = os.environ.get("PYTHONQT_SOURCES")
            url = str(Path(local, self.name).resolve()) if local else self.url
            if self.folders:
                self._git("sparse-checkout", "set", *self.folders)
            part = ["--filter=blob:none"] if self.folders and not local else []
            self._git("config", "remote.origin.url", url)
            self._git("fetch", "--quiet", "--depth", "1", *part, "origin", self.commit)
            self._git("checkout", "--quiet", "--detach", self.commit)
        if self._head() != self.commit or self._git("status", "--porcelain", "--untracked-files=no"):
            raise SystemExit(
                f"{self.path} is not {self.name} {self.commit}; remove the folder and try again."
            )

    def _head(self) -> str:
        return self._git("rev-parse", "--verify", "--quiet", "HEAD", check=False)

    def _git(self, *arguments: str, here: bool = True, check: bool = True) -> str:
        place = ["-C", str(self.path)] if here else []
        done = subprocess.run(["git", *place, *arguments], stdout=subprocess.PIPE, text=True, check=check)
        return done.stdout.strip()


PYTHONQT = Source(  # v4.1.0, of which Slicer 5.12.3 and 5.13 have a fork (commontk/PythonQt)
    "PythonQt", "https://github.com/MeVisLab/pythonqt.git", "9992368e937cc6cfaf5b1fb274ddc7b72ec73d4c"
)
CTK = Source(  # what Slicer 5.12.3 and 5.13 are built with
    "CTK",
    "https://github.com/commontk/CTK.git",
    "5056664a20a3d0a393bb6d91f040525581e0dcdf",
    ("Libs/Core", "Libs/Widgets"),
)
SLICER = Source(  # v5.12.3
    "Slicer",
    "https://github.com/Slicer/Slicer.git",
    "9034c71a8fce68ab312458b3d7d16f610562263d",
    ("Base/Python/slicer",),
)


def qmake() -> str:
    """The qmake of Qt 5.15, for which PythonQt's repository has wrappers. Ends with advice where there is none."""
    wanted = os.environ.get("QMAKE")
    for name in [wanted] if wanted else ["qmake", "qmake-qt5"]:
        program = shutil.which(name)
        if program:
            asked = [program, "-query", "QT_VERSION"]
            if subprocess.run(asked, capture_output=True, text=True, check=False).stdout.startswith("5.15"):
                return program
    raise SystemExit(f"No qmake of Qt 5.15 was found (QMAKE names another one). On Debian:\n  {APT}")


def build() -> Path:
    """Build PythonQt and the host program; returns the latter."""
    make_settings = {
        "PYTHON_DIR": sys.base_prefix,
        "PYTHON_VERSION": "{}.{}".format(*sys.version_info),
    }
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        raise SystemExit(f"{sys.base_prefix} holds no shared library of Python. On Debian:\n  {APT}")
    environment = os.environ | make_settings
    program, libraries, host = qmake(), BUILD / "PythonQt", BUILD / "host"
    # Not optimised: the wrappers are a lot of code, and nothing here is a matter of speed.
    quick = ["CONFIG+=release", "QMAKE_CXXFLAGS_RELEASE=-O0"]
    parts = ["CONFIG+=exclude_generator", f"PYTHONQTALL_CONFIG={QT_PARTS}"]
    _make(
        libraries,
        [program, "-r", str(PYTHONQT.path / "PythonQt.pro"), *quick, *parts],
        ["sub-src", "sub-extensions"],
        environment,
    )
    places = [f"PYTHONQT={PYTHONQT.path}", f"PYTHONQT_LIBRARIES={libraries / 'lib'}", f"CTK={CTK.path}"]
    _make(host, [program, str(HERE / "host" / "host.pro"), *quick, *places], [], environment)
    return host / "host"


def _make(folder: Path, configure: list[str], targets: list[str], environment: dict[str, str]) -> None:
    """Configure once, then let make find what is left to do, as a guest on the machine."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "build.log"
    with log.open("w") as file:
        jobs = f"-j{os.cpu_count()}"
        steps = [] if (folder / "Makefile").is_file() else [configure]
        for step in [*steps, ["nice", "-n", "15", "make", jobs, *targets]]:
            print(" ".join(step), flush=True)
            if subprocess.run(
                step, cwd=folder, env=environment, stdout=file, stderr=file, check=False
            ).returncode:
                raise SystemExit(f"The build failed, see {log}")


def python_slicer() -> Path:
    """The folder of a PythonSlicer: like Slicer's, a launcher whose child is Python."""
    program = BUILD / "bin" / "PythonSlicer"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(f'#!/bin/sh\n"{sys.executable}" "$@"\nexit $?\n')
    program.chmod(0o755)
    return program.parent


def main() -> int:
    """Fetch, build, check; 0 when all checks pass."""
    for source in (PYTHONQT, CTK, SLICER):
        source.fetch()
    host = build()
    environment = os.environ | {
        "QT_QPA_PLATFORM": "offscreen",
        "SLICER_BASE_PYTHON": str(SLICER.path / "Base" / "Python" / "slicer"),
        "PYTHONQT_SHOTS": os.environ.get("PYTHONQT_SHOTS", str(BUILD / "pictures")),
    }
    launched = {"PATH": f"{python_slicer()}{os.pathsep}{os.environ['PATH']}"}
    codes = []
    for folder, names, more in ((HERE, ("check_panel.py",), launched), (HERE.parent / "slicer", SHARED, {})):
        files = [str(folder / name) for name in names]
        command = [str(host), sys.executable, str(HERE / "inside.py"), str(folder), *files, *sys.argv[1:]]
        codes.append(subprocess.run(command, env=environment | more, check=False).returncode)
    done = [code for code in codes if code != NOTHING_CHOSEN]
    return next((code for code in done if code), 0 if done else NOTHING_CHOSEN)


if __name__ == "__main__":
    raise SystemExit(main())
