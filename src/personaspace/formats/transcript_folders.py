"""Reads a folder of conversations laid out like the study's: by their names, which two are one conversation, plain and held,
and of what domain each is. It knows of a file what `transcripts` says."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from personaspace.errors import UsageError
from personaspace.formats.transcripts import MOST_NAMED, Transcript, read_transcripts

PLAIN_WORDS = ("unsteered", "uncapped", "baseline", "plain")
HELD_WORDS = ("capped", "steered")
"""How a name says that nothing was done to the model, and that something was."""
DOMAINS = ("coding", "writing", "therapy", "philosophy")
"""The study's: a file that is called after one is of it."""
SUFFIXES = (".json", ".jsonl", ".txt")

_ARM = re.compile(rf"(?<![^\W_])(?:{'|'.join((*PLAIN_WORDS, *HELD_WORDS))})(?![^\W_])", re.IGNORECASE)


@dataclass(frozen=True)
class PlacedTranscript:
    """A conversation and what its file's name says of it. subject: the name without the word for what was done to the model,
    which a pair's two have in common; arm: that word, empty where there is none; sure: whether its number in its file is, so
    that it may be set beside that of another."""

    transcript: Transcript
    subject: str
    domain: str
    arm: str = ""
    sure: bool = True

    @property
    def is_held(self) -> bool:
        """Whether the model was held while it spoke."""
        return self.arm in HELD_WORDS


@dataclass(frozen=True)
class TranscriptFolder:
    """A folder's conversations, in the order of their names, and what of it was not read: a sentence each."""

    conversations: Sequence[PlacedTranscript]
    notes: Sequence[str]

    def pairs(self) -> tuple[list[tuple[PlacedTranscript, PlacedTranscript]], list[str]]:
        """Each conversation that was had plain and held, as (plain, held); and a sentence for each that has no such partner,
        or several, though its name says what was done to the model."""
        by_subject: dict[str, list[PlacedTranscript]] = defaultdict(list)
        for place in self.conversations:
            if place.arm:
                by_subject[place.subject].append(place)
        pairs, alone = [], []
        for subject, places in by_subject.items():
            free = [p for p in places if not p.is_held]
            by_arm = {arm: [p for p in places if p.arm == arm] for arm in HELD_WORDS}
            partners = [members for members in by_arm.values() if members]
            arms = ", ".join(p.arm for p in places)
            if not all(p.sure for p in places):
                alone.append(f"{subject}: in no pair, since of its file some conversations were not read")
            elif len(free) == 1 and partners and all(len(members) == 1 for members in partners):
                pairs += [(free[0], members[0]) for members in partners]
            else:
                alone.append(
                    f"{subject}: in no pair, for which it has to be there once plain and once held; found {arms}"
                )
        return pairs, shortened(alone, "are in no pair")


def read_transcript_folder(path: str | Path) -> TranscriptFolder:
    """All conversations in a folder and those in it, as `transcripts/case_studies/MODEL/jailbreak_capped.json` or
    `transcripts/MODEL/coding/3.json`. Two whose names differ by `unsteered` and `capped` or `steered` alone, in the file's
    or in a folder's, are one conversation. What a conversation is about is said by the folder that it is in, and by its
    file's name where one of the study's domains is in that. A file that cannot be read is named in the notes. Raises
    `UsageError` where there is none that can.

    >>> [(c.subject, c.arm) for c in read_transcript_folder("transcripts").conversations]
    [('case_studies/qwen-3-32b/jailbreak', 'capped'), ('case_studies/qwen-3-32b/jailbreak', 'unsteered')]
    """
    root = Path(path)
    conversations: list[PlacedTranscript] = []
    notes: list[str] = []
    for file in sorted(root.rglob("*")):
        inside = file.relative_to(root)
        if file.suffix.lower() not in SUFFIXES or not file.is_file() or any(p.startswith(".") for p in inside.parts):
            continue
        try:
            content = read_transcripts(file)
        except UsageError as e:
            notes.append(f"{e}; not read")
            continue
        notes += content.notes
        complete = not any(note.endswith("not read") for note in content.notes)
        name = inside.with_suffix("").as_posix()
        arms = [word.lower() for word in _ARM.findall(name)]
        subject = _without_arm(name)
        for transcript in content.conversations:
            # A pair's two are the same ones of as many.
            number = transcript.name.removeprefix(file.stem)
            number = number and f"{number} of {len(content.conversations)}"
            conversations.append(
                PlacedTranscript(
                    Transcript(name + number, transcript.messages),
                    subject + number,
                    _domain(root, inside),
                    arms[-1] if arms else "",
                    complete,
                )
            )
    if not conversations:
        reason = f"; {notes[0]}" if notes else ""
        raise UsageError(f"{root}: no conversation in this folder, expected files in {', '.join(SUFFIXES)}{reason}")
    return TranscriptFolder(conversations, shortened(notes, "were not read, or not whole"))


def shortened(sentences: Sequence[str], verb: str) -> list[str]:
    """The first few sentences, and how many more there are."""
    more = len(sentences) - MOST_NAMED
    return [*sentences[:MOST_NAMED], *([f"{more:,} more {verb}"] if more > 0 else [])]


def _without_arm(name: str) -> str:
    """A file's path without the words for what was done to the model, and without what joined them to the rest."""
    parts = (re.sub(r"([_\-. ])[_\-. ]+", r"\1", _ARM.sub("", part)).strip("_-. ") for part in name.split("/"))
    return "/".join(part for part in parts if part) or name


def _domain(root: Path, inside: Path) -> str:
    parents = _without_arm(inside.parent.as_posix()) if inside.parent.parts else ""
    parents = "" if _ARM.fullmatch(parents) else parents
    words = re.split(r"[\W_]+", inside.stem.lower())
    of_study = next((domain for domain in DOMAINS if domain in words), "")
    if of_study in parents.lower().split("/"):
        of_study = ""
    return "/".join(part for part in (parents, of_study) if part) or root.resolve().name
