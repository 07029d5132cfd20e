"""The mutation benchmark on a toy package: what it calls caught, missed, an error, and when it is content."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from sgan_core.errors import InputError


def _load_benchmark() -> ModuleType:
    """It is a script, not a package."""
    file = Path(__file__).parents[2] / "benchmarks" / "mutations.py"
    spec = importlib.util.spec_from_file_location("mutations", file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


benchmark = _load_benchmark()

FILES = {
    "toy/__init__.py": "",
    "toy/sums.py": (
        "def add(a, b):\n    return a + b\n\n\n"
        "def count(n):\n    while n > 0:\n        n -= 1\n    return n\n\n\n"
        "def twice(a):\n    b = a + a\n    return b\n"
    ),
    "toy/other.py": "SIZE = 3\n",
    "tests/test_sums.py": (
        "import logging\n\nfrom toy.sums import add, count, twice\n\n\n"
        "def test_add():\n    logging.error('no name of a test')\n    assert add(1, 2) == 3\n\n\n"
        "def test_count():\n    assert count(3) == 0\n\n\n"
        "def test_twice():\n    assert twice(0) == 0\n\n\n"
        "def test_wrong():\n    assert False\n"
    ),
}


def entry(**changes: str) -> dict[str, str]:
    """A fault of the toy that its test notices."""
    sound = {
        "name": "sum",
        "file": "toy/sums.py",
        "old": "return a + b",
        "new": "return a - b",
        "tests": "tests/test_sums.py -k 'not wrong'",
    }
    return sound | changes


MISSED = entry(name="double", old="b = a + a", new="b = a * 3", tests="tests/test_sums.py -k twice")


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a package and its tests in place of ours."""
    root = tmp_path / "toy"
    for name, content in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content, encoding="utf-8")
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "toy"]):
        subprocess.run(["git", "-C", str(root), *command], check=True)
    monkeypatch.setattr(benchmark, "ROOT", root)
    monkeypatch.setattr(benchmark, "TABLE", root / "mutations.yaml")
    monkeypatch.setattr(benchmark, "PATIENCE_S", 2.0)
    monkeypatch.setattr(benchmark, "HEAVY", ())
    return root


def table(root: Path, *entries: dict[str, Any]) -> None:
    (root / "mutations.yaml").write_text(yaml.safe_dump(list(entries)), encoding="utf-8")


def verdicts(root: Path, *entries: dict[str, Any]) -> tuple[int, list[tuple[str, str]]]:
    """The exit code, and outcome and reason of each fault."""
    table(root, *entries)
    code = benchmark.main(["--output", str(root / "found.json")])
    found = json.loads((root / "found.json").read_text(encoding="utf-8"))
    assert found["of"] == len(entries)
    assert found["caught"] == sum(one["outcome"] == "caught" for one in found["mutations"])
    return code, [(one["outcome"], one["by"]) for one in found["mutations"]]


def test_a_fault_that_a_test_notices_is_caught_with_its_name(toy: Path) -> None:
    assert verdicts(toy, entry()) == (0, [("caught", "tests/test_sums.py::test_add")])


def test_a_fault_at_import_is_caught(toy: Path) -> None:
    """Were another copy of the package imported, nothing would happen."""
    code, [(outcome, by)] = verdicts(
        toy, entry(old="def add(a, b):", new="raise ImportError\ndef add(a, b):")
    )
    assert (code, outcome, by) == (0, "caught", "tests/test_sums.py")


def test_an_endless_loop_is_caught_by_its_time(toy: Path) -> None:
    assert verdicts(toy, entry(old="n -= 1", new="n -= 0")) == (0, [("caught", "time-out")])


def test_what_no_test_notices_is_missed_and_must_be_explained(toy: Path) -> None:
    assert verdicts(toy, MISSED) == (1, [("missed", "tests/test_sums.py -k twice")])


def test_a_twentieth_may_be_missed_when_it_is_explained() -> None:
    def verdict(outcome: str, why: str = "") -> Any:
        return benchmark.Verdict("n", "f", outcome, "", 0.0, why)

    caught = [verdict("caught")] * 38
    assert benchmark.sufficient([*caught, *[verdict("missed", "the same")] * 2])
    assert not benchmark.sufficient([*caught, verdict("missed", "the same"), verdict("missed")])
    assert not benchmark.sufficient([*caught[1:], *[verdict("missed", "the same")] * 3])
    assert not benchmark.sufficient([*caught, verdict("error", "no reason counts")])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"old": "return a * b"}, "found 0 times"),
        ({"old": "a", "new": "c"}, "times in toy/sums.py; once is needed"),
        ({"new": "return a + b"}, "found 1 times in toy/sums.py; once is needed, and a new text"),
        ({"file": "toy/gone.py"}, "no file toy/gone.py"),
        ({"tests": "tests/test_sums.py -k wrong"}, "do not pass without it"),
        ({"tests": "tests/test_sums.py -k nothing_at_all"}, "do not pass without it"),
        ({"file": "toy/other.py", "old": "3", "new": "4"}, "do not use toy/other.py"),
        ({"tests": "tests/slicer/test_panel.py"}, "make test-slicer"),
    ],
    ids=[
        "not there",
        "several",
        "no change",
        "no file",
        "fails already",
        "no test",
        "not imported",
        "no Slicer",
    ],
)
def test_what_cannot_be_tried_is_an_error(toy: Path, changes: dict[str, str], words: str) -> None:
    code, [(outcome, by)] = verdicts(toy, entry(**changes))
    assert (code, outcome) == (1, "error")
    assert words in by


def test_the_repository_itself_is_left_alone_and_each_fault_is_taken_out(toy: Path) -> None:
    code, found = verdicts(
        toy, entry(), entry(name="again"), entry(name="double", old="b = a + a", new="b = 1")
    )
    assert code == 0
    assert [by for _outcome, by in found] == [
        f"tests/test_sums.py::test_{name}" for name in ("add", "add", "twice")
    ]
    assert {name: (toy / name).read_text(encoding="utf-8") for name in FILES} == FILES


def test_faults_are_chosen_by_parts_of_their_names(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table(toy, entry(), MISSED)
    assert benchmark.main(["--only", "SUM"]) == 0
    assert capsys.readouterr().out.endswith("1 of 1 caught\n")
    assert benchmark.main(["--only", "none of them"]) == 2
    assert benchmark.main(["--list"]) == 0
    assert capsys.readouterr().out.startswith("sum\n    toy/sums.py\n")


@pytest.mark.parametrize("wrong", [{"name": "sum"}, entry(what="unknown"), "text"])
def test_a_wrong_table_is_an_input_error(toy: Path, wrong: Any) -> None:
    table(toy, wrong)
    with pytest.raises(InputError, match="entry 1"):
        benchmark.read_table(toy / "mutations.yaml")
    table(toy, entry(), entry())
    with pytest.raises(InputError, match="two entries"):
        benchmark.read_table(toy / "mutations.yaml")


def test_every_fault_of_the_table_can_be_planted() -> None:
    """The quick part of the benchmark: each text is there exactly once, whatever has been rewritten since."""
    root = Path(__file__).parents[2]
    mutations = benchmark.read_table(root / "benchmarks" / "mutations.yaml")
    found = {one.name: (root / one.file).read_text(encoding="utf-8").count(one.old) for one in mutations}
    assert len(found) >= 40
    assert {name: times for name, times in found.items() if times != 1} == {}
    assert all((root / one.tests.split()[0]).is_file() for one in mutations)
