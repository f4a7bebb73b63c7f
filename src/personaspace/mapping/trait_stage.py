"""A map's reading of traits, from which prompts are there to what the space says of each trait."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from personaspace.catalog import Catalog, Trait
from personaspace.engines import Engine
from personaspace.engines.prompts import Design, Prompt
from personaspace.errors import RunMismatch, SpaceError
from personaspace.mapping import estimate
from personaspace.mapping.stages import Stage, total_asked
from personaspace.mapping.traits import QUESTIONS, TraitReadings, check_questions, chosen_traits, trait_prompts
from personaspace.runs import Run, Shards
from personaspace.space import PersonaSpace
from personaspace.space.readings import PROMPT
from personaspace.space.traits import FIGURES, with_traits
from personaspace.stats import reliability
from personaspace.stats.contrasts import cosines_with
from personaspace.stats.forecast import spearman_brown
from personaspace.watcher import Plan, Watcher


class TraitStage(Stage):
    """Traits' prompts of a run: rounds and shards of their own, as a reading has them. selection: which traits, as
    `chosen_traits` has it; None: those that the run was asked for already. questions: of each; None: as the run's, or
    `QUESTIONS`."""

    def __init__(
        self,
        run: Run,
        engine: Engine,
        catalog: Catalog,
        selection: str | None,
        questions: int | None,
        seed: int,
        watcher: Watcher,
    ) -> None:
        super().__init__(PROMPT, run, engine, catalog, Design(), None, seed, None, None, None, watcher)
        self.selection, self.questions = selection, questions
        self.earlier: PersonaSpace | None = None  # the space as it was before
        self.places: dict[str, int] = {}
        self.texts: dict[str, Trait] = {}
        if selection or run.exists:
            for place, trait in chosen_traits("all", catalog).items():
                self.places[trait.trait], self.texts[trait.trait] = place, trait
        self.selected = [t.trait for t in chosen_traits(selection, catalog).values()] if selection else []
        if questions is not None:
            check_questions(questions, catalog)

    @property
    def shards(self) -> Shards:
        return self.run.trait_onsets

    @property
    def units(self) -> str:
        return "prompts of traits"

    def key(self, name: str) -> str:
        """Under which name `run.json` keeps the traits' rounds or seconds."""
        return f"trait_{name}"

    def _prompts(self, rounds: Sequence[Mapping[str, int]]) -> list[list[Prompt]]:
        counts = dict.fromkeys(self.places, 0)
        groups = []
        for questions_of in rounds:
            group: list[Prompt] = []
            for name, n in questions_of.items():
                if name not in self.texts:
                    raise RunMismatch(
                        f"{self.run.folder}: it read the trait {name!r}, which the catalogue {self.catalog.name} lacks; give "
                        "the same catalogue, or another folder"
                    )
                pairs = range(counts[name], counts[name] + n)
                group += trait_prompts(self.places[name], self.texts[name], self.catalog, pairs, self.seed)
                counts[name] += n
            groups.append(group)
        return groups

    def _rounds(self, manifest: Mapping[str, Any]) -> list[dict[str, int]]:
        """The run's rounds, and one more for what is asked for now."""
        rounds: list[dict[str, int]] = [dict(r) for r in manifest.get(self.key("rounds"), [])]
        requested = total_asked(rounds)
        questions = self.questions or max(requested.values(), default=min(QUESTIONS, len(self.catalog.questions)))
        missing = {name: questions - requested[name] for name in self.selected if questions > requested[name]}
        return [*rounds, missing] if missing else rounds

    def plan_first(self) -> Plan:
        """What is left to do of what is asked for; nothing is written."""
        manifest = self.run.manifest() if self.run.exists else {}
        work = self.cut(self._prompts(self._rounds(manifest)))
        return self.plan(work, set(self.shards.done() if self.run.exists else ()))

    def ask(self, manifest: dict[str, Any]) -> None:
        """Reads what is not there yet of what is asked for. Raises `RunMismatch` where texts changed since some were read."""
        with contextlib.suppress(SpaceError):
            self.earlier = PersonaSpace.load(self.run.space_file) if self.run.space_file.is_file() else None
        if not self.selected:
            return
        rounds = self._rounds(manifest)
        digests = {n: _digest(self.texts[n]) for n in total_asked(rounds) if n in self.texts}
        before = manifest.get(self.key("texts"), {})
        if changed := [n for n, digest in digests.items() if before.get(n, digest) != digest]:
            raise RunMismatch(
                f"{self.run.folder}: the trait {changed[0]} was read with other texts than the catalogue's; give the same "
                "catalogue, or another folder"
            )
        manifest[self.key("rounds")], manifest[self.key("texts")] = rounds, digests
        self.run.update(manifest)
        spent = self._ask(self._prompts(rounds), None, manifest)
        manifest[self.key("seconds")] = manifest.get(self.key("seconds"), 0.0) + spent
        self.run.update(manifest)

    def added_to(
        self, space: PersonaSpace, included: estimate.IncludedResponses, manifest: Mapping[str, Any]
    ) -> PersonaSpace | None:
        """The space with the traits that were read, and with those from descriptions that the earlier one had; None where it
        has all of them already. included: what its own reading was estimated from."""
        with_read = self._with_read(space, included, manifest) or space
        described = []
        if self.earlier and self.earlier.layer == space.layer:
            records = self.earlier.meta.get("trait_records", {})
            described = [n for n in self.earlier.traits if records.get(n, {}).get("from") and n not in with_read.traits]
        if described and self.earlier:
            rows = [self.earlier.traits.index(name) for name in described]
            vectors, earlier = self.earlier.tensors["trait_vectors"][rows], self.earlier.tensors
            # Cosines with the axis go by the axis that was.
            staying = [n for n in FIGURES if n != "trait_cosine" and n in earlier]
            figures = {n: earlier[n][rows] for n in staying}
            with_read = with_traits(
                with_read, described, vectors, figures, {n: {**records[n], "clear": None} for n in described}
            )
        return None if with_read is space else with_read

    def _with_read(
        self, space: PersonaSpace, included: estimate.IncludedResponses, manifest: Mapping[str, Any]
    ) -> PersonaSpace | None:
        if not self.is_whole(manifest):
            return None
        rounds = manifest[self.key("rounds")]
        made_from = hashlib.sha256(
            json.dumps(
                [
                    manifest["config_hash"],
                    rounds,
                    manifest[self.key("texts")],
                    space.layer,
                    manifest.get("done_again", 0),
                ]
            ).encode()
        ).hexdigest()[:16]
        if space.meta.get("traits_made_from") == made_from and set(total_asked(rounds)) <= set(space.traits):
            return None
        names = list(total_asked(rounds))
        layers, hidden = space.tensors["axis"].shape
        per_pass = max(1, estimate.SUMS_MEMORY // (4 * hidden * 2 * sum(total_asked(rounds).values())))
        vectors: list[Tensor] = []
        for first in range(0, layers, per_pass):
            vectors.append(self.readings(rounds, range(first, min(layers, first + per_pass))).vectors())
        at_layer = self.readings(rounds, range(space.layer, space.layer + 1))
        noise = axis_noise(included, space.layer, self.seed)
        space = with_contrasts(
            space, at_layer, torch.cat(vectors, 1), {n: self.texts[n].definition for n in names}, noise
        )
        space.meta["traits_made_from"] = made_from
        space.meta["seconds"] = {**space.meta.get("seconds", {}), "traits": manifest.get(self.key("seconds"), 0.0)}
        space.meta["asked_of_traits"] = dict(total_asked(rounds))
        return space

    def readings(self, rounds: Sequence[Mapping[str, int]], layers: range) -> TraitReadings:
        """What was read of some layers, from the shards."""
        numbers = range(len(self.cut(self._prompts(rounds))))
        return TraitReadings.collected(layers, list(total_asked(rounds)), self._rows(numbers, layers))

    def _rows(self, numbers: Sequence[int], layers: range) -> Iterator[tuple[str, int, int, int, Tensor]]:
        for shard in numbers:
            columns = self.shards.read(shard, ["role", "index", "question", "instruction"]).to_pydict()
            activations = self.shards.tensors(shard, "activations", slice(layers.start, layers.stop))
            yield from zip(
                *(columns[name] for name in ("role", "index", "question", "instruction")), activations, strict=True
            )


def _digest(trait: Trait) -> str:
    return hashlib.sha256(json.dumps([trait.bring_out, trait.suppress]).encode()).hexdigest()[:8]


def axis_noise(included: estimate.IncludedResponses, layer: int, seed: int) -> np.ndarray:
    """Draws of the error of an axis at a layer, `[draws, hidden]`: half the difference of the axes of two halves of the
    questions, which share no noise. None where no halves can be made."""
    layers = slice(layer, layer + 1)
    pairs = reliability.split_fits(included.cells, estimate.SPLITS, seed)
    sums, ratios = included.source.sums(included.cells, layers), estimate.variance_ratios(included, layers)
    draws = [(a.axis(sums, ratios) - b.axis(sums, ratios))[0].double().numpy() / 2 for a, b in pairs]
    return np.stack(draws) if draws else np.zeros((0, sums.shape[-1]))


def with_contrasts(
    space: PersonaSpace,
    readings: TraitReadings,
    vectors: Tensor,
    descriptions: Mapping[str, str],
    noise: np.ndarray,
    records: Mapping[str, Mapping[str, Any]] | None = None,
) -> PersonaSpace:
    """The space with traits as they were read at its layer; vectors: at every layer, `[traits, layers, hidden]`. noise: draws
    of the axis' error, `[draws, hidden]`; records: what is to be said of a trait besides. Raises `SpaceError` where the
    space does not know how sure its axis is."""
    if not space.knows_axis_reliability:
        raise SpaceError(
            "this space does not say how sure its axis is, so no cosine with it can be told; map the model"
        )
    half = float(space.tensors["axis_split_half"][space.layer])
    contrasts = [readings.contrast(name, space.layer) for name in readings.names]
    reliability = float(np.nan_to_num(spearman_brown(half)))
    axis = space.tensors["axis"][space.layer].double().numpy()
    on_axis = cosines_with(contrasts, axis, noise, reliability)
    figures = {
        "trait_reliability": torch.tensor([c.reliability() for c in contrasts]),
        "trait_reliability_by_wording": torch.tensor([c.reliability_by_wording() for c in contrasts]),
        "trait_cosine": torch.tensor([[e.value, e.low, e.high] for e in on_axis.cosine]),
    }
    all_records = {
        name: {
            "description": descriptions.get(name, ""),
            "clear": bool(on_axis.clear[k]),
            "of": len(contrasts),
            "questions": len(contrasts[k].differences),
            "wordings": len(np.unique(contrasts[k].wording)),
            "interval_over": on_axis.over,
            **(records or {}).get(name, {}),
        }
        for k, name in enumerate(readings.names)
    }
    return with_traits(space, readings.names, vectors, figures, all_records)
