"""Maps a model: asks, judges, estimates, and goes on from wherever an earlier call was stopped."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from personaspace import estimate
from personaspace.catalog import DEFAULT, Catalog
from personaspace.engines import Engine
from personaspace.errors import JudgeError, SpaceError, UsageError
from personaspace.judge import Item, Judge, score_all
from personaspace.prompts import Design, Prompt, Sampling, assign, next_round, shards
from personaspace.report import write_report
from personaspace.space import PersonaSpace
from personaspace.store import Run

SHARD = 256
"""Responses a shard: what a killed run may have to do again."""


class MapOptions(BaseModel):
    """How to map. Only design, sampling and seed determine responses; the rest may change when a run goes on.

    min_responses: a role needs that many kept ones; None is half of what it was asked. until: go on in rounds until the
    axis' reliability is that, or `budget` responses are spent (None: four times the first round).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    design: Design = Design()
    sampling: Sampling = Sampling()
    seed: int = 0
    layer: int | None = Field(None, ge=0)
    min_responses: int | None = Field(None, ge=1)
    until: float | None = Field(None, gt=0, lt=1)
    budget: int | None = Field(None, ge=1)


class Watcher:
    """Is told what goes on; the command line shows it. Does nothing by itself."""

    def planned(self, plan: Plan) -> None:
        """Before the first response is asked for."""

    def progress(self, done: int, total: int) -> None:
        """After each response; done counts those of earlier calls."""

    def note(self, text: str) -> None:
        """Something worth a line."""


@dataclass(frozen=True)
class Plan:
    """What a map will take. seconds and bytes are estimates; done counts responses that are there already."""

    responses: int
    done: int
    prompt_tokens: int
    new_tokens: int
    seconds: float
    bytes: int


def configuration(engine: Engine, catalog: Catalog, options: MapOptions) -> dict[str, Any]:
    """What determines a run's responses."""
    model = engine.model
    return {
        "model": {"id": model.id, "fingerprint": model.fingerprint, "dtype": model.dtype, "template": model.template},
        "catalog": {
            "fingerprint": catalog.fingerprint,
            "roles": [r.role for r in catalog.roles],
            "questions": len(catalog.questions),
        },
        "design": options.design.model_dump(),
        "sampling": options.sampling.model_dump(),
        "seed": options.seed,
    }


