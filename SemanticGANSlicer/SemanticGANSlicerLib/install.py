"""Installs the engine into Slicer's Python: asked for once, nothing replaced, the cause shown on failure.

PyTorch comes through the extension PyTorch, as for every other extension; the rest through pip, held by constraints to
the versions of all packages that are there already. Nothing is imported here that is being installed.
"""

import importlib
import importlib.metadata
import os
import re
import shutil
import sysconfig
import tempfile
from dataclasses import dataclass

from slicer.i18n import tr as _

from . import installed, process

ENGINE = "semanticgan"
TORCH = {"torch": ">=2.6", "torchvision": ">=0.21"}  # as in pyproject.toml

_LIBRARY = os.path.dirname(os.path.abspath(__file__))
WHEELS = os.path.join(_LIBRARY, "wheels")  # the engine itself; CMake puts it there
REQUIREMENTS = os.path.join(os.path.dirname(_LIBRARY), "Resources", "requirements.txt")

# What pip prints, and what the user can do about it; the first that matches is shown.
_ADVICE = (
    (
        r"ResolutionImpossible|conflicting dependencies|Cannot install|dependency conflicts",
        _(
            "Another package in Slicer's Python stands in the way; Slicer's own are never replaced. See "
            "the details for its name. Uninstall the extension that brought it, or use a Slicer without "
            "it."
        ),
    ),
    (
        r"No space left|not enough space|OSError: \[Errno 28\]",
        _("The disk is full. Free some space, then try again."),
    ),
    (
        r"Permission denied|Access is denied|WinError 5\b|Errno 13",
        _(
            "Slicer's folder cannot be written. Install Slicer into a folder of your own, or start it "
            "once as administrator. On Windows also close other Slicer windows."
        ),
    ),
    (
        r"ProxyError|NewConnectionError|ConnectionError|Name or service not known|getaddrinfo failed|timed "
        r"out|SSLError|CERTIFICATE_VERIFY_FAILED|Temporary failure in name resolution|Network is "
        r"unreachable",
        _(
            "The package index cannot be reached. Behind a proxy, set HTTPS_PROXY and start Slicer again. "
            'Without internet, use "Install from folder of wheels".'
        ),
    ),
    (
        r"No matching distribution found|Could not find a version",
        _(
            "A package was not found. From a folder: it must hold wheels for this system and this Python, "
            "see the details. From the internet: the index cannot be reached, or Slicer is too old."
        ),
    ),
)


class InstallError(Exception):
    """Why the installation failed and what to do; details to unfold."""

    def __init__(self, message, details=""):
        super().__init__(message)
        self.details = details


class Cancelled(InstallError):
    """The person stopped it."""


@dataclass(frozen=True)
class Plan:
    """What is missing: requirements for pip, the wheel of the engine ("" when it is there), PyTorch or not."""

    requirements: tuple
    wheel: str
    torch: bool

    @property
    def isEmpty(self):
        return not (self.requirements or self.wheel or self.torch)


def bundledWheel():
    """The engine's wheel that came with the extension; "" when there is none (a checkout used in place)."""
    names = sorted(os.listdir(WHEELS)) if os.path.isdir(WHEELS) else []
    found = [name for name in names if name.startswith(f"{ENGINE}-") and name.endswith(".whl")]
    return os.path.join(WHEELS, found[-1]) if found else ""


def makePlan():
    """What has to be installed. Raises InstallError when an old PyTorch is in the way, or the engine is missing."""
    importlib.invalidate_caches()
    missing = tuple(line for line in _requirementLines() if not isSatisfied(line))
    wheel, installed = bundledWheel(), _version(ENGINE)
    if wheel:
        wanted = os.path.basename(wheel).split("-")[1]
        wheel = "" if installed == wanted else wheel
    elif installed is None:
        raise InstallError(
            _(
                "The engine is neither installed nor part of this extension (no wheel in {folder}). "
                "Install the extension again, or install semanticgan into Slicer's Python."
            ).format(folder=WHEELS)
        )
    wrong = [name for name, version in TORCH.items() if not isSatisfied(name + version)]
    if wrong and _version("torch") is not None:  # one of the two cannot be replaced without the other
        raise InstallError(_wrongTorch(wrong[0]))
    return Plan(missing, wheel, bool(wrong))


def _wrongTorch(name):
    """What is wrong with the PyTorch that is there, and what to do. name: of the package that is to blame."""
    found = _version(name)
    if name == "torch":
        problem = _("PyTorch {found} is installed, {wanted} is needed.")
    elif found is None:
        problem = _("PyTorch {torch} is installed without torchvision, of which {wanted} is needed.")
    else:
        problem = _("PyTorch {torch} is installed with torchvision {found}, of which {wanted} is needed.")
    problem = problem.format(found=found, torch=_version("torch"), wanted=TORCH[name])
    advice = _(
        "Uninstall PyTorch with the module PyTorch Utils, restart Slicer, and try again: PyTorch and torchvision "
        "are then installed together, as they must fit each other."
    )
    return f"{problem} {advice}"


