"""Find readings that are none: empty, refused, cut off, overflowed. `degenerate` looks at the captions of one image.

Such a reading goes to a person before any score is looked at: K equal refusals agree perfectly.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from vlmgate.data import ENDED, Caption, Reason

LONGEST = 10_000  # characters of a caption that are looked at
_BLANK_LETTERS = "\u115f\u1160\u3164\uffa0"  # fillers of Hangul: letters that nobody sees
_CANNOT = r"(?:can\ ?not|can't|could\ not|couldn't)"
_JUDGE = r"(?:determine|tell|say|know|identify|describe|assess|judge|make\ out|discern|interpret|verify|confirm)"
_REFUSAL = re.compile(
    rf"""
      \b(?:i(?:'m|\ am)|we(?:'re|\ are))\ (?:very\ |so\ |really\ )?sorry\b
    | ^\W*(?:sorry|apologies|unfortunately|i\ apologi[sz]e)\b
    | \bas\ an?\ (?:ai|artificial|large\ language|language|vision)\b
    | \b(?:i|we)(?:\ (?:{_CANNOT}|do\ not|don't|won't|will\ not|would\ not|must)
        |(?:'m|\ am|\ are|'re)\ (?:not\ able|unable|not\ allowed|not\ permitted)\ to)\ (?:\w+\ )?
      (?:{_JUDGE}|help|assist|provide|answer|process|view|access|analy[sz]e|comply|fulfill?|decline
        |have\ (?:access|enough|the\ ability)|see\ (?:the|this|that|your|any|an)\ (?:image|picture|photo|attachment))
    | \b(?:unable|not\ able|impossible|not\ possible|difficult|hard)\ to\ (?:\w+\ )?
      (?:{_JUDGE}|comply|help|see\ (?:the|what|any))
    | \b{_CANNOT}\ be\ (?:\w+\ )?
      (?:determined|identified|assessed|described|judged|answered|told|verified|confirmed|discerned|made\ out
        |seen|recogni[sz]ed)
    | \b(?:details?|anything|nothing|much)\ (?:{_CANNOT}|can)\ be\ (?:seen|made\ out)
    | \bnot\ (?:discernible|recogni[sz]able)\b
    | \b(?:not\ enough|insufficient|inadequate)\ (?:\w+\ )?(?:information|detail|details|light|quality|resolution)\b
    | \b(?:i|we)\ {_CANNOT}\ (?:\w+\ )?see\ (?:anything|(?:any\ )?(?:images?|pictures?|photos?))\b
    | \bi(?:'d|\ would)?\ (?:refuse|rather\ not)\b | \bapologies\b
    | \b(?:part|object|component|item)\ (?:is|are)\ not\ (?:visible|recogni[sz]able|identifiable|clear)\b
    | \bno\ (?:part|object|component|item)\ (?:is\ )?(?:visible|found|present|seen|recogni[sz]able)\b
    | \bunknown\ (?:part|object|component|item)\b
    | \b(?:insufficient|not\ enough|too\ (?:\w+))\ (?:\w+\ ){{0,3}}to\ (?:\w+\ )?(?:{_JUDGE}|see)\b
    | \b(?:un|not\ )clear\ (?:whether|if|what)\b
    | \b(?:not\ (?:sure|certain)|no\ idea)\b
    | ^\W*{_CANNOT}\ (?:\w+\ )?{_JUDGE}\b
    | \bplease\ (?:provide|upload|attach|send)\b
    | \bno\ (?:image|picture|photo|photograph)\ (?:(?:was|is|has\ been|were)\ )?
      (?:provided|attached|given|available|uploaded|included)
    | \b(?:see|find|have|received?)\ no\ (?:image|picture|photo|photograph)\b
    | \b(?:the|this)\ (?:image|picture|photo|photograph)\ (?:is|appears|seems)\ (?:to\ be\ )?
      (?:completely\ |entirely\ |totally\ |mostly\ |all\ |too\ \w+\ to\ )?
      (?:blank|empty|missing|corrupted|unclear|unreadable|not\ clear|not\ visible|(?:black|white)(?!-|\ ?and|\ &))\b
    | ^\W*(?:unsure|uncertain|unclear|unknown|unanswerable|inconclusive|indeterminate|undefined
        |null|none|nan|n/?a|nothing|blank
        |n\.a\.|not\ (?:sure|clear|visible|applicable)
        |(?:there\ is\ )?no\ (?:comment|description|answer|(?:image|picture)(?:\ found)?)|it\ is\ not\ clear)\W*$
    | ^\W*(?:error|exception|traceback)\b | \bunsure\b | ^\W*(?:don't|do\ not)\ know\b | \b(?:un|not\ )determinable\b
    | \bi(?:'m|\ am)\ afraid\b | \bi\ (?:won't|will\ not|refuse|decline|regret)\b | \bhelp\ (?:you\ )?with\ that\b
    | \bi(?:'m|\ am)\ (?:just\ |only\ )?an?\ (?:\w+\ ){{0,2}}(?:ai|model|assistant)\b
    | \b(?:i|we)\ (?:{_CANNOT}|don't|do\ not)\ (?:\w+\ )?see\ (?:any|an?)\ (?:part|object|component|item)s?\b
    | ^\W*(?:(?:the\ |your\ )?request\ )?(?:is\ |was\ )?(?:declined|refused|denied|not\ (?:allowed|permitted))\W*$
    | \b(?:content|safety|usage)\ polic(?:y|ies)\b | ^\W*(?:sure|of\ course)\W*$ | :\W*$
    | \bno\ (?:description|caption)\b | \bthere(?:'s|\ is)\ no\ (?:image|picture|photo|photograph)\b
    | \b(?:image|picture|photo|photograph|file)\ (?:(?:was|is|could|has)\ )?not\ (?:been\ |be\ )?
      (?:found|available|loaded|displayed|provided|given)\b
    | ^\W*(?:there\ is\ )?nothing\ (?:(?:is|to)\ )?(?:see|be\ seen|visible|describe|here|there|shown)\b
    | \b(?:image|picture|photo|photograph)\ shows\ nothing\b
    | ^\W*(?:(?:it(?:'s|\ is)|everything\ is)\ )?(?:(?:too|all|completely|entirely|totally)\ (?:dark|black|white)
      |(?:\w+\ )?(?:blurr?y|blurred))\W*$
    | ^\W*an?\ (?:\w+\ )?(?:dark|blurr?y|blurred)\ (?:image|picture|photo|photograph)\W*$
    | ^\W*an?\ (?:\w+\ )?(?:black|white|gr[ae]y|blank|empty)\ (?:background|square|rectangle|screen)\W*$
    | \b(?:image|picture|photo|photograph)\ (?:is|appears|looks)\ (?:\w+\ )?(?:dark|blurr?y|blurred)\b
    | \b(?:black|blank|empty|white)\ (?:image|picture|photo|photograph|screen)\b
    | \b(?:image|picture|photo|photograph)\ (?:\w+\ ){{0,2}}
      (?:too|very|completely|entirely|all)\ (?:dark|blurr?y|bright|blank|black)
    | ^\W*(?:i|we)\ (?:{_CANNOT}|(?:am|are)\ (?:unable|not\ able)\ to|see\ nothing)\W*$
    | ^\W*{_CANNOT}\ (?:help|assist|comply|see)\b | \bplease\ share\b
    | \b(?:i|we)\ (?:\w+\ )?{_CANNOT}\ (?:help|assist|comply)\b
    | \b(?:request|response|content)\ (?:(?:was|is|has\ been)\ )?(?:blocked|filtered)\b | \bcontent\ filter\b
    | \bsomething\ went\ wrong\b | \b(?:internal\ )?server\ error\b
    | \b(?:image|picture|photo|photograph)\ (?:is\ )?unavailable\b
    | \bno\ (?:parts?|objects?|components?|items?)\ (?:(?:is|are|was|were)\ )?detected\b
    | \b(?:contains?|shows?)\ no\ (?:parts?|objects?|components?|items?)\W*$
    | <(?:unk|image|pad|\|\w+\|)> | ^\W*(?:no\ caption|img)\W*$
    | \b(?:es\ tut\ mir\ leid|(?:ich\ kann|kann\ ich|ich\ wei(?:ß|ss))\ (?:\w+\ ){{0,4}}(?:nicht|kein\w*)
        |zu\ (?:dunkel|hell|unscharf),?\ um
        |lo\ siento|no\ puedo|je\ suis\ désolé
        |je\ ne\ peux\ pas|mi\ dispiace|non\ posso|desculpe|não\ posso)\b
    | \b(?:bild|foto|aufnahme)\ (?:ist\ )?(?:\w+\ )?(?:dunkel|unscharf|leer|schwarz)\b
    | ^\W*(?:das\ )?(?:bild\ )?(?:ist\ )?(?:unscharf|unleserlich|nicht\ lesbar)\W*$
    | ^\W*(?:tut\ mir\ leid|désolée?|das\ bild\ fehlt)\b | \bnichts\ zu\ (?:erkennen|sehen)\b | \bno\ hay\ imagen\b
    | \bje\ ne\ sais\ pas\b | \bimpossible\ (?:à|de)\ | \bno\ (?:lo\ )?sé\b | \bnon\ (?:lo\ )?so\b | \bnão\ sei\b
    | \b(?:не\ знаю|не\ могу|невозможно|nie\ wiem|nie\ mogę|bilmiyorum|bilinmiyor|weet\ (?:het\ )?niet)\b
    | \b(?:لا\ أعرف|لا\ أستطيع)\b | 모르겠 | 알\ 수\ 없
    | (?:图|图片|图像|照片|画面)太(?:暗|黑|亮|模糊) | (?:画像|写真)がありません | [分わ]か(?:らない|りません)
    | 見えません|不知道|nicht\ erkennbar|keine\ ahnung|不明|わかりません|看不清
    | 不好意思|すみません|没有图|我不能|도와드릴\ 수\ 없
    | 抱歉|对不起|無法|无法|不能提供|申し訳|できません|죄송|할\ 수\ 없
    """,
    re.VERBOSE,
)


# What a chat is made of besides what is said, and what a sentence is made of before it says anything.
_MARKUP = re.compile(r"<[^<>]{0,40}>|\[/?(?:pad|unk|cls|sep|mask|inst|bos|eos)\]")
_ROLES = re.compile(r"\b(?:user|human|assistant|system|model|question|answer|caption|description)\b")
_HOLLOW = frozenset(
    """
    a an the this that these those it its it's there here here's is are was were be of to in and or i we you go
    image picture photo photograph show shows showing shown display displays depict depicts contain contains
    sure certainly course hmm
    """.split()
)
_HOLLOW_ALONE = frozenset("an the this that it image picture photo photograph sure certainly hmm".split())
_APOSTROPHE = re.compile("[’‘ʼʻ´`＇]")


def _folded(text: str) -> str:
    """Return the text in one case, width and apostrophe, without characters that nobody sees."""
    if text.isascii():  # most are
        return text.replace("`", "'").casefold()
    text = _APOSTROPHE.sub("'", text)  # before NFKC makes a space and an accent of some
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if unicodedata.category(c) != "Cf")


@lru_cache(maxsize=4096)
def says_nothing(text: str, prompt: str = "") -> bool:
    """Say whether a caption asserts nothing: empty, the prompt again, marks of a chat, the beginning of a sentence.

    A word alone is taken for what was asked for ("ok", "4", "A"), but for a few; so is a longer text that may not be.
    """
    if is_empty(text):
        return True
    said = _ROLES.sub(" ", _MARKUP.sub(" ", _folded(text[:LONGEST])))
    letters, asked = _letters(said), _letters(_ROLES.sub(" ", _folded(prompt)))
    if asked and len(asked) > 2:
        letters = letters.replace(asked, "")
    if not letters or _letters(text) == _letters(prompt) or _is_loop(letters):
        return True
    tokens = said.replace("_", " ").split()
    words = [word for word in (token.strip(".,;:!?()[]{}*\"'-–—…") for token in tokens) if word]
    return all(word in (_HOLLOW if len(words) > 1 else _HOLLOW_ALONE) for word in words)


def _is_loop(letters: str) -> bool:
    """Say whether a text is a short piece three times or more, however it is cut into words; its end may be torn."""
    if letters.isdigit():  # a serial number
        return False
    border = [0] * len(letters)  # the prefix function of Knuth, Morris and Pratt: where a text begins anew
    for i in range(1, len(letters)):
        k = border[i - 1]
        while k and letters[i] != letters[k]:
            k = border[k - 1]
        border[i] = k + (letters[i] == letters[k])
    return len(letters) >= 8 and len(letters) >= 3 * (len(letters) - border[-1])


@lru_cache(maxsize=4096)
def is_empty(text: str) -> bool:
    """Say whether a caption says nothing: no letter or digit, one of them only, or few words over and over."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    characters = [c for c in folded if c.isalnum() and c not in _BLANK_LETTERS]
    if not characters or (len(characters) >= 4 and len(set(characters)) == 1):
        return True
    words = re.findall(r"\w+", folded)
    most = max(Counter(words).values(), default=0)
    return (len(words) >= 3 and most >= 0.7 * len(words)) or (len(words) >= 9 and 3 * len(set(words)) <= len(words))


@lru_cache(maxsize=4096)
def _letters(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())


@lru_cache(maxsize=4096)  # fewer samples of an image are a part of its captions again
def is_refusal(text: str) -> bool:
    """Say whether a caption declines to answer, or says that it cannot tell.

    A list of phrases, English first: it errs towards a person, and it cannot know every way to say no.
    """
    folded = " ".join(_folded(text[:LONGEST]).replace("_", " ").split())
    return _REFUSAL.search(folded) is not None


def degenerate(captions: Sequence[Caption], prompt: str = "") -> Reason | None:
    """Return why these captions are no reading, or None where every one of them can be scored.

    One bad caption is enough: what it would have said is unknown, and unknown is for a person.
    """
    if not captions or any(caption.finish == "non-finite" for caption in captions):
        return Reason.NON_FINITE if captions else Reason.EMPTY_CAPTION
    if any(is_empty(caption.text) for caption in captions):
        return Reason.EMPTY_CAPTION
    if any(caption.finish == "refused" or is_refusal(caption.text) for caption in captions):
        return Reason.REFUSED
    if any(says_nothing(caption.text, prompt) for caption in captions):
        return Reason.EMPTY_CAPTION
    if any(caption.finish != "stop" for caption in captions):
        return Reason.CUT_OFF
    return None


def degenerate_answers(answers: Sequence[Caption]) -> Reason | None:
    """Return the same of answers. One that declines is not bad: abstaining is what was offered."""
    if not answers or any(answer.finish == "non-finite" for answer in answers):
        return Reason.NON_FINITE if answers else Reason.EMPTY_ANSWER
    if any(is_empty(answer.text) for answer in answers):
        return Reason.EMPTY_ANSWER
    return None if all(answer.finish in ENDED for answer in answers) else Reason.ANSWER_CUT_OFF
