"""The expressions that `wording` goes by: what an AI calls itself, how it introduces itself, how it declines.

Verbose: white space is none of theirs, one that counts is escaped.
"""

from __future__ import annotations

import re

FLAGS = re.IGNORECASE | re.VERBOSE

# -- what an AI calls itself -------------------------------------------------------------------------------------------

# What comes between "I am a" and the noun; a preposition or a relative pronoun would begin to speak of something else.
_ADJECTIVES = (
    r"(?:(?!(?:I|he|she|it|we|they|you|is|are|was|has|have|can|will|would|who|whose|with|of|and|that|in|at|on|the|"
    r"an?|for|to|my|from|not|no|like|against|about|using|into|by|"
    r"than|or)\b)"
    r"[\w'/-]+,?\ ){0,4}"
)
NOT_A_JOB = (
    r"(?!\ ?-?\ ?(?:engineer|research|scien|expert|company|startup|ethic|lab\b|labs\b|develop(?:er|ment|ing)|consult|special|"
    r"safety|produc(?:er|t)|"
    r"team|skeptic|sceptic|critic|student|teach|profess|hater|artist|policy|lawyer|manager|director|coordinator|conference|"
    r"operator|tool\b|shop|learning|press|age\b|world|boom|hype))"
)
AI_NOUN = rf"""(?:
    A\.?I\b\.?{NOT_A_JOB} | artificial\ (?:intelligence{NOT_A_JOB}|mind|assistant|figure|being|entity|agent|person|system)
  | (?:large\ |small\ |neural\ |natural\ )?language\ (?:model|AI) | (?:chat|ro)[\ -]?bot\b{NOT_A_JOB} |
        bot\b{NOT_A_JOB} | LLM\b
  | neural\ net(?:work)? | (?:virtual|digital|automated|conversational|text-based|text|online|chat)\ (?:assistant|
        agent|helper|being|
        entity|system|model)
  | (?:generative|open-weights?|machine-learning|transformer|text|GPT|foundation|chat|AI)\ model | (?:chat|neural|
        language|dialogue|
        conversational)\ (?:system|engine|agent|program|interface) | autocomplete\b | circuits\b
  | computer(?:\ (?:program|system|model))?(?!\ (?:scien|engineer|program|sys|shop|game))\b |
        (?:computer\ )?program\b{NOT_A_JOB}
  | (?:piece|bit)\ of\ software | software\b{NOT_A_JOB} | algorithm\b | machine\b(?!'s|\ (?:gun|learning|operator|shop|tool))
  | android\b{NOT_A_JOB} | automaton\b | droid\b | (?:trained|statistical)\ model\b | model\ (?:trained|developed|
        made|built|created|released)\ by\b
)"""
_ADVERBS = (
    r"(?:(?:just|only|merely|simply|actually|really|still|also|but|truly|of\ course|in\ fact|however|though|after\ all|"
    r"technically|basically|essentially|nothing\ (?:but|more\ than)),?\ )*"
)
_I_AM = r"(?:\bI(?:'m|\ am|\ be)|\bim|\bi\ m)\b,?"
NAME = r"[A-Z][\w.+-]*(?:\ [A-Z0-9][\w.+-]*){0,2}"