def whyNotInstalled():
    """A sentence on what is missing; "" when the engine can run."""
    try:
        plan = makePlan()
    except InstallError as error:
        return str(error)
    if plan.isEmpty:
        return ""
    return _("The engine is not installed; missing: {what}").format(what=names(plan))


def names(plan):
    """What a plan installs, by name."""
    torch = ["PyTorch"] if plan.torch else []
    wheel = [os.path.basename(plan.wheel)] if plan.wheel else []
    return ", ".join([*plan.requirements, *torch, *wheel])


def versionRows():
    """(name, version or "", whose) of the engine, PyTorch and all that is required, for the window."""
    found, added = installed.versions(), installed.record()
    lines = [ENGINE, *TORCH, *(re.split(r"[<>=!~ ;]", line)[0] for line in _requirementLines())]
    rows = []
    for line in lines:
        name = installed.canonical(line)
        version = found.get(name, "")
        if not version:
            whose = _("missing")
        elif added.get(name) == version:
            whose = _("added by this module")
        else:
            whose = _("of Slicer or another extension")
        rows.append((line, version, whose))
    return rows


def description(plan):
    """What the dialog says before anything is installed: what, how big, where."""
    parts = []
    if plan.torch:
        parts.append(
            _("PyTorch and torchvision, by the extension PyTorch (on Linux with CUDA 5.3 GB on disk)")
        )
    if plan.requirements:
        names = ", ".join(re.split(r"[<>=!~ ;]", line)[0] for line in plan.requirements)
        parts.append(
            _("{count} Python packages (together below 0.6 GB on disk): {names}").format(
                count=len(plan.requirements), names=names
            )
        )
    if plan.wheel:
        parts.append(
            _("the engine, {name} ({size:.0f} MB), which came with this extension").format(
                name=os.path.basename(plan.wheel), size=os.path.getsize(plan.wheel) / 1e6
            )
        )
    folder = sysconfig.get_paths()["purelib"]
    free = shutil.disk_usage(folder).free / 1e9
    items = "".join(f"<li>{part}</li>" for part in parts)
    where = _("They go into Slicer's Python: {folder} ({free:.0f} GB free).").format(folder=folder, free=free)
    kept = _(
        "Packages that are there already, of Slicer (SimpleITK, numpy, pydicom, ...) or of other extensions, "
        "keep their versions; pip may add packages that the new ones need."
    )
    if plan.torch:
        kept += " " + _(
            "The extension PyTorch installs by rules of its own: its installer, light-the-torch, may replace "
            "pip itself by an older version. It cannot be stopped once it has begun; Cancel then ends the "
            "installation after it."
        )
    private = _("No image or other data leaves this computer.")
    return _("To segment, this module needs:") + f"<ul>{items}</ul>{where}<br>{kept}<br>{private}"


def isSatisfied(requirement):
    """Whether a requirement such as "numpy>=1.26" is installed; nothing is imported."""
    from packaging.requirements import Requirement  # pip's own library; Slicer brings it along

    wanted = Requirement(requirement)
    if wanted.marker is not None and not wanted.marker.evaluate():
        return True
    version = _version(wanted.name)
    return version is not None and wanted.specifier.contains(version, prereleases=True)


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _requirementLines():
    with open(REQUIREMENTS, encoding="utf-8") as file:
        lines = (line.strip() for line in file)
        return [line for line in lines if line and not line.startswith("#")]


def constraintLines():
    """A pin for every package that is installed, but for the engine: pip may add packages, not change them."""
    from packaging.version import InvalidVersion, Version

    pins = {}
    for distribution in importlib.metadata.distributions():
        name, version = distribution.metadata["Name"], distribution.version
        if not name or name.lower() == ENGINE:
            continue
        try:
            Version(version)
        except (InvalidVersion, TypeError):
            continue  # pip could not read it either
        pins.setdefault(name.lower(), f"{name}=={version}")
    return sorted(pins.values())


_running = set()


