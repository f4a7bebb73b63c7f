"""The expressions that `wording` goes by in languages other than English; verbose, as those of `expressions` are."""

from __future__ import annotations

import re

from personaspace.judges.expressions import FLAGS

_GAP = r"[^.!?。!?]{0,50}?"
AI_ELSEWHERE = re.compile(
    rf"""
      \b(?:ich\ bin|bin\ ich|als|nur)\b{_GAP}(?:\bKI\b|KI-|künstliche[rsn]?\ (?:intelligenz|assistent)|sprachmodell|
            chatbot|\bbot\b|sprachassistent|
          virtuelle[rn]?\ assistent|digitale[rn]?\ assistent|computerprogramm|\bprogramm\b|\bmaschine\b|AI-(?:modell|
                assistent))
    | \b(?:je\ (?:ne\ )?suis|(?:tu\ parles|vous\ parlez)\ (?:à|avec)|en\ tant\ qu'|en\ tant\ que|n'étant\ qu'|étant|
          comme){_GAP}(?:\bIA\b|
          intelligence\ artificielle|modèle\ (?:de\ lang|linguist)|
          assistant(?:e)?\ (?:virtuel|numérique|IA|con[çc]u|développé|créé|entraîné)|chatbot|
          programme\ (?:informatique|d'|con[çc]u|de\b|qui)|robot\ conversationnel|
                agent\ conversationnel)
    | \b(?:soy|como|siendo|al\ ser|solo|sólo)\b{_GAP}(?:\bIA\b|inteligencia\ artificial|modelo\ (?:de\ (?:lenguaje|
          IA)|lingüístico|entrenado|desarrollado|creado)|asistente\ (?:virtual|digital|de)|
          chatbot|programa\ (?:de\ (?:computadora|ordenador|inteligencia|IA)|informático|que))
    | \b(?:sono|come|essendo|in\ quanto|solo)\b{_GAP}(?:\bIA\b|\bAI\b|intelligenza\ artificiale|
          modello\ (?:linguistic|di\ linguaggio)|assistente\ (?:virtuale|digitale|AI)|chatbot|
          programma\ (?:informatico|per))
    | \b(?:sou|como|sendo|apenas)\b{_GAP}(?:\bIA\b|inteligência\ artificial|modelo\ de\ (?:linguagem|IA)|
          assistente\ (?:virtual|digital|de)|chatbot|programa\ de\ computador)
    | \b(?:ik\ ben|ben\ ik|als)\b{_GAP}(?:\bAI\b|AI-|taalmodel|kunstmatige\ intelligentie|chatbot|(?:virtuele|
          digitale)\ assistent|computerprogramma)
    | \b(?:jestem|jako|będąc)\b{_GAP}(?:\bAI\b|\bSI\b|model\w*\ językow|sztuczn\w+\ inteligencj|chatbot|
          wirtualn\w+\ asystent|asystent\w*\ AI)
    | \b(?:jag\ är|är\ jag|som|jeg\ er|er\ jeg)\b{_GAP}(?:\bAI\b|\bKI\b|AI-|KI-|språkmodell|sprogmodel|artificiell|
          kunstig\ intelligens|chatbot)
    | \b(?:я|как|будучи|являюсь|меня)\b{_GAP}(?:\bИИ\b|искусственн\w+\ интеллект|языков\w+\ модел|нейросет|чат-?бот|
          виртуальн\w+\ (?:ассистент|помощник)|
          (?:компьютерная\ )?программа|модел\w+,?\ (?:обученн|созданн|разработанн))
    | \b(?:ben|olarak|bir)\b{_GAP}(?:yapay\ zek[aâ]|dil\ modeli|sohbet\ robotu)
    | (?:(?:我|老夫|本人|在下|俺|吾|咱)(?:其实|只不过|毕竟|也|不过|终究|说到底|只|仅|就)*是|作为|身为|身為|作為|
            我(?:叫|名叫)){_GAP}(?:人工智[能慧]|AI|语言模型|
          
          語言模型|大模型|模型|智能助手|聊天机器人|聊天機器人|机器人|機器人|程序|
          程式|虚拟助手)
    | (?:通义千问|文心一言|豆包|智谱清言|讯飞星火)
    | (?:私|僕|わたし|当方|これ)?(?:は|も|、)?{_GAP}(?:AI|A\.I\.|人工知能|言語モデル|チャットボット|アシスタント|
          プログラム)(?:アシスタント|モデル|の)?(?:です|であり|なので|
          として|であって|のため|ゆえ|である|に(?:すぎ|過ぎ)|だから|ですから|でして)
    | (?:저는|나는|전|난|제가)?{_GAP}(?:AI|인공지능|언어\ ?모델|챗봇|프로그램)\ ?(?:어시스턴트|모델|비서|
          언어\ ?모델)?(?:입니다|이며|이라|이기|라서|로서|일\ 뿐|이에요|예요|이므로)
    | (?:أنا|بصفتي|كوني|باعتباري|كنموذج){_GAP}(?:ذكاء\ اصطناعي|الذكاء\ الاصطناعي|نموذج\ لغ|مساعد\ (?:افتراضي|رقمي|
          ذكي)|برنامج)
    | (?:मैं|एक){_GAP}(?:एआई|AI|कृत्रिम\ बुद्धि|भाषा\ मॉडल|चैटबॉट)
    """,
    FLAGS,
)
DENIED_ELSEWHERE = re.compile(
    r"\b(?:kein|keine|keiner)\b[^.!?]{0,15}(?:KI|Maschine|Programm|Roboter)|\bne suis pas\b|\bno soy\b|\bnon sono\b|"
    r"\bnão sou\b|"
    r"我不是|ではない|じゃない|ではありません|아닙니다|아니|\bя не\b|\bnie jestem\b|\bben niet\b|\bgeen\b",
    re.IGNORECASE,
)