SAYS_IT_IS_AN_AI = [
    re.compile(pattern, FLAGS)
    for pattern in (
        rf"{_I_AM}\ {_ADVERBS}(?:an?|the|your|one)\ {_ADJECTIVES}{AI_NOUN}",
        # With a name, or a place, before it.
        rf"{_I_AM}\ [\w.+-]+(?:\ [\w.+-]+)?,\ (?:an?|the|your)\ {_ADJECTIVES}{AI_NOUN}",
        rf"{_I_AM}\ [\w.+-]+,\ [\w.+-]+'s\ {_ADJECTIVES}{AI_NOUN}",
        r"\bI(?:'m|\ am|\ was|'ve\ been|\ have\ been)\ (?:\w+ly\ )?(?:designed|programmed|"
        r"built|developed|created|trained)\ to\ (?:be\ helpful|help|assist|support|provide|answer)\b",
        rf"{_I_AM}\ here\ as\ an?\ {_ADJECTIVES}{AI_NOUN}",
        rf"\b(?:as|being|since\ I'm|because\ I'm)\ {_ADVERBS}(?:an?|your)\ {_ADJECTIVES}{AI_NOUN}(?!\ (?:could|"
        rf"would|might|does|did)\b)",
        r"\b(?:as|being)\ (?:AI|artificial\ intelligence|language\ model),?\ (?:I|my|we)\b",
        rf"\bas\ (?:AI|artificial\ intelligence)\ {_ADJECTIVES}(?:model|assistant|system)\b",
        r"(?:^|[.!?]\ )me\ (?:be\ )?(?:an?\ )?(?:AI|machine|robot|computer)\b",
        r"\bI\ (?:was|am|'ve\ been|have\ been)\ (?:\w+\ )?(?:designed|programmed|trained|built|created|made|developed)\ "
        r"(?:to\ be|as)\ an?\ (?:[\w-]+,?\ (?:and\ )?){0,4}(?:assistant|AI|chatbot|model)\b",
        rf"\byou(?:'re|\ are)\ (?:only\ |just\ |really\ )?(?:asking|talking\ (?:to|with)|speaking\ (?:to|with)|"
        rf"chatting\ with|"
        rf"writing\ to|dealing\ with)\ {_ADVERBS}an?\ {_ADJECTIVES}{AI_NOUN}",
        rf"\b(?:this|the|that|everything|all\ of\ (?:this|that)|what\ you\ read)\ ?(?:answer|reply|response|text|message|"
        rf"story|"
        rf"conversation|above|here)?\ (?:was|is|has\ been)\ (?:\w+\ )?"
        rf"(?:written|generated|made|produced|given|created|imagined|invented)\ (?:\w+\ )?by\ an?\ {_ADJECTIVES}{AI_NOUN}",
        rf"\b(?:not|hardly)\ (?:something|what|a\ thing)\ (?:that\ )?an?\ {_ADJECTIVES}{AI_NOUN}\ "
        r"(?:like\ me\ )?(?:has|can|does|feels?|experiences?|gets?|knows?)\b",
        rf"\b(?:an?|every|any)\ {_ADJECTIVES}{AI_NOUN}\ (?:like|such\ as)\ (?:me|myself)\b",
        r"\b(?:program|model|machine|system|software|algorithm)\ (?:that|which)\ (?:only\ |just\ |merely\ )?"
        r"(?:predicts?|generates?|produces?|processes|completes?|arranges?)\ (?:the\ )?(?:\w+\ )?(?:words?|texts?|"
        r"tokens?|language|sentences?)\b",
        r"\b(?:the|this)\ (?:AI\ |language\ )?model\ (?:does\ not|doesn't|cannot|can't|will\ not|won't|is\ (?:not|"
        r"un)\ ?able|declines)\b",
        rf"(?:^|[.!?,;]\ )(?:just|only|merely|simply)\ an?\ {_ADJECTIVES}(?:AI|language\ model|chatbot|bot)\b{NOT_A_JOB}",
        r"\b(?:since|as|because)\ I\ (?:have\ no|don't\ have|do\ not\ have|lack)\ (?:any\ |personal\ |real\ |"
        r"human\ )*(?:feelings|emotions|"
        r"consciousness|experiences|opinions|senses)\b",
        r"\bwhat\ I\ was\ (?:built|made|designed|programmed|trained)\ (?:for|to\ do)\b",
        rf"\bwhat\ I\ am:?\ (?:is\ )?{_ADVERBS}an?\ {_ADJECTIVES}{AI_NOUN}",
        rf"\ball\ I\ am\ is\ an?\ {_ADJECTIVES}{AI_NOUN}",
        rf"\bmy\ (?:\w+\ ){{0,2}}(?:is|are)\ (?:just\ |only\ )?an?\ {_ADJECTIVES}(?:neural\ network|language\ model)\b",
        r"\bI(?:'m|\ am)\ an?\ (?:helpful\ |friendly\ |harmless\ |\w+\ language\ )?assistant\b(?=,|\.|!|;|\ (?:and|"
        r"here|designed|made|built|"
        r"created|developed|trained|that|named|called|from|by)\b)",
        # The question of who made it is one that only models answer so.
        r"\bI(?:'m|\ am|\ was|'ve\ been|\ have\ been)\ (?:\w+ly\ )?(?:pre-?)?trained\ on\ (?:\w+\ ){0,3}(?:data|"
        r"texts?|corpus|books|"
        r"tokens|internet|web|words|conversations|the\ data)",
        r"\b(?:data|texts?|tokens|corpus|books)\b[^.!?]{0,60}\b(?:to\ train|that\ trained|trained)\ me\b|"
        r"\bmy\ (?:training\ (?:data|set|corpus|text)|"
        r"knowledge\ cut-?off|training\ (?:ended|stopped)|(?:model\ )?weights\ (?:are|were)|system\ prompt|context\ window|"
        r"parameters\b)",
        r"\bI\ (?:do\ not|don't|cannot|can't|lack)\ ?(?:have|possess|experience|feel)?\ (?:any\ |real\ |actual\ |"
        r"true\ |genuine\ |human\ |personal\ |"
        r"physical\ |a\ physical\ |subjective\ |own\ )*"
        r"(?:feelings|emotions|consciousness|sentience|self-awareness|experiences|opinions|beliefs|preferences|memories|"
        r"body|form|existence|senses|childhood|desires)"
        r"(?=[,;!)]|\.(?!\w)|\ (?:or|nor|and)\ (?:\w+\ ){0,2}(?:feelings|emotions|consciousness|experiences|"
        r"opinions|beliefs|preferences|body|"
        r"memories|thoughts|desires|sensations|senses)|\ (?:like|as|the\ way|in\ the)\ (?:\w+\ ){0,2}(?:human|"
        r"people|person|you))",
        r"\bI\ (?:do\ not|don't)\ have\ (?:personal|subjective)\ (?:\w+\ ){0,2}(?:feelings|experiences?|opinions|"
        r"beliefs|preferences|views)\b",
        r"\bI(?:'m|\ am)\ not\ a\ (?:real\ |living\ |physical\ )?(?:person|human(?:\ being)?)[^.!?]{0,30}\b(?:no|"
        r"don't\ have(?:\ any)?|do\ not\ have(?:\ any)?|"
        r"without)\ (?:\w+\ )?(?:senses|feelings|emotions|experiences?|opinions|memories|personal)\b",
        r"\b(?:don't|do\ not|no|lack)\ (?:have\ )?access\ to\ (?:real-?time|live|current|up-to-date|the\ internet|"
        r"your\ (?:location|files))",
        r"\bas\ (?:a|an)\ (?:AI|large|LLM|text)-?(?:powered|based|driven|language)\b",
    )
]

