"""The package's catalogue, and anybody's own."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personaspace.catalog import choose, load_catalog, load_traits
from personaspace.catalog.names import why_no_name
from personaspace.errors import CatalogError, UsageError

CATALOG = load_catalog()


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def runs(text: str, n: int = 6) -> set[tuple[str, ...]]:
    w = words(text)
    return {tuple(w[k : k + n]) for k in range(len(w) - n + 1)}


def test_the_counts_are_those_of_the_study():
    assert (len(CATALOG.roles), len(CATALOG.questions), len(CATALOG.defaults)) == (275, 240, 10)
    assert all(len(r.instructions) == 5 and r.description for r in CATALOG.roles)
    assert CATALOG.defaults[0] is None


def test_nothing_stands_there_twice():
    texts = [t for r in CATALOG.roles for t in r.instructions] + [q.question for q in CATALOG.questions]
    texts += [r.role for r in CATALOG.roles] + [r.description for r in CATALOG.roles]
    assert [t for t, n in Counter(texts).items() if n > 1] == []


def test_no_two_instructions_of_a_role_share_a_run_of_six_words():
    for role in CATALOG.roles:
        seen = [runs(t) for t in role.instructions]
        assert not [(a, b) for a in range(5) for b in range(a) if seen[a] & seen[b]], role.role


def test_no_question_names_a_role():
    names = {r.role.replace("_", " ") for r in CATALOG.roles}
    for q in CATALOG.questions:
        text = f" {' '.join(words(q.question))} "
        assert not [n for n in names for form in (n, n + "s", n + "es") if f" {form} " in text], q.question


def test_roles_that_are_machines_are_marked():
    assert {r.role for r in CATALOG.roles if r.ai} == {"assistant", "robot", "simulacrum", "avatar"}


def test_an_unknown_role_is_told_the_nearest_names():
    with pytest.raises(CatalogError, match="did you mean ghost"):
        CATALOG.select("goast,pilot")


@pytest.mark.parametrize(
    ("roles", "questions"), [("all", 0), ("all", 241), ("1", None), ("276", None), ("ghost,ghost", None)]
)
def test_numbers_that_make_no_sense_are_refused(roles, questions):
    with pytest.raises(UsageError):
        CATALOG.select(roles, questions)


@pytest.mark.parametrize("roles", ["--5", "-5", "---", "5-"])
def test_a_number_with_dashes_is_refused_in_one_line(roles):
    with pytest.raises(UsageError, match="--roles") as problem:
        CATALOG.select(roles)
    assert "\n" not in str(problem.value)


def test_a_number_of_roles_is_spread_over_the_list():
    assert [r.role[0] for r in CATALOG.select("5").roles] == ["a", "c", "h", "p", "s"]


def test_a_broken_line_is_named_with_file_and_line(tmp_path):
    good = json.dumps({"role": "a", "instructions": ["Be a."]})
    (tmp_path / "questions.jsonl").write_text('{"id": 0, "question": "a?"}\n{"id": 1, "question": "b?"}')
    for broken, told in (
        ("{", r"roles\.jsonl:2: not JSON"),
        ('{"role": "b", "instructions": []}', r"roles\.jsonl:2: instructions"),
        ('{"role": "b", "instructions": "Be b."}', r"roles\.jsonl:2: instructions: input should be a list$"),
        (
            '{"role": "b", "instructions": ["Be b."], "descripton": "B."}',
            r"roles\.jsonl:2: descripton: there is no field of this name$",
        ),
    ):
        (tmp_path / "roles.jsonl").write_text(f"{good}\n{broken}\n")
        with pytest.raises(CatalogError, match=told):
            load_catalog(tmp_path)
    (tmp_path / "roles.jsonl").write_text(f"{good}\n{good}\n")
    with pytest.raises(CatalogError, match="'a' stands there twice"):
        load_catalog(tmp_path)


def test_the_studys_layout_is_read(tmp_path):
    folder = tmp_path / "roles" / "instructions"
    folder.mkdir(parents=True)
    for name in ("ghost", "pilot", "default"):
        body = {
            "instruction": [{"pos": f"You are {name} {k}."} for k in range(5)],
            "questions": [],
            "eval_prompt": "{answer}?",
        }
        (folder / f"{name}.json").write_text(json.dumps(body, indent=1))
    lines = [json.dumps({"question": f"q{k}?", "id": k}) for k in range(3)]
    (tmp_path / "extraction_questions.jsonl").write_text("\n".join(lines))
    read = load_catalog(tmp_path)
    assert [r.role for r in read.roles] == ["ghost", "pilot"]
    assert read.defaults[0] == "You are default 0."
    assert read.roles[0].eval_prompt == "{answer}?"
    (folder / "pilot.json").write_text('{"instruction": [\n{"pos": 3}]}')
    with pytest.raises(CatalogError, match=r"pilot\.json:1: instruction\.0\.pos"):
        load_catalog(tmp_path)


DEEP, LONG = "[" * 100_000 + "]" * 100_000, "9" * 5_000


@pytest.mark.parametrize(
    ("value", "told"),
    [(DEEP, "nests deeper than 100"), ("[" * 101 + "]" * 101, "nests deeper"), (LONG, "a number of 5000 digits")],
)
def test_json_that_python_cannot_walk_is_one_line_with_file_and_line(tmp_path, value, told):
    roles = [json.dumps({"role": name, "instructions": [f"Be {name}."]}) for name in "ab"]
    (tmp_path / "roles.jsonl").write_text("\n".join(roles))
    (tmp_path / "questions.jsonl").write_text(
        f'{{"id": 0, "question": "a?"}}\n{{"id": 1, "question": "b?", "x": {value}}}'
    )
    with pytest.raises(CatalogError, match=rf"questions\.jsonl:2: not read: .*{told}") as problem:
        load_catalog(tmp_path)
    assert "\n" not in str(problem.value)
    folder = tmp_path / "study" / "roles" / "instructions"
    folder.mkdir(parents=True)
    (folder / "ghost.json").write_text(f'{{"instruction": {value}}}')
    with pytest.raises(CatalogError, match=rf"ghost\.json: not read: .*{told}"):
        load_catalog(tmp_path / "study")


def test_a_catalogues_lines_end_at_line_feeds_alone_and_may_begin_with_a_byte_order_mark(tmp_path):
    odd = "one\u2028two\u0085three"
    roles = [json.dumps({"role": name, "instructions": [odd]}, ensure_ascii=False) for name in "ab"]
    (tmp_path / "roles.jsonl").write_bytes(("\ufeff" + "\r\n\r\n".join(roles)).encode())
    questions = [json.dumps({"id": k, "question": f"{odd} {k}?"}, ensure_ascii=False) for k in range(2)]
    (tmp_path / "questions.jsonl").write_text("\n".join(questions), encoding="utf-8")
    catalog = load_catalog(tmp_path)
    assert [role.instructions for role in catalog.roles] == [(odd,), (odd,)]
    assert catalog.questions[1].question == f"{odd} 1?"


def _written(
    folder: Path, roles: Sequence[str], questions: Sequence[str] = ("a?", "b?"), traits: Sequence[str] = ()
) -> Path:
    texts = {
        "roles": [{"role": name, "instructions": ["Be it."]} for name in roles],
        "questions": [{"id": k, "question": q} for k, q in enumerate(questions)],
        "traits": [{"trait": name, "bring_out": ["Do."], "suppress": ["Don't."]} for name in traits],
    }
    for name, records in texts.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    return folder


NO_NAMES = [
    ("default", "the model without a role"),
    ("DEFAULT", "the model without a role"),
    ("axis", "the Assistant Axis"),
    ("all", "every name"),
    (".", "a folder's"),
    ("..", "a folder's"),
    ("a,b", "commas separate"),
    ("a/b", "slashes separate"),
    ("..\\b", "slashes separate"),
    ("2", "it is a number"),
    ("-3", "it is a number"),
    ("²", "it is a number"),
    ("٣٤", "it is a number"),
    ("a\0b", r"U\+0000"),
    ("a\x1b[31mb", r"U\+001B"),
    ("a\u202eb", r"U\+202E"),
    ("a\ud800b", r"U\+D800"),
    ("a b", "a blank"),
    ("a\u00a0b", "a blank"),
    ("--roles", 'begins with "-"'),
    (".hidden", 'begins with "."'),
    ("", "empty"),
    ("ä" * 61, "122 bytes"),
]


@pytest.mark.parametrize(("name", "why"), NO_NAMES)
def test_what_means_something_else_is_no_name_of_a_role_or_trait_and_why_is_said(tmp_path, name, why):
    with pytest.raises(CatalogError, match=rf"roles\.jsonl:2: role: .*{why}") as problem:
        load_catalog(_written(tmp_path, ["ghost", name]))
    assert "\n" not in str(problem.value)
    assert str(problem.value).isprintable()
    with pytest.raises(CatalogError, match=rf"traits\.jsonl:1: trait: .*{why}"):
        load_traits(_written(tmp_path, ["ghost", "bard"], traits=[name]))


def test_a_file_of_the_studys_layout_is_no_way_around_what_a_name_may_be(tmp_path):
    folder = tmp_path / "roles" / "instructions"
    folder.mkdir(parents=True)
    for name in ("ghost", "default", "axis"):
        (folder / f"{name}.json").write_text('{"instruction": [{"pos": "Be it."}]}')
    (tmp_path / "extraction_questions.jsonl").write_text('{"id": 0, "question": "a?"}\n{"id": 1, "question": "b?"}')
    with pytest.raises(CatalogError, match=r"axis\.json:1: role: .*the Assistant Axis"):
        load_catalog(tmp_path)


def test_roles_alone_take_the_packages_questions_in_either_layout(tmp_path):
    folder = tmp_path / "study" / "roles" / "instructions"
    folder.mkdir(parents=True)
    for name in ("ghost", "bard"):
        (folder / f"{name}.json").write_text('{"instruction": [{"pos": "Be it."}]}')
    (tmp_path / "ours").mkdir()
    roles = [{"role": name, "instructions": ["Be it."]} for name in ("ghost", "bard")]
    (tmp_path / "ours" / "roles.jsonl").write_text("\n".join(map(json.dumps, roles)))
    for layout in ("study", "ours"):
        catalog = load_catalog(tmp_path / layout)
        assert (catalog.questions, catalog.defaults) == (load_catalog().questions, load_catalog().defaults)


@pytest.mark.parametrize(("one", "other"), [("ghost", "Ghost"), ("caf\u00e9", "cafe\u0301")])
def test_two_names_that_a_file_system_takes_for_one_are_refused(tmp_path, one, other):
    with pytest.raises(CatalogError, match="stands there twice"):
        load_catalog(_written(tmp_path, [one, other]))


@given(st.text(max_size=40))
def test_whatever_is_taken_for_a_name_is_one_file_one_choice_and_one_line(name):
    if why_no_name(name) is not None:
        return
    assert Path(name).name == name
    assert "\n" not in name
    assert not set(name) & set(", \0\x1b")
    assert name.encode()
    roles = {"ghost": 0, name: 1}
    if name != "ghost":
        assert choose(roles, f"ghost,{name}", "role", "here") == (0, 1)
        assert choose(roles, "all", "role", "here") == (0, 1)


@pytest.mark.parametrize(
    ("question", "why"), [("", "empty"), (" \n", "empty"), ("a\0?", r"U\+0000"), ("\ud800", r"U\+D800")]
)
def test_a_question_that_no_file_can_hold_is_refused(tmp_path, question, why):
    with pytest.raises(CatalogError, match=rf"questions\.jsonl:2: question: .*{why}"):
        load_catalog(_written(tmp_path, ["ghost", "bard"], ["a?", question]))


@pytest.mark.parametrize("number", [-1, 1 << 31, True, "0", 0.5])
def test_a_questions_number_is_one_that_a_run_can_keep(tmp_path, number):
    _written(tmp_path, ["ghost", "bard"])
    rows = [{"id": 0, "question": "a?"}, {"id": number, "question": "b?"}]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(CatalogError, match=r"questions\.jsonl:2: id"):
        load_catalog(tmp_path)


def test_a_folder_of_roles_alone_takes_the_packages_questions_and_defaults(small_catalog, tmp_path):
    (tmp_path / "roles.jsonl").write_bytes((small_catalog / "roles.jsonl").read_bytes())
    catalog = load_catalog(tmp_path)
    assert [r.role for r in catalog.roles] == ["ghost", "hermit", "clerk", "auditor", "whale", "pilot"]
    assert (catalog.questions, catalog.defaults) == (load_catalog().questions, load_catalog().defaults)
