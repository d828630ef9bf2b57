"""Train the built-in model from nothing: `python -m vlmgate.factory.train --out FOLDER`.

First the vision tower with heads that are thrown away, then what speaks, on captions and answers. The same command goes
on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from vlmgate.factory.checkpoint import Shape, build_model, build_processor, export, write_reference
from vlmgate.factory.dataset import Recipe, RenderedSet, Rendering, load_or_render
from vlmgate.factory.objectives import (
    Example,
    Heads,
    LanguageTask,
    draw_batch,
    head_accuracy,
    read_features,
    vision_loss,
)
from vlmgate.factory.world import CONDITIONS

_NAMES = ("part", "finish", "defects", "positions")
_HARD = tuple(CONDITIONS.index(name) for name in ("crack", "dent", "scratch"))  # what is seen worst
_FIRST = 0.06  # of the training set; where a GPU learns, it begins with so much while the rest is being rendered
_CUBIC_QUINTIC = (3.4445, -4.7750, 2.0315)  # of the odd polynomial that drives singular values towards 1
_LOOK = 0.05  # of a phase; how often held-out images are looked at and a checkpoint is written


@dataclass(frozen=True, slots=True)
class Stage:
    """What is drawn more or less often from a point of a phase on."""

    begin: float  # share of the phase
    clean: float  # share of a batch that is not degraded
    twins: float  # how often a twin is drawn, to an image that is none
    hard: float  # how often one of `_HARD` is drawn, to others


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of training with a schedule of its own: a warm-up, a plateau, then a cosine down to zero."""

    name: str
    steps: int
    seconds: float  # if positive it lasts so long, however many steps that is
    plateau: float  # share of the phase before the rates go down
    stages: tuple[Stage, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that decides what training does."""

    scenes: int = 18_000  # about 2.8 images each
    held_out: int = 2_048
    vision_steps: int = 8_000
    language_steps: int = 2_000
    minutes: float = 0.0  # if positive, instead of the steps: how long both phases take
    batch: int = 64  # images a step while the vision tower learns
    captioned: int = 14  # images a step that are captioned while language is learned
    questioned: int = 18  # other images, that are asked about
    # Of the loss per token of captions, beside the loss per answer: a caption tells of a defect in one or two of its
    # twenty tokens, so that with a weight of 2 captions were learned less well than answers.
    caption_weight: float = 6.0
    muon_rate: float = 3e-3  # matrices inside the layers
    adam_rate: float = 1.5e-3  # everything else
    warm_up: int = 100  # steps
    seed: int = 0

    @property
    def phases(self) -> tuple[Phase, Phase]:
        """Return the phases in their order.

        Clean images and twins teach faster what a defect looks like, but how often what cannot be seen is what is
        learned from images as they come; so those come last, and they alone teach language.
        """
        vision = (Stage(0.0, 0.6, 1.0, 1.0), Stage(0.3, 0.75, 1.0, 2.0), Stage(0.85, 0.6, 0.3, 1.5))
        seconds = 60 * self.minutes
        return (
            Phase("vision", self.vision_steps, 0.75 * seconds, 0.55, vision),
            Phase("language", self.language_steps, 0.25 * seconds, 0.5, (Stage(0.0, 0.5, 0.0, 1.0),)),
        )


def default_plan(device: str) -> Plan:
    """Return what two CPU cores do in hours; where there is a GPU, larger batches of many more images."""
    if device == "cpu":
        return Plan()
    return Plan(
        scenes=100_000,
        vision_steps=16_000,
        language_steps=4_000,
        batch=256,
        captioned=112,
        questioned=144,
        muon_rate=5e-3,
        adam_rate=2e-3,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """A batch of images with the sentences that are to be said of them."""

    pixels: Tensor
    captions: list[Example]
    answers: list[Example]


class Trainer:
    """The model being trained, and where it stands."""

    def __init__(self, plan: Plan, out: Path, data: RenderedSet, held_out: RenderedSet, device: str) -> None:
        torch.manual_seed(plan.seed)
        self.plan, self.out, self.data, self.held_out, self.device = plan, out, data, held_out, device
        self.processor = build_processor()
        self.model = build_model(self.processor).to(device)
        self.heads = Heads(Shape().width).to(device)
        self.task = LanguageTask(self.processor)
        self.optimizers = list(_optimizers(plan, self.model, self.heads))
        self.phase_index = 0
        self.step = 0  # of the phase
        self.spent = 0.0  # seconds, of the phase
        self._last: float | None = None  # when the last step ended
        self._ahead = ThreadPoolExecutor(1)  # makes sentences while the device works
        self._next: Future[_Asked] | None = None
        self._chances: tuple[tuple[Stage, int], NDArray[np.float64]] | None = None

    @property
    def _checkpoint(self) -> Path:
        return self.out / "training.pt"

    def save(self) -> None:
        """Write all that is needed to go on from here."""
        temporary = self._checkpoint.with_suffix(".tmp")
        state = {
            "plan": json.dumps(asdict(self.plan)),
            "phase": self.phase_index,
            "step": self.step,
            "spent": self.spent,
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        torch.save(state, temporary)
        temporary.replace(self._checkpoint)

    def resume(self) -> None:
        """Go on from a checkpoint of the same plan, if there is one."""
        if not self._checkpoint.exists():
            return
        state = torch.load(self._checkpoint, map_location=self.device)
        if state["plan"] != json.dumps(asdict(self.plan)):
            raise SystemExit(f"{self._checkpoint} belongs to another plan; delete it or choose another --out.")
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.phase_index, self.step, self.spent = state["phase"], state["step"], state["spent"]
        tell(f"resumed after step {self.step:,} of {'vision' if self.phase_index == 0 else 'language'}")

    @property
    def phase(self) -> Phase:
        """Return the phase that the next step belongs to."""
        return self.plan.phases[self.phase_index]

    @property
    def progress(self) -> float:
        """Return which share of the phase is done."""
        phase = self.phase
        return min(1.0, self.spent / phase.seconds if phase.seconds > 0 else self.step / max(1, phase.steps))

    def advance(self) -> Tensor:
        """Take one step and return its loss."""
        language = self.phase.name == "language"
        with torch.autocast(self.device.split(":")[0], torch.bfloat16):
            loss = self._language_loss() if language else self._vision_loss()
        loss.backward()  # type: ignore[no-untyped-call]
        share = self._rate()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share
        nn.utils.clip_grad_norm_(self.optimizers[1].param_groups[0]["params"], 1.0)  # Muon's steps have a fixed length
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        now = time.monotonic()
        self.spent += 0.0 if self._last is None else now - self._last
        self._last = now
        return loss.detach()

    def next_phase(self) -> bool:
        """Go on to the next phase, if there is one."""
        if self.phase_index + 1 == len(self.plan.phases):
            return False
        self.phase_index, self.step, self.spent = self.phase_index + 1, 0, 0.0
        return True

    def _rng(self, step: int) -> np.random.Generator:
        return np.random.default_rng((self.plan.seed, 7, self.phase_index, step))  # however often it was resumed

    def _vision_loss(self) -> Tensor:
        rng = self._rng(self.step)
        batch = draw_batch(self.data, self._pick(rng, self.plan.batch), rng, self.device, truths=False)
        return vision_loss(self.heads, read_features(self.model, batch.pixels), batch)

    def _language_loss(self) -> Tensor:
        """Return the loss of captions and answers; the tower, which has learned, stays as it is."""
        asked = self._next.result() if self._next is not None else self._ask(self.step)
        self._next = self._ahead.submit(self._ask, self.step + 1)
        with torch.no_grad():
            features = read_features(self.model, asked.pixels)
        first = self.plan.captioned
        said = self.task.caption_loss(self.model, features[:first], asked.captions)
        answered = self.task.answer_loss(self.model, features[first:], asked.answers)
        return self.plan.caption_weight * said + answered

    def _ask(self, step: int) -> _Asked:
        rng, first = self._rng(step), self.plan.captioned
        batch = draw_batch(self.data, self._pick(rng, first + self.plan.questioned), rng, self.device)
        captions = self.task.caption_rows(batch.truths[:first], rng)
        return _Asked(batch.pixels, captions, self.task.answer_rows(batch.seen[first:], rng))

    def _pick(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Return the images of a batch, drawn as often as the stage says."""
        progress = self.progress
        stage = next(stage for stage in reversed(self.phase.stages) if progress >= stage.begin)
        count_now = len(self.data)  # once: it may grow meanwhile
        if self._chances is None or self._chances[0] != (stage, count_now):
            weight = np.where(self.data["twins"][:count_now], stage.twins, 1.0)
            weight *= np.where(np.isin(self.data["conditions"][:count_now], _HARD).any(axis=1), stage.hard, 1.0)
            clean = self.data["kinds"][:count_now] == 0
            for group, share in ((clean, stage.clean), (~clean, 1 - stage.clean)):
                weight[group] *= share / max(weight[group].sum(), 1e-9)
            self._chances = (stage, count_now), np.cumsum(weight)
        sums = self._chances[1]
        picked: NDArray[np.int64] = np.searchsorted(sums, rng.random(count) * sums[-1], side="right").astype(np.int64)
        return picked

    def _rate(self) -> float:
        """Return the share of the peak rates at this step."""
        left = min(1.0, (1 - self.progress) / (1 - self.phase.plateau))
        return min(1.0, (self.step + 1) / self.plan.warm_up) * 0.5 * (1 - math.cos(math.pi * left))

    @torch.no_grad()
    def examine(self) -> str:
        """Return, in words, how often the heads are right on held-out images."""
        self.model.eval()
        right = np.empty((len(self.held_out), 4), np.int64)
        for begin in range(0, len(self.held_out), 128):
            picked = np.arange(begin, min(begin + 128, len(self.held_out)))
            batch = draw_batch(self.held_out, picked, None, self.device)
            with torch.autocast(self.device.split(":")[0], torch.bfloat16):
                features = read_features(self.model, batch.pixels)
                right[picked] = head_accuracy(self.heads, features, batch)
        self.model.train()
        is_clean = self.held_out["kinds"] == 0
        clean, spoilt = right[is_clean].mean(axis=0), right[~is_clean].mean(axis=0)
        return "heads right, clean (degraded): " + ", ".join(
            f"{name} {a:.1%} ({b:.1%})" for name, a, b in zip(_NAMES, clean, spoilt, strict=True)
        )


def _optimizers(plan: Plan, model: nn.Module, heads: nn.Module) -> Iterator[torch.optim.Optimizer]:
    """Yield Muon for the matrices inside the layers and AdamW for all else; "peak" is each group's highest rate."""
    inner = [p for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2 and "bias" not in name]
    chosen = {id(p) for p in inner}
    outer = [p for p in model.parameters() if id(p) not in chosen] + list(heads.parameters())
    yield Muon([{"params": inner, "peak": plan.muon_rate}], lr=plan.muon_rate)
    yield torch.optim.AdamW(
        [{"params": outer, "peak": plan.adam_rate}], lr=plan.adam_rate, betas=(0.9, 0.98), weight_decay=0.02
    )


class Muon(torch.optim.Optimizer):
    """Momentum whose every step is made orthogonal; every parameter must have two dimensions.

    After K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), with the step size of
    J. Liu et al., "Muon is scalable for LLM training" (2025). Matrices of one shape are worked on in one batch, which
    is faster on a CPU than one by one.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float, weight_decay: float = 0.05, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step along the gradients; parameters without one stay as they are."""
        assert closure is None
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in alike.items():
                updates = torch.stack([self._push(parameter, group["momentum"]) for parameter in parameters])
                size = group["lr"] * 0.2 * max(shape) ** 0.5  # the usual length of an Adam step
                for parameter, update in zip(parameters, _orthogonal(updates), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update.to(parameter.dtype), alpha=-size)

    def _push(self, parameter: Tensor, momentum: float) -> Tensor:
        """Add the gradient to the running mean and return where it will be one step ahead."""
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        mean: Tensor = state["momentum_buffer"]
        mean.lerp_(gradient, 1 - momentum)
        return gradient.lerp(mean, momentum)


def _orthogonal(matrices: Tensor) -> Tensor:
    """Return each of (N, rows, columns) with its singular values moved close to 1."""
    a, b, c = _CUBIC_QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    made: Tensor = x.mT if tall else x
    return made


def train(plan: Plan, out: Path, cache: Path, stop_after: int | None = None) -> None:
    """Train as `plan` says and write to `out`; after `stop_after` steps of this call leave off, to go on later."""
    device = _device()
    torch.set_float32_matmul_precision("high")
    out.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(seed=1, scenes=plan.scenes, relatives=True)
    held_out = load_or_render(Recipe(seed=2, scenes=plan.held_out), cache / "held_out", tell, device)
    data = RenderedSet(recipe.most_images, device)
    with Rendering(recipe, cache / "train", tell) as rendering:
        # Which images a step sees depends on how far rendering has got; a set that lies ready is read as it is.
        rendering.fill(data, at_least=1.0 if device == "cpu" else _FIRST)
        trainer = Trainer(plan, out, data, held_out, device)
        trainer.resume()
        trainer.model.train()
        _run(trainer, rendering, stop_after)


def _run(trainer: Trainer, rendering: Rendering, stop_after: int | None) -> None:
    losses: deque[Tensor] = deque(maxlen=50)
    taken, looked = 0, trainer.progress
    with _progress_bar() as bar:
        task = bar.add_task("", total=len(trainer.plan.phases))
        while True:
            done = trainer.progress >= 1
            if not done:
                losses.append(trainer.advance())
                taken += 1
            if trainer.step % 50 == 0 and not done:
                rendering.fill(trainer.data)
                said = f"{trainer.phase.name}, step {trainer.step:,}, loss {float(torch.stack([*losses]).mean()):.3f}"
                bar.update(task, completed=trainer.phase_index + trainer.progress, description=said)
                if bar.disable and trainer.step % 200 == 0:
                    tell(f"{trainer.progress:.0%} of {said}")
            if done or trainer.progress - looked >= _LOOK:
                looked = trainer.progress
                tell(trainer.examine())
                if done and not trainer.next_phase():
                    break
                looked = trainer.progress
                trainer.save()
                if trainer.phase_index == 1:
                    export(trainer.model, trainer.processor, trainer.out / "weights")
            if stop_after is not None and taken >= stop_after:
                trainer.save()
                return
    trainer.save()
    export(trainer.model, trainer.processor, trainer.out / "weights")
    tell("done")


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _progress_bar() -> Progress:
    """Return a bar with the time left on stderr; where nobody watches it is off, and lines are written instead."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        speed_estimate_period=300,
    )


def tell(text: str) -> None:
    """Write a line of progress to stderr."""
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m vlmgate.factory.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints; the model goes to OUT/weights")
    parser.add_argument("--cache", type=Path, help="folder for the rendered training set (default: OUT/cache)")
    parser.add_argument("--no-reference", action="store_true", help="leave out the reference for novelty")
    defaults = default_plan(_device())
    for name, value in asdict(defaults).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"default {value}")
    options = vars(parser.parse_args())
    out, cache = options.pop("out"), options.pop("cache")
    bare = options.pop("no_reference")
    train(Plan(**options), out, cache or out / "cache")
    if not bare:
        tell(f"writing {write_reference(out / 'weights')}")


if __name__ == "__main__":
    main()