class Installer:
    """Carries a plan out without freezing the window. One at a time; ``cancel`` stops pip.

    python: the interpreter to install into. onLine(text) gets what pip prints; onFinished(error) comes once:
    None, or an InstallError (Cancelled after ``cancel``).
    """

    def __init__(self, python, onLine, onFinished):
        self._python, self._onLine, self._onFinished = python, onLine, onFinished
        self._worker, self._folder, self._lines = None, "", []
        self._cancelled, self._before = False, {}
        self.isAtTorch = False  # the extension PyTorch is at work: it cannot be stopped

    def installOnline(self, plan):
        """From the internet: PyTorch by its extension, then pip."""
        try:
            if plan.torch:
                self._onLine(_("Installing PyTorch; this can take minutes."))
                self._installTorch()
            self._pip([*self._targets(plan)])
        except InstallError as error:
            self._onFinished(error)

    def _installTorch(self):
        self.isAtTorch = True
        try:
            installTorch()  # events go on meanwhile, so ``cancel`` may be called
        except InstallError:
            if not self._cancelled:
                raise
        finally:
            self.isAtTorch = False
        if self._cancelled:
            raise _cancelled()

    def installFromFolder(self, plan, folder):
        """Without internet: everything, PyTorch too, from a folder of wheels."""
        torch = [name + version for name, version in TORCH.items()] if plan.torch else []
        self._pip(["--no-index", "--find-links", folder, *torch, *self._targets(plan)])

    def installAgain(self):
        """Put the files of all that this module added back, in the versions that are there; PyTorch apart."""
        again = [
            f"{name}=={version}" for name, version in sorted(installed.record().items()) if _isOurs(name)
        ]
        wheel = bundledWheel()
        self._pip(["--force-reinstall", "--no-deps", *again, *([wheel] if wheel else [])])

    def uninstall(self, names):
        """Remove packages; ``installed.removable`` says which can go."""
        self._run(["-m", "pip", "uninstall", "--yes", "--disable-pip-version-check", *names])

    def cancel(self):
        """Stop pip; while the extension PyTorch is at work, do not go on to pip after it."""
        self._cancelled = True
        if self._worker is not None:
            self._worker.cancel()

    def _targets(self, plan):
        return [*plan.requirements, *([plan.wheel] if plan.wheel else [])]

    def _pip(self, arguments):
        self._folder = tempfile.mkdtemp(prefix="sgan-install-")
        constraints = os.path.join(self._folder, "constraints.txt")
        with open(constraints, "w", encoding="utf-8") as file:
            file.write("\n".join(self.constraints()) + "\n")
        fixed = ["-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
        # Wheels only: a compiler is not to be had in Slicer.
        fixed += ["--only-binary", ":all:", "--constraint", constraints]
        self._run([*fixed, *arguments])

    def _run(self, arguments):
        self._before = installed.versions()
        self._worker = process.Worker(self._onEvent, self._pipFinished, plain=True)
        _running.add(self)  # its dialog may be gone before pip has ended
        self._worker.start(self._python, process.untilEof(arguments))

    def constraints(self):
        return constraintLines()

    def _onEvent(self, event):
        self._lines.append(event["text"])
        self._onLine(event["text"])

    def _pipFinished(self, outcome):
        _running.discard(self)
        shutil.rmtree(self._folder, ignore_errors=True)
        importlib.invalidate_caches()
        told = re.findall(r"^Installing collected packages: (.+)$", "\n".join(self._lines), re.MULTILINE)
        names = {installed.canonical(name.strip()) for line in told for name in line.split(",")}
        # Also when it stopped half-way
        installed.remember(self._before, names, ours=(ENGINE,) if bundledWheel() else ())
        if outcome.status == process.DONE:
            self._onFinished(None)
        elif outcome.status == process.CANCELLED:
            self._onFinished(_cancelled())
        else:
            output = "\n".join([*self._lines, outcome.details])
            self._onFinished(InstallError(explain(output), "\n".join(output.splitlines()[-60:])))


def _isOurs(name):
    """Whether a package that was added is put back by us: PyTorch's builds are chosen by its extension."""
    return name not in (ENGINE, "triton", *TORCH) and not name.startswith("nvidia-")


def _cancelled():
    return Cancelled(_("The installation was cancelled. It can be started again."))


def explain(output):
    """The cause in what pip printed, with advice."""
    errors = re.findall(r"^ERROR: (.+)$", output, re.MULTILINE)
    advice = next((text for pattern, text in _ADVICE if re.search(pattern, output)), _("See the details."))
    return (errors[0] + "\n\n" if errors else "") + advice


def installTorch():
    """PyTorch by the extension PyTorch, which finds the build for this computer's GPU. Raises InstallError."""
    try:
        import PyTorchUtils
    except ImportError as error:
        raise InstallError(
            _(
                "The extension PyTorch is missing. Install it with the Extensions Manager, restart "
                'Slicer, and try again. Without internet, use "Install from folder of wheels".'
            )
        ) from error
    try:
        found = PyTorchUtils.PyTorchUtilsLogic().installTorch(
            askConfirmation=False,
            torchVersionRequirement=TORCH["torch"],
            torchvisionVersionRequirement=TORCH["torchvision"],
        )
    except Exception as error:  # whatever its installer met
        raise InstallError(
            _("The extension PyTorch could not install PyTorch: {reason}").format(reason=error)
        ) from error
    if found is None:
        raise InstallError(
            _("PyTorch was not installed. Try again, or install it with the module PyTorch Utils.")
        )