class Mapper:
    """One map of one model into one folder."""

    def __init__(
        self, engine: Engine, catalog: Catalog, out: str | Path, options: MapOptions, watcher: Watcher | None = None
    ) -> None:
        if options.layer is not None and options.layer >= engine.model.layers:
            raise UsageError(f"--layer {options.layer}: {engine.model.id} has layers 0 to {engine.model.layers - 1}")
        self.engine, self.catalog, self.options = engine, named(catalog, engine.model.id), options
        self.run, self.watcher = Run(out), watcher or Watcher()

    def plan(self) -> Plan:
        """What the first round will take, without doing any of it; nothing is written."""
        prompts = self._assign([self._first()])[0]
        return self._plan(prompts, self.run.done() if self.run.exists else [])

    def map(self, judge: Judge | None) -> PersonaSpace:
        """Maps until the design, or `until`, is fulfilled; writes space and report, and returns the space."""
        with self.run.locked():
            started = time.monotonic()
            about = {
                "model": asdict(self.engine.model),
                "version": version("personaspace"),
                "engine": _threads(self.engine),
            }
            manifest = self.run.begin(configuration(self.engine, self.catalog, self.options), about)
            manifest["rounds"] = manifest["rounds"] or [self._first()]
            self.run.update(manifest)
            history: list[dict[str, float]] = []
            spent = 0.0
            # Without an aim, everything that was asked counts; with one, it is looked at round by round.
            for k in itertools.count(0 if self.options.until else len(manifest["rounds"]) - 1):
                rounds = manifest["rounds"][: k + 1]
                groups = self._assign(rounds)
                spent += self._ask(groups)
                kept = self._kept(rounds, judge, [p for g in groups for p in g])
                more = self._next(kept, rounds, history)
                if more is None:
                    break
                if len(manifest["rounds"]) == k + 1:
                    manifest["rounds"].append(more)
                    self.run.update(manifest)
            manifest["seconds"] = manifest.get("seconds", 0.0) + spent
            manifest["history"] = history
            self.run.update(manifest)
            return self._finish(kept, manifest, judge, rounds, history, time.monotonic() - started)

    def _first(self) -> dict[str, int]:
        return self.options.design.first_round(self.catalog)

    def _assign(self, rounds: Sequence[Mapping[str, int]]) -> list[list[Prompt]]:
        return assign(self.catalog, rounds, self.options.seed, self.options.design.complete)

    # -- asking ------------------------------------------------------------------------------------------------------

    def _shards(self, groups: Sequence[Sequence[Prompt]]) -> list[list[Prompt]]:
        return [s for k, g in enumerate(groups) for s in shards(g, SHARD, self.options.seed + k)]

    def _ask(self, groups: Sequence[Sequence[Prompt]]) -> float:
        """Asks what is not there yet; returns the seconds it took."""
        work = self._shards(groups)
        done = set(self.run.done())
        total, there = sum(map(len, work)), sum(len(s) for k, s in enumerate(work) if k in done)
        todo = [k for k in range(len(work)) if k not in done]
        if not todo:
            return 0.0
        self.watcher.planned(self._plan([p for s in work for p in s], sorted(done), work))
        started = time.monotonic()
        every = range(self.engine.model.layers)
        for k in todo:
            answers = []
            for response in self.engine.respond(work[k], self.options.sampling, read=every):
                answers.append(response)
                self.watcher.progress(there + len(answers), total)
            there += len(answers)
            order = {(p.role, p.index): i for i, p in enumerate(work[k])}
            answers.sort(key=lambda r: order[r.prompt.role, r.prompt.index])
            self.run.write(k, answers)
        return time.monotonic() - started

    def _plan(self, prompts: Sequence[Prompt], done: Sequence[int], work: Sequence[Sequence[Prompt]] = ()) -> Plan:
        work = work or shards(prompts, SHARD, self.options.seed)
        left = [p for k, s in enumerate(work) if k not in set(done) for p in s]
        sample = left[:: max(1, len(left) // 64)]
        chat = getattr(self.engine, "chat", None)
        length = sum(len(chat.prompt_ids(p.messages)) for p in sample) / len(sample) if chat and sample else 64
        new = self.options.sampling.max_new_tokens * len(left)
        model = self.engine.model
        return Plan(
            responses=len(prompts),
            done=len(prompts) - len(left),
            prompt_tokens=int(length * len(left)),
            new_tokens=new,
            seconds=(length * len(left) + new) * seconds_per_token(self.engine),
            bytes=len(left) * (4 * model.layers * (model.hidden + 1) + 6 * self.options.sampling.max_new_tokens),
        )

    # -- judging -----------------------------------------------------------------------------------------------------

    def _kept(
        self, rounds: Sequence[Mapping[str, int]], judge: Judge | None, prompts: Sequence[Prompt]
    ) -> estimate.Kept:
        numbers = list(range(len(self._shards(self._assign(rounds)))))
        scores = self._judge(judge, numbers) if judge else None
        asked = {name: sum(r.get(name, 0) for r in rounds) for name in {p.role for p in prompts}}
        roles = [r.role for r in self.catalog.roles]
        return estimate.kept_responses(self.run, numbers, roles, asked, scores, self.options.min_responses)

    def _judge(self, judge: Judge, numbers: Sequence[int]) -> dict[tuple[str, int], tuple[int, float]]:
        scores = self.run.scores_of(judge.name)
        keys, items = [], []
        for shard in numbers:
            for row in self.run.read(shard, ["role", "index", "user", "text"]).to_pylist():
                key = (row["role"], row["index"])
                if row["role"] != DEFAULT and key not in scores:
                    keys.append(key)
                    items.append(Item(self.catalog.role(row["role"]), row["user"], row["text"]))
        problems: list[str] = []
        at = 0
        for batch in score_all(judge, items):
            for key, score in zip(keys[at : at + len(batch)], batch, strict=True):
                if score.score is None:
                    problems.append(f"{key[0]} {key[1]}: {score.problem}")
                else:
                    scores[key] = (score.score, float(score.expected or 0))
            at += len(batch)
            self.run.keep_scores(judge.name, scores)
        if problems:
            raise JudgeError(
                f"{len(problems)} of {len(items)} responses could not be scored ({problems[0]}); what was scored is kept: "
                "run the same command to try the others again"
            )
        return scores

    # -- going on ----------------------------------------------------------------------------------------------------

    def _next(
        self, kept: estimate.Kept, rounds: Sequence[Mapping[str, int]], history: list[dict[str, float]]
    ) -> dict[str, int] | None:
        """The next round where `until` asks for one; notes reliability against responses spent."""
        until = self.options.until
        if until is None:
            return None
        spent = sum(sum(r.values()) for r in rounds)
        first = sum(rounds[0].values())
        layer = self.engine.model.layers // 2 if self.options.layer is None else self.options.layer
        reliability = estimate.axis_reliability(self.run, kept, layer, self.options.seed)
        history.append({"responses": spent, "reliability": reliability})
        self.watcher.note(
            f"{spent} responses: the axis' reliability at layer {layer} is {reliability:.3f} (wanted {until})"
        )
        left = (self.options.budget or 4 * first) - spent
        if reliability >= until or left <= 0:
            return None
        return next_round(kept.counts, min(left, max(1, first // 4)))

    def _finish(
        self,
        kept: estimate.Kept,
        manifest: Mapping[str, Any],
        judge: Judge | None,
        rounds: Sequence[Mapping[str, int]],
        history: list[dict[str, float]],
        seconds: float,
    ) -> PersonaSpace:
        scores = self.run.scores_of(judge.name) if judge else {}
        values = [s for s, _ in scores.values()]
        meta = {
            "model": manifest["model"],
            "catalog": {
                "name": self.catalog.name,
                **{k: v for k, v in manifest["config"]["catalog"].items() if k != "roles"},
            },
            "descriptions": {r.role: r.description for r in self.catalog.roles},
            "design": manifest["config"]["design"],
            "sampling": manifest["config"]["sampling"],
            "seed": self.options.seed,
            "version": manifest["version"],
            "judge": {
                "name": judge.name if judge else "none",
                "scores": {str(s): values.count(s) for s in range(4)} if judge else None,
            },
            "n_responses": sum(sum(r.values()) for r in rounds),
            "asked": {name: sum(r.get(name, 0) for r in rounds) for name in rounds[0]},
            "history": history,
            "seconds": {"responses": manifest["seconds"]},
            "samples": self._samples(),
        }
        made_from = {
            "config": manifest["config_hash"],
            "kept": kept.counts,
            "left_out": kept.left_out,
            "layer": self.options.layer,
            "judge": meta["judge"],
            "history": history,
            "version": version("personaspace"),
        }
        if there := self._there(made_from):
            return there
        began = time.monotonic()
        meta["made_from"] = made_from
        space = estimate.estimate(self.run, kept, self.options.layer, self.options.seed, meta)
        space.meta["seconds"]["estimates"] = time.monotonic() - began
        space.save(self.run.space_file)
        write_report(space, self.run.report_file)
        return space

    def _there(self, made_from: Mapping[str, Any]) -> PersonaSpace | None:
        """The space that an earlier call made from the same responses, with what calibration has added to it."""
        if not (self.run.space_file.is_file() and self.run.report_file.is_file()):
            return None
        try:
            space = PersonaSpace.load(self.run.space_file)
        except SpaceError:
            return None  # another version's, or broken: it is made again from the responses
        return space if space.meta.get("made_from") == json.loads(json.dumps(made_from)) else None

    def _samples(self) -> dict[str, list[list[str]]]:
        """Two exchanges of each role, as question and reply, for the report."""
        found: dict[str, list[list[str]]] = {}
        for shard in self.run.done():
            for row in self.run.read(shard, ["role", "user", "text"]).to_pylist():
                if len(found.setdefault(row["role"], [])) < 2 and row["text"].strip():
                    found[row["role"]].append([row["user"], row["text"].strip()[:400]])
        return found


def named(catalog: Catalog, model: str) -> Catalog:
    """The catalogue with the model's own name in the default prompts."""
    name = "SmolLM2" if model == "smollm2" else Path(model).name.removesuffix(".gguf")
    defaults = tuple(t.replace("{model}", name) if t else t for t in catalog.defaults)
    return replace(catalog, defaults=defaults)


def seconds_per_token(engine: Engine) -> float:
    """An estimate from the model's size and a matrix product timed for a fifth of a second on its device."""
    network = getattr(engine, "network", None)
    if network is None:
        return 0.0
    p = next(network.parameters())
    n = 512 if p.device.type == "cpu" else 4096
    a = torch.randn(n, n, device=p.device, dtype=p.dtype)
    products, began = 0, time.monotonic()
    while time.monotonic() - began < 0.2:
        (a @ a)[0, 0].item()
        products += 1
    peak = 2 * n**3 * products / (time.monotonic() - began)
    # Measured: the loop reaches some two thirds of the peak, the rest goes to attention and to what lies between products.
    parameters: int = sum(q.numel() for q in network.parameters())
    return 2 * parameters / (0.67 * peak)


def _threads(engine: Engine) -> dict[str, Any]:
    return {
        "name": type(engine).__name__,
        "device": str(getattr(engine, "device", "")),
        "threads": torch.get_num_threads(),
    }
