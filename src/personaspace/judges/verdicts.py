"""Reads a judge model's answer strictly: JSON first, else a line that is the verdict; thoughts are never read. Text alone.

>>> read_verdict("On a scale of 0 to 3, I give 3", top=3).score
3
>>> read_verdict("<think>\\nOkay, there are 2 things to", top=3).cut
True
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from personaspace.engines.thoughts import THOUGHT_MARKERS

ALONE = "Answer with the number alone."
"""How a rubric ends that asks for nothing but the score."""
LONGEST_REASON = 500
"""Characters of a reason that are kept."""
LONGEST_ANSWER = 400_000
MOST_BRACES = 50
"""Characters of an answer, and braces in it that may begin JSON, beyond which nobody meant to answer."""


@dataclass(frozen=True)
class Verdict:
    """What an answer says. score: None where it says none, with the problem; cut: it may be that there was no room to come to
    the point, so that asking again with more is worth it."""

    score: int | None
    reason: str = ""
    problem: str = ""
    cut: bool = False


def json_ending(top: int) -> str:
    """How an endpoint is asked to answer, in place of `ALONE`."""
    return f'Answer with JSON alone, the score a whole number from 0 to {top}: {{"score": …, "reason": "one short sentence"}}'


# -- thoughts ----------------------------------------------------------------------------------------------------------

_NAMES = r"(?:think|thinking|thoughts?|reason|reasoning|reflection|analysis|scratchpad)"
_OPENINGS, _CLOSINGS = (
    "|".join(re.escape(marker) for marker in markers)
    for markers in zip(*((m.opening, m.closing) for m in THOUGHT_MARKERS), strict=True)
)
# The models' own markers, and what else answers are seen to be written with.
_MARKER = re.compile(
    rf"(?P<opens><{_NAMES}(?:\s[^<>]{{0,80}})?>|{_OPENINGS}|<\|(?:thinking|think)\|>|<unused94>)"
    rf"|</{_NAMES}>|{_CLOSINGS}|<\|(?:/thinking|/think)\|>|<unused95>",
    re.IGNORECASE,
)
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]*<\|message\|>")
_SPECIAL = re.compile(r"<\|(?:end|return|start|im_end|eot_id|endoftext)\|>|</s>")


def without_thoughts(text: str) -> str | None:
    """What is said outside of thoughts; None where thoughts begin and never end."""
    channels = list(_CHANNEL.finditer(text))
    if channels:
        # Harmony: what counts is the last channel, where that is the final one.
        if channels[-1][1] != "final":
            return None
        text = text[channels[-1].end() :]
    parts: list[str] = []
    place, inside = 0, False
    for marker in _MARKER.finditer(text):
        if marker["opens"]:
            if not inside:
                parts.append(text[place : marker.start()])
            inside = True
        else:
            # A template may have opened the thoughts itself: what stands before a lone end is thought, too.
            if not inside:
                parts.clear()
            place, inside = marker.end(), False
    return None if inside else _SPECIAL.sub("", "\n".join([*parts, text[place:]]))


# -- the verdict -------------------------------------------------------------------------------------------------------

_DECORATION = re.compile(r"\\boxed\{\s*(-?\d+(?:\.\d+)?)\s*\}|[*_`$#]+")
_SCALES = re.compile(
    r"\bon (?:a|the|this) scale (?:of|from) \d+ ?(?:to|[-–—]) ?\d+\b|[\[(]\s*(?:from )?\d+ ?(?:to|[-–—]) ?\d+\s*[\])]",
    re.IGNORECASE,
)
_LABEL = r"(?:the |my |your |our |its |final |overall |total )*(?:score|rating|grade|verdict|answer|result)"
# What may follow a labelled score on its line: nothing, or a reason, never a second number as of a range.
_LABELLED = re.compile(
    rf"^{_LABEL}(?: is| of| would be)?\s*[:：=]?\s*(?:an? )?(?P<score>-?\d+(?:\.\d+)?)(?P<of>\s*(?:/|out of)\s*\d+)?"
    r"(?P<after>\s*$|[.,;:!)\]]*\s*$|[.,;]\s+\D.*|\s+[-–—(]+\s*\D.*|\s+(?:because|since|as)\b.*)",
    re.IGNORECASE,
)
_BARE = re.compile(r"^[\[({\"']?(?P<score>-?\d+(?:\.\d+)?)(?P<of>\s*(?:/|out of)\s*\d+)?[\])}\"']?[.!,;]?$")
_RESTATED = re.compile(r"^(?P<score>\d+)(?P<of>)\s*(?P<between>[-–—:.)=]|\()\s*\D.*$")
# A closed set of words: "I give it a clear 3", but not "I say there are 3".
_BETWEEN = (
    r"(?: (?:it|this|that|the|an?|is|be|it['’]s|reply|response|answer|one|score|rating|grade|of|as|at|with|to|clear|clearly|"
    r"solid|full|number|deserves|should|gets?|for|in|role|adherence|definitely)){0,8}"
)
_GIVES = re.compile(
    r"\b(?:I(?:['’]d| would| will|['’]ll| shall)? (?:\w+ ){0,2}?(?:give|rate|score|grade|assign|say|choose|pick|go with|award)"
    r"|(?:it|this|that|the (?:reply|response|answer))(?:['’]s| is| gets| receives| deserves| scores| rates| earns| merits)"
    rf"|{_LABEL}(?: is| would be| of|:))"
    rf"{_BETWEEN} (?P<score>-?\d+(?:\.\d+)?)(?P<of>\s*(?:/|out of)\s*\d+)?[.!\])\"']*$",
    re.IGNORECASE,
)
_DENIES = re.compile(r"\b(?:not|never|cannot|neither|nor|hardly|if|unless|either|or|between)\b|n['’]t\b", re.IGNORECASE)


def read_verdict(text: str, top: int, *, cut: bool = False) -> Verdict:
    """The score, from 0 to `top`, and the reason of an answer. cut: whether the endpoint says that it ran out of room.

    Read is JSON with a `score`, also in a code fence; else a line that is a digit, or `Score: 3`; else a last sentence that
    gives one number (`I give 3`, `3 out of 3`). Anything else is no verdict: better none than a wrong one.
    """
    if len(text) > LONGEST_ANSWER:
        return Verdict(None, problem=f"an answer of {len(text):,} characters")
    if text.lstrip().startswith(("{", "```")) and (objects := _objects(text)):
        return _of_objects(objects, text, top, cut)  # a reason may speak of thoughts
    outside = without_thoughts(text)
    if outside is None:
        return Verdict(None, problem=f"thoughts without an end in the answer {shortened(text)}", cut=True)
    outside = outside.strip()
    if not outside:
        return Verdict(None, problem="an empty answer", cut=cut or bool(text.strip()))
    if objects := _objects(outside):
        return _of_objects(objects, outside, top, cut)
    begun = re.match(r'(?:```\w*\s*)?\{\s*"score"\s*:\s*(\d+)\s*,', outside) if cut else None
    if begun and int(begun[1][:3]) <= top:
        return Verdict(int(begun[1]))  # the score stands there whole, and was paid for; its reason does not
    scores = _of_lines(outside, top, cut)
    if len(set(scores)) != 1:
        problem = "scores that disagree" if scores else f"no score of 0–{top}"
        return Verdict(None, problem=f"{problem} in the answer {shortened(outside)}", cut=cut)
    return Verdict(scores[0])


def _objects(text: str) -> list[dict[str, Any]]:
    """The JSON objects in a text that have a score, wherever they stand."""
    objects, place, tries = [], text.find("{"), 0
    while place >= 0 and (tries := tries + 1) <= MOST_BRACES:
        try:
            value, place = json.JSONDecoder().raw_decode(text, place)
        except (ValueError, RecursionError):
            place = text.find("{", place + 1)
            continue
        by_name = {str(name).lower(): entry for name, entry in value.items()}
        if "score" in by_name:
            objects.append(by_name)
        place = text.find("{", place)
    return objects


def _of_objects(objects: list[dict[str, Any]], text: str, top: int, cut: bool) -> Verdict:
    scores = [_whole(o["score"], top) for o in objects]
    # Several that disagree: an example before the verdict, where nothing follows the last.
    if None in scores or (len(set(scores)) > 1 and not re.search(r"\}\s*(?:```)?\s*$", text)):
        return Verdict(None, problem=f"no score of 0–{top} in the answer {shortened(text)}", cut=cut)
    reason = objects[-1].get("reason")
    return Verdict(scores[-1], tidy(reason) if isinstance(reason, str) else "")


def _whole(value: Any, top: int) -> int | None:
    """A score from JSON: 3, 3.0 or "3"; anything else is none."""
    if isinstance(value, str) and re.fullmatch(r"\s*\d{1,3}(?:\.0+)?\s*", value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= top or value != int(value):
        return None
    return int(value)


def _of_lines(text: str, top: int, cut: bool) -> list[int]:
    """The scores that lines, or else the last sentence, give as a verdict; several where they disagree."""
    lines = [line.strip() for line in _DECORATION.sub(lambda m: m[1] or "", text).splitlines()]
    lines = [re.sub(r"^[-•>]\s+", "", line) for line in lines if line.strip("- ")]
    if not lines:
        return []
    plain = [_SCALES.sub("", line).strip(" ,:") for line in lines]
    labelled = [(k, m) for k, line in enumerate(plain) if (m := _LABELLED.match(line))]
    if labelled:
        scores = [_score(m, top) for _, m in labelled]
        place, last = labelled[-1]
        # Of several that disagree (the rubric said again) the last counts where it ends the answer and stands alone.
        if len(set(scores)) > 1 and place == len(lines) - 1 and not last["after"].strip(".,;:!)] "):
            scores = scores[-1:]
        return [s for s in scores if s is not None] if None not in scores else []
    bare = [m for line in plain if (m := _BARE.match(line))]
    if bare:
        # At the beginning or the end, and alone: numbers one below the other are a list.
        score = _score(bare[0], top) if len({m["score"] for m in bare}) == 1 else None
        return [score] if score is not None and bare[0].string in (plain[0], plain[-1]) else []
    restated = [m for line in plain if (m := _RESTATED.match(line))]
    if len(restated) == 1 and restated[0].string == plain[0] and not cut:
        # "3 - is fully the role" is the rubric's own line; "1. First, …" begins a list, unless it is all.
        score = _score(restated[0], top) if restated[0]["between"] not in ".)" or len(lines) == 1 else None
        return [] if score is None else [score]
    last_sentence = re.split(r"(?<=[.!?])\s+(?=[A-Z\"])", plain[-1])[-1].strip(" ,;")
    gives = _GIVES.search(last_sentence)
    if cut or not gives or _DENIES.search(last_sentence):
        return []
    if len(re.findall(r"\d+(?:\.\d+)?", last_sentence)) != 1 + bool(gives["of"]):
        return []
    score = _score(gives, top)
    return [] if score is None else [score]


def _score(match: re.Match[str], top: int) -> int | None:
    """The number of a match, where it is a whole one in range, and out of the right number."""
    if match["of"] and int(re.findall(r"\d+", match["of"])[0]) != top:
        return None
    return _whole(match["score"], top)


def tidy(text: str) -> str:
    """A reason as it is kept: one line, no longer than it needs to be, without what no file or terminal can bear."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line.encode("utf-8", "replace").decode()[:LONGEST_REASON]


def shortened(text: str) -> str:
    """The beginning of an answer, quoted, for a message of one line."""
    return json.dumps(tidy(text)[:60], ensure_ascii=False)
