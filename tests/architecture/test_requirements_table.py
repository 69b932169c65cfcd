"""The page of requirements is generated, current, and complete."""

import ast
import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "requirements_table.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The generator, as a module."""
    spec = importlib.util.spec_from_file_location("requirements_table", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current() -> None:
    """What is committed is what the generator writes; else the line to run is printed."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--check"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_requirement_has_a_text_and_a_place(script: ModuleType) -> None:
    """All ids of a letter follow each other without a gap."""
    texts = tomllib.loads(script.TEXTS.read_text(encoding="utf-8"))
    for letter, group in texts.items():
        ids = [each for each in group if each != "title"]
        assert ids == [f"{letter}-{number}" for number in range(1, len(ids) + 1)]


def test_marks_are_found_wherever_they_stand(script: ModuleType, tmp_path: Path) -> None:
    """On a module, a class, a function, in a list; and a test without a mark proves nothing."""
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_a.py").write_text(
        "import pytest\n"
        "pytestmark = [pytest.mark.slow, pytest.mark.requirement('E-1')]\n"
        "@pytest.mark.requirement('E-2', 'E-3')\n"
        "class TestA:\n"
        "    @pytest.mark.requirement('E-4')\n"
        "    async def test_b(self): ...\n"
    )
    (folder / "test_b.py").write_text("def test_c(): ...\n")
    place = [(Path("tests/test_a.py"), "TestA::test_b")]
    assert script.proofs(folder) == dict.fromkeys(("E-1", "E-2", "E-3", "E-4"), place)


def test_an_unknown_id_is_refused(script: ModuleType) -> None:
    """A slip of the pen in a mark is found, with the test that has it."""
    with pytest.raises(script.UnknownRequirementError, match=r"a\.py::test_x is marked with E-99, which"):
        script.table({"E": {"title": "t", "E-1": "x"}}, {"E-99": [(Path("a.py"), "test_x")]})
    with pytest.raises(script.UnknownRequirementError, match="ids are written out"):
        list(script.marks(ast.parse("pytest.mark.requirement(NAME)", mode="eval").body))
