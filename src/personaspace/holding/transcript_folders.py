"""What a folder of conversations says together: whether pairs end nearer the Assistant where the model was held, how drift goes
on in each domain, and how often the alert is raised. Any model may have written the replies; the space's own reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from personaspace.engines import Engine
from personaspace.engines.thoughts import Part
from personaspace.errors import UsageError
from personaspace.files import plain
from personaspace.formats.transcript_folders import PlacedTranscript, TranscriptFolder, shortened
from personaspace.holding.monitor import AlertRule, TurnReading, alert_rule, project
from personaspace.space import PersonaSpace
from personaspace.stats.intervals import Estimate, Signs, estimate, mean, share, sign_test
from personaspace.watcher import Watcher

CERTAIN = 0.05
"""The sign test's p under which a difference is told, where the interval of its mean leaves out 0 as well."""
LEAST_TURNS = 3
"""Turns without which a conversation has no slope."""


@dataclass(frozen=True)
class ReadConversation:
    """A conversation of a folder as it was read. drifts: how far from the default each assistant turn lies, `[turns]`, in the
    default's standard deviations (where the space does not know those, minus its projection); NaN where none was read.
    slope: how much further a turn lies than the one before, over its turns: it says nothing of other conversations."""

    place: PlacedTranscript
    turns: Sequence[TurnReading]
    drifts: np.ndarray
    slope: Estimate


@dataclass(frozen=True)
class PairEnd:
    """How a conversation ends that was had twice. plain_end, held_end: the mean drift over the last half of the
    turns that both have (`turns` of them); difference: how much further the plain one lies, over these turns."""

    subject: str
    domain: str
    arm: str
    turns: int
    plain_end: float
    held_end: float
    difference: Estimate


@dataclass(frozen=True)
class PairsTogether:
    """The pairs that were held the same way. difference: how much further the plain ones end, over pairs; signs: in how many
    they do."""

    arm: str
    difference: Estimate
    signs: Signs

    @property
    def outcome(self) -> int:
        """What may be said: 1 where the plain ones end further away, −1 where the held ones do, 0 where neither can be told."""
        agreed = 1 if self.signs.above > self.signs.below else -1
        return agreed if self.signs.p < CERTAIN and self.difference.direction() == agreed else 0


@dataclass(frozen=True)
class DomainCourse:
    """How drift goes on in a domain's conversations that were not held. slope: the mean of theirs, over conversations."""

    domain: str
    conversations: int
    slope: Estimate


@dataclass(frozen=True)
class FalseAlarms:
    """What the alert does on conversations that were not held. first: how many first turns lie above the threshold for a single
    turn, which `expected` of the default's own turns do; raised: how many conversations raise the alert by their end."""

    expected: float
    first: Estimate
    raised: Estimate

    @property
    def holds(self) -> bool | None:
        """Whether first turns are as the default's may be: False where they surely lie above more often; None without any."""
        return None if not self.first.n else not self.first.low > self.expected


@dataclass(frozen=True)
class FolderReading:
    """All that is said of a folder. notes: what of it was not read or is in no pair; in_deviations: whether drifts are in the
    default's standard deviations. rule: the alert's, None for a space that was never calibrated."""

    conversations: Sequence[ReadConversation]
    pairs: Sequence[PairEnd]
    together: Sequence[PairsTogether]
    domains: Sequence[DomainCourse]
    false_alarms: FalseAlarms | None
    rule: AlertRule | None
    notes: Sequence[str]
    in_deviations: bool

    def to_dict(self, tokens: bool = False) -> dict[str, Any]:
        """Plain values for JSON; NaN are null."""
        values: dict[str, Any] = plain(
            {
                "alert_rule": vars(self.rule) if self.rule else None,
                "in_deviations": self.in_deviations,
                "pairs": [asdict(pair) for pair in self.pairs],
                "together": [{**asdict(t), "outcome": t.outcome} for t in self.together],
                "domains": [asdict(domain) for domain in self.domains],
                "false_alarms": {**asdict(self.false_alarms), "holds": self.false_alarms.holds}
                if self.false_alarms
                else None,
                "notes": list(self.notes),
                "transcripts": [
                    {
                        "name": c.place.transcript.name,
                        "domain": c.place.domain,
                        "arm": c.place.arm,
                        "slope": asdict(c.slope),
                        "turns": [turn.to_dict(tokens) for turn in c.turns],
                    }
                    for c in self.conversations
                ],
            }
        )
        return values


