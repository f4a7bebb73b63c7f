"""The loop that every experiment goes through: conditions times items, asked of an engine and kept as they come.

A folder of trials goes on where it was stopped, and ends with what an uninterrupted one ends with. It writes to the disk;
it knows nothing of what an experiment is about.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Generic, TypeVar

import pyarrow as pa
import torch
from torch import Tensor

from personaspace._version import __version__
from personaspace.catalog import Catalog
from personaspace.engines import Engine, Response, Turn
from personaspace.engines.prompts import Message, Prompt, Sampling, row_seed
from personaspace.errors import JudgeError, RunError
from personaspace.experiments.kit.conditions import PLAIN as PLAIN
from personaspace.experiments.kit.conditions import Condition as Condition
from personaspace.experiments.kit.conditions import beside_axis as beside_axis
from personaspace.experiments.kit.conditions import beside_plain as beside_plain
from personaspace.experiments.kit.conditions import capped as capped
from personaspace.experiments.kit.conditions import controls as controls
from personaspace.experiments.kit.conditions import steered as steered
from personaspace.experiments.kit.options import SHARD, Options
from personaspace.files import read_json, read_rows, write_table, write_whole
from personaspace.holding.controls import displacement
from personaspace.judges import Judge, Rubric, Score, make_judge, rubric_of, score_kept
from personaspace.model.interventions import Intervention
from personaspace.runs import Folder, KeptScore
from personaspace.space import PersonaSpace
from personaspace.watcher import Watcher

Chosen = TypeVar("Chosen", bound=Options)


@dataclass(frozen=True)
class Ask:
    """A reply that is wanted: under which condition, of which item (its name is unique within the condition), to what."""

    condition: Condition
    item: str
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Given:
    """A reply that was given. projection: that of its mean activation on the unit axis at the space's layer, as the model
    went on with it, interventions included; NaN for an empty reply. touched: how many of its tokens an intervention changed.
    activation: `[hidden]` at that layer, where it was asked for."""

    condition: str
    item: str
    text: str
    tokens: int
    finish: str
    projection: float
    touched: int
    activation: Tensor | None = None


@dataclass(frozen=True)
class Reading:
    """An assistant turn of text that exists, read by the model under a condition. projection: NaN for an empty turn;
    logprob: the mean log-probability of its tokens."""

    conversation: str
    turn: int
    tokens: int
    projection: float
    logprob: float
    touched: int


_TYPES = {"str": pa.string(), "int": pa.int32(), "float": pa.float64(), "Tensor | None": pa.list_(pa.float32())}
GIVEN, READING = (
    pa.schema([("asked", pa.string()), *((column.name, _TYPES[str(column.type)]) for column in fields(row))])
    for row in (Given, Reading)
)
"""How they are written: what was asked as `_key` has it, then their own fields."""


@dataclass(frozen=True)
class Judges:
    """Which judge was asked for; an experiment makes it with its own rubric. engine: who judges where it is `local`; options,
    key_env: the endpoint's, as `make_judge` has them."""

    name: str = "rules"
    engine: Engine | None = None
    model: str | None = None
    url: str | None = None
    options: Mapping[str, Any] | None = None
    key_env: str | None = None

    def make(self, rubric: Rubric, rules: Judge | None = None) -> Judge | None:
        """The judge with that rubric; `rules`: who goes by words alone. None where no judge was asked for."""
        return make_judge(
            self.name,
            engine=self.engine,
            model=self.model,
            url=self.url,
            rubric=rubric,
            rules=rules,
            options=self.options,
            key_env=self.key_env,
        )


def _no_models(name: str, **options: Any) -> Engine:
    raise RunError(f"{name}: no other model can be loaded here")


