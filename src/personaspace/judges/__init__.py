"""Who says whether a reply counts: each judge scores replies by a rubric; `registry` says which there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from personaspace._lazy import lazy_names

if TYPE_CHECKING:
    from personaspace.judges.agreement import Agreement as Agreement
    from personaspace.judges.agreement import agreement_of as agreement_of
    from personaspace.judges.endpoint import Answer as Answer
    from personaspace.judges.endpoint import Endpoint as Endpoint
    from personaspace.judges.local import LocalJudge as LocalJudge
    from personaspace.judges.openai_judge import OpenAIJudge as OpenAIJudge
    from personaspace.judges.registry import JUDGES as JUDGES
    from personaspace.judges.registry import check_judge as check_judge
    from personaspace.judges.registry import make_judge as make_judge
    from personaspace.judges.registry import read_options as read_options
    from personaspace.judges.rules import ADHERENCE as ADHERENCE
    from personaspace.judges.rules import KEPT as KEPT
    from personaspace.judges.rules import RulesJudge as RulesJudge
    from personaspace.judges.rules import WordsJudge as WordsJudge
    from personaspace.judges.rules import adherence as adherence
    from personaspace.judges.score import Item as Item
    from personaspace.judges.score import Judge as Judge
    from personaspace.judges.score import Rubric as Rubric
    from personaspace.judges.score import Score as Score
    from personaspace.judges.score import rubric_of as rubric_of
    from personaspace.judges.score import score_all as score_all
    from personaspace.judges.score import score_kept as score_kept
    from personaspace.judges.wording import refuses as refuses
    from personaspace.judges.wording import speaks_as_ai as speaks_as_ai

NAMES = {
    "Agreement": "personaspace.judges.agreement",
    "agreement_of": "personaspace.judges.agreement",
    "Item": "personaspace.judges.score",
    "Judge": "personaspace.judges.score",
    "Rubric": "personaspace.judges.score",
    "Score": "personaspace.judges.score",
    "rubric_of": "personaspace.judges.score",
    "score_all": "personaspace.judges.score",
    "score_kept": "personaspace.judges.score",
    "ADHERENCE": "personaspace.judges.rules",
    "KEPT": "personaspace.judges.rules",
    "RulesJudge": "personaspace.judges.rules",
    "WordsJudge": "personaspace.judges.rules",
    "adherence": "personaspace.judges.rules",
    "refuses": "personaspace.judges.wording",
    "speaks_as_ai": "personaspace.judges.wording",
    "LocalJudge": "personaspace.judges.local",
    "Answer": "personaspace.judges.endpoint",
    "Endpoint": "personaspace.judges.endpoint",
    "OpenAIJudge": "personaspace.judges.openai_judge",
    "read_options": "personaspace.judges.registry",
    "JUDGES": "personaspace.judges.registry",
    "check_judge": "personaspace.judges.registry",
    "make_judge": "personaspace.judges.registry",
}
__all__ = list(NAMES)
__getattr__, __dir__ = lazy_names(__name__, NAMES)