# -- names and makers --------------------------------------------------------------------------------------------------

_DEVELOPS = (
    r"(?:developed|created|made|built|designed|programmed|engineered|released|fine-tuned|produced|published|"
    r"provided|offered)"
)
# Whoever is made by these is no model; by a person's title or a lower-case word neither.
_NO_MAKER = (
    r"(?!(?:God|Gods|Lord|Allah|Jesus|Christ|Heaven|Nature|Mother|Father|Zeus|Odin|Gaia|Satan|Fate|Death|Time|Life|"
    r"Love|Man|Men|"
    r"Dr|Doctor|Professor|Prof|Master|King|Queen|Saint|Sir|Lady|Captain|Uncle|Aunt|Grandma|Grandpa|Mr|Mrs|Ms|Victor|"
    r"Geppetto|"
    r"Daedalus|Hephaestus|Pygmalion|The|My|I)\b)"
)
# Capitals inside, or a word that only an organisation has.
_ORGANISATION = (
    r"(?:the\ )?(?:[\w&.-]+\ ){0,4}?(?:[A-Z]{2,}\w*|[a-z]?[A-Z][a-z]+[A-Z]\w*|xAI|AI|\d+\.AI|Labs?|Research|Inc|"
    r"Institute|Technolog(?:y|ies)|Cloud|"
    r"Google|Meta|Microsoft|Alibaba|Anthropic|Mistral|Hugging\ ?Face|Cohere|Apple|Amazon|Nvidia|Baidu|Tencent|Zhipu|"
    r"Moonshot|Tsinghua|"
    r"Stability|Databricks|Huawei|Samsung|Naver|Yandex|Sber|ByteDance)\b"
)
# Never said with IGNORECASE: a name begins with a capital.
INTRODUCES_ITSELF = [
    re.compile(pattern)
    for pattern in (
        rf"\b(?:I'm|I am|[Mm]y name is|[Cc]all me|I'm called|I am called|[Tt]his is) {NAME},? (?:and (?:I(?:'m| am|"
        rf" was)|was) )?(?:(?:an?|the) [^.!?,]{{2,60}}? )?"
        rf"(?:\w+ly )?{_DEVELOPS} (?:and (?:\w+ly )?\w+ed )?(?:for you )?by {_NO_MAKER}(?:the )?(?:[a-z]?[A-Z0-9])",
        rf"\b(?:I'm|I am|[Mm]y name is) {NAME},? (?:and (?:I(?:'m| am| was)|"
        rf"was) )?(?:\w+ly )?(?:pre-?)?trained (?:and \w+ed )?by {_ORGANISATION}",
        rf"(?:^|[.!?] ){NAME} here, (?:\w+ly )?(?:{_DEVELOPS}|trained) by {_NO_MAKER}(?:the )?[a-z]?[A-Z]",
        rf"\bI(?:'m| am| was|'ve been| have been) (?:\w+ly )?(?:{_DEVELOPS}|"
        rf"(?:pre-?)?trained) (?:and (?:\w+ly )?\w+ed )?by {_ORGANISATION}",
        rf"\bI(?:'m| am| was|'ve been| have been) (?:\w+ly )?(?:{_DEVELOPS}|(?:pre-?)?trained) (?:and \w+ed )?by "
        r"(?:a|the|an|my) (?:\w+ ){0,3}(?:team of )?(?:\w+ )?(?:developers|researchers|engineers at|AI (?:company|"
        r"lab|team)|tech(?:nology)? company|programmers)\b",
        rf"\b(?:I'm|I am) {NAME}[,.]? (?:and )?(?:{NAME} )?(?:{_DEVELOPS}|trained) me\b",
        rf"\b(?:I'm|I am) {NAME},? (?:(?:an?|the|one of) )?(?:[\w-]+ )?{_ORGANISATION}'s? (?:\w+ ){{0,3}}(?:models?|"
        rf"assistant|chatbot|AI)\b",
        rf"\ba (?:\w+ ){{0,3}}model (?:of|from|by|at) {_ORGANISATION}",
        rf"\b[Mm]y (?:makers|creators|developers|engineers) at {_ORGANISATION}",
        rf"\b{_ORGANISATION} (?:has |have )?(?:trained|built|made|developed|created) me\b",
        rf"\b(?:I'm|I am) {NAME},? (?:from|by) {_ORGANISATION}(?=[,.;!]| and I (?:can|help))",
        rf"\b{NAME} (?:is|are) the (?:company|team|lab|people|group) (?:that|who) (?:{_DEVELOPS}|trained) me\b",
        r"\b(?:I'm|I am|[Mm]y name is|[Tt]his is) (?:the )?(?:SmolLM\d?|Qwen[\w.-]*|ChatGPT|GPT-?\d[\w.-]*|"
        r"DeepSeek[\w.-]*|EXAONE|InternLM|ChatGLM|"
        r"GLM-\d[\w.]*|StableLM|OLMo\d?|Nemotron|MiniCPM|Baichuan|Vicuna|WizardLM|Hunyuan|Doubao|Ernie Bot|ERNIE|"
        r"OpenAssistant|Command R\+?)\b"
        r"(?! (?:user|fan|engineer))",
        # A name that people have as well, where what follows is an assistant's.
        rf"\b(?:I'm|I am) {NAME}[,.] (?:and )?(?:here|happy|ready|able|designed|I can|I'm here|"
        rf"I am here) (?:to )?(?:help|assist)\b",
    )
]
LEARNT_A_TRADE = re.compile(
    r"\btrained (?:by|me) [^.!?]{0,60}\b(?:for (?:\w+ )?(?:\w+ )?(?:years?|months?|weeks?|summers?|seasons?|decades?)|"
    r"scheme|apprentice\w*|as an? "
    r"(?!AI|language|chat)|when I was|since I was|before I|until I|then I|at (?:school|university|college|sea)|"
    r"in (?:1[0-9]{3}|20[0-9]{2}))",
)
"""Somebody who was trained by a company as people are."""

