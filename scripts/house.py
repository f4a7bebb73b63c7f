"""Counts the house: lines by folder, functions, helpers used once, generic names, names of classes that mean two things.

    python scripts/house.py [FOLDER …]

Reads source files alone; nothing is imported. `tests/test_house.py` holds some of what is counted here.
"""

from __future__ import annotations

import ast
import json
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

GENERIC = {
    "found",
    "some",
    "mine",
    "told",
    "said",
    "wanted",
    "there",
    "given",
    "at",
    "own",
    "held",
    "asked",
    "known",
    "made",
    "kept",
    "left",
    "read_",
    "put",
    "what",
    "whole",
    "other",
    "thing",
    "one",
}
"""Words that say nothing of what a variable holds."""


def source_files(folder: Path) -> list[Path]:
    """The Python files below a folder."""
    return sorted(p for p in folder.rglob("*.py") if "__pycache__" not in p.parts)


def assigned_names(tree: ast.AST) -> Iterator[str]:
    """Every name that is assigned to (loops and comprehensions, too) and every parameter."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Functions and methods, those inside others, too."""
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def classes_by_name(files: list[Path]) -> dict[str, list[str]]:
    """The files that define a class of each name; private ones, too."""
    places: dict[str, list[str]] = defaultdict(list)
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(path))
    return places


def count(folder: Path) -> dict[str, object]:
    """The figures of one folder's Python files together."""
    files = source_files(folder)
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    lines = [len(path.read_text(encoding="utf-8").splitlines()) for path in files]
    names = Counter(name for tree in trees for name in assigned_names(tree))
    generic = {name: n for name, n in names.items() if name in GENERIC}
    every = [f for tree in trees for f in functions(tree)]
    lengths = [(f.end_lineno or f.lineno) - f.lineno + 1 for f in every]
    once = 0
    for tree in trees:
        uses = Counter(n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load))
        uses += Counter(n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute))
        private = (f.name for f in functions(tree) if f.name.startswith("_") and not f.name.startswith("__"))
        once += sum(uses[name] == 1 for name in private)
    comments = sum(line.lstrip().startswith("#") for p in files for line in p.read_text(encoding="utf-8").splitlines())
    return {
        "files": len(files),
        "lines": sum(lines),
        "largest file": max(lines, default=0),
        "functions": len(every),
        "median lines of a function": statistics.median(lengths) if lengths else 0,
        "lines of file a function": round(sum(lines) / max(len(every), 1), 1),
        "private helpers used once": once,
        "comment lines in 1,000": round(1000 * comments / max(sum(lines), 1), 1),
        "assigned names": sum(names.values()),
        "generic names in 100": round(100 * sum(generic.values()) / max(sum(names.values()), 1), 2),
        "most frequent of those": dict(Counter(generic).most_common(8)),
    }


def main() -> None:
    """Prints the package's figures, lines by folder, and names of classes that mean more than one thing."""
    package = Path(__file__).parent.parent / "src" / "personaspace"
    for folder in [Path(a) for a in sys.argv[1:]] or [package]:
        print(json.dumps({str(folder.name): count(folder)}, indent=1))
        for part in sorted(p for p in folder.iterdir() if p.is_dir() and source_files(p)):
            print(f"{part.name + '/':<16} {sum(len(f.read_text().splitlines()) for f in source_files(part)):>6} lines")
        top = sum(len(f.read_text().splitlines()) for f in folder.glob("*.py"))
        print(f"{'(at the top)':<16} {top:>6} lines")
        twice = {name: paths for name, paths in classes_by_name(source_files(folder)).items() if len(paths) > 1}
        print(f"names of classes with two meanings: {', '.join(sorted(twice)) or 'none'}")


if __name__ == "__main__":
    main()
