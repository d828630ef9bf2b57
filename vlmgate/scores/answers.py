"""Parse the answers to a closed question: `parse` reads one answer, `tally` counts K of them.

Parsing is strict, and errs in one direction: an answer is a choice only where it says nothing else, an abstention where
it declines or hedges, and unparsable otherwise. Neither of the latter ever becomes a choice; both count against trust.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from vlmgate.errors import ConfigError
from vlmgate.scores.refusals import is_empty, is_refusal
from vlmgate.scores.words import ARTICLES, LONGEST, NEGATORS, SPACELESS, STOP, content_words, fold, singular, tokens_of

_ABSTAINS = re.compile(
    r"""
      \b(?:unsure|uncertain|undecided|undetermined|indeterminate|inconclusive|unanswerable|unclear|unknown|ambiguous)\b
    | \b(?:not|never|isn't|aren't|ain't)\ (?:\w+\ )?(?:sure|certain|clear)\b | \bno\ (?:idea|clue|answer)\b | \bn/a\b
    | \b(?:can\ ?not|can't|cant|couldn't|unable\ to|hard\ to|impossible\ to)\ (?:\w+\ )?
      (?:tell|say|decide|determine|judge|answer|see|be\ (?:sure|certain))\b
    | \b(?:don't|dont|do\ not)\ know\b | \babstain\b | \bi(?:'ll|'d|\ will|\ must|\ would)?\ pass\b
    | \b(?:weiß\ nicht|weiss\ nicht|unsicher|unklar|no\ sé|no\ estoy\ segur[oa]|je\ ne\ sais\ pas|pas\ sûre?|non\ so
        |incerto|weet\ niet|onzeker)\b
    """,
    re.VERBOSE,
)
# A model that hedges is not sure, and says so; "appears to be" is how models write, and no hedge.
_HEDGES = re.compile(
    r"""
      \b(?:maybe|perhaps|possibly|possible|probably|probable|presumably|likely|unlikely|might|could|may\ be|doubt\w*
        |guess\w*|suspect\w*|assum\w+|either|vielleicht|möglicherweise|wahrscheinlich|peut-être|quizás?|forse)\b
    """,
    re.VERBOSE,
)
_DENIES = re.compile(
    r"\b(?:hardly|barely|scarcely|anything\ but|far\ from|ruled\ out|except|unless|instead\ of|rather\ than|denied"
    r"|false|wrong|no\ (?:longer|more)|not\ only)\b"
)
_STRUCK = re.compile(r"[¬≠؟]|~~|(?<!\w)[!~]+(?=\w)|\[ ?\]")
_CHATTER = frozenset("i i'm i'll i'd i've me my we we're us you your".split())  # "Yes, I can help with that"
_TICKS = "✓✔✅☑👍🆗"
# What a sentence may hold besides the choice. A list of what takes a choice back has no end, in no language: "ikke ok",
# "less than ok", "the label says ok", "ok so it is bent". Whatever is not listed here makes a sentence unparsable.
_AFTER = ARTICLES | frozenset(
    """
    is are was were be been can seen visible present found detected observed evident apparent noticeable obvious here
    there on in at of to near along across around from within this that it its part piece component object item surface
    image picture photo photograph top bottom left right upper lower far center centre middle edge rim side corner end
    appear appears
    """.split()
)
_BEFORE = _AFTER | frozenset(
    """
    these those it's there's i we see has have had show shows showing shown exhibits contains depicts with
    yes very clear clearly definitely certainly single several multiple two three small large big long short deep minor
    major tiny slight faint thin inspection
    """.split()
)
_NOT_ENGLISH = frozenset(
    """
    kein keine keinen keiner keinem keines nicht ohne pas sans aucun aucune ni sin ningún ningun ninguna senza nessun
    nessuna nessuno non sem nenhum nenhuma não geen niet zonder
    """.split()
)
_SENTENTIAL = frozenset("not never neither nor cannot nothing none absent".split())  # reach back over a whole clause
_MARKS = (STOP, ",")
_LEAD_IN = re.compile(r"^\W*(?:the\ )?(?:correct\ |final\ |best\ |my\ )?(?:answer|option|choice)(?:\ is\b)?[\s:]*")


@dataclass(frozen=True, slots=True)
class Parsed:
    """What one answer says: one of the choices, or, with `choice` None, that it abstains, or nothing that counts."""

    choice: str | None
    abstains: bool = False


@dataclass(frozen=True, slots=True)
class Tally:
    """What K answers come to; all shares are of all K, so that what is no choice counts against trust."""

    answer: str | None  # the choice named most often; None where none was named, or two equally often
    answer_share: float  # of the choice named most often, [0, 1]; higher = safer
    answer_entropy: float  # nats, [0, ln K]; higher = more disagreement
    abstain_rate: float  # [0, 1]; higher = less sure
    unparsable_rate: float  # [0, 1]; higher = worse


def problem_with(choices: Sequence[str]) -> str | None:
    """Return why answers could not be told apart with these choices, or None where they can."""
    for choice in choices:
        if is_empty(choice):
            return f"'{choice}' says nothing"
        if _ABSTAINS.search(" ".join(fold(choice).split())):
            return f"'{choice}' is how a model abstains, which needs no choice of its own"
        if parse(choice, choices).choice != choice:
            return f"'{choice}' cannot be told from the other choices"
    return None


def check_choices(choices: Sequence[str]) -> None:
    """Raise `ConfigError` for choices whose answers could not be told apart."""
    if problem := problem_with(choices):
        raise ConfigError(f"choices: {problem}; name others.")


def parse(text: str, choices: Sequence[str]) -> Parsed:
    """Return what an answer says.

    A choice is recognised whatever its case, width, punctuation, articles and plural, and inside a sentence where it is
    the only choice named and nothing denies it. In scripts written without spaces the answer must be the choice itself.
    """
    return _parsed(text, tuple(choices))


@lru_cache(maxsize=4096)  # a night's answers are mostly the same few
def _parsed(text: str, choices: tuple[str, ...]) -> Parsed:
    folded = " ".join(fold(text).replace("o.k.", "ok").split())
    if len(text) > LONGEST or _is_struck(folded):  # the end of it is unknown; a mark may say the opposite
        return Parsed(None)
    said = _LEAD_IN.sub("", folded)
    if _names_article(said, choices):
        return Parsed(None)
    exact = [choice for choice in choices if said and "?" not in said and _plain(said) == _plain(fold(choice))]
    if exact:
        return Parsed(exact[0] if len(exact) == 1 else None)
    if _ABSTAINS.search(folded) or _HEDGES.search(folded) or is_refusal(text):
        return Parsed(None, abstains=True)
    if "?" in folded or _DENIES.search(folded) or SPACELESS.search(folded):
        return Parsed(None)
    if any(len("".join(_plain(fold(choice)))) == 1 for choice in choices):  # "A" is an article, "1" counts things
        return Parsed(None)
    asserted = content_words(said)
    same = [choice for choice in choices if _content(choice) == asserted]
    if same and sum(token in NEGATORS for token in tokens_of(said)) <= 1:  # of two nobody knows what they come to
        choice = same[0] if len(same) == 1 else None
    else:
        choice = _only_named(said, choices, asserted)
    return Parsed(None if choice is None or _says_more(said, choice, asserted) else choice)


def tally(answers: Sequence[Parsed]) -> Tally:
    """Return what K answers come to.

    The entropy is the discrete semantic entropy of Farquhar et al. ("Detecting hallucinations in large language models
    using semantic entropy", Nature 630, 2024) with the parsed answers as clusters: abstaining is a class of its own,
    and each answer that cannot be parsed is one.
    """
    k = len(answers)
    named = Counter(answer.choice for answer in answers if answer.choice is not None)
    abstaining = sum(answer.abstains for answer in answers)
    unparsable = k - abstaining - named.total()
    ranked = named.most_common(2)
    tied = len(ranked) == 2 and ranked[0][1] == ranked[1][1]
    sizes = [*named.values(), *([abstaining] if abstaining else []), *[1] * unparsable]
    return Tally(
        answer=ranked[0][0] if ranked and not tied else None,
        answer_share=ranked[0][1] / k if ranked else 0.0,
        answer_entropy=abs(sum(n / k * math.log(k / n) for n in sizes)),
        abstain_rate=abstaining / k if k else 0.0,
        unparsable_rate=unparsable / k if k else 0.0,
    )


# --- inside a sentence ------------------------------------------------------------------------------------------------


def _plain(folded: str) -> tuple[str, ...]:
    """Return the words of a text, without articles and plurals, and the marks between them.

    "no. defect" is not "no defect". A text of nothing but articles keeps them.
    """
    words = [_word(token) for token in tokens_of(folded)]
    while words and words[-1] in _MARKS:
        words.pop()
    while words and words[0] in _MARKS:
        words.pop(0)
    return tuple(word for word in words if word not in ARTICLES) or tuple(words)


def _word(token: str) -> str:
    return "ok" if token == "okay" else singular(token)


@lru_cache(maxsize=256)
def _content(choice: str) -> frozenset[str]:
    """Return what a choice asserts; nothing where it is function words and filler only, as "no" and "visible" are."""
    mark = "zzz"  # keeps `content_words` from falling back to function words
    return content_words(f"{choice} {mark}") - {mark, f"¬{mark}"}


def _only_named(said: str, choices: Sequence[str], asserted: frozenset[str]) -> str | None:
    """Return the choice that a sentence names, where it names no other and does not deny it."""
    raw = [token for token in tokens_of(said) if token not in ARTICLES]
    tokens = [_word(token) for token in raw]
    taken = [False] * len(tokens)
    named: list[tuple[str, int, int]] = []  # (choice, start, end)
    for choice in sorted(choices, key=lambda c: -len(_plain(fold(c)))):  # "no defect" before the "defect" in it
        words = list(_plain(fold(choice)))
        for i in range(len(tokens) - len(words) + 1):
            if tokens[i : i + len(words)] == words and not any(taken[i : i + len(words)]):
                taken[i : i + len(words)] = [True] * len(words)
                named.append((choice, i, i + len(words)))
    if len({choice for choice, _, _ in named}) != 1:
        return None
    choice = named[0][0]
    rest = [token for token, inside in zip(raw, taken, strict=True) if not inside]
    if _NOT_ENGLISH.intersection(rest) or any(_is_denied(tokens, start, end) for _, start, end in named):
        return None
    own = _content(choice)
    if own:
        return choice if own <= asserted and not {_flipped(word) for word in own} & asserted else None
    said_alone = not NEGATORS.isdisjoint(_plain(fold(choice))) or choice.casefold() == "yes"
    stands = _leads(tokens, named[0]) if said_alone else True
    return choice if stands and NEGATORS.isdisjoint(rest) else None


def _is_denied(tokens: Sequence[str], start: int, end: int) -> bool:
    """Say whether a negation stands in the clause before the choice, or a sentential one after it."""
    for token in reversed(tokens[:start]):
        if token in _MARKS:
            break
        if token in NEGATORS:
            return True
    for token in tokens[end:]:
        if token in _MARKS:
            break
        if token in _SENTENTIAL or token.endswith("n't") or token == "free":
            return True
    return False


def _leads(tokens: Sequence[str], named: tuple[str, int, int]) -> bool:
    """Say whether a choice such as "no" opens the answer and stands alone in its clause: "No, it is fine"."""
    _, start, end = named
    return start == 0 and (end == len(tokens) or tokens[end] in _MARKS)


def _says_more(said: str, choice: str, asserted: frozenset[str]) -> bool:
    """Say whether a sentence holds anything besides the choice that is not known to be harmless.

    Something else that it denies is harmless: "ok, no defects". A denial that names nothing is not: "ok, not shown". Of
    what follows a "yes" or "no" only chatter counts.
    """
    tokens = tokens_of(said)
    if not _content(choice):
        return not _CHATTER.isdisjoint(tokens)
    words = [_word(token) for token in tokens]
    own = [_word(token) for token in tokens_of(fold(choice)) if token not in ARTICLES]
    last = max((i for i in range(len(words)) if words[i : i + len(own)] == own), default=len(words))  # its last mention
    denying = False  # a negation is open that may name something else: "no dent" does, "not really" does not
    open_ended = False  # it has named nothing yet
    for i, (token, word) in enumerate(zip([*tokens, STOP], [*words, STOP], strict=True)):
        if token in _MARKS:
            if open_ended:
                return True
            denying = denying and token == ","
        elif token in NEGATORS:
            denying = token not in ("not", "never", "cannot") and not token.endswith("n't")
            open_ended = NEGATORS.isdisjoint(own)
        elif word not in own and token not in (_BEFORE if i < last else _AFTER):
            denied = denying and not content_words(f"no {token}").isdisjoint(asserted)
            if not denied and not (i >= 2 and tokens[i - 2] == "not" and tokens[i - 1] in ARTICLES):  # "not a dent"
                return True
            open_ended = False
    return False


def _is_struck(folded: str) -> bool:
    """Say whether a mark may turn an answer round: a cross or thumb next to it, a line through it, a "!" before it."""
    symbols = () if folded.isascii() else (c for c in folded if unicodedata.category(c) == "So" and c not in _TICKS)
    return _STRUCK.search(folded) is not None or any(symbols)


def _names_article(said: str, choices: Sequence[str]) -> bool:
    """Say whether a choice such as "A" or "one" stands among other words, where it may be an article."""
    tokens = [token for token in tokens_of(said) if token not in _MARKS]
    return len(tokens) > 1 and not {*tokens}.isdisjoint(ARTICLES & {fold(choice).strip() for choice in choices})


def _flipped(word: str) -> str:
    return word[1:] if word.startswith("¬") else f"¬{word}"
