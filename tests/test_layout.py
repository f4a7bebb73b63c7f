"""Who may import whom, and how long a file may be."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "personaspace"
ORDER = [
    "errors",
    "catalog",
    "interventions",
    "prompts",
    "readings",
    "residual",
    "engines",
    "places",
    "layout",
    "store",
    "endpoint",
    "judge",
    "vectors",
    "mixed",
    "reliability",
    "noise",
    "planting",
    "corrected",
    "components",
    "certainty",
    "saying",
    "sums",
    "space",
    "controls",
    "estimate",
    "agreement",
    "report",
    "calibrate",
    "outcomes",
    "tradeoff",
    "sweep",
    "transcripts",
    "monitor",
    "plots",
    "interop",
    "asking",
    "plan",
    "stages",
    "mapping",
    "efficiency",
    "api",
    "experiments",
    "chatting",
    "serve",
    "progress",
    "bench",
    "cli",
]


def module_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def test_a_module_imports_only_what_stands_above_it():
    for path in SOURCE.rglob("*.py"):
        module = module_of(path)
        if module == "__init__":
            continue
        assert module in ORDER, f"{path} has no place in the order"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("personaspace"):
                parts = node.module.split(".")
                names = [parts[1]] if len(parts) > 1 else [a.name for a in node.names]
                for name in names:
                    assert ORDER.index(name) <= ORDER.index(module), f"{path} imports {name}"


def test_no_file_is_longer_than_400_lines():
    assert [p.name for p in SOURCE.rglob("*.py") if len(p.read_text().splitlines()) > 400] == []
