"""From what was sampled of one image to its scores, or to why no score can save it. `Scorer` does it."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from vlmgate.data import Caption, Reading, Reason, Sampled, Scores
from vlmgate.scores.answers import Parsed, Tally, degenerate_answers, parse, parse_cut_off, tally
from vlmgate.scores.diversity import Kernel, WordKernel, score_captions
from vlmgate.scores.refusals import degenerate

log = logging.getLogger(__name__)

NOTHING = Scores(None, None, None, None, None)
Scored = tuple[Scores, Reason | None]  # with why they can save nothing
Samples = Reading | Sampled  # captions, answers and views of one image


class Scorer:
    """Scores one image after the other under one kernel, for one prompt and one question."""

    def __init__(self, prompt: str, choices: Sequence[str] = (), kernel: Kernel | None = None) -> None:
        self.prompt, self.choices, self.kernel = prompt, tuple(choices), kernel or WordKernel()

    def prepare(self, several: Iterable[Samples]) -> None:
        """Let the kernel do for many images at once what is slow one by one; where it fails, they go one by one."""
        try:
            self.kernel.prepare([caption.text for caption in said.captions] for said in several)
        except Exception as error:
            log.warning("the captions could not be compared all at once", exc_info=error)

    def score(self, said: Samples, novelty: float | None = None, num_samples: int | None = None) -> Scored:
        """Return the scores, and the reason where they can save nothing; `num_samples` is K, where fewer were drawn.

        Captions that are no reading, or that the kernel cannot compare, have no scores; answers are always counted.
        """
        reason = degenerate(said.captions, self.prompt)
        scores = NOTHING
        if reason is None:
            try:
                kernel = self.kernel([caption.text for caption in said.captions])
                scores = score_captions(said.captions, kernel, same=self.kernel.same, views=said.views)
                scores = with_doubt(scores, novelty, num_samples or len(said.captions))
            except Exception as error:  # one image's captions must not take the result of all the others away
                log.warning("captions could not be compared: %r", said.captions[0].text, exc_info=error)
                reason = Reason.NO_SCORE
        if said.answers is None:
            return scores, reason
        counted = self.tally(said.answers)
        reason = reason or degenerate_answers(said.answers, self.choices)
        rates = ("answer_share", "answer_entropy", "abstain_rate", "unparsable_rate")
        scores = replace(scores, answer=counted.answer, **{name: round(getattr(counted, name), 6) for name in rates})
        return scores, reason or (Reason.NO_ANSWER if counted.answer is None else None)

    def tally(self, answers: Sequence[Caption]) -> Tally:
        """Return what some answers come to."""
        return tally([self._parsed(answer) for answer in answers])

    def counts(self, said: Samples) -> dict[str, int]:
        """Return how often each choice was named among the answers; what names none is left out."""
        named = [self._parsed(answer).choice for answer in said.answers or ()]
        return dict(Counter(choice for choice in named if choice is not None))

    def _parsed(self, answer: Caption) -> Parsed:
        """Return what an answer says; one that overflowed, or was cut off before it named a choice, says nothing."""
        if answer.finish == "length":
            return Parsed(parse_cut_off(answer.text, self.choices))
        return parse(answer.text, self.choices) if answer.finish == "stop" else Parsed(None)


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
