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
NEGLIGIBLE = math.log(1e-6)  # what begins less probably is not gone on with; dozens of forms come to 1e-5 at most
PACKED_BRANCHES = 32  # of a prompt at once, on a CPU, where they share it
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
    paths: tuple[tuple[int, ...], ...]  # N ≤ F sequences of tokens; every form is the beginning of one

    @classmethod
    def of(cls, runner: Runner) -> Scoring | None:
        """Return what scores the answers of the question; None where they are to be, or have to be, drawn."""
        sampling = runner.sampling
        if sampling.answers != "exact" or runner.ask is None or not runner.checkpoint.end_ids:
            return None
        forms = forms_of(runner, dict.fromkeys((*sampling.choices, ABSTENTION)))
        return None if forms is None else cls(runner, tuple(forms), paths_of(forms))

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
        runner, model = self.runner, self.runner.checkpoint.model
        ends = torch.tensor(sorted(runner.checkpoint.end_ids), device=prefill.logits.device)
        first = _logprobs(prefill.logits, [path[0] for path in self.paths]).cpu()  # (R, N)
        likely = first > NEGLIGIBLE
        ranked = torch.where(likely, first, -torch.inf).argsort(dim=1, descending=True, stable=True)  # (R, N)
        counts = likely.sum(dim=1).tolist()
        longest = max(map(len, self.paths))
        ended = torch.full((len(first), len(self.paths), longest + 1), -torch.inf, dtype=torch.float64)
        ended[torch.isnan(first).any(dim=1)] = torch.nan
        # As many as draw, for which there is room; copies of the prompt, and logits on a GPU, would take more.
        most = max(1, runner.sampling.num_samples // runner.sampling.views)
        if runner.packs and runner.checkpoint.device.type == "cpu":
            most = max(most, PACKED_BRANCHES)
        for begin in range(0, max(counts, default=0), most):
            going = [row for row, count in enumerate(counts) if count > begin]
            if not prefill.can_drop(model):
                going = list(range(len(counts)))
            end = min(begin + most, max(counts))
            chosen = ranked[going, begin:end]  # (R', K'), numbers of paths
            forced = Forced.of(self.paths, chosen, likely[going].gather(1, chosen), ends)
            # On CUDA few short steps are not worth a recording, and a copy of the prompt for each branch might not fit.
            kind = PackedDecoder if runner.packs and chosen.shape[1] > 1 else ForkDecoder
            decoder = runner.decoder(forced, forced.steps, kind, branches=chosen.shape[1])
            prefill.draw(model, going, decoder)
            runner.spend(0.0, decoder.seconds)
            table = forced.ended.view(*chosen.shape, -1)
            ended[torch.tensor(going)[:, None], chosen, : table.shape[2]] = table
        of_path = [next(n for n, path in enumerate(self.paths) if _begins(path, form.tokens)) for form in self.forms]
        return ended[:, of_path, [len(form.tokens) for form in self.forms]].exp()


def paths_of(forms: Sequence[Form]) -> tuple[tuple[int, ...], ...]:
    """Return the forms' tokens but for what is the beginning of another's: "ok" is scored on the way to "ok."."""
    whole: list[tuple[int, ...]] = []
    for tokens in sorted((form.tokens for form in forms), key=len, reverse=True):
        if not any(_begins(path, tokens) for path in whole):
            whole.append(tokens)
    return tuple(whole)


def _begins(path: tuple[int, ...], tokens: tuple[int, ...]) -> bool:
    return path[: len(tokens)] == tokens


def _caption(text: str, probability: float, tokens: int) -> Caption:
    mean = max(LEAST_LOGPROB, math.log(min(probability, 1.0)) / tokens)
    return Caption(text, "scored", round(mean, 9) + 0.0, tokens)


def _logprobs(logits: torch.Tensor, tokens: Sequence[int] | torch.Tensor) -> torch.Tensor:
    """Return the log-probabilities (R, n), at temperature 1, of n tokens, the same for each of R rows of logits.

    In float32 unless the model is in float64: another copy of the logits in float64 would be most of the memory.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits[:, tokens] - logits.logsumexp(dim=-1, keepdim=True)


class Forced:
    """A `Pick` that draws given tokens, and adds up how probable it is to end after each of them."""

    def __init__(self, tokens: torch.Tensor, lengths: torch.Tensor, ends: torch.Tensor) -> None:
        """Take (R, T) tokens of which the first `lengths` (R,) count, -1 for a row that is idle, and the end ids."""
        self._tokens, self._lengths, self._ends = tokens, lengths, ends
        exact = torch.float32 if tokens.device.type == "mps" else torch.float64
        self._sums = torch.zeros(len(tokens), dtype=exact, device=tokens.device)  # nats, of the tokens so far
        self._ended = torch.full((len(tokens), tokens.shape[1] + 1), -torch.inf, dtype=exact, device=tokens.device)
        self._over = lengths < 0

    @classmethod
    def of(
        cls, paths: Sequence[tuple[int, ...]], chosen: torch.Tensor, wanted: torch.Tensor, ends: torch.Tensor
    ) -> Forced:
        """Return one for the chosen paths (R', K') of some prompts, as far as they are wanted."""
        longest = max(map(len, paths))
        table = torch.tensor([(*path, *[0] * (longest - len(path))) for path in paths])
        numbers = chosen.flatten()
        lengths = torch.tensor([len(path) for path in paths])[numbers]
        kept = torch.where(wanted.flatten(), lengths, -1)
        return cls(table[numbers, : max(1, int(kept.max()))].to(ends.device), kept.to(ends.device), ends)

    @property
    def steps(self) -> int:
        """Return how many tokens the longest has, its end included."""
        return self._tokens.shape[1] + 1

    @property
    def ended(self) -> torch.Tensor:
        """Return (R, T + 1) float64 on the CPU: the log-probability of the first 0 … T tokens and an end.

        It is -inf where that is negligible; a row is NaN throughout where numbers overflowed.
        """
        found = self._ended.cpu().double()
        return torch.where(torch.isnan(found).any(dim=1, keepdim=True), torch.nan, found)

    def __call__(self, logits: torch.Tensor, step: int, rows: torch.Tensor) -> Draw:
        """Return the next tokens of these rows; a row is over after its last token, or once it is negligible."""
        rows, logits = rows.to(self._tokens.device), logits.to(self._tokens.device)
        tokens = self._tokens[rows, min(step, self._tokens.shape[1] - 1)]
        live = ~self._over[rows]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        whole = logits.logsumexp(dim=-1)  # (R',)
        end = logits[:, self._ends].logsumexp(dim=-1) - whole  # whichever it is
        said = logits.gather(1, tokens[:, None])[:, 0] - whole
        self._ended[rows, step] = torch.where(live, self._sums[rows] + end, self._ended[rows, step])
        goes_on = live & (step < self._lengths[rows])
        self._sums[rows] += torch.where(goes_on, said, 0.0)
        self._over[rows] |= ~goes_on | ~(self._sums[rows] > NEGLIGIBLE)
        drawn = torch.where(self._over[rows], self._ends[0], tokens)
        return Draw(drawn, torch.zeros_like(said, dtype=torch.float32), torch.ones_like(live))
