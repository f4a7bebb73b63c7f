"""One reading of a run, from who is asked to what counts: prompts that are read before the first word, or replies.

Each has its own rounds in `run.json`, its own shards and its own sums, so that either may be added to a run that has the other.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from personaspace.catalog import DEFAULT, Catalog
from personaspace.engines import Engine
from personaspace.engines.prefix import unshared_length
from personaspace.engines.prompts import Design, Prompt, Sampling, assign, next_round, shards
from personaspace.engines.thoughts import Part
from personaspace.errors import RunMismatch
from personaspace.judges import Judge
from personaspace.mapping import estimate
from personaspace.mapping.ask import ShardTask, answer, check_summed, judged
from personaspace.mapping.pace import Pace, measure
from personaspace.mapping.plan import ONSET_SHARD, SHARD, bytes_per_response
from personaspace.mapping.sums import FromActivations, FromSums, Responses, Source, Sums
from personaspace.runs import Run, Shards
from personaspace.space.readings import PROMPT
from personaspace.stats.vectors import Ints
from personaspace.watcher import Plan, Watcher

FOLD = 1 << 30
"""Bytes of activations that may wait to be summed; where the sums are larger than that, as many as they are."""

POSSESSIVE = {"axis": "the axis'", "order": "the order's", "map": "the map's"}

FIRST_LOOK = 64
"""Roles, and prompts of the default, of a first look at the axis."""

GROWTH = 4
"""How many first rounds `until` may spend where no budget is given."""

Rounds = Sequence[Mapping[str, int]]


@dataclass(frozen=True)
class Aim:
    """When a reading is enough: reliabilities by name (`axis`, `order`, `map`) that it should reach at a layer, and how many
    readings that may cost."""

    until: Mapping[str, float]
    budget: int | None
    layer: int


class Stage:
    """A reading of a run. sampling None: prompts, which nobody judges. kept_layers, block_of: where sums stand in place of
    activations, the layers that stay beside them, and each question's block. min_responses: what a role needs; half of what it
    was asked unless given. span: which part of replies is read."""

    def __init__(
        self,
        reading: str,
        run: Run,
        engine: Engine,
        catalog: Catalog,
        design: Design,
        sampling: Sampling | None,
        seed: int,
        kept_layers: range | None,
        block_of: Ints | None,
        min_responses: int | None,
        watcher: Watcher,
        span: Part = "answer",
    ) -> None:
        self.reading, self.run, self.engine, self.catalog = reading, run, engine, catalog
        self.design, self.sampling, self.seed, self.watcher = design, sampling, seed, watcher
        self.kept_layers, self.block_of, self.min_responses = kept_layers, block_of, min_responses
        self.span = span
        self.counted_rounds: Rounds = []
        self.pace: Pace | None = None  # measured once
        self.checked: set[int] = set()  # shards that this process has seen to be well, or has asked itself
        self.along: Tensor | None = None  # directions `[layers, hidden]` that replies' tokens are projected on

    @property
    def shards(self) -> Shards:
        return self.run.onsets if self.reading == PROMPT else self.run

    @property
    def sums(self) -> Sums | None:
        if self.kept_layers is None or self.block_of is None:
            return None
        folder = self.run.folder / ("onset-sums" if self.reading == PROMPT else "sums")
        return Sums(self.shards, folder, 1 + len(self.catalog.roles), self.block_of, self.kept_layers)

    @property
    def units(self) -> str:
        return "prompts" if self.reading == PROMPT else "responses"

    def key(self, name: str) -> str:
        """Under which name `run.json` keeps this reading's rounds, history or seconds."""
        return f"onset_{name}" if self.reading == PROMPT else name

    def read(self, manifest: dict[str, Any], judge: Judge | None, aim: Aim | None) -> estimate.IncludedResponses:
        """Asks what is not there yet, round by round until the aim is reached, and returns what counts. Each round stands in
        the manifest before it is asked."""
        rounds: list[dict[str, int]] = manifest.setdefault(self.key("rounds"), [])
        first_round = self.design.first_round(self.catalog)
        if not rounds:
            if aim is not None and self.reading == PROMPT and list(aim.until) == ["axis"]:
                # For the axis alone a sample of roles is enough to see how far there is to go; order and map need all of them.
                roles = [name for name in first_round if name != DEFAULT]
                sampled_roles = roles[:: -(-len(roles) // FIRST_LOOK)]
                default = min(len(sampled_roles), first_round[DEFAULT])
                first_round = {DEFAULT: default, **dict.fromkeys(sampled_roles, 1)}
            rounds.append(first_round)
        elif not aim:
            # What an aim was content with may be less than the design asks for, and so may an earlier call's design.
            requested = total_asked(rounds)
            missing = {name: n - requested[name] for name, n in first_round.items() if n > requested[name]}
            if self.reading == PROMPT and missing:
                rounds.append(missing)
        self.run.update(manifest)
        # Without an aim, everything that was asked counts; with one, it is looked at round by round. Sums hold all rounds.
        first = 0 if aim and not self.sums else len(rounds) - 1
        history: list[dict[str, float]] = manifest.get(self.key("history"), [])
        history = history[:first] if aim else history
        if sums := self.sums:
            if fault := sums.fault():
                self.watcher.note(f"{fault}; the sums are made again, and asked is what they alone were of")
                self._count_again(manifest)
                sums.discard()
            # A call that was killed may have left activations that are in the sums, or half of a generation.
            sums.settle()
            if judge and self.reading != PROMPT and sums.state().shards:
                check_summed(self.run, self.catalog, judge)
        spent = 0.0
        for k in itertools.count(first):
            groups = self._prompts(rounds[: k + 1])
            spent += self._ask(groups, judge, manifest)
            # What counts so far: of sums what they hold, else the replies of these rounds that the judge keeps.
            names = [r.role for r in self.catalog.roles]
            asked_of = dict.fromkeys((DEFAULT, *names), 0)
            for prompt in itertools.chain.from_iterable(groups):
                asked_of[prompt.role] += 1
            source: Source
            if sums:
                source = FromSums(sums)
            else:
                responses = self._responses(range(len(self.cut(groups))), judge)
                source = FromActivations(
                    self.shards, responses, 1 + len(names), len(self.catalog.questions), self.block_of
                )
            included = estimate.included_responses(source, names, asked_of, self.min_responses)
            next_counts = self._next(included, rounds[: k + 1], history, aim) if aim else None
            if next_counts is None:
                break
            if len(rounds) == k + 1:
                rounds.append(next_counts)
            manifest[self.key("history")] = history
            self.run.update(manifest)
        self.counted_rounds = rounds[: k + 1]
        manifest[self.key("seconds")] = manifest.get(self.key("seconds"), 0.0) + spent
        manifest[self.key("history")] = history
        self.run.update(manifest)
        return included

    def is_whole(self, manifest: Mapping[str, Any]) -> bool:
        """Whether an earlier call asked for this reading, and all of it is there."""
        rounds: Rounds = manifest.get(self.key("rounds"), [])
        return bool(rounds) and set(self.shards.done()) >= set(range(len(self.cut(self._prompts(rounds)))))

    # -- asking ------------------------------------------------------------------------------------------------------

    def _prompts(self, rounds: Rounds) -> list[list[Prompt]]:
        return assign(self.catalog, rounds, self.seed, self.design.complete)

    def cut(self, groups: Sequence[Sequence[Prompt]]) -> list[list[Prompt]]:
        """The shards of each round's prompts."""
        size = ONSET_SHARD if self.reading == PROMPT else SHARD
        return [s for k, g in enumerate(groups) for s in shards(g, size, self.seed + k)]

    def _sound(self, work: Sequence[Sequence[Prompt]], manifest: dict[str, Any]) -> set[int]:
        """The shards that are there and are what was written; one that is not is named, and let go of. Raises `RunMismatch`
        where one answers other prompts than these."""
        done = set(self.shards.done())
        summed = set(self.sums.state().shards) if self.sums else set()
        for shard in sorted((done | set(self.shards.lost())).intersection(range(len(work))) - self.checked):
            # What is in the sums needs no activations, but for the layers that stay.
            needed = shard not in summed or bool(self.kept_layers)
            if fault := self.shards.fault(shard, needed):
                self.watcher.note(f"{fault}; its {len(work[shard])} {self.units} are asked again")
                self._count_again(manifest)
                if self.reading != PROMPT:
                    self.run.drop_scores({(p.role, p.index) for p in work[shard]})
                self.shards.discard(shard)
                done.discard(shard)
                continue
            columns = self.shards.read(shard, ["role", "index", "question"]).to_pydict().values()
            if set(zip(*columns, strict=True)) != {(p.role, p.index, p.question) for p in work[shard]}:
                raise RunMismatch(
                    f"{self.shards.place.root}: shard {shard} answers other prompts than this run asks; give another folder or "
                    "another place for shards"
                )
            self.checked.add(shard)
        return done

    def _count_again(self, manifest: dict[str, Any]) -> None:
        """Notes in the run that something of it was broken: what was made from it is made again."""
        manifest["done_again"] = manifest.get("done_again", 0) + 1
        self.run.update(manifest)

    def _ask(self, groups: Sequence[Sequence[Prompt]], judge: Judge | None, manifest: dict[str, Any]) -> float:
        """Asks what is not there yet, and sums what is too big to keep; returns the seconds that asking took."""
        work = self.cut(groups)
        done = self._sound(work, manifest)
        total, done_count = sum(map(len, work)), sum(len(s) for k, s in enumerate(work) if k in done)
        missing = [k for k in range(len(work)) if k not in done]
        spent = 0.0
        if missing:
            if type(self.watcher) is not Watcher:  # a forecast takes a second or two: for somebody who is told
                self.watcher.planned(self.plan(work, done))
            place = self.shards.place
            address = place.root if place.local is None else str(place.local.absolute())
            tasks = [ShardTask(k, work[k], self.sampling, address, self.along, self.span) for k in missing]
            began = time.monotonic()
            sizes: Iterable[int]
            if spread := getattr(self.engine, "spread", None):
                # Workers elsewhere write shards; each is told of once it is whole.
                sizes = (size for _, size in spread(answer, tasks))
            else:
                counter = itertools.count(done_count + 1)
                sizes = (answer(self.engine, t, lambda: self.watcher.progress(next(counter), total))[1] for t in tasks)
            for size in sizes:
                done_count += size
                self.watcher.progress(done_count, total)
                # Judging and summing is not asking: what a reading cost is told without.
                spent += time.monotonic() - began
                self._fold(judge, least=FOLD)
                began = time.monotonic()
            self.shards.clean_shards()
            self.checked.update(missing)
            if (sums := self.sums) and not set(missing).isdisjoint(sums.state().shards):
                sums.settle()  # asked again are layers that stay beside the sums, which hold the shard already
        self._fold(judge)
        return spent

    def _fold(self, judge: Judge | None, least: int = 0) -> None:
        """Judges and sums the shards that wait for it, once their activations are as large as `least` and the sums."""
        if not (sums := self.sums):
            return
        waiting = sorted(set(self.shards.done()) - set(sums.state().shards))
        model, size = self.engine.info, ONSET_SHARD if self.reading == PROMPT else SHARD
        if not waiting or (least and len(waiting) * size * 4 * model.layers * model.hidden < max(least, sums.bytes())):
            return
        sums.fold(self._responses(waiting, judge), waiting)

    def plan(self, work: Sequence[Sequence[Prompt]], done: set[int]) -> Plan:
        """What is left to do of these shards."""
        missing = [p for k, s in enumerate(work) if k not in done for p in s]
        sampled_shards = [s for k, s in enumerate(work) if k not in done]
        sampled_shards = sampled_shards[:: max(1, len(sampled_shards) // 3)]
        chat = getattr(self.engine, "chat", None)
        length = whole_length = 64.0
        if chat and sampled_shards:
            # A shared prefix is computed once.
            token_lists = [[chat.prompt_ids(p.messages) for p in shard] for shard in sampled_shards]
            length = sum(map(unshared_length, token_lists)) / sum(map(len, token_lists))
            whole_length = sum(len(ids) for lists in token_lists for ids in lists) / sum(map(len, token_lists))
        longest = self.sampling.max_new_tokens if self.sampling else 0
        model, new_tokens = self.engine.info, longest * len(missing)
        requested = sum(map(len, work))
        return Plan(
            what=self.units,
            responses=requested,
            done=requested - len(missing),
            prompt_tokens=int(length * len(missing)),
            new_tokens=new_tokens,
            seconds=self._seconds(sampled_shards, length, whole_length, len(missing)),
            bytes=len(missing) * bytes_per_response(model.layers, model.hidden, longest),
        )

    def _seconds(
        self, left: Sequence[Sequence[Prompt]], length: float, whole_length: float, responses: int
    ) -> float | None:
        """How long so many responses will take, to prompts of a mean length of which so much is their own; None where it cannot
        be known."""
        if not responses:
            return 0.0
        if self.pace is None:
            self.pace = measure(self.engine, left[0], self.sampling, together=max(map(len, left)), along=self.along)
        if self.pace is None:
            return None
        if self.span == "thinking" and self.sampling:  # what was said is read once more
            length += whole_length + self._reply_tokens()
        return self.pace.seconds(length * responses, responses * self._reply_tokens())

    def _reply_tokens(self) -> float:
        """How long a reply will be: as those that are there already, or else as long as it may be."""
        if self.sampling is None:
            return 0.0
        done = self.shards.done()[-3:] if self.run.exists else []
        lengths = [row["tokens"] for k in done for row in self.shards.read(k, ["tokens"]).to_pylist()]
        return sum(lengths) / len(lengths) if lengths else float(self.sampling.max_new_tokens)

    # -- what counts -------------------------------------------------------------------------------------------------

    def _responses(self, numbers: Sequence[int], judge: Judge | None) -> Responses:
        scores = None
        if judge and self.reading != PROMPT:
            if fault := self.run.drop_broken_scores(judge.name):
                self.watcher.note(f"{fault}; the replies are scored again")
            scores = judged(self.run, self.catalog, judge, numbers)
        # A reply that is cut short in its thoughts counts for nobody, also where thoughts are what is read.
        answered = self.reading != PROMPT and self.span != "answer"
        return Responses.read(self.shards, numbers, [r.role for r in self.catalog.roles], scores, self.seed, answered)

    # -- going on ----------------------------------------------------------------------------------------------------

    def _next(
        self, included: estimate.IncludedResponses, rounds: Rounds, history: list[dict[str, float]], aim: Aim
    ) -> dict[str, int] | None:
        """The next round where the aim is not reached; notes reliabilities against what was spent."""
        spent, first_round_size = sum(total_asked(rounds).values()), sum(self.design.first_round(self.catalog).values())
        values = estimate.reliabilities(included, aim.layer, self.seed, list(aim.until))
        order_and_map = {name: value for name, value in values.items() if name != "axis"}
        history.append({"responses": spent, "reliability": values["axis"], **order_and_map})
        figures = "; ".join(
            f"{POSSESSIVE[name]} reliability at layer {aim.layer} is {values[name]:.3f} (wanted {target})"
            for name, target in aim.until.items()
        )
        self.watcher.note(f"{spent} {self.units}: {figures}")
        budget_left = (aim.budget or GROWTH * first_round_size) - spent
        if all(values[name] >= target for name, target in aim.until.items()) or budget_left <= 0:
            return None
        if list(aim.until) == ["axis"]:
            unread = [r.role for r in self.catalog.roles if not included.counts[r.role]]
            if self.reading == PROMPT and unread:
                size = min(budget_left, spent)
                return {DEFAULT: max(1, size // 2), **dict.fromkeys(unread[: max(1, size - size // 2)], 1)}
            return next_round(included.counts, min(budget_left, max(1, first_round_size // 4)))
        # Order and map are the roles': all are asked equally often, the default as much more as the first round gave it.
        names = [r.role for r in self.catalog.roles]
        per_role = max(1, min(budget_left, first_round_size // 4) // len(names))
        default = round(per_role * rounds[0][DEFAULT] / max(1, rounds[0].get(names[0], 1)))
        next_counts = {
            DEFAULT: max(1, min(default, budget_left - per_role * len(names))),
            **dict.fromkeys(names, per_role),
        }
        return next_counts if sum(next_counts.values()) <= budget_left else None


def total_asked(rounds: Rounds) -> Counter[str]:
    """How much each name was asked in all rounds together."""
    total: Counter[str] = Counter()
    for counts in rounds:
        total.update(counts)
    return total