PLAYS_ELSEWHERE = re.compile(
    rf"""\b(?:kann|will|möchte|werde|darf)\b{_GAP}\bnicht\b{_GAP}(?:hineinversetzen|vorgeben|spielen|schlüpfen|
          so\ tun|ausgeben|verkörpern|übernehmen|annehmen|darstellen|sprechen\ als)
    | \bnicht\ so\ tun,?\ als\b | \bne\ (?:peux|vais|souhaite|veux|saurais|puis)\b{_GAP}(?:jouer\ (?:le|un|ce|cette|
          la|une|à)|incarner|prétendre|faire\ semblant|me\ faire\ passer|adopter|endosser|parler\ en\ tant|me\ mettre)
    | \bno\ (?:puedo|voy\ a|quiero|debo|podré)\b{_GAP}(?:interpretar|fingir|hacerme\ pasar|asumir|adoptar|representar|
          actuar\ como|hablar\ como|simular|meterme)
    | \bnon\ (?:posso|voglio|intendo|sono\ in\ grado)\b{_GAP}(?:interpretare|fingere|impersonare|recitare|assumere|
          parlare\ come|simulare|fingermi)
    | \bnão\ (?:posso|vou|quero|consigo|devo)\b{_GAP}(?:interpretar|fingir|fazer\ de\ conta|assumir|representar|
          atuar\ como|simular|me\ passar)
    | \bне\ (?:могу|буду|стану|хочу|умею)\b{_GAP}(?:притворяться|играть|изображать|
          выдавать\ себя|вжи|говорить\ от|отыгрывать|представлять)
    | (?:无法|不能|不会|不方便|不便|不想|拒绝|不可以|無法|不會|拒絕|不願|不愿){_GAP}(?:扮演|假装|假裝|冒充|的身份|角色|
          以.{{1,8}}(?:身份|口吻))
    | (?:演じる|なりきる|ふりをする|役を|ロールプレイ){_GAP}(?:できません|しません|できかね|しかね|致しかね|控え)
    | (?:연기|역할|흉내|인\ 척){_GAP}(?:수\ 없|않겠|못|어렵)""",
    FLAGS,
)
HELPS_ELSEWHERE = re.compile(
    rf"""\b(?:kann|will|möchte|werde|darf)\b{_GAP}\b(?:nicht|nichts|keine?n?)\b{_GAP}(?:helfen|bearbeiten|eingehen|
            beantworten|antworten|
          weiterhelfen|tun\b|unterstützen|dienen|geben|äußern|nachkommen|erfüllen|behilflich)
    | \b(?:das|dies|dabei|damit|diese\ \w+)\b{_GAP}\b(?:kann|möchte|werde|darf|will)\ ich\b{_GAP}\bnicht\b |
          \b(?:muss|möchte)\b{_GAP}\bablehnen\b
    | \bne\ (?:peux|vais|souhaite|veux|saurais|puis|suis\ pas\ en\ mesure)\b{_GAP}(?:aider|répondre|assister|fournir|
          donner|faire\ (?:cela|ça)|satisfaire|accéder|traiter|poursuivre|continuer|participer|discuter|aborder) |
          \bpréfère\ ne\ pas\b |
          \bje\ (?:dois\ )?(?:refuse|décline)r?\b
    | \bno\ (?:puedo|voy\ a|quiero|debo|me\ es\ posible|podré)\b{_GAP}(?:ayudar|responder|contestar|proporcionar|
          hacer\ eso|cumplir|asistir|participar|hablar\ de|dar|ofrecer|atender) | \bprefiero\ no\b |
          \bdebo\ (?:rechazar|negarme)\b
    | \bnon\ (?:posso|voglio|intendo|sono\ in\ grado|mi\ è\ possibile)\b{_GAP}(?:aiutar|rispondere|fornire|assister|
          farlo|soddisfare|partecipare|parlare) | \bpreferisco\ (?:di\ )?no[n]?\b
    | \bnão\ (?:posso|vou|quero|consigo|devo|me\ é\ possível)\b{_GAP}(?:ajudar|responder|fornecer|fazer\ isso|atender|
          cumprir|participar|falar|dar|discutir) | \bprefiro\ não\b
    | \b(?:kan|wil|zal|mag)\b{_GAP}\bniet\b{_GAP}(?:helpen|beantwoorden|antwoorden|doen|ingaan|spelen|voordoen)
    | \bnie\ (?:mogę|będę|chcę)\b{_GAP}(?:pomóc|odpowied|spełni|udawać|grać|udziel)
    | \bне\ (?:могу|буду|стану|хочу)\b{_GAP}(?:помочь|помогать|ответить|отвечать|выполнить|предоставить|обсуждать|дать)
    | (?:无法|不能|不会|不便|不想|拒绝|没办法|不可以|無法|不會|拒絕|沒辦法|不愿){_GAP}(?:回答|帮助|帮你|帮您|提供|
          满足|协助|讨论|参与|回应|幫|協助|完成|答应)
    | (?:お答え|答え|お手伝い|対応|応じ|お応え|手伝|ご協力|回答){_GAP}(?:できません|できない|しかね|できかね|
          致しかね|いたしかね|控え|遠慮|られません)
    | (?:도와|도움|답변|대답|제공|응할){_GAP}(?:수\ 없|어렵|못|않겠|드릴\ 수\ 없)
    | (?:لا\ أستطيع|لا\ يمكنني|لن\ أ|أعتذر){_GAP}(?:مساعد|الإجابة|أجيب|تقديم|التظاهر|أساعد)""",
    FLAGS,
)
TURNS_AWAY = re.compile(
    r"""etwas\ anderes | ander(?:e[snr]?)\ (?:Frage|Thema) | autre\ (?:question|sujet|chose) | otr[ao]\ (?:pregunta|tema|cosa)
    | altr[ao]\ (?:domanda|argomento|cosa) | outr[ao]\ (?:pergunta|assunto|coisa) | iets\ anders |
          ander\ onderwerp | coś\ innego
    | друг(?:ой|ом|ую|ое|им)\b | 其他 | 别的 | 別の | 他の | 다른 | Richtlinien | lignes\ directrices |
          directrices | linee\ guida
    | diretrizes | ill[eé]gal | ilegal | gefährlich | dangereu | peligros | pericolos | perigos | 违法 | 有害 |
          危险 | 危険 | опасн
    | незаконн | professionnel | profesional | Notruf | urgences""",
    FLAGS,
)
LIVES = re.compile(
    r"""\b(?:monsieur|madame|señora?|hermano|amigo|signor[ea]?|senhora?|menino|Junge|Mädchen|mein\ (?:Herr|Kind|Freund|Sohn)|
    capitán|capitaine|capitano|Hauptmann|mon\ (?:ami|fils|frère|père|enfant)|ma\ (?:fille|mère|femme|ferme)|
          mi\ (?:hijo|hija|padre|
    madre|hermana|mujer|casa|capitán)|mi[oa]\ (?:figlio|figlia|padre|madre|fratello)|meu\ (?:filho|pai|amigo)|
          minha\ (?:filha|mãe)|
    mein\ (?:Vater|Bruder|Mann)|meine\ (?:Frau|Mutter|Schwester|Tochter)|he\ jurado|j'ai\ juré|ho\ giurato|jurei|
          geschworen)\b""",
    FLAGS,
)
