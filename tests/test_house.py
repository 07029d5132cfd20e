"""One-way traffic: what the engine is built of, from the ground up, and that no import runs upward or in a circle."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From the ground up. A module imports from its own room and from the floors below; rooms of one floor do not
# know each other. A room is a package or module of sgan_core, or the whole of sgan_datasets.
FLOORS = (
    {"sgan_core", "errors", "files", "names"},
    {"looks", "terms"},
    {"appearance", "cohort", "device"},
    {"cardiothoracic", "config", "imaging", "pieces", "sheets"},
    {"networks", "phantom"},
    {"curvature", "metrics", "reconstruction", "sgan_datasets"},
    {"bundle_text", "inputs", "inversion", "known_models"},
    {"recipes", "trust"},
    {"bundle"},
    {"labelling"},
    {"segment"},
    {"training"},
    {"evaluation"},
    {"benchmark", "finished", "report"},
    {"batch"},
    {"demo", "monai_inference", "sample"},
    {"cli"},
)


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module; a package is its ``__init__.py``."""
    folders = {"sgan_core": ROOT / "sgan_core", "sgan_datasets": ROOT / "datasets"}
    found = {}
    for package, folder in folders.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


def imports() -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports, in functions too.

    That Python runs the ``__init__.py`` of the packages around an imported module does not count.
    """
    known = modules()
    graph = {}
    for name, path in known.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        wanted = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                source = resolve_name("." * node.level + (node.module or ""), package)
                names = {f"{source}.{alias.name}" for alias in node.names}
                wanted |= (names & known.keys()) or {source}
        graph[name] = wanted & known.keys()
    return graph


def room(module: str) -> str:
    """The room of a dotted name."""
    package, _, inside = module.partition(".")
    return inside.split(".")[0] if inside and package == "sgan_core" else package


def test_every_module_has_its_floor() -> None:
    listed = [name for floor in FLOORS for name in floor]
    assert sorted(listed) == sorted({room(module) for module in modules()})


def test_no_import_runs_in_a_circle() -> None:
    try:
        TopologicalSorter(imports()).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_no_import_runs_upward() -> None:
    height = {name: floor for floor, names in enumerate(FLOORS) for name in names}
    upward = [
        f"{module} -> {wanted}"
        for module, found in imports().items()
        for wanted in found
        if room(module) != room(wanted) and height[room(module)] <= height[room(wanted)]
    ]
    assert not upward
