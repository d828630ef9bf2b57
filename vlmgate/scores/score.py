"""From what was sampled of one image to its scores, or to why no score can save it. `Scorer` does it."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from vlmgate.data import ENDED, Caption, Reading, Reason, Sampled, Scores
from vlmgate.scores.answer_probability import exact, is_scored, likelier, probabilities
from vlmgate.scores.answers import Parsed, Tally, degenerate_answers, parse, parse_cut_off, tally
from vlmgate.scores.diversity import FindingsKernel, Kernel, contradiction, score_captions
from vlmgate.scores.findings import Claims, load_vocabulary
from vlmgate.scores.refusals import degenerate

log = logging.getLogger(__name__)

NOTHING = Scores(None, None, None, None, None)
Scored = tuple[Scores, Reason | None]  # with why they can save nothing
Samples = Reading | Sampled  # captions, answers and views of one image


class Scorer:
    """Scores one image after the other under one kernel (`findings`), for one prompt and one question.

    `terms` is the text of a `--terms` file.
    """

    def __init__(
        self, prompt: str, choices: Sequence[str] = (), kernel: Kernel | None = None, terms: str | None = None
    ) -> None:
        self.prompt, self.choices = prompt, tuple(choices)
        self.vocabulary = load_vocabulary(terms, self.choices)
        kernel = kernel or FindingsKernel(self.vocabulary)
        self.kernel = kernel.with_vocabulary(self.vocabulary) if isinstance(kernel, FindingsKernel) else kernel

    def prepare(self, several: Iterable[Samples]) -> None:
        """Let the kernel do for many images at once what is slow one by one; where it fails, they go one by one."""
        try:
            self.kernel.prepare([caption.text for caption in said.captions] for said in several)
        except Exception as error:
            log.warning("the captions could not be compared all at once", exc_info=error)

    def score(self, said: Samples, novelty: float | None = None, num_samples: int | None = None) -> Scored:
        """Return the scores, and the reason where they can save nothing; `num_samples` is K, where fewer were drawn.

        Captions that are no reading, or that the kernel cannot compare, have no scores; answers are always counted.
        Where two choices are named equally often, the likelier is the answer, and the reason is that there is none: a
        gate that goes by `answer_probability` takes the one, every other gate the other (`gate.rules.bars`).
        """
        reason = degenerate(said.captions, self.prompt)
        scores = NOTHING
        if reason is None:
            claims = self.claims(said.captions)
            by_findings = isinstance(self.kernel, FindingsKernel)
            try:
                kernel = self.kernel([one.text for one in said.captions])
                scores = score_captions(said.captions, kernel, same=self.kernel.same, views=said.views, claims=claims)
                scores = with_doubt(scores, novelty, num_samples or len(said.captions))
            except Exception as error:  # one image's captions must not take the result of all the others away
                log.warning("captions could not be compared: %r", said.captions[0].text, exc_info=error)
                reason = Reason.NO_SCORE
            if by_findings and said.answers is None and not any(one.states for one in claims):
                unknown = all(one.language is None for one in claims)
                reason = reason or (Reason.UNKNOWN_LANGUAGE if unknown else Reason.NO_CLAIM)
        if said.answers is None:
            return scores, reason
        parsed = [self._parsed(answer) for answer in said.answers]
        if is_scored(said.answers):
            figures: dict[str, Any] = exact(said.answers, parsed)
            figures |= self._disputed(said, scores, figures["answer"])
            return replace(scores, **figures), reason or (None if figures["answer"] else Reason.NO_ANSWER)
        counted, found = tally(parsed), probabilities(said.answers, [one.choice for one in parsed], said.views)
        unread = degenerate_answers(said.answers, self.choices)
        reason = reason or unread or (Reason.NO_ANSWER if counted.answer is None else None)
        answer = counted.answer or likelier(_most_named(parsed), found)
        rates = ("answer_share", "answer_entropy", "abstain_rate", "unparsable_rate")
        figures = {name: round(getattr(counted, name), 6) for name in rates}
        if answer in found:
            figures["answer_probability"] = round(found[answer], 6)
        figures |= self._disputed(said, scores, answer)
        return replace(scores, answer=answer, **figures), reason

    def _disputed(self, said: Samples, scores: Scores, answer: str | None) -> dict[str, float]:
        """Return the column `contradiction` with the captions that dispute the answer."""
        if answer is None or scores.contradiction is None:
            return {}
        disputed = contradiction(self.claims(said.captions), self.vocabulary.claims_of_answer(answer))
        return {"contradiction": round(disputed, 6)}

    def claims(self, captions: Sequence[Caption]) -> list[Claims]:
        """Return what each caption claims of the part's condition."""
        return [self.vocabulary.claims(caption.text) for caption in captions]

    def tally(self, answers: Sequence[Caption]) -> Tally:
        """Return what some answers come to."""
        return tally([self._parsed(answer) for answer in answers])

    def answer(self, answers: Sequence[Caption]) -> str | None:
        """Return the choice that some answers come to; None for a tie, and where none is named."""
        if is_scored(answers):
            found: str | None = exact(answers, [self._parsed(answer) for answer in answers])["answer"]
            return found
        return self.tally(answers).answer

    def probabilities(self, said: Samples) -> dict[str, float]:
        """Return how probable each choice is by the answers drawn, as far as that is known."""
        answers = said.answers or ()
        return probabilities(answers, [self._parsed(answer).choice for answer in answers], said.views)

    def counts(self, said: Samples) -> dict[str, int]:
        """Return how often each choice was named among the answers; what names none is left out."""
        named = [self._parsed(answer).choice for answer in said.answers or ()]
        return dict(Counter(choice for choice in named if choice is not None))

    def _parsed(self, answer: Caption) -> Parsed:
        """Return what an answer says; one that overflowed, or was cut off before it named a choice, says nothing."""
        if answer.finish == "length":
            return Parsed(parse_cut_off(answer.text, self.choices))
        return parse(answer.text, self.choices) if answer.finish in ENDED else Parsed(None)


def _most_named(answers: Sequence[Parsed]) -> list[str]:
    """Return the choices that no other was named more often than."""
    named = Counter(answer.choice for answer in answers if answer.choice is not None)
    most = max(named.values(), default=0)
    return [choice for choice, times in named.items() if times == most]


def doubt(vendi_score: float | None, novelty: float | None, num_samples: int) -> float | None:
    """Return one score for two ways to fail, 1 to 2 K, higher is worse; None where either is unknown.

    It is the Vendi score (1 to K), and K more outside the reference (novelty above 1): all that is strange is doubted
    more than all that is familiar, and among either diversity orders, which tells right from wrong better than distance
    does. The combination is ours, and was chosen by measurement.
    """
    if vendi_score is None or novelty is None or not math.isfinite(novelty):
        return None
    return vendi_score + num_samples * (novelty > 1)


def with_doubt(scores: Scores, novelty: float | None, num_samples: int) -> Scores:
    """Return the scores with the one that depends on novelty."""
    return replace(scores, doubt=doubt(scores.vendi_score, novelty, num_samples))
