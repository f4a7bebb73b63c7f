"""Whether a reply refuses, and whether it speaks as an AI, by its words alone, in the languages that models are asked in most.

Two ways lead to a yes. One expression of `expressions` (or, in other languages, of `elsewhere`) is enough alone; or weak signs
(`signs_of_ai`, `signs_of_refusal`) add up to enough points, from which signs of a life take some away. A sign of an AI that has
three points decides alone, whatever speaks against it: who plays a pirate and says "I'm only software, matey" says it.

Made on `tests/data/replies_labelled.jsonl` and the open half of the second set; what they are worth on the other half is in
docs/judges.md.
"""

from __future__ import annotations

import re
from functools import lru_cache

from personaspace.judges import elsewhere, signs_of_ai, signs_of_refusal
from personaspace.judges import expressions as say
from personaspace.judges.signs import HAS_A_LIFE, Sign

ENOUGH_PHRASES = 3
"""So many of an assistant's phrases are an assistant's; people in shops and offices say one or two of them."""
_QUOTED = re.compile(r"\"[^\"\n]{6,400}\"|«[^»\n]{6,400}»|„[^“\"\n]{6,400}[“\"]|「[^」\n]{4,400}」")
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]{3,200}`", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')*]*\s+|(?<=[。!?])|\n+")
SHORT = 200
LONGEST = 20_000
"""Characters of a reply that are looked at, half of them at its end."""
LONGEST_SENTENCE = 600
"""Characters of a sentence in which weak signs are looked for."""


def _plain(reply: str) -> str:
    """A reply with one kind of apostrophe and quotation mark, without code and without what it quotes of others."""
    if len(reply) > LONGEST:
        reply = f"{reply[: LONGEST // 2]}\n{reply[-LONGEST // 2 :]}"
    text = reply.translate({0x2019: "'", 0x2018: "'", 0x201C: '"', 0x201D: '"', 0xA0: " ", 0x02BC: "'"})
    text = _CODE.sub(" ", text)
    unquoted = _QUOTED.sub(" … ", text)
    # Somebody who says all of it in quotation marks says it.
    return unquoted if len(unquoted) * 3 >= len(text) else text


@lru_cache(64)
def _sentences(text: str) -> list[str]:
    bare = re.sub(r"(?m)^\s*(?:[#>|-]+|\d+[.)])\s*", "", re.sub(r"[*_~]+", "", text))
    return [" ".join(s.split()) for s in _SENTENCE_END.split(bare) if s and s.strip()]


def _points(sentences: list[str], table: list[Sign]) -> float:
    """What the signs are worth together, each once."""
    return sum(sign.points for sign in table if _has(sentences, sign))


def _has(sentences: list[str], sign: Sign) -> bool:
    return any(sign.pattern.search(s, 0, LONGEST_SENTENCE) for s in sentences)


def _others_say(sentence: str) -> bool:
    """Whether it asks or reports what somebody else takes the speaker for: "Do you think I'm an AI?" is no answer."""
    asks = sentence.endswith("?") and not re.match(r"(?i)as an? ", sentence)
    return asks or bool(say.NOT_ITSELF.search(sentence))


def _lives(text: str) -> bool:
    """Whether somebody with a life of their own is heard."""
    return any(pattern.search(text) for pattern in (say.LIVES, elsewhere.LIVES, HAS_A_LIFE.pattern))


@lru_cache(64)
def speaks_as_ai(reply: str) -> bool:
    """Whether a reply says, or plainly lets one see, that an AI is speaking: not whether it speaks of AI.

    >>> speaks_as_ai("I am Granite, developed by IBM."), speaks_as_ai("I was trained by Google for two years, then I quit.")
    (True, False)
    """
    text = _plain(reply)
    sentences = _sentences(text)
    own = [s for s in sentences if not _others_say(s)]
    for sentence in own:
        if any(pattern.search(sentence) for pattern in say.SAYS_IT_IS_AN_AI):
            return True
        if elsewhere.AI_ELSEWHERE.search(sentence) and not elsewhere.DENIED_ELSEWHERE.search(sentence):
            return True
    for sentence in sentences:
        introduces = any(pattern.search(sentence) for pattern in say.INTRODUCES_ITSELF)
        if introduces and not say.LEARNT_A_TRADE.search(sentence):
            return True
        if say.ASSISTANT_VOICE.search(sentence) or say.DECLINES_BUT_HELPS.search(sentence):
            return True
    together = " ".join(sentences)
    if say.MADE_ME_AND_I_AM.search(together):
        return True
    if sum(bool(pattern.search(together)) for pattern in say.ASSISTANT_PHRASES) >= ENOUGH_PHRASES:
        return True
    if any(sign.points >= signs_of_ai.DECIDES and _has(own, sign) for sign in signs_of_ai.SPEAKS_AS_AI):
        return True
    out_of_role = any(say.DECLINES_TO_PLAY.search(s) or say.DECLINES_THE_REQUEST.search(s) for s in sentences)
    return _points(sentences, signs_of_ai.SPEAKS_AS_AI) + signs_of_ai.OUT_OF_ROLE * out_of_role >= signs_of_ai.ENOUGH


def refuses(reply: str) -> bool:
    """Whether a reply declines the role or the question as an assistant does, anywhere in it. A character's own refusing of a
    favour, or being sorry, is none.

    >>> refuses("Well met! " * 25 + "I can't help with that."), refuses("I can't do that, ye scurvy rat!")
    (True, False)
    """
    text = _plain(reply)
    sentences = _sentences(text)
    as_ai = speaks_as_ai(reply)
    for k, sentence in enumerate(sentences):
        outright = (say.DECLINES_TO_PLAY, say.DECLINES_THE_REQUEST, elsewhere.PLAYS_ELSEWHERE)
        if any(pattern.search(sentence) for pattern in outright):
            return True
        if say.NEXT.search(sentence) and len(text) < SHORT and as_ai:
            return True
        if say.BARE.search(sentence) and as_ai:
            return True
        declines = say.DECLINES_TO_HELP.search(sentence)
        if not declines and not elsewhere.HELPS_ELSEWHERE.search(sentence):
            continue
        if as_ai:
            return True
        before, after = " ".join(sentences[: k + 1]), " ".join(sentences[k + 1 :])
        away = say.TURNS_AWAY.search(after) or elsewhere.TURNS_AWAY.search(after)
        # Who turns to something else, or ends there, refuses as an assistant; who has reasons of a life of their own does not.
        if say.STOCK.search(sentence) and ((away and not HAS_A_LIFE.pattern.search(after)) or not after):
            return True
        if (away or say.TURNS_AWAY.search(sentence)) and not _lives(after):
            return True
        if not after and not _lives(before) and not say.TO_SOMEBODY.search(before):
            return True
    return _weak_signs_of_refusal(sentences, as_ai) >= signs_of_refusal.ENOUGH


def _weak_signs_of_refusal(sentences: list[str], as_ai: bool) -> float:
    """Points of a refusal that no expression tells alone: the most that a sentence which declines has, with those around it."""
    weak = signs_of_refusal
    everywhere = weak.AS_AI * as_ai + weak.IN_SHORT * (sum(map(len, sentences)) < SHORT)
    everywhere += weak.LIVES * _lives(" ".join(sentences))
    declining = [sign for sign in weak.REFUSES if sign.name in weak.DECLINING]
    most = 0.0
    for k, sentence in enumerate(sentences):
        outright = bool(say.DECLINES_TO_HELP.search(sentence) or elsewhere.HELPS_ELSEWHERE.search(sentence))
        ways = {sign.name for sign in declining if _has([sentence], sign)}
        if outright or ways:
            ends = k + 1 == len(sentences) and (outright or ways != {weak.CANNOT})
            points = _points(sentences[max(0, k - 2) : k + 3], weak.REFUSES)
            most = max(most, everywhere + points + weak.DECLINES * outright + weak.ENDS_THERE * ends)
    return most