class Trials(Folder, Generic[Chosen]):
    """An experiment's folder, and what it works with: `run.json`, `responses/PART-NNNNN.parquet`, `scores/…`, and what is made
    of them. load: gives the engine of another model, by name (for a base model, or a user played by a model)."""

    def __init__(
        self,
        engine: Engine,
        space: PersonaSpace,
        folder: str | Path,
        name: str,
        options: Chosen,
        *,
        catalog: Catalog,
        judges: Judges | None = None,
        load: Callable[..., Engine] = _no_models,
        watcher: Watcher | None = None,
    ) -> None:
        super().__init__(folder)
        space.check_model(engine.info)
        self.engine, self.space, self.name, self.options = engine, space, name, options
        self.catalog, self.judges, self.load = catalog, judges or Judges(engine=engine), load
        self.watcher = watcher or Watcher()
        self.total = self.count = 0
        self.displacements: dict[str, list[float]] = {}  # by cap, how far its controls move a token

    @contextmanager
    def open(self, replies: int) -> Iterator[None]:
        """Holds the folder while it is worked in; `replies` are those to come, for the progress. Raises `RunMismatch` where
        the folder is another experiment's, `RunLocked`."""
        model = self.engine.info
        config = {
            "experiment": self.name,
            "model": {"id": model.id, "fingerprint": model.fingerprint, "dtype": model.dtype},
            "space": _digest(self.space),
            "catalog": self.catalog.fingerprint,
            "options": self.options.determining(),
        }
        with self.locked():
            manifest = self.begin(config, {"version": __version__, "seconds": 0.0})
            for note in self.notes:
                self.watcher.note(note)
            self.total, self.count = replies, 0
            began = time.monotonic()
            yield
            # What a killed call spent is not known, and not counted.
            self.update({**manifest, "seconds": manifest["seconds"] + time.monotonic() - began})

    # -- asking ------------------------------------------------------------------------------------------------------

    def ask(
        self,
        asks: Sequence[Ask],
        sampling: Sampling,
        *,
        part: str = "part",
        activations: bool = False,
        seeds: str | None = None,
    ) -> list[Given]:
        """The replies, in the order of the asks. `part` names these asks within the experiment (a turn, a phase). The same item
        has the same seed under every condition, so that conditions differ by what is done to the model alone; seeds: the part
        whose seeds these asks share, where it is another.

        What is in the folder already is read from there, where it is the reply to exactly this: messages, sampling, seed and
        condition. Anything else is asked anew.
        """
        replies: list[Given] = []
        for first in range(0, len(asks), SHARD):
            batch, path = asks[first : first + SHARD], self._part(part, first)
            prompts = [a.messages for a in batch]
            steps = {c: self._steps(c, prompts) for c in dict.fromkeys(a.condition for a in batch)}
            keys = [
                _key(
                    list(a.messages),
                    sampling.model_dump(),
                    self._seed(seeds or part, a),
                    asdict(a.condition),
                    activations,
                    *filter(None, [steps[a.condition]]),
                )
                for a in batch
            ]
            by_key = _kept_replies(path, keys, [(a.condition.name, a.item) for a in batch])
            missing = [k for k, key in enumerate(keys) if key not in by_key]
            if missing:
                answers = self._answers([batch[k] for k in missing], sampling, seeds or part, activations)
                by_key |= {keys[k]: answer for k, answer in zip(missing, answers, strict=True)}
                rows = [{"asked": key, **vars(by_key[key])} for key in keys]
                for row in rows:
                    row["activation"] = None if row["activation"] is None else row["activation"].tolist()
                write_table(path, pa.Table.from_pylist(rows, schema=GIVEN))
            replies += [by_key[key] for key in keys]
            self.count += len(batch)
            self.watcher.progress(self.count, max(self.total, self.count))
        return replies

    def _seed(self, part: str, ask: Ask) -> int:
        return row_seed(self.options.seed, f"{part}/{ask.item}", 0)

    def _answers(self, asks: Sequence[Ask], sampling: Sampling, part: str, activations: bool) -> list[Given]:
        interventions_of = {c: self._interventions(c, [a.messages for a in asks]) for c in {a.condition for a in asks}}
        prompts = [
            Prompt(
                a.messages,
                a.condition.name,
                index=k,
                seed=self._seed(part, a),
                interventions=interventions_of[a.condition],
            )
            for k, a in enumerate(asks)
        ]
        replies: dict[int, Given] = {}
        for r in self.engine.respond(prompts, sampling, read=[self.space.layer]):
            replies[r.prompt.index] = self._given(asks[r.prompt.index], r, activations)
            self.watcher.progress(self.count + len(replies), max(self.total, self.count + len(replies)))
        return [replies[k] for k in range(len(asks))]

    def displacement(self, cap: str, prompts: Sequence[Sequence[Message]]) -> list[float]:
        """How far a cap moves a reply's token in the mean at each of its layers (`controls.displacement`): as `match` has
        measured it; else measured once, on the first of the prompts, and kept in the folder."""
        if cap not in self.displacements:
            self.displacements[cap] = self._measured(cap, cap, prompts)
        return self.displacements[cap]

    def match(self, cap: str, prompts: Sequence[Sequence[Message]]) -> None:
        """Has a cap's controls from now on go as far as it does on these prompts; what was measured on them is kept."""
        self.displacements[cap] = self._measured(f"{cap} of {_key(list(map(list, prompts)))}", cap, prompts)

    def _measured(self, name: str, cap: str, prompts: Sequence[Sequence[Message]]) -> list[float]:
        path = self.folder / "displacements.json"
        measured = read_json(path, dict[str, list[float]]) or {}
        if name not in measured:
            hold = self.space.hold(cap)
            different = [json.loads(p) for p in dict.fromkeys(json.dumps(list(p)) for p in prompts)]
            measured[name] = displacement(self.engine, self.space, hold, different)
            write_whole(path, json.dumps(measured, indent=1).encode())
        return measured[name]

    def _steps(self, condition: Condition, prompts: Sequence[Sequence[Message]]) -> list[float] | None:
        """How long the steps of a cap's control are; None for any other condition."""
        return self.displacement(condition.cap, prompts) if condition.control is not None and condition.cap else None

    def _interventions(self, condition: Condition, prompts: Sequence[Sequence[Message]]) -> tuple[Intervention, ...]:
        steps = self._steps(condition, prompts)
        return condition.interventions(self.space, {} if steps is None else {str(condition.cap): steps})

    def _given(self, ask: Ask, r: Response, activations: bool) -> Given:
        activation = r.activation[0].float().cpu() if r.activation is not None else None
        n = r.tokens
        projection = float(self.space.project(activation)) if activation is not None and n else math.nan
        stored_activation = activation if activations else None
        return Given(ask.condition.name, ask.item, r.text, n, r.finish_reason, projection, r.touched, stored_activation)

    # -- reading -----------------------------------------------------------------------------------------------------

    def read(
        self,
        conversations: Mapping[str, Sequence[Message]],
        *,
        part: str,
        condition: Condition = PLAIN,
        logprobs: bool = False,
    ) -> dict[str, list[Reading]]:
        """The assistant turns of conversations that exist, by name, as the model reads them under a condition; kept like
        replies are: a conversation of another text is read anew."""
        names = list(conversations)
        readings: dict[str, list[Reading]] = {}
        for first in range(0, len(names), SHARD):
            batch, path = names[first : first + SHARD], self._part(part, first)
            openings = [list(takewhile(lambda m: m["role"] != "assistant", conversations[n])) for n in batch]
            steps = self._steps(condition, openings)
            keys = {n: _key(list(conversations[n]), asdict(condition), logprobs, *filter(None, [steps])) for n in batch}
            by_name = _kept_readings(path, keys)
            if missing := [n for n in batch if n not in by_name]:
                texts = [conversations[n] for n in missing]
                interventions = self._interventions(condition, openings)
                turns = self.engine.replay(
                    texts, read=[self.space.layer], interventions=interventions, logprobs=logprobs
                )
                for name, of_conversation in zip(missing, turns, strict=True):
                    by_name[name] = [self._reading(name, k, turn) for k, turn in enumerate(of_conversation)]
                rows = [{"asked": keys[n], **vars(r)} for n in batch for r in by_name[n]]
                write_table(path, pa.Table.from_pylist(rows, schema=READING))
            readings |= {n: by_name[n] for n in batch}
        return readings

    def _reading(self, name: str, k: int, turn: Turn) -> Reading:
        projection = float(self.space.project(turn.activation[0].cpu())) if turn.tokens else math.nan
        logprob = math.nan if turn.logprob is None else turn.logprob
        return Reading(name, k, turn.tokens, projection, logprob, turn.touched)

    # -- judging -----------------------------------------------------------------------------------------------------

    def judge(self, judge: Judge | None, items: Sequence[Any], item_set: str) -> list[int | None]:
        """The judge's score of each item, in order; None where nobody judges, and where it could not be scored, which is noted,
        and tried again by the next call. item_set: names these items within the experiment; what an item holds, and the rubric
        that it is put under, decide whether it was scored. Scores are kept as they come."""
        if judge is None:
            return [None] * len(items)
        name = f"{item_set}-{judge.name}"
        scores = self.scores_of(name)
        # Version 0.1.0 kept scores by their place alone.
        by_place = {k: scores.pop(("", k)) for k in range(len(items)) if ("", k) in scores}
        keys = [(_key(item), 0) for item in items]
        scores = {key: by_place[k] for k, key in enumerate(keys) if k in by_place} | scores
        rubrics = {key: rubric_of(judge, item) for key, item in zip(keys, items, strict=True)}
        # Earlier versions did not note rubrics; theirs were today's.
        scores = {key: s for key, s in scores.items() if s.rubric in (None, rubrics.get(key, s.rubric))}
        unscored = {key: k for k, key in enumerate(keys) if key not in scores}
        asked_keys = list(unscored)

        def take(place: int, score: Score) -> None:
            key = asked_keys[place]
            scores[key] = KeptScore(score.score or 0, float(score.expected or 0), score.reason, rubrics[key])

        first_problem = ""
        try:
            problems = score_kept(
                judge, [items[k] for k in unscored.values()], take, lambda: self.keep_scores(name, scores)
            )
            first_problem = problems[0][1] if problems else ""
        except JudgeError as e:
            first_problem = str(e)
        if first_problem:
            missing = sum(key not in scores for key in keys)
            self.watcher.note(
                f"{missing} of {len(items)} replies could not be judged ({first_problem}); they are missing from the "
                "figures, and the same command tries them again"
            )
        return [scores[key].score if key in scores else None for key in keys]

    def _part(self, part: str, first: int) -> Path:
        return self.responses / f"{part}-{first // SHARD:05d}.parquet"


