"""Maps a model: asks, judges, estimates, and goes on from wherever an earlier call was stopped."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from personaspace import estimate
from personaspace.asking import Task, answer, judged
from personaspace.catalog import Catalog
from personaspace.engines import Engine
from personaspace.errors import SpaceError, UsageError
from personaspace.judge import Judge
from personaspace.plan import SHARD, Plan, bytes_per_response, seconds_per_token
from personaspace.prompts import Design, Prompt, Sampling, assign, next_round, shards
from personaspace.report import write_report
from personaspace.space import PersonaSpace
from personaspace.store import Run
from personaspace.sums import BLOCKS, Kept, Responses, Source, Summed, Sums
from personaspace.vectors import blocks_of

FOLD = 1 << 30
"""Bytes of activations that may wait to be summed; where the sums are larger than that, as many as they are."""


class MapOptions(BaseModel):
    """How to map. Only design, sampling and seed determine responses; the rest may change when a run goes on.

    min_responses: a role needs that many kept ones; None is half of what it was asked. until: go on in rounds until the
    axis' reliability is that, or `budget` responses are spent (None: four times the first round). keep: `all` activations,
    `sums` in their place, or `layers:A:B`, sums and the activations of those layers; other than `all`, it is the run's, and so
    is the judge. blocks: of questions, for sums and what is made of them; None is 20 for sums, else each question is one.
    shards: the address that they lie at, where not in the run's folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    design: Design = Design()
    sampling: Sampling = Sampling()
    seed: int = 0
    layer: int | None = Field(None, ge=0)
    min_responses: int | None = Field(None, ge=1)
    until: float | None = Field(None, gt=0, lt=1)
    budget: int | None = Field(None, ge=1)
    keep: str = Field("all", pattern=r"^(all|sums|layers:\d+:\d+)$")
    blocks: int | None = Field(None, ge=2)
    shards: str | None = None


