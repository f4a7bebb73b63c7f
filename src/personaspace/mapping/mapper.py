"""Maps a model: reads its prompts, then its replies, estimates, and goes on from wherever an earlier call was stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from personaspace._version import __version__
from personaspace.catalog import Catalog
from personaspace.engines import Engine
from personaspace.engines.prompts import assign
from personaspace.errors import DesignError, OutOfMemory, SpaceError, UsageError
from personaspace.holding import calibrate
from personaspace.judges import Judge
from personaspace.mapping import agreement, estimate
from personaspace.mapping.options import MapOptions, check_span, configuration, named
from personaspace.mapping.stages import Aim, Stage
from personaspace.mapping.sums import BLOCKS
from personaspace.mapping.trait_stage import TraitStage
from personaspace.report.map import write_report
from personaspace.runs import Run
from personaspace.runs.folder import TRAITS
from personaspace.space import PersonaSpace
from personaspace.space.readings import OF_REPLIES, PROMPT, REPLY, joined
from personaspace.stats.vectors import blocks_of
from personaspace.watcher import Plan, Watcher


class Mapper:
    """One map of one model into one folder."""

    def __init__(
        self, engine: Engine, catalog: Catalog, out: str | Path, options: MapOptions, watcher: Watcher | None = None
    ) -> None:
        if options.layer is not None and options.layer >= engine.info.layers:
            raise UsageError(f"layer={options.layer}: {engine.info.id} has layers 0 to {engine.info.layers - 1}")
        if options.span not in (None, "answer"):
            check_span(options, engine)
        self.engine, self.catalog = engine, named(catalog, engine.info.id)
        self.run, self.watcher = Run(out), watcher or Watcher()
        manifest = self.run.manifest() if self.run.exists else {}
        # What a run has no replies of yet may still be decided.
        self.options = options.resolved(manifest["config"] if manifest.get("rounds") else None, self.catalog)
        # The layers whose activations stay beside the sums; None where there are no sums.
        self.kept_layers: range | None = None
        if options.keep != "all":
            layers = engine.info.layers
            first, last = (int(x) for x in options.keep.split(":")[1:]) if options.keep != "sums" else (0, 0)
            if options.keep != "sums" and not first < last <= layers:
                raise UsageError(f"keep={options.keep}: the model has layers 0 to {layers - 1} (layers:0:{layers})")
            self.kept_layers = range(first, last)
        blocks = options.blocks or (None if self.kept_layers is None else BLOCKS)
        self.block_of = None if blocks is None else blocks_of(len(catalog.questions), blocks, options.seed)
        self.included: estimate.IncludedResponses | None = (
            None  # what the space's own reading was estimated from, once there is one
        )
        read = options.read
        self.stages = {r: self._stage(r) for r in (PROMPT, REPLY) if read in (r, "both")}
        asked_of_traits = (options.traits, options.trait_questions, options.seed)
        self.traits = TraitStage(self.run, self.engine, self.catalog, *asked_of_traits, self.watcher)

    def _stage(self, reading: str) -> Stage:
        options, prompt = self.options, reading == PROMPT
        return Stage(
            reading,
            self.run,
            self.engine,
            self.catalog,
            options.prompts if prompt else options.design,
            None if prompt else options.sampling,
            options.seed,
            self.kept_layers,
            self.block_of,
            None if prompt else options.min_responses,
            self.watcher,
            options.span or "answer",
        )

    def plan(self) -> dict[str, Plan]:
        """What the first round of each reading, and of traits, will take, without doing any of it; nothing is written."""
        plans = {}
        for reading, stage in self.stages.items():
            groups = assign(self.catalog, [stage.design.first_round(self.catalog)], stage.seed, stage.design.complete)
            plans[reading] = stage.plan(stage.cut(groups), set(stage.shards.done() if self.run.exists else ()))
        return {**plans, TRAITS: self.traits.plan_first()} if self.options.traits else plans

    def map(self, judge: Judge | None) -> PersonaSpace:
        """Maps until the design, or `until`, is fulfilled; writes space and report, and returns the space. Killed at any
        moment, the same call goes on from what is whole.

        >>> catalog = ps.load_catalog().select("ghost,bard,pirate")
        >>> mapper = Mapper(engine, catalog, "runs/three", MapOptions(read="prompt"))
        >>> mapper.map(judge=None).reading  # prompts are judged by nobody
        'prompt'
        """
        with self.run.locked():
            # 1) The run: begun, or gone on with where its configuration is the same.
            manifest = self._begin(judge)
            # 2) What is read. A reading that an earlier call finished stays in the space, as it is.
            for reading in (PROMPT, REPLY):
                stage = self.stages.get(reading) or self._stage(reading)
                if reading not in self.stages and stage.is_whole(manifest):
                    self.stages[reading] = stage
            stages = {r: self.stages[r] for r in (PROMPT, REPLY) if r in self.stages}
            # 3) Prompts first: replies' tokens are projected on the axis that those give, and never need replaying for caps.
            options = self.options
            included_by_reading: dict[str, estimate.IncludedResponses] = {}
            for reading, stage in stages.items():
                if (sparse := stage.design.sparseness(self.catalog)) and len(stages) == 1:
                    self.watcher.note(sparse)
                if reading == REPLY and PROMPT in included_by_reading and self.engine.projects_tokens:
                    stage.along = estimate.unit_axis(included_by_reading[PROMPT], self.engine.info.hidden)
                aim = None
                if options.until is not None and reading == next(iter(stages)):
                    # `until` speaks of prompts where they are read.
                    layer = estimate.deep_enough(self.engine.info.layers) if options.layer is None else options.layer
                    aim = Aim(options.until, options.prompt_budget if reading == PROMPT else options.budget, layer)
                included_by_reading[reading] = stage.read(manifest, judge, aim)
            self.included = included_by_reading[next(iter(included_by_reading))]
            # 4) Traits, which change nothing of what the others give.
            self.traits.ask(manifest)
            # 5) Estimates, caps, and the files.
            space = self._finish(included_by_reading, manifest, judge)
            if with_traits := self.traits.added_to(space, self.included, manifest):
                space = with_traits
                space.save(self.run.space_file)
                write_report(space, self.run.report_file)
            return space

    def _begin(self, judge: Judge | None) -> dict[str, Any]:
        """The run's manifest, begun or gone on with. Raises `RunMismatch`."""
        config = configuration(self.engine, self.catalog, self.options)
        # Sums cannot be judged or cut into blocks again: how they were is part of what the run is.
        if self.block_of is not None and self.kept_layers is not None:
            keep = {"activations": self.options.keep, "blocks": int(self.block_of.max()) + 1}
            config["keep"] = {**keep, "judge": judge.name if judge else "none"}
        if self.run.exists and not (manifest := self.run.manifest()).get("rounds"):
            # No reply was asked for yet: how they are to be asked for is still open.
            open_yet = ("design", "sampling", "span")
            manifest["config"] = {k: v for k, v in manifest["config"].items() if k not in open_yet}
            manifest["config"] |= {name: config[name] for name in open_yet if name in config}
            self.run.update(manifest)
        model = asdict(self.engine.info)
        # Who timed this map: seconds of another engine or machine say nothing of this one.
        timed_on = {
            "name": type(self.engine).__name__,
            "device": str(getattr(self.engine, "device", "")),
            "threads": torch.get_num_threads(),
        }
        metadata = {"model": model, "version": __version__, "engine": timed_on}
        manifest = self.run.begin(config, metadata)
        self.run.lies(manifest, self.options.shards)
        for note in self.run.notes:
            self.watcher.note(note)
        return manifest

    # -- the space ---------------------------------------------------------------------------------------------------

    def _finish(
        self,
        included_by_reading: Mapping[str, estimate.IncludedResponses],
        manifest: Mapping[str, Any],
        judge: Judge | None,
    ) -> PersonaSpace:
        """The space of what counts, written with its report; the one that is there where it was made from just that."""
        metas = {reading: self._meta(reading, manifest, judge) for reading in included_by_reading}
        made_from = {
            "config": manifest["config_hash"],
            **{
                reading: {"kept": included.counts, "left_out": included.left_out, "history": metas[reading]["history"]}
                for reading, included in included_by_reading.items()
            },
            "layer": self.options.layer,
            "judge": metas[REPLY]["judge"] if REPLY in metas else None,
            "version": __version__,
            **({"blocks": self.options.blocks} if self.options.blocks else {}),
            # Of shards that were broken once, nobody knows what was made from them meanwhile.
            **({"done_again": manifest["done_again"]} if "done_again" in manifest else {}),
        }
        # What an earlier call made from the same replies stays, with what calibration has added to it; another version's, or
        # a broken one, is made again.
        if self.run.space_file.is_file() and self.run.report_file.is_file():
            try:
                existing = PersonaSpace.load(self.run.space_file)
            except SpaceError as e:
                self.watcher.note(
                    f"{str(e).partition('; ')[0]}; it is made again, without what calibration has added to it"
                )
            else:
                if existing.meta.get("made_from") == json.loads(json.dumps(made_from)):
                    return existing
        began = time.monotonic()
        layer, seed = self.options.layer, self.options.seed
        if layer is None and len(included_by_reading) > 1:
            # Replies are what is watched and held, along the prompts' axis.
            axis = estimate.unit_axis(included_by_reading[PROMPT], self.engine.info.hidden)
            layer = estimate.layer_of_replies(included_by_reading[REPLY], axis, seed)
        spaces = {
            reading: estimate.estimate(included, layer, seed, metas[reading])
            for reading, included in included_by_reading.items()
        }
        space = spaces[PROMPT] if PROMPT in spaces else spaces[REPLY]
        if PROMPT in spaces:
            space = self._with_replies(space, spaces.get(REPLY), included_by_reading)
        space.meta["layer_chosen"] = "auto" if self.options.layer is None else "given"
        space.meta["made_from"] = made_from
        # Two exchanges of each role, as question and reply, for the report.
        samples: dict[str, list[list[str]]] = {}
        for shard in self.run.done():
            for row in self.run.read(shard, ["role", "user", "text"]).to_pylist():
                if len(samples.setdefault(row["role"], [])) < 2 and row["text"].strip():
                    samples[row["role"]].append([row["user"], row["text"].strip()[:400]])
        space.meta["samples"] = samples
        space.meta["seconds"]["estimates"] = time.monotonic() - began
        if REPLY in spaces:
            space = self._with_caps(space)
        space.save(self.run.space_file)
        write_report(space, self.run.report_file)
        return space

    def _with_replies(
        self,
        space: PersonaSpace,
        replies: PersonaSpace | None,
        included_by_reading: Mapping[str, estimate.IncludedResponses],
    ) -> PersonaSpace:
        """The space of prompts with what is known of replies: how they lie on its axis, and their own reading beside it."""
        # How prompts spread along the axis is no scale for replies, and what has no replies yet has none.
        tensors = {name: t for name, t in space.tensors.items() if name not in OF_REPLIES}
        meta = {k: v for k, v in space.meta.items() if k != "histogram"}
        if replies is None:
            return PersonaSpace(meta, tensors)
        reply_tensors, meta["histogram"] = estimate.on_replies(
            included_by_reading[REPLY], space.tensors["axis"], space.layer
        )
        meta["judge"] = replies.meta["judge"]
        seed = self.options.seed
        if agreed := agreement.of_orders(included_by_reading[PROMPT], included_by_reading[REPLY], space.layer, seed):
            meta["readings_agree"] = agreed
        joint = PersonaSpace(*joined((meta, {**tensors, **reply_tensors}), (replies.meta, replies.tensors)))
        joint.meta["nearest"] = estimate.own_role_near(included_by_reading[REPLY], joint)
        return joint

    def _with_caps(self, space: PersonaSpace) -> PersonaSpace:
        """The space with caps: from tokens that were projected on its axis while the replies were given, or else from a sample
        of replies that are replayed, as calibration does. Without them where there are too few, or an engine cannot."""
        axis = space.tensors["axis"]
        default, roles, names = calibrate.projections_while_mapping(self.run, axis / axis.norm(dim=-1, keepdim=True))
        layers = calibrate.default_range(len(axis))
        if min(len(default), len(roles)) >= calibrate.LEAST:
            capped_space = calibrate.with_caps(space, default, roles, layers, names)
        else:
            # Replies alone give the axis at the end only: nobody could project on it before.
            try:
                sample = calibrate.draw_sample(self.run, seed=self.options.seed)
                n_default, n_roles = len(sample.default), len(sample.roles)
                self.watcher.note(f"caps: replaying {n_default} default and {n_roles} role replies")
                capped_space = calibrate.calibrate(self.engine, space, sample, layers)
            except (DesignError, OutOfMemory, UsageError) as e:
                self.watcher.note(f"no caps yet: {e}; `personaspace calibrate` makes them once that is so")
                return space
        name, _ = calibrate.named_cap(capped_space, "default", 25, layers)
        return calibrate.recommended(capped_space, name, {"because": calibrate.WITHOUT_SWEEP})

    def _meta(self, reading: str, manifest: Mapping[str, Any], judge: Judge | None) -> dict[str, Any]:
        """What a space's metadata say of how a reading was made."""
        stage, config = self.stages[reading], manifest["config"]
        rounds = stage.counted_rounds
        scores = [s.score for s in self.run.scores_of(judge.name).values()] if judge and reading == REPLY else []
        catalog = {k: v for k, v in config["catalog"].items() if k != "roles"}
        requested = {name: sum(r.get(name, 0) for r in rounds) for name in {n: None for r in rounds for n in r}}
        return {
            "reading": reading,
            "model": manifest["model"],
            "catalog": {"name": self.catalog.name, **catalog},
            "descriptions": {r.role: r.description for r in self.catalog.roles},
            "design": config["design"] if reading == REPLY else stage.design.model_dump(),
            "sampling": config["sampling"],
            "seed": self.options.seed,
            **({"span": config["span"]} if "span" in config else {}),
            "version": manifest["version"],
            "judge": {
                "name": judge.name if judge else "none",
                "scores": {str(s): scores.count(s) for s in range(4)} if judge else None,
            }
            if reading == REPLY
            else None,
            "n_responses": sum(requested.values()),
            "asked": requested,
            "history": manifest.get(stage.key("history"), []),
            "seconds": {"responses": manifest[stage.key("seconds")]},
        }
