"""What a calibration says of its gate: what it promises, what it passes, and whether the model sees anything at all.

`first_lines` come before all else, `promise_lines` and `passed_lines` follow; `agreement_lines` are of all readings.
"""

from __future__ import annotations

from vlmgate.calibration.choose import Promise
from vlmgate.calibration.figures import CUSTOMARY, Agreement
from vlmgate.calibration.guarantee import interval
from vlmgate.calibration.numbers import decimal, percent, share
from vlmgate.calibration.study import Study
from vlmgate.report.terminal import BUILTIN_NOTICE


def first_lines(found: Study) -> list[str]:
    """Return what must be said before all else: that the model sees nothing, and that the built-in one is a sample."""
    return [text for text in (useless(found), BUILTIN_NOTICE if found.builtin else None) if text is not None]


def useless(found: Study) -> str | None:
    """Say that the answers have next to nothing to do with the labels, where it is so."""
    blind = found.blindness
    if blind is None:
        return None
    return (
        f"This model sees nothing of what the labels say: it answers '{blind.answer}' to {blind.times:,} of "
        f"{blind.images:,} images, {blind.bad:,} defective parts among them (kappa {decimal(blind.kappa)}, where 0 is "
        "chance). Use a better model or another question; neither more labels nor a higher --target-risk help."
    )


def promise_lines(found: Study) -> list[str]:
    """Return what is promised, or why nothing is and what it would take."""
    made, config, word, tried = found.promise, found.config, found.labelled.word, found.tried
    if made is None:
        return ["The gate written is that of least expected cost (--rule cost). It promises nothing of its risk."]
    risk = config.target == "risk"
    rate = f"at most {percent(config.target_risk)} of " + (
        f"accepted readings are {word}" if risk else "defective parts pass as good"
    )
    if not made.holds:
        no = f"No promise: these labels cannot support that {rate}, with {percent(config.confidence)} confidence."
        return [no, _what_it_takes(made, found)]
    counted = f"accepted images {word}" if risk else "defective parts passed as good"
    if found.labelled.grouped and risk:
        counted = f"accepted parts have an accepted image that is {word}"
    what = "parts" if found.labelled.grouped else "images"
    if not found.promised:
        assert tried is not None
        return [
            f"No promise: this is try {tried.number} on these labels, and {tries_declared(tried.declared)} at the "
            "first. The gate promises nothing of its risk. On images that had no part in choosing it, but in earlier "
            f"tries: {made.errors:,} of {made.count:,} {counted}.",
            f"Coverage: {made.coverage:.1%} of them are accepted.",
            f"A promise takes {tried.enough:,} or more accepted {what} that no try has seen, all at once; there are "
            f"{tried.fresh:,}. Add them to the labels before the next calibrate, and they certify. --tries, declared "
            "at the first try on new labels, allows for several.",
        ]
    assert made.bound is not None
    at = f" at {percent(round(made.confidence, 6))}" if tried is not None and tried.declared > 1 else ""
    lines = [
        f"Promise: {rate}, with {percent(config.confidence)} confidence. On images that had no part in choosing it: "
        f"{made.errors:,} of {made.count:,} {counted}, upper bound{at} {made.bound:.2%}.",
        f"Coverage: {made.coverage:.1%} of them are accepted.",
    ]
    if tried is not None and tried.declared > 1:
        lines.append(f"Try {tried.number} of {tried.declared} that were declared (--tries); they share the confidence.")
    if risk and config.defect_rate is not None and found.labelled.good is not None:
        lines.append(
            f"These labels hold {found.labelled.bad.mean():.1%} defective parts, the line "
            f"{percent(config.defect_rate)}: the promise is for the former mix. --target escapes does not depend on it."
        )
    if made.per_answer:
        lines.append("Limits differ by answer (--per-answer): each group was tested at half the chance of being wrong.")
    elif config.per_answer and found.labelled.grouped:
        lines.append("Parts with several images, which may have several answers, share one limit: no --per-answer.")
    elif config.per_answer:
        lines.append("One limit for every answer accepts as much, so --per-answer was not used.")
    each = "with as many images of each part" if found.labelled.grouped else "one a part"
    lines.append(
        f"It holds for images drawn like these ({each}), read by the same model with the same prompt, and for no "
        "others. Tries with other options on these labels are remembered, and promise nothing"
        + ("." if tried is None or tried.declared == 1 else " beyond those declared.")
    )
    return lines


def tries_declared(number: int) -> str:
    """Return how many tries were declared, as part of a sentence."""
    return "no more was declared" if number == 1 else f"{number:,} were declared"


def _what_it_takes(made: Promise, found: Study) -> str:
    """Say how many new labels a promise would take, or why none would do."""
    if made.needed is None:
        return (
            "No number of labels would: the readings are wrong about as often as is allowed, or more. It takes a "
            "better model, or new labels and a higher --target-risk."
        )
    what = "parts" if found.labelled.grouped else "images"
    return (
        f"It takes about {made.needed:,} new labelled {what} like these, going by the errors seen. Add them to the "
        "labels, all before the next calibrate: what was tried chooses then, and what is new certifies."
    )


def passed_lines(found: Study) -> list[str]:
    """Return overkill and escapes, and how far what the gate accepts agrees with the labels, with exact intervals.

    Of the images that had no part in choosing it, where there is a promise; one image a part, for one part is one
    trial.
    """
    if found.passed is None:
        return []
    figures, overkill, escapes = found.passed.figures, found.passed.overkill, found.passed.escapes
    lines = []
    if overkill is not None and escapes is not None:
        lines.append(
            f"Overkill: {overkill[0]:,} of {overkill[1]:,} good parts are accepted as defective. "
            f"Escapes: {escapes[0]:,} of {escapes[1]:,} defective parts pass as good."
        )
    where = "on images that it was chosen on" if found.promise is None else "on images that had no part in choosing it"
    lines.append(f"Agreement of what the gate accepts with the labels, {where} (exact 95% intervals):")
    shares = {"effectiveness": figures.effectiveness}
    if found.labelled.good is not None:
        shares |= {"miss rate": figures.misses, "false-alarm rate": figures.false_alarms}
    for name, (part, whole) in shares.items():
        low, high = interval(part, whole)
        between = f"  {low:.1%} to {high:.1%}" if whole else ""
        lines.append(f"  {name:<17}{share(part, whole):>7}  {part:,} of {whole:,}{between}")
    return [*lines, f"  {'kappa':<17}{decimal(figures.kappa):>7}"]


def agreement_lines(found: Agreement, repeats: tuple[int, int]) -> list[str]:
    """Return the figures of agreement with the limits that are customary."""
    figures = {"effectiveness": found.effectiveness, "miss rate": found.misses, "false-alarm rate": found.false_alarms}
    lines = ["Agreement of all readings with the labels (in brackets the limits that are customary in AIAG's manual):"]
    for name, (part, whole) in figures.items():
        sign, limit = CUSTOMARY[name]
        lines.append(f"  {name:<17}{share(part, whole):>7}  {part:,} of {whole:,}  [{sign} {limit:.0%}]")
    part, whole = found.repeatability
    return [
        *lines,
        f"  {'kappa':<17}{decimal(found.kappa):>7}",
        f"  {'repeatability':<17}{share(part, whole):>7}  {part:,} of {whole:,} images are read alike by {repeats[0]} "
        f"readings of {repeats[1]} samples",
    ]
