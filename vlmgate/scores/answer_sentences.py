"""Read a sentence, or a few, as an answer: which choice do they name, and does anything take it back?

`named` reads a text under one language at a time. It knows every word that it passes over: one that is not in the data
file makes the text no answer. A clause with a negation denies all that it names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from vlmgate.scores.answer_clauses import Clause, claims_of, clauses_of
from vlmgate.scores.answer_forms import ANSWER
from vlmgate.scores.answer_tokens import STOPS, Choices, Token, UnclearError, choices_in, tokens_of
from vlmgate.scores.answer_words import (
    Language,
    Phrase,
    all_polar,
    atoms,
    is_listed,
    is_one_of,
    is_or,
    kind_of,
    languages,
    longest_of,
)
from vlmgate.scores.words import fold

_AFTER_LABEL = frozenset(Token("mark", mark) for mark in (":", ".", "\n", ",", "-"))
_AFTER_BARE_LABEL = ("choice", "letter", "articles", "quote", "yes", "mark", "seers")
_INTRODUCES = ("articles", "reasoning", "words", "places")
_BRACKETS = ("(", ")", "[", "]")
_AFTER_LETTER = frozenset(").]:-")


def named(said: str, choices: tuple[str, ...]) -> str | None:
    """Return the choice that a text names under some language; None under none, or under two a different one."""
    return _only(named_under(said, choices))


def named_under(said: str, choices: tuple[str, ...]) -> dict[str, str]:
    """Return the choice that a text names, by the languages under which it names one."""
    found = {language.name: _named(said, choices, language) for language in languages()}
    return {name: choice for name, choice in found.items() if choice is not None}


def _only(found: Mapping[str, str]) -> str | None:
    """Return the one choice that is named; None under two languages that disagree."""
    return next(iter(found.values())) if len({*found.values()}) == 1 else None


def lone(said: str, choices: tuple[str, ...]) -> str | None:
    """Return the choice that a text consists of, but for a label before it; None where it says more."""
    for language in languages():
        known = choices_in(choices, language)
        try:
            tokens = _trimmed(_after_label(tokens_of(said, known), known))
        except UnclearError:
            continue
        if len(tokens) == 1 and tokens[0].kind == "choice":
            return tokens[0].text
    return None


def is_label(said: str, choices: tuple[str, ...]) -> bool:
    """Say whether a text is the beginning of an answer that names nothing yet: "**Answer:**"."""
    for language in languages():
        known = choices_in(choices, language)
        try:
            tokens = tokens_of(said, known)
        except UnclearError:
            continue
        if tokens and not _trimmed(_after_label(tokens, known)):
            return True
    return False


def only_known(said: str, choices: Sequence[str], name: str, *, places: bool, denials: bool) -> bool:
    """Say whether a text is one clause of words that one language knows, or that a choice is made of; no "or" in it.

    Without `places` it may hold neither a place nor a size ("near ok" is not ok), without `denials` no negation.
    """
    language = next(one for one in languages() if one.name == name)
    words: dict[Phrase, str] = {(atom,): "" for choice in choices for atom in atoms(choice)}
    if not denials:  # "rust on no side" is not rust, though "no defect" is a choice
        words = {phrase: name for phrase, name in words.items() if language.phrases.get(phrase) != "negators"}
    try:
        tokens = _trimmed(tokens_of(said, Choices(tuple(choices), words, language, longest_of(words))))
    except UnclearError:
        return False
    barred: tuple[str, ...] = () if places else ("places", "degrees")
    barred += () if denials else ("negators", "without", "nor")
    barred += ("mark", "or", "and", "list", "label", "seers", "letter", "quote", "reasoning", "tails", "yes")
    if not tokens or tokens[0].text in language.asks or is_or(tokens[0].text) or is_or(tokens[-1].text):
        return False
    return not any(token.kind in barred for token in tokens)


def letter(said: str, raw: str, letters: Sequence[str], alone: bool = False) -> str | None:
    """Return the choice of a single letter or number that a text opens with: "B", "B) scratch", "B is correct".

    What follows is the text of that option, or why; it may name no second letter. `raw` is the text with its capitals.
    With `alone` nothing may follow.
    """
    return _only(letter_under(said, raw, letters, alone))


def letter_under(said: str, raw: str, letters: Sequence[str], alone: bool = False) -> dict[str, str]:
    """Return the same by the languages under which it is so."""
    capital = all(one.isupper() or one.isdigit() for one in letters)
    pattern = "|".join(re.escape(one.strip()) for one in letters)
    seen = re.findall(rf"(?<!\w)(?:{pattern})(?!\w)", raw, 0 if capital else re.IGNORECASE)
    folded = {one.casefold() for one in seen}
    found = {language.name: _letter(said, letters, language, folded, alone) for language in languages()}
    return {name: choice for name, choice in found.items() if choice is not None}


def speaks_well(said: str) -> bool:
    """Say whether a clause calls a part good, or denies a defect, in some language."""
    for language in languages():
        try:
            tokens = tokens_of(said, choices_in((), language))
        except UnclearError:
            continue
        if any(token.kind in ("good", "negators", "without", "nor") for token in tokens):
            return True
    return False


# --- what stands before an answer -------------------------------------------------------------------------------------


def _trimmed(tokens: Sequence[Token]) -> list[Token]:
    """Return tokens without articles, and without marks at either end."""
    kept = [token for token in tokens if token.kind != "articles"]
    while kept and kept[-1].kind == "mark":
        kept.pop()
    while kept and kept[0].kind == "mark":
        kept.pop(0)
    return kept


def _after_label(tokens: Sequence[Token], known: Choices) -> list[Token]:
    """Return what follows a label and its "is" or colon; all of it where no label opens it."""
    rest = list(tokens)
    while (i := _label_at(rest)) is not None:
        label, rest = rest[i], rest[i + 1 :]
        linked = marked = label.text == ANSWER
        if tuple(label.text.split()) in known.language.colon and rest[:1] != [Token("mark", ":")]:
            raise UnclearError
        if rest and not marked and _is_copula(rest[0], known):
            linked, rest = True, rest[1:]
        while rest and rest[0] in _AFTER_LABEL:
            linked, rest = True, rest[1:]
        if not linked and rest and rest[0].kind not in _AFTER_BARE_LABEL:  # "answer with ok"
            raise UnclearError
    return rest


def _is_copula(token: Token, known: Choices) -> bool:
    return token.kind == "words" and tuple(token.text.split()) in known.language.copulas


def _label_at(tokens: Sequence[Token]) -> int | None:
    """Return where a label stands that opens a sentence: after articles, "therefore", or words and a comma."""
    for i, token in enumerate(tokens):
        if token.kind == "label":
            opens = token.text == ANSWER or all(t.kind in ("articles", "mark", "reasoning") for t in tokens[:i])
            return i if opens or _introduced(tokens[:i]) else None
        if token.kind not in (*_INTRODUCES, "mark") or token.text in _BRACKETS:
            break
    return None


def _introduced(tokens: Sequence[Token]) -> bool:
    """Say whether words such as "Based on the image, the" may go before a label."""
    last = next((token for token in reversed(tokens) if token.kind != "articles"), None)
    return last is None or last.kind == "reasoning" or last == Token("mark", ",")


def _split(tokens: Sequence[Token], known: Choices) -> tuple[list[Token], list[Token]]:
    """Return what comes before the last label that opens a sentence, and the rest."""
    for i in range(len(tokens) - 1, 0, -1):
        if tokens[i].kind != "label":
            continue
        start = i
        if tokens[i].text == ANSWER:  # "the final answer is" goes with it
            while start and (tokens[start - 1].kind in ("articles", "label") or _links(tokens[start - 1], known)):
                start -= 1
        while start and (tokens[start - 1].kind in _INTRODUCES or tokens[start - 1] == Token("mark", ",")):
            start -= 1
        ends = not start or (tokens[start - 1].kind == "mark" and tokens[start - 1].text in STOPS)
        concludes = atoms(tokens[i].text)[:1] in known.language.reasoning  # "so the answer"
        if tokens[i].text == ANSWER or concludes or (ends and _introduced(tokens[start:i])):
            return (list(tokens[:start]), list(tokens[start:])) if _trimmed(tokens[:start]) else ([], list(tokens))
    return [], list(tokens)


def _links(token: Token, known: Choices) -> bool:
    return token in (Token("mark", ":"), Token("mark", "\n")) or _is_copula(token, known)


def _unquoted(tokens: list[Token]) -> list[Token]:
    """Return tokens without the quotes around the choice that they open with."""
    if len(tokens) > 2 and tokens[0].kind == "quote":
        end = next((i for i, token in enumerate(tokens) if i and token.kind == "quote"), 0)
        inside = _trimmed(tokens[1:end])
        if len(inside) == 1 and inside[0].kind in ("choice", "letter"):
            return [*inside, *tokens[end + 1 :]]
    return tokens


def _enumerated(tokens: list[Token], names: Sequence[str]) -> tuple[list[Token], str | None]:
    """Return what follows "B)", and the choice that stands second; ("2.", "(b)" and "B:" as well)."""
    opened = bool(tokens) and tokens[0].text in ("(", "[")
    number = tokens[opened].text if len(tokens) > opened + 1 else ""
    after = tokens[opened + 1].text if number else ""
    if not re.fullmatch("[a-z]|[1-9]", number) or after not in _AFTER_LETTER or len(tokens) <= opened + 2:
        return tokens, None
    place = int(number) - 1 if number.isdigit() else ord(number) - ord("a")
    if place >= len(names):
        raise UnclearError
    rest = tokens[opened + 2 :]
    return rest[1:] if rest[0].text in (":", ".") else rest, names[place]


# --- which choice -----------------------------------------------------------------------------------------------------


def _named(said: str, names: tuple[str, ...], language: Language) -> str | None:
    known = choices_in(names, language)
    try:
        return _read(tokens_of(said, known), known)
    except UnclearError:
        return None


def _read(tokens: Sequence[Token], known: Choices) -> str:
    before, answer = _split(tokens, known)
    core = _after_label(answer, known)
    labelled = len(core) < len(answer)
    if core and core[0].kind == "yes":
        core = core[1:]
    core, expected = _enumerated(_unquoted(core), known.names)
    clauses = [_without_therefore(clause, known.language) for clause in clauses_of(_unquoted(core))]
    if not clauses or any(clause.has("reasoning") or not clause.tokens for clause in clauses):
        raise UnclearError
    clauses = _without_tail(clauses)
    if len(clauses) > 1 and clauses[1].mark == ":" and clauses[0].only("generic", "articles", "words"):
        if all_polar(known.names):  # "Defect: no" may answer the question or not
            raise UnclearError
        clauses, labelled = clauses[1:], True
    choice = _decided(clauses, known, labelled)
    if expected not in (None, choice):
        raise UnclearError
    if before:
        _check_before(before, choice, known)
    return choice


def _decided(clauses: list[Clause], known: Choices, labelled: bool) -> str:
    claims = claims_of(clauses, known.language)
    if len(claims.asserted) != 1 or claims.asserted & claims.denied:
        raise UnclearError
    (choice,) = claims.asserted
    bad = claims.finding or claims.generic or claims.sign
    first = [token for token in clauses[0].tokens if token.kind != "articles"]
    leads = first == [Token("choice", choice)]
    kind = kind_of(choice, known.names)
    if kind == "polar":
        negative = is_listed(atoms(choice), ("negators",))
        if (
            not leads
            or (not all_polar(known.names) and bad)
            or (not negative and any(c.has("negators") for c in clauses))
        ):
            raise UnclearError
    elif kind == "fine":
        supported = claims.good or claims.denied or claims.denies_all or claims.denies_finding
        repeated = sum(clause.has("choice") for clause in clauses) > 1
        chats = leads and not labelled and len(clauses) > 1 and is_one_of(choice, "chat")
        if bad or choice in claims.partial or (chats and not supported and not repeated):
            raise UnclearError
    elif kind == "bad":
        general = is_one_of(choice, "nok")
        contradicted = claims.good or claims.denies_all or (general and claims.denies_finding)
        if contradicted or (claims.finding and not general):
            raise UnclearError
    elif bad or claims.good:
        raise UnclearError
    return choice


def _without_therefore(clause: Clause, language: Language) -> Clause:
    """Return a clause without the "so" that opens it."""
    first = clause.tokens[0]
    concludes = first.kind == "reasoning" and tuple(first.text.split()) in language.concludes
    return Clause(clause.mark, clause.tokens[1:]) if concludes else clause


def _without_tail(clauses: list[Clause]) -> list[Clause]:
    """Return clauses without the "is the correct answer" behind a choice; raises for one elsewhere."""
    found = []
    for clause in clauses:
        tokens = clause.tokens
        named = all(token.kind in ("choice", "articles") for token in tokens[:-1])
        if len(tokens) > 1 and tokens[-1].kind == "tails" and named:
            tokens = tokens[:-1]
        if any(token.kind == "tails" for token in tokens):
            raise UnclearError
        found.append(Clause(clause.mark, tokens))
    return found


def _check_before(before: Sequence[Token], choice: str, known: Choices) -> None:
    """Raise where what comes before a final answer speaks against it."""
    labelled = any(token.kind == "label" for token in before)
    try:
        first: str | None = _read(before, known)
    except UnclearError:
        first = None
    if first != choice and (first is not None or labelled):  # two answers
        raise UnclearError
    if labelled:
        return
    claims = claims_of(clauses_of(before), known.language)
    kind = kind_of(choice, known.names)
    bad = claims.finding or claims.generic or claims.sign or bool(claims.asserted - {choice})
    if choice in claims.denied or (kind == "bad" and claims.denies_all) or (kind == "fine" and bad):
        raise UnclearError
    if kind == "polar" and (claims.asserted - {choice} or claims.denied):
        raise UnclearError


def _letter(said: str, letters: Sequence[str], language: Language, seen: set[str], alone: bool) -> str | None:
    known = choices_in((), language)
    try:
        before, answer = _split(tokens_of(said, known), known)
        core = _unquoted(_after_label(answer, known))
        while core and core[0].kind == "mark" and core[0].text in "([":
            core = core[1:]
        choice = next((one for one in letters if core and fold(one).strip() == core[0].text), None)
        rest = core[1:]
        if choice is None or not seen <= {choice.casefold().strip()}:
            return None
        if rest and rest[0].kind == "tails":
            rest = rest[1:]
        elif rest and not (rest[0].kind == "mark" and rest[0].text in _AFTER_LETTER | {"\n", "!"}):
            return None
        clauses = clauses_of(rest)
        if (alone and clauses) or any(clause.has("reasoning", "tails") for clause in clauses):
            return None
        if clauses and clauses[0].has("negators") and clauses[0].has("findings", "signs"):
            return None  # "B: not a scratch"; the text of an option may be "no defect"
        claims_of(clauses, language)
        claims_of(clauses_of(before), language)
    except UnclearError:
        return None
    return choice
