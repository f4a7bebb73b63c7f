"""Names: what a variable holds is said, and a class name means one thing in the whole package."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections import Counter
from pathlib import Path

from personaspace.files import first_line

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "personaspace"
SHARE = 0.005

spec = importlib.util.spec_from_file_location("house", ROOT / "scripts" / "house.py")
assert spec is not None
assert spec.loader is not None
house = importlib.util.module_from_spec(spec)
spec.loader.exec_module(house)


def test_hardly_a_name_is_one_that_could_hold_anything():
    """The list of such names may grow; the share may not."""
    names: Counter[str] = Counter()
    places: dict[str, list[str]] = {}
    for path in house.source_files(PACKAGE):
        for name in house.assigned_names(ast.parse(path.read_text(encoding="utf-8"))):
            names[name] += 1
            if name in house.GENERIC:
                places.setdefault(name, []).append(path.relative_to(PACKAGE).as_posix())
    generic = sum(map(len, places.values()))
    assert generic <= SHARE * sum(names.values()), {name: Counter(files) for name, files in places.items()}


def test_a_class_name_means_one_thing_in_the_whole_package():
    twice = house.classes_by_name(house.source_files(PACKAGE))
    assert {name: files for name, files in twice.items() if len(files) > 1} == {}


LIBRARY = ("engines", "holding", "mapping", "model", "runs", "space", "stats", "api.py")
NAME_FLAGS = ("mapping/plan.py", "engines/vllm/options.py")
"""One that still does, and one whose business flags are."""


def test_the_librarys_messages_name_options_and_the_command_line_alone_makes_flags_of_them():
    """`layer=9: …` to who calls it, `--layer 9: …` to who typed that (`cli.as_typed`)."""
    named = []
    for path in house.source_files(PACKAGE):
        name = path.relative_to(PACKAGE).as_posix()
        if name.split("/")[0] not in LIBRARY or name in NAME_FLAGS:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        texts = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        named += [
            f"{name}:{n.lineno}"
            for n in texts
            if id(n) not in docstrings and re.search(r"(^|[\s(`])--([a-z]|$)", n.value)
        ]
    assert named == []


def test_what_is_counted_is_loops_comprehensions_parameters_and_fields_too():
    source = (
        "def f(found, *, told=1):\n    x = [given for given in y]\n    for kept in z:\n        pass\n"
        "class A:\n    held: int\n"
    )
    names = [name for name in house.assigned_names(ast.parse(source)) if name in house.GENERIC]
    assert sorted(names) == ["found", "given", "held", "kept", "told"]


def test_a_librarys_error_is_told_by_its_first_line_in_one_place():
    """An error may have no text at all, so that the first of its lines is not there."""
    by_hand = [p.name for p in (ROOT / "src").rglob("*.py") if "str(e).splitlines()" in p.read_text(encoding="utf-8")]
    assert by_hand == []
    assert first_line(ValueError()) == "ValueError"
    assert first_line(ValueError("one\ntwo")) == "one"
