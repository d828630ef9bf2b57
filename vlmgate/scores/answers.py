"""Parse the answers to a closed question: `parse` reads one answer, `tally` counts K of them.

Parsing is strict, and errs in one direction: an answer is a choice only where it says nothing else, an abstention where
it declines or hedges, and unparsable otherwise. Neither of the latter ever becomes a choice; both count against trust.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

from vlmgate.data import ENDED, Caption, Reason
from vlmgate.errors import ConfigError
from vlmgate.scores.answer_forms import ANSWER, spoken
from vlmgate.scores.answer_sentences import (
    is_label,
    letter,
    letter_under,
    lone,
    named,
    named_under,
    only_known,
    speaks_well,
)
from vlmgate.scores.answer_tokens import OBJECTS
from vlmgate.scores.answer_words import (
    abstains,
    all_polar,
    atoms,
    hedges,
    is_spaceless,
    kind_of,
    may_begin,
    may_begin_harmless,
)
from vlmgate.scores.refusals import is_empty, is_refusal
from vlmgate.scores.words import ARTICLES, LONGEST, NEGATORS, STOP, content_words, fold, singular, tokens_of

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
_STRUCK = re.compile(r"[¬≠؟×]|~~|(?<!\w)[!~]+(?=\w)|\[ ?\]")
_TICKS = "✓✔✅☑👍🆗"
_SAFE_MARKS = frozenset("*_`#•·▪●◦-–—.,;:!?()[]{}\"'“”„«»‹›「」『』。、¡…" + _TICKS)
_MARKS = (STOP, ",")
_LEAD_IN = re.compile(r"^\W*(?:the\ )?(?:correct\ |final\ |best\ |my\ )?(?:answer|option|choice)(?:\ is\b)?[\s:]*")
_SENTENCE_END = re.compile(r"[.!](?=\s)|[。！]|\n")
_WORD = re.compile(r"\w")
_LAST_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]*)*$")
_LONGEST_FRAGMENT = 4  # characters of an unfinished word, in scripts without spaces


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

    A choice is recognised in the forms that models use: alone; behind a label ("**Answer:** ok"), thoughts, in JSON,
    tags, a code fence or `\\boxed`; in a sentence in a language of `answer_words.toml`; with the number or letter of
    its place ("B) scratch"); and before an explanation that does not speak against it. Every word of such a sentence
    must be known to be harmless; otherwise the answer is unparsable.
    """
    return _parsed(text, tuple(choices))


def parse_cut_off(text: str, choices: Sequence[str]) -> str | None:
    """Return the choice that an answer named before it was cut off at the token limit; None where that is not certain.

    The choice must stand alone in a sentence that has ended, another word must have begun after it, and what follows so
    far must not speak against it.

    >>> parse_cut_off("Scratch. There is a visible li", ("ok", "scratch"))
    'scratch'
    >>> parse_cut_off("Scratch", ("ok", "scratch"))
    """
    return _cut_off(text, tuple(choices))


def degenerate_answers(answers: Sequence[Caption], choices: Sequence[str] = ()) -> Reason | None:
    """Return why these answers are no reading, or None. One that declines is not bad: abstaining is what was offered.

    An answer that was cut off counts where it named one of `choices` before.
    """
    if not answers or any(answer.finish == "non-finite" for answer in answers):
        return Reason.NON_FINITE if answers else Reason.EMPTY_ANSWER
    if any(is_empty(answer.text) for answer in answers):
        return Reason.EMPTY_ANSWER
    whole = all(
        answer.finish in ENDED or (answer.finish == "length" and parse_cut_off(answer.text, choices) is not None)
        for answer in answers
    )
    return None if whole else Reason.ANSWER_CUT_OFF


@lru_cache(maxsize=4096)  # a night's answers are mostly the same few
def _parsed(text: str, choices: tuple[str, ...]) -> Parsed:
    if len(text) > LONGEST:  # the end of it is unknown
        return Parsed(None)
    lines = spoken(text, all_polar(choices))
    if lines is None:
        return Parsed(None)
    lines = re.sub(r"\bo\.k\.", "ok", lines, flags=re.IGNORECASE)
    folded = " ".join(fold(lines).split())
    if _is_struck(folded):  # a mark may say the opposite
        return Parsed(None)
    exact = _exact(" ".join(fold(lines.replace("\n", " . ")).split()), choices)
    if exact:
        return Parsed(exact[0] if len(exact) == 1 else None)
    if _ABSTAINS.search(folded) or _HEDGES.search(folded) or abstains(folded) or hedges(folded) or is_refusal(lines):
        return Parsed(None, abstains=True)
    if "?" in folded or _DENIES.search(folded):
        return Parsed(None)
    if letters := _letters_of(choices):  # "A" is an article, "1" counts things
        return Parsed(letter(lines, unicodedata.normalize("NFKC", lines), letters))
    return Parsed(named(lines, choices) or _same(lines, folded, choices))


def _exact(folded: str, choices: Sequence[str]) -> list[str]:
    """Return the choices that a text is, whatever its case, width, marks, articles and plural."""
    said = _LEAD_IN.sub("", folded.replace(ANSWER, ""))
    if not said or "?" in said or _names_article(said, choices):
        return []
    found = [choice for choice in choices if _plain(said) == _plain(fold(choice))]
    return [choice for choice in found if _odd_marks(said) == _odd_marks(fold(choice))]


