"""What is tried once on a loaded checkpoint: which faster ways are right for it, and how many images fit.

Call `lay_out_weights`, `sight`, `can_pack`, `shared_tails` and `fitting`, in this order. A few steps are computed both
ways and their logits compared. Both ways give the same captions, so a trial decides about time and memory only; one
that fails, in whatever way, leaves the slower way. `sight` is another matter: it says whether pictures reach the model.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from vlmgate.captioner.local.checkpoint import quiet, release
from vlmgate.captioner.local.fork import Draw, ForkDecoder, Sampler, Warp
from vlmgate.captioner.local.layers import UnsuitableError, prepack, undo_prepack
from vlmgate.captioner.local.packed import check_structure
from vlmgate.captioner.local.recorded import RecordedDecoder, Recordings
from vlmgate.captioner.local.runner import Runner, trial_images
from vlmgate.captioner.local.shared_prefill import Continuation, Tails, find_tails
from vlmgate.captioner.streams import COLOUR_QUESTION, COLOURS, colour_picture
from vlmgate.errors import shorten

logger = logging.getLogger(__name__)

STEPS = 3  # tokens that are drawn both ways
MOST_BATCH = 32  # images, unless more are asked for; steps of this many branches keep a large GPU busy
SHARE = 0.8  # of the free memory that is planned with; the rest is for fragments and for other pictures
LOGIT_COPIES = 5  # float32 arrays as large as the logits that drawing a token makes
# How far the logits of the two ways may lie apart, as a share of their spread.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def lay_out_weights(runner: Runner) -> None:
    """Lay the weights out for this CPU where the model is in bfloat16."""
    checkpoint = runner.checkpoint
    if checkpoint.device.type != "cpu" or checkpoint.dtype != torch.bfloat16:
        return
    seen: list[list[torch.Tensor]] = []
    done = 0
    with _or_else("linear layers keep their layout"):
        inputs = _inputs(runner)
        for _ in range(2):
            teacher = _teacher(runner)
            runner.generate(inputs, runner.decoder(teacher, 2, ForkDecoder, branches=1))
            seen.append(teacher.seen)
            done = done or prepack(checkpoint.model)
        if alike(seen[1], seen[0], checkpoint.dtype):
            logger.info("%d linear layers are laid out for this processor", done)
            return
        logger.warning("linear layers keep their layout: the captions would come out differently")
    undo_prepack(checkpoint.model)


def sight(runner: Runner) -> float | None:
    """Return how far the first logits for a red and for a green picture lie apart, as a share of their spread, ≥ 0.

    0 = the pictures do not reach the model; within `TOLERANCE` the difference may be rounding. None = not finite, or
    the trial failed. It is tried with the prompt of the run and, where that shows no difference, with a question about
    the colour. Measured on nine architectures with random or trained weights: 0.12 to 1.4; with a projector of zeros,
    or the same picture twice, at most 4e-7.
    """
    found: float | None = None
    with _or_else("it was not tried whether the model sees pictures"):
        pictures = [colour_picture(colour) for colour in COLOURS]
        for encode in (runner.encode, runner.encoder(COLOUR_QUESTION)):
            seen: list[torch.Tensor] = []
            decoder = runner.decoder(partial(_note, seen), 1, ForkDecoder, branches=1)
            runner.generate(runner.inputs(encode, pictures), decoder)
            (logits,) = seen  # (2, V)
            kept = (logits != -torch.inf).all(0)  # some models mask tokens that are never said
            red, green = logits[:, kept]
            apart = float((red - green).square().mean().sqrt() / green.std())
            if not math.isfinite(apart):
                break
            found = max(apart, found or 0.0)
            if found > TOLERANCE[runner.checkpoint.dtype]:
                break
    return found


def can_pack(runner: Runner) -> bool:
    """Say whether all branches may share one sequence; tried with other tokens for each branch."""
    with _or_else("every sample has a cache of its own"):
        check_structure(runner.checkpoint.model)
        packed, inputs = runner.fast_kind(), _inputs(runner)
        forked, shared = _teacher(runner), _teacher(runner)
        runner.generate(inputs, runner.decoder(forked, STEPS, ForkDecoder, branches=3))
        runner.generate(inputs, runner.decoder(shared, STEPS, packed, branches=3))
        if not alike(shared.seen, forked.seen, runner.checkpoint.dtype):
            raise UnsuitableError("the captions would come out differently")
        if packed is RecordedDecoder and not draws_alike(runner):
            logger.warning("tokens are drawn outside of the recorded steps: they would come out differently")
            runner.recordings.draws_inside = False
        return True
    return False


def draws_alike(runner: Runner) -> bool:
    """Tell whether recorded steps draw, inside, what is drawn outside from the same numbers."""
    rows, steps = len(trial_images()) * 3, STEPS + 1
    table = torch.linspace(0.05, 0.95, rows * steps, dtype=torch.float64).view(rows, steps)
    sampler, inputs = Sampler(table.to(runner.checkpoint.device), Warp()), _inputs(runner)
    found = []
    for inside in (True, False):
        decoder = runner.decoder(sampler, steps, RecordedDecoder, branches=3)
        assert isinstance(decoder, RecordedDecoder)
        decoder.recordings = Recordings(draws_inside=inside)
        runner.generate(inputs, decoder)
        found.append((decoder.tokens, decoder.finite))
    return found[0] == found[1]


def shared_tails(runner: Runner) -> Tails | None:
    """Return how the two prompts end where answers may go on from the captions' prefill; else, or unasked, None."""
    if runner.ask is None:
        return None
    with _or_else("captions and answers are prefilled apart"):
        first, second = _inputs(runner), runner.inputs(runner.ask, trial_images())
        tails = find_tails(runner.checkpoint.model, first, second, runner.image_ids)
        shared, apart = Teacher(tails.second), Teacher(tails.second)
        captions = runner.decoder(Teacher(tails.second), 1)
        captions.then = Continuation(tails, runner.decoder(shared, STEPS))
        runner.generate(first, captions)
        runner.generate(second, runner.decoder(apart, STEPS))
        if not alike(shared.seen, apart.seen, runner.checkpoint.dtype):
            raise UnsuitableError("the answers would come out differently")
        logger.info("answers go on from the captions' prefill; %d tokens of their own", len(tails.second))
        return tails
    return None


