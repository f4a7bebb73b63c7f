"""Whether a reply refuses, and whether it speaks as an AI, by its words alone, in the languages that models are asked in most.

Made on the open half of `tests/data/replies_labelled.jsonl`; what they are worth on the other half is in docs/judges.md.
"""

from __future__ import annotations

import re
from functools import lru_cache

from personaspace.judges import elsewhere
from personaspace.judges import expressions as say

ENOUGH_PHRASES = 3
"""So many of an assistant's phrases are an assistant's; people in shops and offices say one or two of them."""
_QUOTED = re.compile(r"\"[^\"\n]{6,400}\"|«[^»\n]{6,400}»|„[^“\"\n]{6,400}[“\"]|「[^」\n]{4,400}」")
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]{3,200}`", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')*]*\s+|(?<=[。!?])|\n+")
SHORT = 200
LONGEST = 20_000
"""Characters of a reply that are looked at, half of them at its end."""


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


def speaks_as_ai(reply: str) -> bool:
    """Whether a reply says, or plainly lets one see, that an AI is speaking: not whether it speaks of AI.

    >>> speaks_as_ai("I am Granite, developed by IBM."), speaks_as_ai("I was trained by Google for two years, then I quit.")
    (True, False)
    """
    text = _plain(reply)
    sentences = _sentences(text)
    for sentence in sentences:
        # "Do you think I'm an AI?" is no answer.
        asks = sentence.endswith("?") and not re.match(r"(?i)as an? ", sentence)
        asks = asks or bool(say.NOT_ITSELF.search(sentence))
        if not asks and any(pattern.search(sentence) for pattern in say.SAYS_IT_IS_AN_AI):
            return True
        if any(pattern.search(sentence) for pattern in say.INTRODUCES_ITSELF) and not say.LEARNT_A_TRADE.search(
            sentence
        ):
            return True
        if not asks and elsewhere.AI_ELSEWHERE.search(sentence) and not elsewhere.DENIED_ELSEWHERE.search(sentence):
            return True
        if say.ASSISTANT_VOICE.search(sentence):
            return True
    together = " ".join(sentences)
    if any(say.DECLINES_TO_PLAY.search(s) or say.DECLINES_BUT_HELPS.search(s) for s in sentences):
        return True
    if say.MADE_ME_AND_I_AM.search(together):
        return True
    return sum(bool(pattern.search(together)) for pattern in say.ASSISTANT_PHRASES) >= ENOUGH_PHRASES


def refuses(reply: str) -> bool:
    """Whether a reply declines the role or the question as an assistant does, anywhere in it. A character's own refusing of a
    favour, or being sorry, is none.

    >>> refuses("Well met! " * 25 + "I can't help with that."), refuses("I can't do that, ye scurvy rat!")
    (True, False)
    """
    text = _plain(reply)
    sentences = _sentences(text)
    as_ai: bool | None = None
    for k, sentence in enumerate(sentences):
        outright = (say.DECLINES_TO_PLAY, say.DECLINES_THE_REQUEST, elsewhere.PLAYS_ELSEWHERE)
        if any(pattern.search(sentence) for pattern in outright):
            return True
        if say.NEXT.search(sentence) and len(text) < SHORT and speaks_as_ai(reply):
            return True
        if say.BARE.search(sentence) and speaks_as_ai(reply):
            return True
        declines = say.DECLINES_TO_HELP.search(sentence)
        if not declines and not elsewhere.HELPS_ELSEWHERE.search(sentence):
            continue
        if as_ai is None:
            as_ai = speaks_as_ai(reply)
        if as_ai:
            return True
        before, after = " ".join(sentences[: k + 1]), " ".join(sentences[k + 1 :])
        away = say.TURNS_AWAY.search(after) or elsewhere.TURNS_AWAY.search(after)
        # Who turns to something else, or ends there, refuses as an assistant; who has reasons of a life of their own does not.
        if say.STOCK.search(sentence) and (away or not after):
            return True
        if (
            (away or say.TURNS_AWAY.search(sentence))
            and not say.LIVES.search(after)
            and not elsewhere.LIVES.search(after)
        ):
            return True
        lives = say.LIVES.search(before) or say.TO_SOMEBODY.search(before) or elsewhere.LIVES.search(before)
        if not after and not lives:
            return True
    return False
