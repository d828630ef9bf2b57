"""How probable the answer given is, from the log-probabilities of the answers that were drawn.

Call `probabilities` for every choice, `likelier` where several were named equally often. Shares of K answers have K + 1
values, and most images have the highest one; probabilities order those, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from vlmgate.data import Caption, Record


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


def _probability(answer: Caption) -> float | None:
    """Return the probability of one answer's text; None where it is unknown, or where the text did not end."""
    if answer.mean_logprob is None or answer.num_tokens < 1 or answer.finish != "stop":
        return None
    return min(1.0, math.exp(answer.num_tokens * answer.mean_logprob))