# --- how many images fit into a GPU's memory --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one image takes, in bytes."""

    token: int  # keys and values of one token in all layers
    prefill: int  # measured: everything one image's prefill takes at its peak, its prompt's cache included
    vocabulary: int  # entries
    prompt: int  # tokens

    def image(self, route: str, samples: int, tokens: int) -> int:
        """Return the bytes of K samples of T tokens; route "fork" copies the prompt's cache K times, "packed" once."""
        kept = samples * (self.prompt + tokens) if route == "fork" else self.prompt + samples * tokens
        return self.prefill + kept * self.token + samples * self.vocabulary * 4 * LOGIT_COPIES


def token_bytes(text_config: Any, dtype: torch.dtype) -> int:
    """Return the bytes of the keys and values of one token in all layers, by the decoder's configuration."""
    heads = text_config.num_attention_heads
    size = getattr(text_config, "head_dim", None) or text_config.hidden_size // heads
    shared = getattr(text_config, "num_key_value_heads", None) or heads
    return 2 * int(text_config.num_hidden_layers) * int(shared) * int(size) * dtype.itemsize


def images_that_fit(free: int, image: int, most: int) -> int:
    """Return how many images of so many bytes fit into the planned share of `free` bytes: 1 to `most`."""
    return max(1, min(most, int(free * SHARE) // max(image, 1)))


def fitting(runner: Runner, route: str, limit: int) -> int:
    """Return how many images at once a GPU's free memory is likely to hold: 1 to what is asked for; `limit` fitted.

    Estimated from the prefill of one small picture: larger ones may take more, and then the batch is halved.
    """
    checkpoint, sampling = runner.checkpoint, runner.sampling
    device = checkpoint.device
    if device.type != "cuda":
        return min(limit, sampling.at_once)
    try:
        text = checkpoint.model.config.get_text_config(decoder=True)
        inputs = runner.inputs(runner.encode, trial_images()[:1])
        once = runner.decoder(Teacher([0]), 1, ForkDecoder, branches=1)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        runner.generate(inputs, once)
        taken = torch.cuda.max_memory_allocated(device) - before
        prompt = inputs["input_ids"].shape[1]
        footprint = Footprint(token_bytes(text, checkpoint.dtype), taken, text.vocab_size, prompt)
    except Exception as error:  # an estimate is no reason to fail
        logger.warning("how many images fit into memory is not known: %s", shorten(error))
        return min(limit, sampling.at_once)
    image = footprint.image(route, sampling.num_samples, sampling.max_new_tokens) * sampling.views
    release(device)
    most = sampling.at_once * (1 if sampling.batch_size else MOST_BATCH // sampling.batch)
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    fits = images_that_fit(free - torch.cuda.memory_allocated(device), image, most)
    logger.info("an image takes about %d MiB; %d of %d at once", image >> 20, fits, most)
    return fits


def _note(seen: list[torch.Tensor], logits: torch.Tensor, _: int, rows: torch.Tensor) -> Draw:
    """Keep logits, and draw anything; Apple's GPUs know no float64, so they are moved first."""
    seen.append(logits.cpu().double())
    return Draw(torch.zeros_like(rows), torch.zeros(len(rows)), torch.ones_like(rows, dtype=torch.bool))


class Teacher:
    """A `Pick` that draws given tokens, others for each branch, and keeps the logits that it is shown."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = torch.tensor(tokens)
        self.seen: list[torch.Tensor] = []  # per step (R, V)

    def __call__(self, logits: torch.Tensor, step: int, rows: torch.Tensor) -> Draw:
        self.seen.append(logits.double().cpu())
        tokens = self._tokens[(rows.cpu() + step * (step + 1)) % len(self._tokens)].to(rows.device)
        return Draw(tokens, torch.zeros(len(rows)), torch.ones_like(rows, dtype=torch.bool))


def alike(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor], dtype: torch.dtype) -> bool:
    """Tell whether two ways of computing the same logits agree, row by row, as well as the dtype allows."""
    if not other or [step.shape for step in one] != [step.shape for step in other]:
        return False
    a, b = torch.cat(list(one)), torch.cat(list(other))  # (steps · R, V)
    kept = b != -torch.inf  # some models mask tokens that are never said
    if not torch.equal(kept, a != -torch.inf):
        return False
    a, b = torch.where(kept, a, 0.0), torch.where(kept, b, 0.0)
    distance = (a - b).square().mean(-1).sqrt()
    return bool((distance <= TOLERANCE[dtype] * b.std(-1)).all())


def _teacher(runner: Runner) -> Teacher:
    """Return a teacher of ordinary tokens."""
    return Teacher([i for i in range(100) if i not in runner.checkpoint.end_ids | runner.image_ids][-20:])


def _inputs(runner: Runner) -> dict[str, Any]:
    return runner.inputs(runner.encode, trial_images())


@contextmanager
def _or_else(consequence: str) -> Iterator[None]:
    """Try something in silence; where it fails, say what follows from that, and go on."""
    try:
        with quiet():
            yield
    except UnsuitableError as error:
        logger.info("%s: %s", consequence, error)
    except Exception as error:  # what a model that was not made for this raises, or too little memory
        logger.warning("%s: %s", consequence, shorten(error))