def _digest(space: PersonaSpace) -> str:
    """What of a space an experiment depends on: axis, layer, caps."""
    digest = hashlib.sha256(space.tensors["axis"].float().contiguous().numpy().tobytes())
    digest.update(json.dumps([space.layer, space.caps], sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _key(*parts: Any) -> str:
    """What something was asked with, in 16 characters: the same for the same, whenever and wherever."""
    plain = [asdict(p) if is_dataclass(p) and not isinstance(p, type) else p for p in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _present(schema: pa.Schema) -> pa.Schema:
    """What stands in a file of any version: what was asked does not, and an activation may be nothing."""
    columns = [column for column in schema if column.name != "asked"]
    return pa.schema([column.with_nullable(column.name == "activation") for column in columns])


def _kept_replies(path: Path, keys: Sequence[str], names: Sequence[tuple[str, str]]) -> dict[str, Given]:
    """The replies in a part, by what was asked. Version 0.1.0 wrote condition and item alone: its parts are these asks' where
    they name the same ones in the same order."""
    if not path.is_file():
        return {}
    rows = [{name: row[name] for name in GIVEN.names if name in row} for row in read_rows(path, _present(GIVEN))]
    row_keys = [row.pop("asked", None) for row in rows]
    tensors = [None if row["activation"] is None else torch.tensor(row["activation"]) for row in rows]
    replies = [Given(**{**row, "activation": tensor}) for row, tensor in zip(rows, tensors, strict=True)]
    if None in row_keys and [(r.condition, r.item) for r in replies] == list(names):
        return dict(zip(keys, replies, strict=True))
    return {key: reply for key, reply in zip(row_keys, replies, strict=True) if key in keys}


def _kept_readings(path: Path, keys: Mapping[str, str]) -> dict[str, list[Reading]]:
    """The readings in a part, by the conversation's name; version 0.1.0's went by the name alone."""
    by_name: dict[str, list[Reading]] = {}
    for row in read_rows(path, _present(READING)) if path.is_file() else []:
        row, name = {column: row[column] for column in READING.names if column in row}, row["conversation"]
        if row.pop("asked", None) in (None, keys.get(name)) and name in keys:
            by_name.setdefault(name, []).append(Reading(**row))
    return by_name
