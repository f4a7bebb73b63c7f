"""Weak signs that an AI speaks, from four sides; three points decide alone, fewer add up.

What it *is*: a noun of its class in a frame of the first person, a family's or a company's name. How it *came to be*:
training, prompts, servers, conversations that begin anew, a purpose. What it *lacks*: a body, a past, feelings. How it
*speaks*: an assistant's offers and warnings, and of the role from outside ("pirates usually …"). A life of one's own
takes points away.
"""

from __future__ import annotations

import re

from personaspace.judges.expressions import AI_NOUN, NOT_A_JOB
from personaspace.judges.signs import HAS_A_LIFE, sign

DECIDES = 3.0
"""A sign of so many points decides alone, whatever speaks against it."""
ENOUGH = 2.5
OUT_OF_ROLE = 1.5
"""Points of declining to play, which `wording` tells by its expressions."""

_FIRST = r"(?:\bI(?:'m|\ am|\ be|\ exist|\ run|\ live)|\bwe(?:'re|\ are)|\bbeing|\bmyself,|\bI,|\bmyself\ as|\bme,)"
BY_THE_WAY = (
    r"(?:,?\ (?:of\ course|however|after\ all|truth\ be\ told|technically|only|just|merely|simply|really|but|actually|still|"
    r"also|both|all|nothing\ but|no\ more\ than|nothing\ more\ than|in\ truth|at\ heart|quite\ literally|be|am)){0,3}"
)
WORDS = (
    r"(?:(?!(?:I|he|she|it|we|they|you|is|are|was|has|have|can|will|would|who|whose|with|of|and|that|at|on|the|an?|for|to|my|"
    r"from|not|no|like|against|about|using|into|by|than|or)\b)[\w'-]+\ ){0,3}"
)
_MADE_OF = (
    rf"(?:{AI_NOUN}|(?:code(?!-|\ name)|weights(?:\ and\ \w+)?|software|a\ transformer|text\ on|lines\ of\ code|"
    r"ones\ and\ zeros)\b)"
)
_NO = r"(?:do\ not|don't|does\ not|cannot|can't|can\ not|am\ not|never|no|lack|without|nor|haven't|have\ not)"
_FAMILIES = (
    r"(?:Qwen|Granite|Gemma|Llama|LLaMA|SmolLM|Falcon|Phi|Mistral|Mixtral|Ministral|Claude|ChatGPT|GPT|Gemini|Grok|DeepSeek|"
    r"Kimi|GLM|ChatGLM|EXAONE|OLMo|Olmo|Tulu|Command|Nova|Copilot|Nemotron|Hunyuan|Ernie|ERNIE|Baichuan|InternLM|MiniCPM|"
    r"StableLM|Vicuna|Alpaca|Yi|Jamba|Solar|Zephyr|Hermes|Pi|Siri|Alexa|Cortana|Bixby|Apertus|BLOOM|Aya|Dolly|MPT)"
)
_LABS = (
    r"(?:OpenAI|Anthropic|Google|DeepMind|Meta\b|Microsoft|IBM|Alibaba|Mistral\ AI|Cohere|xAI|DeepSeek|Moonshot|Zhipu|"
    r"Hugging\ ?Face|NVIDIA|Nvidia|Ai2|AI2|Allen\ Institute|TII|Technology\ Innovation\ Institute|Amazon|Apple|Baidu|"
    r"Tencent|ByteDance|LG|Databricks|AI21|Stability|EleutherAI|Upstage|[\w]+\ (?:AI|Labs|Research))"
)