class Watcher:
    """Is told what goes on; the command line shows it. Does nothing by itself."""

    def planned(self, plan: Plan) -> None:
        """Before the first response is asked for."""

    def progress(self, done: int, total: int) -> None:
        """After each response; done counts those of earlier calls."""

    def note(self, text: str) -> None:
        """Something worth a line."""


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
        self.layers = _kept_layers(options.keep, engine.model.layers)
        questions = len(catalog.questions)
        blocks = options.blocks or (None if self.layers is None else BLOCKS)
        self.blocks = None if blocks is None else blocks_of(questions, blocks, options.seed)
        self.counted: estimate.Counted | None = None  # what the space was estimated from, once there is one
        self.sums: Sums | None = None
        if self.layers is not None and self.blocks is not None:
            self.sums = Sums(self.run, 1 + len(catalog.roles), self.blocks, self.layers)

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
            manifest = self.run.begin(self._configuration(judge), about)
            if self.options.shards:
                self.run.lies(manifest, self.options.shards)
            manifest["rounds"] = manifest["rounds"] or [self._first()]
            self.run.update(manifest)
            if sparse := self.options.design.sparseness(self.catalog):
                self.watcher.note(sparse)
            # Without an aim, everything that was asked counts; with one, it is looked at round by round. Sums hold all rounds.
            first = 0 if self.options.until and not self.sums else len(manifest["rounds"]) - 1
            history: list[dict[str, float]] = manifest.get("history", [])[:first]
            spent = 0.0
            if self.sums:
                self.sums.settle()
            for k in itertools.count(first):
                rounds = manifest["rounds"][: k + 1]
                groups = self._assign(rounds)
                spent += self._ask(groups, judge)
                kept = self.counted = self._kept(rounds, judge, [p for g in groups for p in g])
                more = self._next(kept, rounds, history)
                if more is None:
                    break
                if len(manifest["rounds"]) == k + 1:
                    manifest["rounds"].append(more)
                    manifest["history"] = history
                    self.run.update(manifest)
            manifest["seconds"] = manifest.get("seconds", 0.0) + spent
            manifest["history"] = history
            self.run.update(manifest)
            return self._finish(kept, manifest, judge, rounds, history, time.monotonic() - started)

    def _configuration(self, judge: Judge | None) -> dict[str, Any]:
        """What determines a run's responses, and what is left of them."""
        config = configuration(self.engine, self.catalog, self.options)
        if self.blocks is not None and self.sums:
            what = {"activations": self.options.keep, "blocks": int(self.blocks.max()) + 1}
            config["keep"] = {**what, "judge": judge.name if judge else "none"}
        return config

    def _first(self) -> dict[str, int]:
        return self.options.design.first_round(self.catalog)

    def _assign(self, rounds: Sequence[Mapping[str, int]]) -> list[list[Prompt]]:
        return assign(self.catalog, rounds, self.options.seed, self.options.design.complete)

    # -- asking ------------------------------------------------------------------------------------------------------

    def _shards(self, groups: Sequence[Sequence[Prompt]]) -> list[list[Prompt]]:
        return [s for k, g in enumerate(groups) for s in shards(g, SHARD, self.options.seed + k)]

    def _ask(self, groups: Sequence[Sequence[Prompt]], judge: Judge | None) -> float:
        """Asks what is not there yet, and sums what is too big to keep; returns the seconds that asking took."""
        work = self._shards(groups)
        done = set(self.run.done())
        total, there = sum(map(len, work)), sum(len(s) for k, s in enumerate(work) if k in done)
        todo = [k for k in range(len(work)) if k not in done]
        spent = 0.0
        if todo:
            self.watcher.planned(self._plan([p for s in work for p in s], sorted(done), work))
            place = self.run.place.root if self.run.place.local is None else str(self.run.place.local.absolute())
            tasks = [Task(k, work[k], self.options.sampling, place) for k in todo]
            began = time.monotonic()
            for size in self._answered(tasks, there, total):
                there += size
                self.watcher.progress(there, total)
                spent += time.monotonic() - began
                self._fold(judge, least=FOLD)
                began = time.monotonic()
            self.run.clean_shards()
        self._fold(judge)
        return spent

    def _answered(self, tasks: Sequence[Task], there: int, total: int) -> Iterator[int]:
        """Each shard's size, once it is written: here one after the other, or by an engine that spreads work."""
        if spread := getattr(self.engine, "spread", None):
            yield from (size for _, size in spread(answer, tasks))
            return
        count = itertools.count(there + 1)
        for task in tasks:
            yield answer(self.engine, task, lambda: self.watcher.progress(next(count), total))[1]

    def _fold(self, judge: Judge | None, least: int = 0) -> None:
        """Judges and sums the shards that wait for it, once their activations are as large as `least` and the sums."""
        if not self.sums:
            return
        waiting = sorted(set(self.run.done()) - set(self.sums.state().shards))
        model = self.engine.model
        if not waiting or (
            least and len(waiting) * SHARD * 4 * model.layers * model.hidden < max(least, self.sums.bytes())
        ):
            return
        self.sums.fold(self._responses(waiting, judge), waiting)

    def _responses(self, numbers: Sequence[int], judge: Judge | None) -> Responses:
        scores = judged(self.run, self.catalog, judge, numbers) if judge else None
        return Responses.read(self.run, numbers, [r.role for r in self.catalog.roles], scores, self.options.seed)

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
            bytes=len(left) * bytes_per_response(model.layers, model.hidden, self.options.sampling.max_new_tokens),
        )

    # -- judging -----------------------------------------------------------------------------------------------------

    def _kept(
        self, rounds: Sequence[Mapping[str, int]], judge: Judge | None, prompts: Sequence[Prompt]
    ) -> estimate.Counted:
        asked = {name: sum(r.get(name, 0) for r in rounds) for name in {p.role for p in prompts}}
        roles = [r.role for r in self.catalog.roles]
        source: Source
        if self.sums:
            source = Summed(self.sums)
        else:
            responses = self._responses(range(len(self._shards(self._assign(rounds)))), judge)
            source = Kept(self.run, responses, 1 + len(roles), len(self.catalog.questions), self.blocks)
        return estimate.counted(source, roles, asked, self.options.min_responses)

    # -- going on ----------------------------------------------------------------------------------------------------

    def _next(
        self, kept: estimate.Counted, rounds: Sequence[Mapping[str, int]], history: list[dict[str, float]]
    ) -> dict[str, int] | None:
        """The next round where `until` asks for one; notes reliability against responses spent."""
        until = self.options.until
        if until is None:
            return None
        spent = sum(sum(r.values()) for r in rounds)
        first = sum(rounds[0].values())
        layer = self.engine.model.layers // 2 if self.options.layer is None else self.options.layer
        reliability = estimate.axis_reliability(kept, layer, self.options.seed)
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
        kept: estimate.Counted,
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
            **({"blocks": self.options.blocks} if self.options.blocks else {}),
        }
        if there := self._there(made_from):
            return there
        began = time.monotonic()
        meta["made_from"] = made_from
        space = estimate.estimate(kept, self.options.layer, self.options.seed, meta)
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


def _kept_layers(keep: str, layers: int) -> range | None:
    """The layers whose activations stay beside the sums; None where there are no sums. Raises `UsageError`."""
    if keep == "all":
        return None
    first, last = (int(x) for x in keep.split(":")[1:]) if keep != "sums" else (0, 0)
    if keep != "sums" and not first < last <= layers:
        raise UsageError(f"--keep {keep}: the model has layers 0 to {layers - 1} (layers:0:{layers})")
    return range(first, last)


def _threads(engine: Engine) -> dict[str, Any]:
    return {
        "name": type(engine).__name__,
        "device": str(getattr(engine, "device", "")),
        "threads": torch.get_num_threads(),
    }
