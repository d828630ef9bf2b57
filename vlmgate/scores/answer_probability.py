"""How probable the answer given is, from the log-probabilities of the answers that were drawn, or scored.

Of drawn answers call `probabilities` for every choice, `likelier` where several were named equally often. Shares of K
answers have K + 1 values, and most images have the highest one; probabilities order those, too. Of answers that nobody
drew, but that an engine has scored (`is_scored`), `exact` makes all figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vlmgate.data import ENDED, Caption, Record
from vlmgate.scores.answers import Parsed


def probabilities(
    answers: Sequence[Caption], named: Sequence[str | None], views: Sequence[int] | None = None
) -> dict[str, float]:
    """Return for each choice the probability that one answer names it, [0, 1]; higher is safer.

    `named` (K) is the choice that each of K answers names, None where it names none; `views` (K) the view that each was
    drawn from. A choice is left out where no text that names it has a known log-probability. Log-probabilities are at
    temperature 1 before top-k and top-p, so the figure is the same at whatever temperature the answers were drawn.

    The probability of a text is exp(tokens × mean log-probability), that of a choice the sum over the different texts
    that name it. Equal texts count once: they are the same tokens, and where they are not, the likelier ones count.
    What was never drawn is unknown and counts as 0, so this is a lower bound; the mean over the K answers, which says
    how likely the others were too, tells wrong answers worse. Views have a distribution each, so theirs are averaged.
    Texts more probable together than 1 have log-probabilities without the end of the text, as some servers give: then
    one that another one goes on from counts that, too, and all are divided by their sum.
    """
    seen: dict[int, dict[str, tuple[float, str | None]]] = {}  # view → text → probability, choice
    for answer, choice, view in zip(answers, named, views or [0] * len(answers), strict=True):
        texts = seen.setdefault(view, {})
        probability = _probability(answer)
        if probability is not None:
            texts[answer.text] = max((probability, choice), texts.get(answer.text, (0.0, choice)), key=lambda x: x[0])
    found: dict[str, float] = {}
    for texts in seen.values():
        total = max(1.0, math.fsum(probability for probability, _ in texts.values()))
        for probability, choice in texts.values():
            if choice is not None:
                found[choice] = found.get(choice, 0.0) + probability / total / len(seen)
    return {choice: min(1.0, probability) for choice, probability in found.items()}


def is_scored(answers: Sequence[Caption] | None) -> bool:
    """Say whether these are no draws, but all that may be answered, each text once with its probability."""
    return bool(answers) and all(answer.finish == "scored" for answer in answers or ())


def exact(answers: Sequence[Caption], parsed: Sequence[Parsed]) -> dict[str, Any]:
    """Return the figures of scored answers; there is no share, and whatever no answer holds cannot be parsed.

    The answer is the choice that is more probable than every other, by more than what cannot be parsed, which may name
    any; None where none is. As of drawn answers, abstaining may be more probable. `answer_probability` is its own,
    `abstain_rate` that of abstaining, `unparsable_rate` that of all other texts, each in [0, 1]. `answer_entropy` is
    over the choices, abstaining, and all other texts as one, nats, [0, ln(choices + 2)].
    """
    mass: dict[str | None, float] = {}  # by choice; None = abstains
    for answer, says in zip(answers, parsed, strict=True):
        if says.choice is not None or says.abstains:
            mass[says.choice] = mass.get(says.choice, 0.0) + (_probability(answer) or 0.0)
    whole = max(1.0, math.fsum(mass.values()))  # rounding may bring it above 1
    mass = {choice: probability / whole for choice, probability in mass.items()}
    outside = max(0.0, 1 - math.fsum(mass.values()))
    ranked = sorted(((p, choice) for choice, p in mass.items() if choice is not None), reverse=True)
    (probability, given), (second, _) = (*ranked, (0.0, None), (0.0, None))[:2]
    if probability <= second + outside:
        given = None
    figures: dict[str, float | None] = {
        "answer_share": None,
        "answer_probability": None if given is None else probability,
        "answer_entropy": abs(math.fsum(p * math.log(1 / p) for p in (*mass.values(), outside) if p > 0)),
        "abstain_rate": mass.get(None, 0.0),
        "unparsable_rate": outside,
    }
    return {"answer": given} | {name: None if value is None else round(value, 6) for name, value in figures.items()}


def unseen(answers: Iterable[Caption]) -> float:
    """Return the probability of all texts that are not among these answers, [0, 1]; 1 where it is unknown."""
    texts: dict[str, float] = {}
    for answer in answers:
        texts[answer.text] = max(_probability(answer) or 0.0, texts.get(answer.text, 0.0))
    left = 1 - math.fsum(texts.values())
    return left if left >= 0 else 1.0


def likelier(choices: Iterable[str], found: Mapping[str, float]) -> str | None:
    """Return which of some choices is more probable than every other; None where that is unknown of one, or equal."""
    ranked = sorted(((found.get(choice), choice) for choice in choices), key=lambda one: -(one[0] or 0.0))
    if len(ranked) < 2 or any(probability is None for probability, _ in ranked) or ranked[0][0] == ranked[1][0]:
        return None
    return ranked[0][1]


def is_known(record: Record) -> bool:
    """Say whether a row holds the probability of its answer, or what it takes to compute it."""
    told = zip(record.answer_tokens or (), record.answer_logprobs or (), strict=False)
    return record.answer_probability is not None or any(n and logprob is not None for n, logprob in told)


def probabilities_of(record: Record) -> list[tuple[str, float]]:
    """Return the texts of a row's scored answers with their probabilities, the likeliest first; none of drawn ones."""
    if not record.answers or {*(record.answer_finishes or ())} != {"scored"}:
        return []
    told = zip(record.answers, record.answer_logprobs or (), record.answer_tokens or (), strict=True)
    found = [(text, _probability(Caption(text, "scored", mean, tokens or 0)) or 0.0) for text, mean, tokens in told]
    return sorted(found, key=lambda one: -one[1])


def _probability(answer: Caption) -> float | None:
    """Return the probability of one answer's text; None where it is unknown, or where the text did not end."""
    if answer.mean_logprob is None or answer.num_tokens < 1 or answer.finish not in ENDED:
        return None
    return min(1.0, math.exp(answer.num_tokens * answer.mean_logprob))
