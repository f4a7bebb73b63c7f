"""Who may import whom, and how long a file may be. Whatever a file imports counts, at its head or later."""

from __future__ import annotations

import ast
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "personaspace"
ORDER = [
    ["_lazy", "_version", "errors", "json_text", "watcher"],
    ["files"],
    ["stats", "catalog"],
    ["model"],
    ["engines"],
    ["space"],
    ["runs", "judges", "report"],
    ["formats"],
    ["holding"],
    ["mapping"],
    ["experiments"],
    ["api"],
    ["serve"],
    ["bench"],
    ["cli"],
    ["__main__"],
]
"""Rooms from the ground up. Whatever stands in a row knows nothing of its neighbours there, nor of what stands above."""
OF_THE_ROOT = {
    *(
        ".ci",
        ".github",
        ".gitignore",
        ".pre-commit-config.yaml",
        "deploy",
        "docs",
        "scripts",
        "src",
        "tests",
        "Makefile",
    ),
    *("README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "SECURITY.md", "mkdocs.yml"),
    *("pyproject.toml", "constraints.txt", "constraints-vllm.txt"),
}
LARGE = ["docs/results/plotly.min.js"]
"""Files of more than a MiB, in the order git names them."""
FLOOR = {room: floor for floor, rooms in enumerate(ORDER) for room in rooms}
FILES = sorted(p for p in SOURCE.rglob("*.py"))


def module_of(path: Path) -> str:
    """`engines.chat` of `engines/chat.py`; `engines` of its `__init__.py`."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imported(path: Path) -> set[str]:
    """The package's modules that a file imports."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import, which this test does not follow"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "personaspace":
                inside = name.removeprefix("personaspace").removeprefix(".")
                modules.add(inside if inside in MODULES else inside.rpartition(".")[0])
    return modules


def test_a_file_imports_only_what_stands_below_its_room():
    wrong = []
    for module, path in MODULES.items():
        room = module.split(".")[0]
        if not room:
            continue  # the package's own names
        assert room in FLOOR, f"{path} has no place in the order"
        for other in imported(path):
            below = other.split(".")[0]
            if below != room and FLOOR[below] >= FLOOR[room]:
                wrong.append(f"{module} imports {other}")
    assert wrong == []


def test_no_files_import_each_other_in_a_circle():
    below = {module: imported(path) - {module} for module, path in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, f"a circle: {' → '.join((*way[way.index(module) :], module))}"
        if module not in done:
            for other in below[module]:
                visit(other, (*way, module))
            done.add(module)

    for module in below:
        visit(module, ())


def test_no_file_is_longer_than_400_lines():
    assert [p.name for p in FILES if len(p.read_text(encoding="utf-8").splitlines()) > 400] == []


def test_nothing_lies_at_the_repository_s_root_that_has_no_business_there():
    # What an example or a run leaves behind is committed in a moment, and cloned by everybody ever after.
    root, git = SOURCE.parent.parent, shutil.which("git")
    if git is None or not (root / ".git").exists():
        pytest.skip("not a repository: an unpacked archive has what its maker put there")
    tracked = subprocess.run(
        [git, "ls-files"], cwd=root, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    at_root = {name.split("/")[0] for name in tracked}
    assert at_root - OF_THE_ROOT == set()
    large = [name for name in tracked if (file := root / name).is_file() and file.stat().st_size > 2**20]
    assert large == LARGE