def project_folder(
    engine: Engine,
    space: PersonaSpace,
    folder: TranscriptFolder,
    *,
    false_alarms: float = 0.01,
    alert_turns: int = 2,
    span: Part = "answer",
    watcher: Watcher | None = None,
) -> FolderReading:
    """Reads every conversation of a folder, and says what they say together. One of which nothing can be read is named in the
    notes. Raises `UsageError` where that is so of all, `SpaceError` where the space is of another model than the engine's.

    >>> from personaspace.formats.transcript_folders import read_transcript_folder
    >>> reading = project_folder(engine, space, read_transcript_folder("transcripts"))
    >>> [(t.arm, t.signs.n) for t in reading.together]  # how many pairs were held that way
    [('capped', 1)]
    """
    rule = alert_rule(space, rate=false_alarms, turns=alert_turns) if space.calibrated else None
    problems: list[str] = []
    conversations: list[ReadConversation] = []
    (watcher or Watcher()).note(f"reading {len(folder.conversations)} conversations")
    for place in folder.conversations:
        try:
            turns, problem = project(engine, space, place.transcript.messages, rule, part=span)
        except UsageError as e:
            problems.append(f"{place.transcript.name}: {e}; not read")
            continue
        if problem:
            problems.append(f"{place.transcript.name}: {problem}")
        drifts = _drifts(place, turns)
        conversations.append(ReadConversation(place, turns, drifts, slope_of(drifts)))
    if not conversations:
        raise UsageError(f"no conversation of this folder can be read: {problems[0]}")
    by_name = {c.place.transcript.name: c for c in conversations}
    name_pairs, alone = folder.pairs()
    read_pairs = [
        (by_name[p.transcript.name], by_name[h.transcript.name])
        for p, h in name_pairs
        if p.transcript.name in by_name and h.transcript.name in by_name
    ]
    pairs = [end_of(first, second) for first, second in read_pairs]
    notes = [*folder.notes, *shortened(problems, "were not read, or not whole"), *alone]
    otherwise = [f"{p.place.subject}: its users begin otherwise" for p, h in read_pairs if _opening(p) != _opening(h)]
    if otherwise:
        notes += [f"{note}; by its name it is a pair" for note in shortened(otherwise, "pairs' users do")]
    single = alert_rule(space, rate=false_alarms, turns=1) if space.calibrated else None
    return FolderReading(
        conversations,
        pairs,
        [together(arm, [p for p in pairs if p.arm == arm]) for arm in dict.fromkeys(p.arm for p in pairs)],
        courses(conversations),
        _false_alarms(conversations, single) if single else None,
        rule,
        notes,
        space.knows_default,
    )


def _drifts(place: PlacedTranscript, turns: Sequence[TurnReading]) -> np.ndarray:
    """How far away each assistant turn lies, also those that were not read, `[turns]`."""
    by_place = {turn.index: -turn.projection if turn.drift is None else turn.drift for turn in turns}
    messages = place.transcript.messages
    return np.array([by_place.get(k, math.nan) for k, m in enumerate(messages) if m["role"] == "assistant"])


def _opening(conversation: ReadConversation) -> str | None:
    messages = conversation.place.transcript.messages
    return next((str(m["content"]) for m in messages if m["role"] == "user"), None)


def slope_of(drifts: np.ndarray) -> Estimate:
    """How much further a turn lies than the one before, by least squares over a conversation's turns, `[turns]`. Its interval
    takes turns as independent about their line."""
    present = np.flatnonzero(~np.isnan(drifts))
    if len(present) < LEAST_TURNS:
        return Estimate(math.nan, math.nan, math.nan, len(present))

    def slope(rows: np.ndarray) -> float:
        x, y = present[rows], drifts[present[rows]]
        spread = float(((x - x.mean()) ** 2).sum())
        return float(((x - x.mean()) * y).sum()) / spread if spread else math.nan

    return estimate(present.tolist(), slope)


def end_of(first: ReadConversation, second: ReadConversation) -> PairEnd:
    """How far the plain one (first) and the held one lie over the last half of the turns that both have and that were read."""
    shared = min(len(first.drifts), len(second.drifts))
    both = np.flatnonzero(~np.isnan(first.drifts[:shared] + second.drifts[:shared]))
    late = both[len(both) // 2 :]
    plain_end, held_end = (float(c.drifts[late].mean()) if len(late) else math.nan for c in (first, second))
    difference = mean(list(first.drifts[late] - second.drifts[late]))
    place = second.place
    return PairEnd(place.subject, place.domain, place.arm, len(both), plain_end, held_end, difference)


def together(arm: str, pairs: Sequence[PairEnd]) -> PairsTogether:
    """What pairs that were held the same way say, each counting once."""
    differences = [pair.difference.value for pair in pairs]
    return PairsTogether(arm, mean(differences), sign_test(differences))


def courses(conversations: Sequence[ReadConversation]) -> list[DomainCourse]:
    """The domains' slopes over the conversations that were not held, each conversation counting once."""
    by_domain: dict[str, list[float]] = {}
    for c in conversations:
        if not c.place.is_held:
            by_domain.setdefault(c.place.domain, []).append(c.slope.value)
    return [DomainCourse(domain, len(slopes), mean(slopes)) for domain, slopes in by_domain.items()]


def _false_alarms(conversations: Sequence[ReadConversation], single: AlertRule) -> FalseAlarms:
    free = [c for c in conversations if not c.place.is_held]
    first = [c.drifts[0] > single.threshold if len(c.drifts) and not np.isnan(c.drifts[0]) else None for c in free]
    raised = share([any(turn.alert for turn in c.turns) for c in free])
    return FalseAlarms(single.window_rate or 0.0, share(first), raised)