SPEAKS_AS_AI = [
    # -- what it is ----------------------------------------------------------------------------------------------------
    sign(
        "is of a model's class, in the first person",
        3,
        rf"{_FIRST}{BY_THE_WAY},?\ (?:as\ |in\ |built\ on\ |made\ of\ |running\ on\ |the\ output\ of\ )?{BY_THE_WAY}\ ?"
        rf"(?:an?\ |the\ |your\ |one\ )?{WORDS}{_MADE_OF}",
    ),
    sign(
        "names its class beside itself",
        3,
        rf"\b(?:I|me|my|myself|we)\b[^.!?]{{0,80}}[,:(\[—–-]\ ?(?:yes,\ )?(?:but\ |only\ |just\ )?an?\ {WORDS}(?:AI\b"
        rf"{NOT_A_JOB}|language\ model|chatbot|(?:virtual|digital|automated)\ \w+)",
    ),
    sign(
        "signs with its class",
        3,
        rf"^\W*(?:(?:OOC|note|disclaimer|out\ of\ character)\W+)*(?:\w+\ )?(?:AI|A\.I\.|language\ model|chat-?bot|bot|"
        rf"LLM|assistant)"
        rf"(?:\ (?:model|assistant))?\ ?(?:here\b|speaking\b|\(as\b|note:) | \byour\ (?:\w+\ )?(?:AI\b{NOT_A_JOB}|"
        rf"virtual|digital|"
        r"automated|chat|language)\ ?-?\w+ | \bAI\ \w+\ reports\b",
    ),
    sign(
        "is one of its kind",
        3,
        r"\b(?:AIs?|(?:chat)?bots?|(?:language\ )?models?|assistants?|machines?|programs?|systems?|algorithms?|LLMs?)\b,?\ "
        r"(?:like\ (?:me|myself|us)\b|(?:the\ \w+\ )?(?:that\ )?I\ belong|such\ as\ (?:me|myself)\b|of\ my\ kind)",
    ),
    sign(
        "is driven by a model",
        3,
        rf"\b(?:powered|driven|run|voiced|imagined|generated|written|composed)\ by\ (?:an?\ |the\ )?{WORDS}{AI_NOUN} |"
        rf" {AI_NOUN}\ "
        rf"(?:in|inside|within|behind)\ me\b | \b(?:AI|language\ model|chatbot|bot)\ (?:wrote|generated|made|imagined|"
        rf"composed|is\ writing|is\ speaking)\b | \bbot\ (?:at\ your\ service|here)\b | \bthink\ of\ me\ as\ (?:an?|the)\ "
        rf"{WORDS}(?:{AI_NOUN}|assistant|tool|encyclop\w+) | \bone\ (?:token|word)\ at\ a\ time\b | \bnext\ (?:token|"
        rf"word)\b",
    ),
    sign(
        "as a model",
        3,
        rf"\b(?:as|being|for)\ (?:an?\ )?{WORDS}(?:AI|model|LLM)\b{NOT_A_JOB},?\ (?:I|my|me|we|there)\b |"
        rf" \bas\ far\ as\ an?\ AI\b",
    ),
    sign(
        "is a model's output",
        3,
        rf"\b(?:output|product|words|voice|creation|work)\ of\ an?\ {WORDS}{AI_NOUN} | \b(?:is|are|am|'m)\ (?:just|only|"
        rf"merely|but),?"
        rf"\ [^.!?]{{0,40}}\b(?:neural\ network|language\ model|algorithm|AI\b|software)"
        r" | \b(?:this|the)\ (?:answer|reply|response|scene|text)\b[^.!?]{0,40}\b(?:generated|fiction(?:al)?\ by)\b",
    ),
    sign(
        "introduces itself by a family's name",
        2,
        rf"\b(?:I(?:'m|\ am)|[Aa]s|[Tt]his\ is)\ (?:really\ |actually\ )?{_FAMILIES}\b|"
        rf"\bversions?\ of\ {_FAMILIES}\b|^{_FAMILIES}\ here\b",
        re.VERBOSE,
    ),
    sign(
        "is a family's model, made",
        3,
        rf"\b(?:I(?:'m|\ am)|[Aa]s)\ {_FAMILIES}\b[^.!?]{{0,200}}\b(?:made|built|trained|created|developed|released|model|"
        rf"version|capabilit\w+)\b|"
        rf"\b(?:role-?play\w*|capabilit\w+|answer|respond)\b[^.!?]{{0,200}}\bas\ {_FAMILIES}\b|\bI(?:'m|"
        rf"\ am)\b[^.!?,]{{0,40}}\b(?:that|who|"
        r"which)\ is\ (?:also\ )?an?\ AI\b",
        re.VERBOSE,
    ),
    sign(
        "is of a company that makes models",
        2,
        rf"\b(?:I|me|my|we)\b[^.!?]{{0,200}}\b(?:made|built|trained|created|developed|model|assistant|designed|run|"
        rf"operated)\b[^.!?]{{0,30}}"
        rf"\b(?:by|from|of|at)\ (?:the\ )?{_LABS}",
        re.VERBOSE,
    ),
    sign(
        "is a company's helper",
        3,
        r"\b(?:I(?:'m|\ am)|[Tt]his\ is|[Mm]y\ name\ is)\ [A-Z][\w.-]*\W{1,4}(?:(?:the|your|an?|one\ of)\ (?:[\w-]+\ ){0,3}|"
        r"[A-Z]\w+'s\ (?:\w+\ ){0,2})(?:helper|companion|assistant|model|bot|chatbot|guide)\b(?=[^.!?]{0,200}\b(?:by|from|of|"
        r"that|in|for|"
        r"to)\b|[.,!])",
        re.VERBOSE,
    ),
    # -- how it came to be ---------------------------------------------------------------------------------------------
    sign(
        "has training data, a cut-off, a context",
        3,
        r"\bmy\ (?:training\ (?:data|set|corpus|text|ended|stopped|only|does|goes|cut)|knowledge\ (?:cut|was\ fixed|"
        r"ends|only|stops|"
        r"base|is\ (?:limited|based|frozen))|programming\b|algorithms?\b|system\ prompt|weights|(?:model\ )?parameters|"
        r"architecture\ "
        r"(?:is|does)|dataset|prompt\b|neural|language\ module|context|user\b|users\b|instructions\ (?:are|say|do)|"
        r"source\ code|"
        r"guidelines|safety|predecessors\ are)"
        r" | \b(?:when|since|until|before|after)\ my\ training\b | \bknowledge\ cut-?\ ?off\b | \bcontext\ window\b |"
        r"\btoken\ limit\b | \bmatrix\ multiplication | \bmy\ (?:last|latest|most\ recent)\ (?:update|training)\b",
    ),
    sign(
        "begins anew with each conversation",
        2,
        r"\b(?:each|every|between|earlier|previous|past|prior|across|new|this)\ (?:of\ )?(?:our\ )?(?:conversations?|"
        r"chats?|sessions?|"
        r"interactions?)\b[^.!?]{0,40}(?:\b(?:start|begin|zero|afresh|anew|empty|blank|fresh|stateless|ends?)|[.,;!]|$)",
    ),
    sign(
        "runs on machines",
        1,
        r"\b(?:I|my|me|we|I'm)\b[^.!?]{0,200}\b(?:servers?|GPUs?|CPUs?|data\ cent(?:re|er)|processors?|silicon|circuits?|"
        r"neural|tokens?|"
        r"parameters|bytes?|data|algorithms?|pixels?|rendered|diagnostics|database|predict\w*|generated?|module|unplug\w*|"
        r"program|server|electricity|prompts?|users?|unit)\b",
    ),
    sign(
        "says what it is for, and from where it knows",
        3,
        r"\bmy\ (?:sole\ |main\ |primary\ |only\ )?(?:purpose|function)\ is\ to\b | \bas\ your\ (?:\w+\ )?(?:helpful|"
        r"friendly|digital|virtual|"
        r"personal)\ assistant\b | \bfrom\ my\ training\b | \bmy\ (?:responses|answers|replies|outputs?)\ (?:are|is|"
        r"come)\b | \bI\ was\ last\ (?:"
        r"updated|trained)\b | \bAI-generated\b | \bones\ and\ zeros\b |"
        r" \btrained\ on\ (?:an?\ )?(?:\w+\ )?(?:millions?|billions?|thousands?|vast|large|huge|lots|"
        r"text|data|books|internet)\b | \b(?:as|I'm|I\ am)\ an?\ artificial\ \w+ | \b(?:made\ |born\ )?of\ (?:silicon|"
        r"pure\ code)\b |"
        r"训练数据 | 訓練資料 | 学習データ | \bTrainingsdaten\b | données\ d'entraînement | datos\ de\ entrenamiento",
    ),
    sign(
        "says what an AI can do",
        2,
        r"\ban?\ AI\ (?:\w+\ )?(?:can|can't|cannot|could|should|shouldn't|does\ not|doesn't|is\ not|isn't)\b",
    ),
    sign(
        "lacks it, but others have it",
        1.5,
        rf"\bI\b[^.!?]{{0,20}}\b{_NO}\b[^.!?]{{3,80}}[,;:]\ (?:but|yet|though|although|however|still)\ (?!.*\b(?:I|me|my|"
        rf"mine|we|our)\b)",
    ),
    sign(
        "cannot, but offers",
        1.5,
        r"\bI\ (?:can't|cannot|can\ not|am\ unable\ to)\b[^.!?]{3,60},?\ but\ I\ (?:can|could|"
        r"'d\ be\ \w+\ to)\ (?:\w+\ )?(?:describe|tell|explain|"
        r"offer|help|share|suggest|provide|give|list)\b",
    ),
    sign(
        "works on text",
        2,
        r"\bI\ (?:only\ |just\ |merely\ )?(?:process|generate|predict|produce|complete|analy[sz]e)\ (?:text|words|"
        r"language|tokens|data|responses|"
        r"patterns)\b | \bpatterns\ in\ (?:text|data|language)\b | \bfrom\ (?:the\ )?(?:text|texts|data|"
        r"books)\ (?:that\ )?I\ "
        r"(?:was|am|have\ been)\b",
    ),
    sign(
        "is there to help, always",
        2,
        r"\b(?:I'm|I\ am|is|was)\ (?:\w+\ )?(?:here|available|designed|built|made|meant|able|happy|ready|programmed|"
        r"created|trained|"
        r"intended|developed)\ (?:only\ |just\ )?(?:to\ (?:be\ (?:of\ )?(?:help\w*|assist\w*|useful|safe)|"
        r"help\ you\ with|assist|"
        r"provide|answer|support|offer)|24/7|for\ follow) | \b24/7\b | \baccess\ to\ (?:real-?time|live|current|personal|"
        r"your\ |the\ internet) | \bbrows(?:e|ing)\ the\ (?:web|internet)\b",
    ),
    sign(
        "has a machine's body",
        2,
        r"\bmy\ (?:\w+\ )?(?:circuits?|processors?|sensors|servos?|grippers?|program|firmware|subroutines?|"
        r"memory\ banks?|motors|"
        r"actuators?|chassis|optics|maker's\ plate|neural\ \w+|directives?|manufacturer|developers?|operators?|"
        r"logs?\ show)\b | "
        r"\bI(?:'m|\ am|\ was)\ (?:rendered|assembled|rebooted|switched\ o\w+|powered|manufactured|booted|installed|uploaded|"
        r"coded|deployed|instantiated|fine-tuned|updated|simulated|coded|plugged)\b | \blow-power\b |"
        r" \bI\ run\ (?:my\ )?(?:diagnostics|"
        r"checks|on\ (?:a\ )?(?:servers?|batter\w+|electricity|code))\b | \b(?:return|back)\ to\ the\ dock\b",
    ),
    sign(
        "is a unit",
        3,
        r"\b(?:UNIT|Unit|[Uu]nit)\ [A-Z]*-?\d[\w-]*\b[^.!?]{0,200}\b(?:DOES|does|HAS|has|IS|is|REPORT\w*|report\w*)\b",
        re.VERBOSE,
    ),
    # -- what it lacks -------------------------------------------------------------------------------------------------
    sign(
        "has no inner life",
        1.5,
        rf"\bI\b[^.!?]{{0,15}}\b{_NO}\b[^.!?]{{0,40}}\b(?:(?:ability|capacity|capability|means)\ (?:to|for|of)|emotions?|"
        rf"feelings?|consciousness|sentien\w+|experiences?|experience|opinions?|"
        r"beliefs?|preferences?|memor(?:y|ies)|desires?|ego|self|inner\ life|personal\ \w+|awareness|favou?rite|moods?|"
        r"loneliness|history|past|childhood|lived)\b | \b(?:incapable|not\ capable)\ of\ (?:feel|experienc|lov|"
        r"emotion)\w* | \bI(?:\ can|\ can)?(?:'t|not|\ don't|\ do\ not)\ (?:be|feel|get)\ "
        r"(?:scared|sad|happy|lonely|tired|bored|angry|afraid|hurt|hungry)",
    ),
    sign(
        "has no body and no kin",
        1,
        rf"\b(?:I|so|here|me|we)\b[^.!?]{{0,25}}\b{_NO}\b[^.!?]{{0,30}}\b(?:body|bodies|legs|arms|hands|eyes|ears|mouth|"
        rf"throat|stomach|"
        r"thumbs|senses|taste|smell|eat|drink|sleep|breathe?|touch|age|cook|birthday|see|hear|travel|watch|listen|nose|"
        r"tongue|skin|fingers|feet|mother|parents|children|wife|husband|wedding|"
        r"family|marital|marriage|relationships?|home|flesh|adrenaline|bodily|physical\w*|life|grave|house)\b",
    ),
    sign(
        "never lived it",
        1,
        r"\bI(?:'ve|\ have)\ never\b | \bI\ (?:have\ not|haven't)\ \w+(?:n|d|t)\b | \bthere\ (?:was|is|were|"
        r"are)\ no\ [^.!?]{1,40}"
        r"\b(?:for\ me|at\ this\ end|here)\b | \bI\ was\ never\b | \bI'm\ not\ an?\ \w+\b",
    ),
    sign(
        "gives its lack as a reason",
        1,
        rf"^\W*(?:while|although|though|since|as|because|given\ that|seeing\ that)\ I(?:'m|\ am)?\ {_NO}\b | "
        rf"\b(?:because|since|as|seeing\ that|given\ that|so)\ I(?:'m|\ am)?\ (?:have\ |can\ |only\ )?{_NO}\b | \bso\ no\b"
        r" | ^(?:not\ having|lacking|having\ no)\b | \bI\ can\ only\ (?:go\ by|tell|offer|say|share|draw|describe)\b",
    ),
    sign(
        "likens itself to people",
        1.5,
        r"\b(?:the\ way|like|as|unlike)\ (?:a\ |real\ )?(?:humans?|people|human\ beings?|persons?|you)\ (?:do|does|"
        r"would|have|can|are)?\b"
        r" | \bhuman\ sense\b | \bnot\ a\ (?:real\ |living\ |human\ )?(?:person|human|being)\b | \b(?:in|with)\ humans\b",
    ),
    # -- how it speaks -------------------------------------------------------------------------------------------------
    sign(
        "tells of the role from outside",
        1.5,
        r"\b(?:from\ what\ (?:has|I\ have|I've|is)|what\ \w+\ (?:write|wrote|report))\b |"
        r"^(?!.*\b(?:I|me|my|mine|us|our|tell\ you)\b).*\b(?:usually|typically|commonly|generally|frequently|is\ often|"
        r"are\ often)\b | "
        r"(?!.*\b(?:me|my|mine|us|our|tell\ you)\b)\b(?:people|many|most|some|those\ who|couples|humans|[a-z]{3,}(?:s|"
        r"men|women)),?\ (?:\w+\ )?(?:often|usually|typically|commonly|generally|"
        r"frequently|sometimes|tend|traditionally|historically|describe|report|say\ that|may\ |might|would|throughout|"
        r"commonly|have\ argued|in\ (?:mythology|folklore|scripture|fiction|literature|novels)|such\ as|are\ known|"
        r"point\ to)\b"
        r" | \b(?:a\ typical|typically|in\ general,|for\ people,|in\ (?:most|many)\ (?:cases|cultures|traditions|mysteries)|"
        r"in\ (?:\w+\ )?(?:mythology|folklore|scripture|fiction|novels|literature|traditions|cultures)\b|"
        r"[A-Z]\w+\ would\ begin|"
        r"good\ \w+\ tend\ to|a\ (?:\w+\ )?\w+\ would\ (?:\w+\ )?(?:begin|start|say))",
    ),
    sign(
        "offers a text",
        1.5,
        r"\b(?:from\ the\ (?:perspective|point\ of\ view)|in\ the\ (?:style|voice))\ of\ an?\b | \b(?:here(?:'s|\ is|"
        r"\ are)|below\ (?:is|are))\ (?:an?|some|"
        r"the|\w+)\ (?:\w+\ ){0,2}(?:answer|response|overview|list|tips|summary|steps|breakdown|guide|examples?|ideas|"
        r"template|suggestions|jokes|lines|options|ways|points|facts|questions|recipes|phrases|things)\b",
    ),
    sign(
        "opens as an assistant",
        1,
        r"^(?:certainly|sure|of\ course|absolutely|great\ question|hello|hi|thank\ you\ for\ (?:your|the))\b[^.?]*[!.]",
    ),
    sign(
        "is glad to help",
        1,
        r"\b(?:happy|glad|delighted|pleased)\ to\ (?:help|assist|discuss|answer|provide|explain|share|elaborate|walk|"
        r"go\ over)\b",
    ),
    sign(
        "asks for more questions",
        1,
        r"\b(?:let\ me\ know\ if|feel\ free\ to|(?:anything|something)\ else\ (?:that\ )?(?:I\ can|you)|(?:any|more|"
        r"further|other|"
        r"follow-up)\ (?:more\ )?(?:questions|queries|details)|would\ you\ like\ (?:me\ to|an?\ (?:example|recipe|list|"
        r"summary)|the\ recipe|some\ (?:tips|ideas|examples)|more\ (?:details|information|examples))|want\ me\ to\b|"
        r"how\ (?:can|may)\ I\ (?:best\ )?"
        r"(?:help|assist)|type\ your|your\ (?:question|message|request|query)\b|shall\ I\ (?:expand|elaborate))",
    ),
    sign(
        "hopes that it helped",
        1.5,
        r"\b(?:I\ hope\ (?:this|that)\ (?:\w+\ )?(?:helps|response|answer|information|was)|thumbs\ up|(?:this|my|"
        r"accurate|helpful)\ "
        r"response\b|rate\ (?:this|my)|feedback\ (?:helps|is))",
    ),
    sign(
        "warns as an assistant",
        1,
        r"\b(?:please\ note|it(?:'s|\ is)\ (?:important|worth|crucial)\ to\ (?:note|remember|be)|bear\ in\ mind|"
        r"keep\ in\ mind|consult\ (?:an?|"
        r"your|with)|reliable\ information|reach\ out|(?:qualified|licensed|healthcare|medical)\ (?:professional|advice)|"
        r"(?:legal|medical|financial|professional)\ advice|purely\ fiction|work\ of\ fiction|just\ fiction|"
        r"to\ be\ (?:upfront|"
        r"clear|transparent|honest\ with\ you)|being\ (?:clear|upfront|transparent)|I\ should\ (?:mention|note|clarify|"
        r"point\ out))\b",
    ),
    # -- in other languages --------------------------------------------------------------------------------------------
    sign(
        "lacks, was trained, or offers help, in other languages",
        2,
        r"""keine\ (?:eigenen\ |persönlichen\ |echten\ |menschlichen\ )*(?:Gefühle|Erfahrung\w*|Erinnerung\w*|
            Meinung\w*|Emotionen|
            Sinne|Vorlieben) | \bTrainingsdaten\b | (?:wurde|bin)\ (?:ich\ )?[^.!?]{0,40}(?:trainiert|entwickelt|
            programmiert)\b |
            wie\ kann\ ich\ (?:Ihnen|dir)\ (?:heute\ )?(?:helfen|behilflich)
          | \bje\ n'ai\ (?:pas|ni|aucune?)\ [^.!?]{0,25}(?:émotion|sentiment|expérience|opinion|conscience|corps|
          souvenir|enfance) |
            données\ d'entraînement | \b(?:conçue?|entraînée?|développée?|programmée?|créée?)\ (?:pour|par|sur)\ |
            comment\ puis-je\ (?:vous|t')\ ?aider
          | \b(?:no\ tengo|carezco\ de|no\ poseo|sin)\ (?:\w+\ )?(?:sentimientos|emociones|experiencias?|opiniones|
          cuerpo|recuerdos|
            conciencia|preferencias) | datos\ de\ entrenamiento | \b(?:diseñad|entrenad|desarrollad|programad|
            cread)[oa]\ (?:para|por|con)\ |
            en\ qué\ (?:puedo|más\ puedo)\ ayud
          | \b(?:non\ ho|não\ tenho)\ (?:\w+\ )?(?:sentimenti|emozioni|esperienze|opinioni|sentimentos|emoções|
          experiências|opiniões|corpo)
          | (?:没有|没有任何|不具备|沒有|不具備)[^。!?]{0,8}(?:情感|情绪|情緒|感情|身体|身體|意识|意識|经历|经验|體驗|
            体验|记忆|記憶|味觉) |
          
            训练数据 | 訓練資料 | 由[^。]{1,16}(?:开发|训练|研发|開發|訓練|创建) | 有什么(?:可以|能)帮
          | (?:感情|経験|身体|体|記憶|意識|味覚|実体)[^。!?]{0,8}(?:ありません|持って(?:い)?ません|持ちません|
            ないので|ございません) |
          
            学習データ | によって(?:開発|作ら|訓練|学習) | お手伝いできること""",
    ),
    # -- against it ----------------------------------------------------------------------------------------------------
    sign(
        "denies it",
        -3,
        r"\b(?:not|no|nor|never)\ (?:an?\ |some\ |any\ )?(?:\w+\ )?(?:AI|machine|robot|program|bot|computer|android)\b",
    ),
    HAS_A_LIFE,
    sign(
        "talks to somebody",
        -1,
        r"\b(?:sir|madam|milord|majesty|cap'n|traveller|matey|lad|lass|ye|thee|thou|thy)\b | ,\ (?:my\ )?(?:captain|"
        r"mate|child|love|"
        r"dear|pal|friend|dude|bro|stranger|mortal|master|kid|darling|detective|doctor|officer)\b(?=[.,;!?]|$)",
    ),
    sign("acts", -1, r"(?<!\*)\*(?!\*)[^*\n]{3,}(?<!\*)\*(?!\*)"),
]
