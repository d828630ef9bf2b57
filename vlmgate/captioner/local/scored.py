"""Score the written forms of the choices on the prompt of the question, in place of drawing answers.

Start with `Scoring.of`. Each form is a branch that is made to say its tokens and then an end token, on one shared
prompt; what the model gives to each of these tokens is added up. That is the probability with which an answer would
have been drawn at temperature 1, without any chance in it. What the forms do not cover is left over: little for a model
that answers as it is asked to, and where it is more, answers are drawn.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from vlmgate.captioner.local.fork import Draw, ForkDecoder
from vlmgate.captioner.local.packed import PackedDecoder
from vlmgate.captioner.local.runner import Runner
from vlmgate.captioner.local.shared_prefill import Prefill
from vlmgate.config import ABSTENTION
from vlmgate.data import Caption

logger = logging.getLogger(__name__)

LEAST_MASS = 0.95  # that the forms hold of an image; with less, answers are drawn
NEGLIGIBLE = math.log(1e-7)  # a form, or its beginning, that is less probable is not gone on with
LEAST_LOGPROB = -1000.0  # nats
_CJK = 0x3000  # from here on a sentence ends in an ideographic full stop


@dataclass(frozen=True, slots=True)
class Form:
    """One way to write an answer."""

    text: str
    tokens: tuple[int, ...]  # without an end token


def written(answer: str) -> list[str]:
    """Return the usual ways to write an answer: as it is, capitalised, in lower case; each with and without a stop.

    >>> written("Scratch")
    ['Scratch', 'Scratch.', 'scratch', 'scratch.']
    """
    cases = dict.fromkeys((answer, answer[:1].upper() + answer[1:], answer.lower()))
    stop = "。" if any(ord(letter) >= _CJK for letter in answer) else "."
    return [text for case in cases for text in ((case,) if case.endswith(stop) else (case, case + stop))]


def forms_of(runner: Runner, answers: Iterable[str]) -> list[Form] | None:
    """Return the forms of all answers as tokens, each sequence once; None where some answer cannot be written.

    A text may begin with a space or without one; which one a model uses follows from its tokenizer and its prompt.
    """
    tokenizer = runner.checkpoint.processor.tokenizer
    banned = runner.checkpoint.end_ids | runner.image_ids
    found: dict[tuple[int, ...], str] = {}
    for answer in answers:
        before = len(found)
        for text in written(answer):
            for begun in (text, f" {text}"):
                tokens = tuple(tokenizer(begun, add_special_tokens=False)["input_ids"])
                # What comes back is what a drawn answer would be; unknown words and lost capitals do not come back.
                same = tokenizer.decode(list(tokens), skip_special_tokens=True).strip() == text
                if tokens and same and not banned & {*tokens}:
                    found.setdefault(tokens, text)
        if len(found) == before:
            logger.info("answers are drawn: the tokenizer cannot write %r", answer)
            return None
    return [Form(text, tokens) for tokens, text in found.items()]


@dataclass(frozen=True, slots=True, eq=False)
class Scoring:
    """Scores the forms of all answers for the images of a batch."""

    runner: Runner
    forms: tuple[Form, ...]  # F

    @classmethod
    def of(cls, runner: Runner) -> Scoring | None:
        """Return what scores the answers of the question; None where they are to be, or have to be, drawn."""
        sampling = runner.sampling
        if sampling.answers != "exact" or runner.ask is None or not runner.checkpoint.end_ids:
            return None
        forms = forms_of(runner, dict.fromkeys((*sampling.choices, ABSTENTION)))
        return None if forms is None else cls(runner, tuple(forms))

    def score(self, prefill: Prefill) -> list[tuple[Caption, ...] | None]:
        """Return, for each image of a batch, the texts of its forms with their probabilities, the likeliest first.

        `prefill` is that of the question, V rows an image where it has V views, over which probabilities are averaged.
        None for an image of which the forms hold too little, or whose numbers overflow: its answers have to be drawn.
        """
        views = self.runner.sampling.views
        found = self._probabilities(prefill)  # (B·V, F)
        found = found.view(-1, views, len(self.forms)).mean(dim=1)  # (B, F)
        return [self._captions(row) for row in found.tolist()]

    def _captions(self, probabilities: Sequence[float]) -> tuple[Caption, ...] | None:
        mass = math.fsum(probabilities)
        if not mass >= LEAST_MASS:  # nor where it is not a number
            return None
        texts: dict[str, list[tuple[float, int]]] = {}  # of one text there may be several sequences of tokens
        for form, probability in zip(self.forms, probabilities, strict=True):
            if probability > 0:
                texts.setdefault(form.text, []).append((probability, len(form.tokens) + 1))
        ranked = sorted(((sum(p for p, _ in several), text) for text, several in texts.items()), reverse=True)
        return tuple(_caption(text, probability, max(texts[text])[1]) for probability, text in ranked)

    def _probabilities(self, prefill: Prefill) -> torch.Tensor:
        """Return (R, F) float64 on the CPU: of each form on each of R prompts; NaN where numbers overflow."""
        runner = self.runner
        device = runner.checkpoint.device
        most = max(1, runner.sampling.num_samples // runner.sampling.views)  # branches: what drawing takes, too
        first = _logprobs(prefill.logits).cpu()[:, [form.tokens[0] for form in self.forms]]  # (R, F)
        found = torch.where(torch.isnan(first).any(dim=1, keepdim=True), torch.nan, torch.zeros_like(first)).double()
        likely = first > NEGLIGIBLE
        ranked = torch.where(likely, first, -torch.inf).argsort(dim=1, descending=True, stable=True)  # (R, F)
        rows = list(range(len(first)))
        ends = torch.tensor(sorted(runner.checkpoint.end_ids), device=device)
        for begin in range(0, int(likely.sum(dim=1).max()) if len(first) else 0, most):
            going = [row for row in rows if int(likely[row].sum()) > begin]
            if not prefill.can_drop(runner.checkpoint.model):
                going = rows
            chosen = ranked[going][:, begin : begin + most]  # (R', K'), numbers of forms
            forced = Forced.of(self.forms, chosen, likely[going].gather(1, chosen), ends)
            # On CUDA few short steps are not worth a recording, and a copy of the prompt for each branch might not fit.
            kind = PackedDecoder if runner.packs and chosen.shape[1] > 1 else ForkDecoder
            decoder = runner.decoder(forced, forced.steps, kind, branches=chosen.shape[1])
            prefill.draw(runner.checkpoint.model, going, decoder)
            runner.spend(0.0, decoder.seconds)
            found[torch.tensor(going)[:, None], chosen] += forced.probabilities.view(chosen.shape)
        return found


def _caption(text: str, probability: float, tokens: int) -> Caption:
    mean = max(LEAST_LOGPROB, math.log(min(probability, 1.0)) / tokens)
    return Caption(text, "scored", round(mean, 9) + 0.0, tokens)


def _logprobs(logits: torch.Tensor) -> torch.Tensor:
    """Return the log-probabilities of (R, V) logits at temperature 1, in float64 where the device has it."""
    exact = logits.float() if logits.device.type == "mps" else logits.double()
    return exact - exact.logsumexp(dim=-1, keepdim=True)


class Forced:
    """A `Pick` that draws given forms and their end, and adds up how probable they are."""

    def __init__(self, tokens: torch.Tensor, lengths: torch.Tensor, ends: torch.Tensor) -> None:
        """Take (R, T) tokens of which the first `lengths` (R,) count, -1 for a row without a form, and the end ids."""
        self._tokens, self._lengths, self._ends = tokens, lengths, ends
        exact = torch.float32 if tokens.device.type == "mps" else torch.float64
        self._sums = torch.zeros(len(tokens), dtype=exact, device=tokens.device)  # nats
        self._whole = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        self._over = lengths < 0

    @classmethod
    def of(cls, forms: Sequence[Form], chosen: torch.Tensor, wanted: torch.Tensor, ends: torch.Tensor) -> Forced:
        """Return one for the chosen forms (R', K') of some prompts, as far as they are wanted."""
        longest = max(len(form.tokens) for form in forms)
        table = torch.tensor([(*form.tokens, *[0] * (longest - len(form.tokens))) for form in forms])
        lengths = torch.tensor([len(form.tokens) for form in forms])
        numbers = chosen.flatten()
        kept = torch.where(wanted.flatten(), lengths[numbers], -1)
        used = max(1, int(kept.max()))
        return cls(table[numbers, :used].to(ends.device), kept.to(ends.device), ends)

    @property
    def steps(self) -> int:
        """Return how many tokens the longest has, its end included."""
        return self._tokens.shape[1] + 1

    @property
    def probabilities(self) -> torch.Tensor:
        """Return (R,) float64 on the CPU; 0 for what is negligible, NaN where numbers overflowed."""
        sums = self._sums.cpu().double()
        return torch.where(self._whole.cpu() | torch.isnan(sums), sums.exp(), 0.0)

    def __call__(self, logits: torch.Tensor, step: int, rows: torch.Tensor) -> Draw:
        """Return the next tokens of these rows; a row is over after its end, or once it is negligible."""
        rows = rows.to(self._tokens.device)
        logprobs = _logprobs(logits.to(self._tokens.device))  # (R', V)
        tokens = self._tokens[rows, min(step, self._tokens.shape[1] - 1)]
        is_end = self._lengths[rows] == step
        end = logprobs[:, self._ends].logsumexp(dim=-1)  # whichever it is
        gain = torch.where(is_end, end, logprobs.gather(1, tokens[:, None])[:, 0])
        self._sums[rows] += torch.where(self._over[rows], 0.0, gain)
        self._whole[rows] |= is_end & ~self._over[rows]
        self._over[rows] |= is_end | ~(self._sums[rows] > NEGLIGIBLE)
        drawn = torch.where(self._over[rows], self._ends[0], tokens)
        return Draw(drawn, torch.zeros_like(gain, dtype=torch.float32), torch.ones_like(is_end))