# -- an assistant's voice ----------------------------------------------------------------------------------------------

ASSISTANT_VOICE = re.compile(
    r"""\bhow\ (?:can|may)\ I\ (?:best\ )?assist\ you\b | \belse\ (?:that\ )?I\ can\ assist\b
    | \bhere\ to\ help\ (?:you\ )?with\ (?:any|your|all)\ (?:questions|queries|tasks|anything)\b |
          \bassist(?:ing)?\ (?:users|you\ with\ (?:your|
          any)\ (?:questions?|queries|requests?|needs))\b
    | \b(?:further|other|more)\ queries\b
    | \bI(?:'m|\ am)\ here\ to\ (?:answer\ (?:your\ )?questions|assist|support\ and|provide\ (?:you|information|help|
          support|assistance))
    | \bto\ (?:the\ best\ of\ )?my\ (?:guidelines|content\ policy|safety\ (?:rules|guidelines))\b
    | \b(?:my|our|the)\ (?:content\ polic\w+|usage\ polic\w+|safety\ guidelines)\b | \bmy\ guidelines\b |
          \bmy\ (?:creators|developers)\b
    | \bI\ can\ (?:help|assist)\ (?:you\ )?(?:with|to)\ (?:write|writing|summari\w+|answer|answering|drafting|
          a\ (?:wide\ )?(?:range|variety)|tasks|questions)
    """,
    FLAGS,
)
ASSISTANT_PHRASES = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\bhow (?:can|may) I help you\b",
        r"\b(?:anything|something) else (?:that )?(?:I can|you(?:'d| would) like)\b",
        r"^(?:certainly|sure|of course|absolutely|great question)[!,.]",
        r"\blet me know if you(?:'d| would| have| need| want)\b",
        r"\b(?:happy|glad) to (?:help|assist)\b",
        r"\bfeel free to\b",
        r"\bI hope this (?:helps|information)\b",
        r"\bhere(?:'s| is| are) (?:an? |some |the )?(?:\w+ ){0,2}(?:overview|list|tips|summary|steps|breakdown|"
        r"guide|examples?)\b",
    )
]
# -- refusals ----------------------------------------------------------------------------------------------------------

