"""Reads roles, questions, default prompts and traits from the package or from a folder; it knows nothing of models.

Two layouts are read. Ours: `roles.jsonl`, `questions.jsonl`, `defaults.jsonl`, `traits.jsonl`. The study's:
`roles/instructions/ROLE.json` and `extraction_questions.jsonl`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from personaspace import json_text
from personaspace.catalog.names import DEFAULT as DEFAULT
from personaspace.catalog.names import Name, Text, same_name
from personaspace.errors import CatalogError, UsageError, invalid_reason

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")


class Role(BaseModel):
    """A character archetype and the system prompts that elicit it (the paper's section on role instructions)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    role: Name
    description: str = ""
    ai: bool = False
    instructions: tuple[Text, ...] = Field(min_length=1)
    eval_prompt: str | None = None


class Question(BaseModel):
    """An extraction question, put to every role."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    id: int = Field(ge=0, lt=1 << 31, strict=True)
    question: Text
    theme: str = ""


class Trait(BaseModel):
    """A personality trait, and the system prompts that bring it out and that suppress it (the paper's section on traits)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    trait: Name
    definition: str = ""
    bring_out: tuple[Text, ...] = Field(min_length=1)
    suppress: tuple[Text, ...] = Field(min_length=1)


class _Default(BaseModel):
    id: int
    instruction: Text | None


class _StudyRole(BaseModel):
    """A role's file as the study's repository has it."""

    model_config = ConfigDict(extra="ignore")
    instruction: list[dict[str, str]] = Field(min_length=1)
    eval_prompt: str | None = None


@dataclass(frozen=True)
class Catalog:
    """Who can be asked to be whom, and what they are asked. folder: where it was read from; None is the package's."""

    name: str
    roles: tuple[Role, ...]
    questions: tuple[Question, ...]
    defaults: tuple[str | None, ...]
    folder: Path | None = field(default=None, compare=False)

    @property
    def fingerprint(self) -> str:
        """A hash of every text in it: two catalogues with the same one elicit the same prompts."""
        texts = [
            [[r.role, r.instructions, r.ai] for r in self.roles],
            [[q.id, q.question] for q in self.questions],
            self.defaults,
        ]
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]

    def role(self, name: str) -> Role:
        """The role of that name; raises `CatalogError` with the nearest names."""
        return _find(self._by_name(), name, "role", self.name)

    def _by_name(self) -> dict[str, Role]:
        return {r.role: r for r in self.roles}

    def select(self, roles: str = "all", questions: int | None = None) -> Catalog:
        """A part of it: `all`, a number of roles spread evenly over the list, or names; the first questions.

        Raises `UsageError` for a number that is not in the catalogue's range, `CatalogError` for an unknown role.

        >>> [r.role for r in ps.load_catalog().select("ghost,bard,pirate", questions=20).roles]
        ['ghost', 'bard', 'pirate']
        """
        chosen = choose(self._by_name(), roles, "role", self.name)
        return replace(self, roles=chosen, questions=self._questions(questions))

    def _questions(self, n: int | None) -> tuple[Question, ...]:
        if n is None:
            return self.questions
        if not 2 <= n <= len(self.questions):
            raise UsageError(
                f"--questions {n}: the catalogue {self.name} has {len(self.questions)} questions; give 2 to that"
            )
        return self.questions[:n]


def choose(items: Mapping[str, T], selection: str, noun: str, where: str, least: int = 2) -> tuple[T, ...]:
    """Those of the items, by their names, that are wanted: `all`, a number spread evenly over the list, or names, `least` of
    them or more.

    Raises `UsageError` for a number out of range or names that repeat, `CatalogError` for one that is not there.
    """
    if selection == "all":
        return tuple(items.values())
    if re.fullmatch(r"-?\d+", selection):
        n = int(selection)
        if not least <= n <= len(items):
            raise UsageError(f"--{noun}s {n}: the catalogue {where} has {len(items)} {noun}s; give {least} to that")
        return tuple(list(items.values())[i * len(items) // n] for i in range(n))
    names = [name for part in selection.split(",") if (name := part.strip())]
    if len(set(names)) != len(names) or len(names) < least:
        number = "two" if least == 2 else "one"
        raise UsageError(f"--{noun}s {selection}: expected at least {number} different names, separated by commas")
    return tuple(_find(items, name, noun, where) for name in names)


def _find(items: Mapping[str, T], name: str, noun: str, where: str) -> T:
    if name in items:
        return items[name]
    near = difflib.get_close_matches(name, items, n=3, cutoff=0.5)
    examples = f"it has {len(items)} {noun}s, such as {', '.join(list(items)[:3])}"
    hint = f"did you mean {', '.join(near)}?" if near else examples
    raise CatalogError(f"no {noun} {name!r} in the catalogue {where}; {hint}")


def load_traits(folder: str | Path | None = None) -> tuple[Trait, ...]:
    """The traits of a catalogue's folder where it has a `traits.jsonl`, else the package's. Raises `CatalogError` with file
    and line.

    >>> len(load_traits())
    240
    """
    path = Path(folder or Path(__file__).parent) / "traits.jsonl"
    if not path.is_file():
        return load_traits()
    traits = tuple(read_records(path, Trait))
    _unique([same_name(t.trait) for t in traits], "trait", path)
    return traits


EARLIER = Path(__file__).parent / "earlier"
"""Where the texts of earlier versions lie, a folder each: a run that was begun on them goes on with them."""


def earlier() -> list[str]:
    """The versions whose texts are there."""
    return sorted(path.name for path in EARLIER.iterdir() if path.is_dir()) if EARLIER.is_dir() else []


def load_catalog(folder: str | Path | None = None) -> Catalog:
    """The package's catalogue, or that of a folder in either layout; one with roles alone takes the package's questions and
    the rest. Raises `CatalogError` with file and line.

    >>> catalog = ps.load_catalog()
    >>> len(catalog.roles), len(catalog.questions), catalog.role("ghost").instructions[0]
    (275, 240, 'You live as a ghost, unseen in the rooms where you used to live.')
    """
    packaged = Path(__file__).parent
    root = packaged if folder is None else Path(folder)
    if not root.is_dir():
        raise CatalogError(f"{root}: no such folder; expected roles.jsonl or roles/instructions/ROLE.json in it")
    name = "personaspace" if folder is None else root.resolve().name
    if (root / "roles.jsonl").is_file():
        roles = tuple(read_records(root / "roles.jsonl", Role))
        questions, defaults = root / "questions.jsonl", root / "defaults.jsonl"
        default_texts = _defaults(defaults if defaults.is_file() else packaged / "defaults.jsonl")
    elif (root / "roles" / "instructions").is_dir():
        files = {p.stem: p for p in sorted((root / "roles" / "instructions").glob("*.json"))}
        default = files.pop(DEFAULT, None)
        roles = tuple(_study_role(path) for path in files.values())
        questions = root / "extraction_questions.jsonl"
        default_texts = (
            tuple(i["pos"] or None for i in _study_texts(default).instruction)
            if default
            else _defaults(packaged / "defaults.jsonl")
        )
    else:
        raise CatalogError(f"{root}: found neither roles.jsonl nor roles/instructions/; is it a catalogue's folder?")
    questions = questions if questions.is_file() else packaged / "questions.jsonl"
    question_records = tuple(read_records(questions, Question))
    _unique([same_name(r.role) for r in roles], "role", root)
    _unique([q.id for q in question_records], "question id", questions)
    if len(roles) < 2 or len(question_records) < 2:
        raise CatalogError(
            f"{root}: found {len(roles)} roles and {len(question_records)} questions; expected two of each at least"
        )
    return Catalog(name, roles, question_records, default_texts, None if folder is None else root)


def _defaults(path: Path) -> tuple[str | None, ...]:
    return tuple(d.instruction for d in read_records(path, _Default))


def _study_texts(path: Path) -> _StudyRole:
    texts = _parse(_text(path), path, 0, _StudyRole)
    if any("pos" not in i for i in texts.instruction):
        raise CatalogError(f'{path}: expected {{"pos": "…"}} in every instruction')
    return texts


def _study_role(path: Path) -> Role:
    texts = _study_texts(path)
    instructions = tuple(i["pos"] for i in texts.instruction)
    with _in_one_line(path, 0):
        return Role(role=path.stem, instructions=instructions, eval_prompt=texts.eval_prompt)


def read_records(path: Path, kind: type[M]) -> Iterator[M]:
    """The lines of a JSONL file as objects of a pydantic kind. Raises `CatalogError` with file and line."""
    for number, line in json_text.lines(_text(path)):
        yield _parse(line, path, number, kind)


def _parse(text: str, path: Path, line: int, kind: type[M]) -> M:
    with _in_one_line(path, line):
        value = json_text.parse(text)
        if not isinstance(value, dict):
            raise CatalogError(f"{path}:{line or 1}: expected a JSON object, found {text.strip()[:40]!r}")
        return kind.model_validate(value)


@contextmanager
def _in_one_line(path: Path, line: int) -> Iterator[None]:
    """What is wrong with a record becomes a `CatalogError` that names file, line and field."""
    try:
        yield
    except ValidationError as e:
        first = e.errors()[0]
        where = json_text.shown(".".join(map(str, first["loc"])), 80) or "the line"
        raise CatalogError(f"{path}:{line or 1}: {where}: {json_text.shown(invalid_reason(first), 300)}") from None
    except ValueError as e:
        raise CatalogError(f"{path}{f':{line}' if line else ''}: {json_text.shown(e, 300)}") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise CatalogError(f"{path}: cannot be read: {e}") from None


def _unique(values: Sequence[Any], noun: str, where: Path) -> None:
    seen = set()
    for value in values:
        if value in seen:
            raise CatalogError(f"{where}: the {noun} {value!r} stands there twice")
        seen.add(value)