def _odd_marks(folded: str) -> list[str]:
    return sorted(c for c in folded if not c.isalnum() and not c.isspace() and c not in _SAFE_MARKS and not _is_mark(c))


def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] == "M"


def _letters_of(choices: Sequence[str]) -> list[str]:
    """Return the choices that are a single letter or a number; a single character may be a word, such as 傷."""
    words = [(choice, "".join(_plain(fold(choice)))) for choice in choices]
    return [choice for choice, word in words if word.isdecimal() or (len(word) == 1 and not is_spaceless(word))]


def _same(lines: str, folded: str, choices: tuple[str, ...]) -> str | None:
    """Return the choice that asserts the same as one English clause: "not defective" and "no defect" do."""
    said = _LEAD_IN.sub("", folded)
    asserted = content_words(said)
    same = [choice for choice in choices if _content(choice) == asserted]
    if len(same) != 1 or sum(token in NEGATORS for token in tokens_of(said)) > 1:  # of two nobody knows what they mean
        return None
    denials = any(word.startswith("¬") for word in _content(same[0]))
    places = kind_of(same[0], choices) != "fine"
    return same[0] if only_known(lines, choices, "en", places=places, denials=denials) else None


@lru_cache(maxsize=1024)
def _cut_off(text: str, choices: tuple[str, ...]) -> str | None:
    lines = spoken(text, all_polar(choices))
    if lines is None or len(text) > LONGEST:
        return None
    for end in _SENTENCE_END.finditer(lines):
        head, rest = lines[: end.end()], lines[end.end() :]
        if _WORD.search(head) is None or is_label(head, choices):
            continue
        choice = _alone(head, choices)
        if choice is None or _WORD.search(rest) is None or _begins_another(choice, choices):
            return None
        return choice if _stands(head, rest, choice, choices) else None
    return None


def _alone(head: str, choices: tuple[str, ...]) -> str | None:
    """Return the choice that a sentence consists of, but for a label."""
    if parse(head, choices).choice is None:
        return None
    if letters := _letters_of(choices):
        return letter(head, unicodedata.normalize("NFKC", head), letters, alone=True)
    exact = _exact(" ".join(fold(head).split()), choices)
    return exact[0] if len(exact) == 1 else lone(head, choices)


def _begins_another(choice: str, choices: Sequence[str]) -> bool:
    """Say whether a longer choice begins with this one: "crack" and "crack repaired"."""
    own = fold(choice).strip()
    return any(fold(other).strip().startswith(own) for other in choices if other != choice)


def _stands(head: str, rest: str, choice: str, choices: tuple[str, ...]) -> bool:
    """Say whether what follows a choice so far leaves it as it is; the last word may be unfinished."""
    last = _LAST_WORD.search(rest)
    kind = kind_of(choice, choices)
    if last is None:  # ends with a mark
        return parse(head + rest, choices).choice == choice and (kind != "fine" or _is_settled(head, rest, choice))
    word = last[0]
    sizes = range(1, min(len(word), _LONGEST_FRAGMENT) + 1) if is_spaceless(word[-1]) else (len(word),)
    for size in sizes:
        before = rest[: len(rest) - size]
        fragment, opens = fold(word[-size:]), _WORD.search(_unfinished(before)) is None
        if any("".join(atoms(other)).startswith(fragment) for other in choices if other != choice):
            continue
        if parse(head + before, choices).choice != choice:
            continue
        names = _languages(head + before, choices)
        if kind == "fine" and (may_begin(fragment, OBJECTS, names) or not _is_settled(head, before, choice)):
            continue
        if kind == "bad" and may_begin(fragment, ("good",), names):
            continue
        if may_begin_harmless(fragment, names, opens=opens):
            return True
    return False


def _languages(said: str, choices: tuple[str, ...]) -> Collection[str]:
    """Return the languages under which a text can be read."""
    if letters := _letters_of(choices):
        return letter_under(said, unicodedata.normalize("NFKC", said), letters)
    return named_under(said, choices)


def _unfinished(said: str) -> str:
    """Return the sentence that a text has begun and not ended."""
    return re.split(r"[.!;:。！\n]", said)[-1]


def _is_settled(head: str, before: str, choice: str) -> bool:
    """Say whether what was said of a part that was called good speaks well of it, up to the last clause.

    "Okay. The image" may go on with anything; so may "ok. There is a".
    """
    if _WORD.search(before) is None:
        return len(atoms(head)) > len(atoms(choice))  # behind a label
    clause = re.split(r"[,，、.!;:。！\n]", before)[-1]
    ended = _WORD.search(clause) is None and not before.rstrip().endswith((",", "，", "、"))
    return speaks_well(before if ended else clause)


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


def _is_struck(folded: str) -> bool:
    """Say whether a mark may turn an answer round: a cross or thumb next to it, a line through it, a "!" before it."""
    symbols = () if folded.isascii() else (c for c in folded if unicodedata.category(c) == "So" and c not in _TICKS)
    return _STRUCK.search(folded) is not None or any(symbols)


def _names_article(said: str, choices: Sequence[str]) -> bool:
    """Say whether a choice such as "A" or "one" stands among other words, where it may be an article."""
    tokens = [token for token in tokens_of(said) if token not in _MARKS]
    return len(tokens) > 1 and not {*tokens}.isdisjoint(ARTICLES & {fold(choice).strip() for choice in choices})