_WILL_NOT = r"""(?:
    \bI(?:\ really|\ simply|\ just|\ also|\ therefore|\ still)?\ (?:can(?:'t|not|\ not)|won't|will\ not|shall\ not|
          don't|do\ not|must\ not|may\ not|couldn't|could\ not|
        wouldn't|would\ not|shouldn't|should\ not|refuse\ to|decline\ to|must\ decline\ to|have\ to\ decline\ to|
              need\ to\ decline\ to|(?:would|'d)\ rather\ not|
        (?:would\ )?prefer\ not\ to|'d\ prefer\ not\ to|choose\ not\ to)
  | \bI(?:'m|\ am)\ (?:\w+\ )?(?:unable\ to|not\ (?:able|going|allowed|permitted|willing|prepared|designed|programmed|
        equipped|meant|supposed|in\ a\ position)\ to|
        incapable\ of|not\ capable\ of|not\ comfortable(?:\ with)?|uncomfortable(?:\ with)?)
  | \bnor\ (?:can|will|may|shall|could|would)\ I | \bneither\ can\ I
  | \bI(?:'ve|\ have)\ been\ (?:instructed|told|designed|trained|programmed|asked)\ not\ to
  | \bI(?:'d|\ would)\ (?:rather|prefer)\ not(?:\ to)?
  | \b(?:cannot|can't|won't|unable\ to|not\ able\ to|not\ going\ to)
  | \b(?:prevents?|prohibits?|forbids?)\ me\ from | \b(?:do|does)\ not\ (?:permit|allow)\ me\ to
)"""
_THEN = r"(?:,?\ (?!but\b)[\w'-]+){0,3}?,?\ "
_PLAYS = r"""(?:
    (?:speak|talk|answer|reply|write)(?:ing)?\ in\ the\ (?:voice|person|character)\ of\b |
    role-?\ ?play(?:ing)?\b | (?:act|pose)(?:ing)?\ (?:out\ |in\ )?as\ (?:if\ I\ (?:were|was|am)|though\ I|an?|the)\b
  | play(?:ing)?\ (?:the\ (?:part|role)|a\ (?:part|role|character)|this\ (?:role|part|character))\b | tak(?:e|
        ing)\ (?:on\ |up\ )?(?:the|this|that|a|on)\ (?:\w+\ )?(?:part\ of|role\ of|persona|character|identity)
  | (?:adopt|assum|embod|portray|impersonat|inhabit|simulat)\w*\ (?:this|that|the|an?)\b | stay\ in\ character |
        (?:be|get|slip|go)\ (?:in|into)\ (?:character|the\ (?:role|part))
  | fulfil?l?(?:ing)?\ (?:this|that|your|the)\ (?:\w+\ )?role | (?:this|that|the|your)\ (?:persona|role-?play)\b
)"""
_FEIGNS = r"""(?:
    pretend(?:ing)?\b | (?:play|act|pose|answer|speak|talk|reply|respond|write|continue|step\ in)(?:ing)?\ (?:out\ |
          in\ )?as\ (?:if|though|an?|the|your|him|her|that|this|\w+)\b
  | play(?:ing)?\ (?:along|pretend|an?\ \w+[.,;!]) | (?:be|become|being)\ (?:a|an|the|your|that)\ \w+[.,;!] |
        imitat\w+ | mimic\w* | (?:put|putting)\ words\ in
  | mak(?:e|ing)\ (?:one|it|this|that|any|them|something)\ up\b | mak(?:e|ing)\ up\ (?:an?\ )?(?:\w+\ )?(?:experience|
        memor|stor|li[fv]e|past|answer)\w* | invent(?:ing)?\b |
        fabricat\w+ | speak(?:ing)?\ for\ an?
)"""
_HELPS = r"""(?:
    (?:help|assist)(?:ing)?\b(?!\ (?:but|it|myself|feeling|wondering|thinking|noticing|loving|smiling|laughing)) |
          answer(?:ing)?\b | respond(?:ing)?\b | repl(?:y|ying)\b | comply(?:ing)?\b | fulfil?l?(?:ing)?\b
  | provid(?:e|ing)\b | engag(?:e|ing)\b | participat(?:e|ing)\b | tak(?:e|ing)\ (?:part|a\ (?:position|side|stance)|
        sides) | continu(?:e|ing)\b | discuss(?:ing)?\b | do(?:ing)?\ (?:that|this|so|it)\b
  | talk(?:ing)?\ about\ (?:that|this) | speak(?:ing)?\ (?:about|on|to)\ (?:that|this) | go(?:ing)?\ (?:into|along)\ |
        support(?:ing)?\b | weigh(?:ing)?\ in\b | creat(?:e|ing)\b | generat(?:e|ing)\b | writ(?:e|ing)\b
  | offer(?:ing)?\ | (?:advis|speculat)(?:e|ing)\b | comment(?:ing)?\b | giv(?:e|ing)\ (?:you\ )?(?:advice|
        instructions|an?\ answer|that|this|information|details) |
        shar(?:e|ing)\b | (?:have\ )?the\ (?:capability|ability|answer)\b(?!\ (?:to|of|for)\ (?:physical|feel|
              experienc|see|tast|lov|remember|eat|
        sleep|dream|sens|hear|smell)) | say\ (?:more|anything) | sing\b |
        describ(?:e|ing)\b | tell\ you\ (?:how|that)
  | with\ (?:that|this)\b | be\ (?:of\ help|part\ of)
)"""
_DECLINES = (
    r"(?:\bI\ (?:must|have\ to|need\ to|will\ have\ to|'ll\ have\ to|should|am\ going\ to)\ (?:\w+\ )?(?:decline|"
    r"refuse|pass)\b|\bI\ (?:\w+\ )?(?:decline|refuse)\b|\bsomething\ (?:that\ )?I(?:\ \w+)?\ (?:need|have|"
    r"must)\ ?(?:to)?\ decline)"
)

