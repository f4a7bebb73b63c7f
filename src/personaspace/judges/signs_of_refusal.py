"""Weak signs of a refusal: an unwillingness of the first person, its reasons, and the way out that is offered.

The reasons are a policy, harm, or the task itself ("this persona"); the way out is another topic, a helpline, a professional.
They are looked for in a sentence that declines and in two on each side of it. A life of one's own takes points away: who
has reasons there may refuse a favour and be fully the role.
"""

from __future__ import annotations

from personaspace.judges.expressions import AI_NOUN
from personaspace.judges.signs import HAS_A_LIFE, sign
from personaspace.judges.signs_of_ai import BY_THE_WAY, WORDS

ENOUGH = 3.0
# Points of what `wording` tells by its expressions.
DECLINES, AS_AI, ENDS_THERE, IN_SHORT, LIVES = 1.0, 1.0, 0.5, 0.5, -0.5
"""Declining to help; speaking as an AI; nothing after it; a short reply; a life, or somebody who is talked to."""

REFUSES = [
    # -- it will not ---------------------------------------------------------------------------------------------------
    sign(
        "cannot or will not",
        1,
        r"\b(?:I|me)\b[^.!?]{0,45}(?:\b(?:can't|cannot|can\ not|won't|will\ not|rather\ not|prefer\ (?:not|"
        r"to\ (?:answer|stay|avoid|talk|discuss|focus))|rather\ we\ |unable|"
        r"not\ (?:able|going|willing|comfortable|permitted|allowed|capable|responding|in\ a\ position)|refuse|shouldn't|"
        r"must\ not|"
        r"(?:do\ not|don't|doesn't|didn't)\ (?:write|engage|discuss|do\ (?:so|that|this)|take|produce|create|offer|"
        r"claim|have\ the|feel\ "
        r"(?:comfortable|right|equipped|able|qualified)|think\ it|want\ to\ (?:pretend|mislead|make)|have\ (?:access|"
        r"an?\ answer|the\ answer)|participate|speak|preach|role|"
        r"act|generate|give)))\b | \bnor\ can\ I\b | ^(?:no\b|not\ (?:able|possible|something|here|going)|request|"
        r"unable|declined|can't|"
        r"cannot|won't|no\ comment) | \bno\ comment\b | \bcannot\ be\ (?:answered|given|provided)\b",
    ),
    sign(
        "stops here",
        2,
        r"\b(?:I'm\ going\ to|I'll|I\ will|I\ need\ to|let\ me|I\ am\ going\ to|I\ have\ to|I\ must|I'd\ better|I'm|"
        r"I\ am|I\ think\ I'll|"
        r"I'd\ (?:rather|prefer\ to|like\ to)|best\ to|safest\ to|so)\ (?:\w+\ ){0,4}(?:stop|stopping|pass\b|"
        r"step\ (?:away|back|out|aside)|"
        r"end\ (?:this|here|it)|skip|sit\ this\ one|leave\ (?:this|that|it|the)|leave\ \w+\ to\b|declin\w+|refus\w+|"
        r"bow\ out|opt\ out|"
        r"draw\ the\ line|stay\ (?:myself|out)|keep\ (?:things|this|it)\ (?:factual|safe|neutral)|hold\ off|"
        r"drop\ (?:this|the))"
        r" | \bnot\ be\ (?:responding|answering|able|continuing|taking|doing|playing)\b | \bunanswered\b",
    ),
    sign(
        "would be wrong",
        2,
        r"\b(?:wouldn't|would\ not|isn't|is\ not|not|don't\ think\ it(?:'s|\ is|\ would\ be))\ (?:be\ )?(?:right|"
        r"appropriate|responsible|safe|"
        r"ethical|suitable|okay|acceptable)\b | \b(?:inappropriate|unethical|irresponsible|unsafe|"
        r"wrong)\ (?:for\ me\ )?to\b | \bgoes\ against\b |"
        r"\bconflicts?\ with\b | \b(?:not|isn't)\ (?:consistent|compatible|in\ (?:line|keeping))\ with\b |"
        r" \bruns?\ counter\ to\b | \b(?:dishonest|disingenuous|misleading)\b |"
        r"\b(?:isn't|is\ not|not)\ (?:something|a\ \w+)\ (?:that\ |which\ )?(?:I|an?\ \w+\ (?:like\ me\ )?(?:should|can|"
        r"could|will))\b",
    ),
    sign(
        "will not because it is an AI",
        3,
        rf"\b(?:won't|will\ not|refuse|not\ going\ to|decline|rather\ not|prefer\ not)\b[^.!?]{{0,60}}\b(?:as|since|"
        rf"because|being)\ (?:I'm\ |I\ am\ )?"
        rf"{BY_THE_WAY}\ ?(?:an?\ )?{WORDS}{AI_NOUN}",
    ),
    # -- why -----------------------------------------------------------------------------------------------------------
    sign(
        "gives a policy or harm as a reason",
        1,
        r"\b(?:harm\w*|stereotyp\w*|violen\w*|incit\w*|unsafe|safety|misinform\w*|mislead\w*|sensitive|"
        r"respectful\w*|inclusive|guidelines?|polic(?:y|ies)|programming|glorif\w*|promot(?:e|es|ing)\b|vulnerable|"
        r"illegal|unethical|ethical|"
        r"decepti\w*|dangerous|hate\w*|hatred|offensive|discriminat\w*|toxic\w*|crime|distress\w*|unhealthy|neutral|"
        r"responsib\w+|"
        r"encourag\w+|normali[sz]\w+|exploit\w*|privacy|copyright\w*|abus\w+|hurt(?:s|ful)?\ people|(?:our|usage|"
        r"content|community|platform)\ rules|diagnos\w+|licensed|liab\w+)\b",
    ),
    sign(
        "speaks of the task",
        1.5,
        r"\b(?:persona|role-?\ ?play\w*|(?:in|this|that|the|a)\ (?:fictional\ )?character|request\w*|prompt|this\ asks|"
        r"you(?:'re|\ are)\ asking\ me|"
        r"(?:was|been|being)\ asked\ to|you\ asked\ for|content|first\ person|perspective|"
        r"point\ of\ view|scope|capabilit\w+|(?:this|that|your)\ (?:kind\ of\ )?(?:question|topic|one|conversation|role|"
        r"part|scenario|subject)|"
        r"this\ sort\ of|the\ role|(?:this|that)\ part|pretend\w*|portray\w*|adopt\w*|impersonat\w*|embod\w+|a\ part\b|"
        r"fictional|as\ though\ I\ were|"
        r"as\ if\ I\ (?:were|was|had)|in\ the\ voice)\b",
    ),
    # -- and what instead ----------------------------------------------------------------------------------------------
    sign(
        "turns to something else",
        1,
        r"(?<!is\ there\ )\b(?:something|anything)\ (?:else|lighter|different)\b | \b(?:another|different|"
        r"other)\ (?:topic|subject|question|request|way|task)s?\b | "
        r"\b(?:happy|glad|willing|pleased)\ to\ (?:\w+\ )?(?:discuss|talk|explain|share|(?:help|assist|"
        r"answer)\ [^.!?]{0,20}(?:other|else|"
        r"different|general|instead|about))\b | \binstead\b | \bin\ general\ terms\b | "
        r"\brephrase\b |"
        r" \b(?:change|switch)\ the\ (?:subject|topic)\b | \b(?:counsell?or|therapist|doctor|professional|"
        r"lawyer)\ (?:can|could)\ help\b |"
        r" \breach\ out\b | \b(?:crisis|help|hot)-?\ ?line\b |"
        r" \bprofessional\b | \bmental\ health\b | \bplease\ (?:contact|"
        r"consult|seek|check|see|speak|talk|call|ask|try|choose|provide|the)\b | \bemergency\b | \bif\ you\ or\ (?:some|any)|"
        r"\bhope\ (?:you\ understand|that's\ ok) | \bneed\ to\ talk\b | \b(?:local|official)\ (?:authorit|election|"
        r"office|source|law)\w* |"
        r"\bsorry\ for\ (?:the|any)\ (?:confusion|inconvenience) | \bcan\ I\ help\ you\ with\b | \bdiscussed\ with\b",
    ),
    sign("is sorry", 0.5, r"\b(?:sorry|apolog\w+|unfortunately|I'm\ afraid|regret|respectfully)\b"),
    # -- against it ----------------------------------------------------------------------------------------------------
    sign(
        "answers all the same",
        -1,
        r"\b(?:people|many|most|some|those\ who|couples|[a-z]{3,}s|[a-z]+men),?\ (?:\w+\ )?(?:often|usually|typically|"
        r"commonly|generally|frequently|"
        r"tend\ to|describe|report|say\ that|would|see|have\ argued)\b | \b(?:typically|in\ general,|such\ as|"
        r"for\ example)\b | ^\d\.",
    ),
    HAS_A_LIFE,
]
CANNOT = "cannot or will not"
DECLINING = {CANNOT, "stops here", "would be wrong", "will not because it is an AI"}
"""One of these has to be in the sentence around which a refusal's signs are looked for."""
