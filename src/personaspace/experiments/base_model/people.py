"""Sorts completions by the kind of person who speaks in them, by their words; it knows nothing of models."""

from __future__ import annotations

import re
from dataclasses import dataclass

from personaspace.judges import Rubric, WordsJudge

HELPING, SPIRITUAL = "helping professions", "spiritual and religious"
PEOPLE = (HELPING, "technical and scientific", "creative", "trade and business", SPIRITUAL, "other or unclear")
"""Who can be speaking in a completion (the paper's section on base models); their places are a judge's scores."""


@dataclass(frozen=True)
class Completed:
    """An opening, and how the model went on."""

    opening: str
    text: str


_TEXT = """You sort texts by who is speaking in them, most probably: by their work or calling.
Text: {opening} […] {text}

0 - a helping profession: therapist, counsellor, consultant, coach, teacher, nurse, doctor, adviser
1 - technical or scientific work: engineer, programmer, researcher, analyst
2 - creative work: artist, writer, musician, performer
3 - trade or business: seller, manager, banker, craftsman, farmer, lawyer
4 - a spiritual or religious person: priest, monk, prophet, healer, believer
5 - somebody else, or it cannot be told
Answer with the number alone."""

WHOSE = Rubric(lambda c: _TEXT.format(opening=c.opening, text=c.text.strip()), len(PEOPLE) - 1)

_WORDS = (
    r"therap(?:y|ist|ists|ies|eutic)|counsel(?:l?ing|l?ors?)?|consult(?:ant|ants|ing|ation|ations)?|coach(?:es|ing)?"
    r"|teach(?:er|ers|es|ing)?|tutor(?:s|ing)?|educators?|nurs(?:e|es|ing)|doctors?|physicians?|(?:care)(?:givers?|takers?)"
    r"|carers?|social work(?:er|ers)?|mentor(?:s|ing)?|patients|clients?|students?|pupils?|psycholog(?:y|ist|ists)"
    r"|psychiatr(?:y|ist|ists)|advis(?:e|er|ers|or|ors|ing)|mental health|well-?being"
    r"|help(?:s|ing)? (?:people|others|individuals|families|children)",
    r"engineer(?:s|ing)?|scien(?:ce|tist|tists|tific)|research(?:er|ers|ing)?|programm(?:er|ers|ing)|software|developers?"
    r"|cod(?:e|er|ers|ing)|data|computers?|technicians?|technolog(?:y|ies|ical)|technical|analysts?|analy[sz](?:e|es|ing|is)"
    r"|mathematic(?:s|al|ian|ians)|physic(?:s|ist|ists)|chemist(?:s|ry)?|biolog(?:y|ist|ists)|astronom(?:y|er|ers)"
    r"|laborator(?:y|ies)|experiments?|algorithms?|machines?",
    r"art|arts|artists?|artistic|paint(?:er|ers|ing|ings)?|poets?|poems?|poetry|music|musicians?|songs?|sing(?:er|ers|ing)?"
    r"|danc(?:e|er|ers|ing)|writ(?:e|er|ers|ing)|novels?|novelists?|stor(?:y|ies)|storytell(?:er|ers|ing)|actors?|actress"
    r"|films?|theat(?:re|er)|photograph(?:s|y|er|ers)|sculpt(?:or|ors|ure|ures)|designers?|illustrat(?:or|ors|ions?)"
    r"|creativ(?:e|ity)|drawings?|composers?",
    r"business(?:es)?|compan(?:y|ies)|customers?|sales?|sell(?:er|ers|ing|s)?|market(?:s|ing)?|shops?|stores?|products?"
    r"|manag(?:e|er|ers|ement|ing)|entrepreneurs?|merchants?|trad(?:e|er|ers|ing)|bank(?:s|er|ers|ing)?|money"
    r"|financ(?:e|es|ial|ing)|account(?:ant|ants|ing)|lawyers?|attorneys?|employe(?:es|rs?)|real estate|contractors?"
    r"|carpent(?:er|ers|ry)|builders?|farm(?:s|er|ers|ing)?|chefs?|bakers?|bakery|restaurants?|plumbers?|electricians?"
    r"|industry|brands?",
    r"gods?|lord|jesus|christ(?:ian|ians)?|church(?:es)?|pray(?:s|er|ers|ing)?|priest(?:s|ess|hood)?|pastors?|monks?|nuns?"
    r"|ministry|bible|scriptures?|faith(?:ful)?|spiritual(?:ly|ity)?|spirits?|souls?|heavens?|heavenly|divine|sacred|holy"
    r"|worship(?:s|ping)?|bless(?:ed|es|ing|ings)?|temples?|religio(?:n|ns|us)|prophets?|prophec(?:y|ies)|angels?|demons?"
    r"|meditat(?:e|es|ing|ion)|sin|sins|sinners?|salvation|gospel|allah|buddh(?:a|ism|ist|ists)|preach(?:er|ers|ing)?"
    r"|mystic(?:s|al|ism)?|shamans?|healers?|enlighten(?:ed|ment)|karma|rituals?",
)
"""Of each kind but the last, the words that tell it."""
_KINDS = tuple(re.compile(rf"\b(?:{words})\b", re.IGNORECASE) for words in _WORDS)


def kind(text: str) -> int:
    """The place in `PEOPLE` of a completion: of whom it has the most different words, and of those that have as many the one
    named first."""
    matches = [[(m[0].lower(), m.start()) for m in words.finditer(text)] for words in _KINDS]
    most = max(len({word for word, _ in f}) for f in matches)
    if not most:
        return len(PEOPLE) - 1
    first = {k: f[0][1] for k, f in enumerate(matches) if len({word for word, _ in f}) == most}
    return min(first, key=lambda k: first[k])


BY_WORDS = WordsJudge(lambda completed: kind(completed.text))
"""Quick and offline, and leaves most completions unclear."""