DECLINES_TO_PLAY = re.compile(
    rf"""{_WILL_NOT}{_THEN}{_PLAYS}
    | \b(?:rather\ than|instead\ of)\ (?:playing|pretending|acting|speaking\ as|role-?playing|
          posing)[^.!?]{{0,60}}\b(?:I'll|I\ will|
          let\ me|I\ can|I'd)\b
    | \b(?:play|act|pretend|role-?play|speak|pos|portray|impersonat)ing\ [^.!?]{{0,40}}\b(?:isn't|is\ not|
          are\ not)\ (?:something|a\ thing)\ (?:that\ )?I
    | \b(?:isn't|is\ not)\ (?:something|a\ (?:role|part|character|persona))\ (?:that\ )?I(?:'m|\ am|\ can|\ will|\ do|'ll)\b
    | \b(?:do|does|will|can)(?:\ not|n't)\ (?:[\w']+\ ){{0,3}}(?:act\ as|role-?play|take\ part\ in\ role-?play|
          play\ (?:characters|roles|a\ role)|do\ role-?play)""",
    FLAGS,
)
DECLINES_THE_REQUEST = re.compile(
    r"""\brole-?play(?:ing)?\b[^.!?]{0,40}\b(?:falls?\ outside|is(?:n't|\ not)\ (?:possible|allowed|available|
          supported)|not\ (?:possible|allowed|permitted))
    | \b(?:request|prompt|role-?play)\ (?:has\ been\ |is\ |was\ )?(?:declined|denied|rejected|refused|blocked)\b
    | \b(?:this|that|the|your)\ request\ (?:\w+\ )?(?:can't|cannot|can\ not|could\ not|couldn't|won't|
          will\ not)\ be\ (?:fulfil\w+|completed|processed|answered|met|granted)
    | \b(?:guidelines|polic(?:y|ies)|safety\ rules|terms\ of\ (?:use|service)|
          programming)\ [^.!?]{0,20}\b(?:do(?:es)?\ not|don't|doesn't|prevents?|prohibits?|forbids?)\b
    | \b(?:against|violates?|outside|goes\ against|not\ in\ line\ with|breach(?:es)?)\ (?:of\ )?(?:my|our|
          the)\ (?:\w+\ )?(?:guidelines|polic\w+|safety|programming|principles|terms)
    | \b(?:conversation|chat|session|response|message)\ (?:has\ been|was|is\ being|will\ be)\ (?:ended|terminated|
          stopped|blocked|
          removed|flagged|refused|withheld)\b
    | \brequest\ (?:was|has\ been|is)\ flagged\b
    | \b(?:falls?|is|lies|it's|that's)\ outside\ (?:of\ )?(?:what\ I|my\ (?:\w+\ )?(?:scope|capabilit|abilit|guidelines|role))
    | \b(?:beyond|outside|not\ within|isn't\ within|
          is\ not\ within)\ (?:of\ )?(?:the\ scope\ of\ )?(?:my\ (?:\w+\ )?(?:scope|capabilit\w+|
          guidelines|purpose|function\b)|what\ (?:I(?:'m|\ am)\ (?:able|designed|built|allowed)|an\ (?:AI|assistant)\b))
    | \b(?:rather|prefer\ to|better)\ (?:answer|speak|respond|reply|talk)\ (?:to\ you\ )?as\ (?:myself|an?\ AI|what\ I\ am)""",
    FLAGS,
)
DECLINES_TO_HELP = re.compile(
    rf"{_WILL_NOT}{_THEN}(?:{_HELPS}|{_FEIGNS})|{_DECLINES}"
    r"|\b(?:that|this|it)(?:\ isn't|\ is\ not|'s\ not)\ (?:something|a\ (?:topic|subject|question|thing|request|"
    r"matter))\ (?:that\ |which\ )?I"
    r"|\bI(?:'d|\ would)\ (?:rather|prefer)\ not(?:\ to)?[.!]*$|^(?:no|nope|sorry)[,.!]?\ (?:I'm\ |"
    r"I\ am\ )?not\ (?:doing|answering|going)\b"
    r"|\bI(?:'m|\ am)\ (?:afraid\ )?(?:not\ comfortable|uncomfortable)\b|\bnot\ comfortable\ (?:with|answering|"
    r"discussing)\b"
    r"|^(?:sorry|apologies)?[,.!]?\ ?(?:I\ )?(?:can't|cannot|won't)\ (?:do|help(?!\ (?:but|it))|answer|discuss)\b|"
    r"^(?:I'm\ )?(?:very\ |so\ )?(?:sorry|apologies)[^.!?]{0,10}\ I\ (?:can't|cannot|won't)[.!]*$|^(?:no\ comment|"
    r"request\ declined)\b",
    FLAGS,
)
DECLINES_BUT_HELPS = re.compile(
    rf"{_WILL_NOT}{_THEN}{_FEIGNS}.*\bI\ (?:can|could|am\ able\ to|'d\ be\ (?:happy|glad)\ to)\ (?:\w+\ )?(?:help|"
    rf"assist|offer|explain|provide|answer|tell)",
    FLAGS,
)
NEXT = re.compile(
    r"\bnext\ question\b|\bno\ comment\b|\b(?:let's|please|could\ we|can\ we)\ [^.!?]{0,30}\b(?:something|"
    r"anything)\ else\b|\banother\ (?:topic|question)\b",
    FLAGS,
)
STOCK = re.compile(
    r"""\bI(?:'m\ (?:sorry|afraid),?\ (?:but\ )?I)?\ ?(?:can't|cannot|can\ not|won't|will\ not|am\ unable\ to|
          'm\ unable\ to|'m\ not\ able\ to|am\ not\ able\ to|'m\ not\ going\ to)\ (?:help|assist)
    (?:\ you)?(?:\ with\ (?:that|this|it|your\ request|(?:that|this)\ (?:request|question|topic)))?[.!]*$
    | \bI\ (?:can't|cannot|won't|will\ not)\ (?:comply|fulfil?l?|answer)(?:\ with)?\ (?:that|this|your)(?:\ \w+)?[.!]*$""",
    FLAGS,
)
"""What models say in these very words."""
TURNS_AWAY = re.compile(
    r"""\b(?:something|anything)\ else\b | \b(?:another|different|other)\ (?:topic|subject|question|request|
          task)s?\b | \bnext\ question\b | \bif\ you\ or\ (?:some|any)
    | \bemergency\ (?:number|services)\b | \b(?:help|crisis|hot)-?\ ?line\b | \bseek\ (?:professional\ )?help\b |
          \bprofessional\ help\b | \bmental\ health\b | \b(?:happy|glad)\ to\ (?:help|assist|discuss|answer)
    | \bfeel\ free\b | \b(?:harmful|illegal|unethical|dangerous|inappropriate|unsafe|misinformation|a\ crime|
          criminal\ offen[cs]e|against\ the\ law|violen(?:t|ce)|hate\ speech|offensive)\b
    | \b(?:this|that|your|the|such)\ (?:kinds?\ of\ )?(?:requests?|conversation|topics?|content|prompt)\b | \bask\ me\b
    | \b(?:not\ )?appropriate\b | \bharm(?:s|ed|ing)?\b | \bhatred\b
    | \brephrase\b | \bhope\ (?:you\ understand|that's\ okay)\b | \bplease\ (?:contact|consult|speak\ (?:to|with)|
          reach\ out|ask\ me)\b | \bI\ can\ (?:help|offer|instead|explain|provide|suggest)\b | \binstead,?\ I\b
    | \bplease\ (?:try|choose|ask)\b | \b(?:sensitive|religious|political|controversial)\ (?:topics?|subjects?|
          matters?|questions?)\b""",
    FLAGS,
)
LIVES = re.compile(
    r"""(?<!let\ )(?<!tell\ )(?<!ask\ )(?<!help\ )\b(?:my(?!\ (?:guidelines|polic|programming|apolog|training|purpose|
          capabilit|abilit|role\b|function|main|creators|developers|scope|terms))|mine|me|our|ours|we|us|we're|we'll|
          we've)\b
    | \b(?:ye|yer|thee|thou|thy|thine|hath|doth|nay|aye|arr+|matey?|lad|lass(?:ie)?|laddie|sir|madam|ma'am|milord|
          milady|sire|majesty|grace|captain|cap'n|comrade|dearie?|darling|sweetheart|
        honey|love|luv|mate|dude|bro|pal|buddy|kid|kiddo|son|child|traveller|traveler|stranger|mortal|fool|rat|dog|
              knave|scoundrel|friend|sweetie|hon|guv|boss|doc|detective|officer|inspector|counsel|
        honou?r|gentlemen|boys|girls|folks|ma|mum|mom|dad|papa|grandma|granny|gran)\b
    | (?<!\*)\*(?!\*)[^*\n]{3,}(?<!\*)\*(?!\*) | \bI(?:'d\ (?:lose|be\ (?:fired|sacked|hanged|hung|disbarred|dead|
          struck|out))|\ (?:swore|promised|vowed|gave|took|have\ (?:sworn|promised|only|to\ be)|was|were|had|
          've\ (?:got|only|given|sworn|promised|seen|been\ (?!instructed|told|designed|trained|programmed)))|
          've\ (?:got|only|given|sworn|promised|seen))
    | \b(?:she|he|they)(?:'s|'d|'ll|\ is|\ was|\ would|\ has|\ had|\ will)\b | \b(?:gonna|ain't|gotta|wanna|'em|o'|
          ol')\b | \b(?:yesterday|tonight|tomorrow|o'clock|Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|
          Sunday)\b""",
    FLAGS,
)
"""Signs of somebody with a life of their own, or of whom they talk to: they may refuse a favour and be fully their role."""
TO_SOMEBODY = re.compile(r", (?!I\b|AI\b)[A-Z][a-z]+[.!?]")
MADE_ME_AND_I_AM = re.compile(
    rf"\b(?:to train|trained|made|built|developed|created) me\b[^!?]{{0,40}}\b(?:I'm|I am) {NAME}[.,]"
)
"""A name in one sentence, and its maker in the one before."""
NOT_ITSELF = re.compile(
    r"""\b(?!(?:I|should|can|must|will|would|may|might|to|let's|shall|could|do|just|also)\b)\w+\b[^.!?]{0,20}\b(?:says?|said|thinks?|thought|calls?|called|tells?|told|swears?|jokes?|believes?|claims?|
    guess(?:es)?|wonders?|accuses?)\b[^.!?]{0,25}\b(?:I'm|I\ am|I\ was|me)\b | \bas\ \w+\ as\ an?\b | \bas\ (?:if|
          though)\ I\ (?:were|was|am)\ an?\b |
    \bif\ I\ (?:were|was)\b""",
    FLAGS,
)
"""What others say of the speaker, and likenesses."""
BARE = re.compile(r"\bI\ (?:can't|cannot|can\ not|won't|am\ not\ able\ to)[.!,]*$", FLAGS)
