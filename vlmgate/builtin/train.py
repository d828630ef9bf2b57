"""Train the built-in model from nothing: `python -m vlmgate.builtin.train --out FOLDER`.

First the vision tower with heads that are thrown away, then what speaks, on captions and answers. The same command goes
on where it stopped. Knows schedules and files; knows nothing of how images are drawn or sentences made.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from vlmgate.builtin.checkpoint import Shape, build_model, build_processor, export
from vlmgate.builtin.dataset import Recipe, RenderedSet, load_or_render
from vlmgate.builtin.muon import Muon
from vlmgate.builtin.objectives import (
    Heads,
    LanguageTask,
    draw_batch,
    head_accuracy,
    read_features,
    vision_loss,
)
from vlmgate.builtin.world import CONDITIONS

_NAMES = ("part", "finish", "defects", "positions")
_HARD = tuple(CONDITIONS.index(name) for name in ("crack", "dent", "scratch"))  # what a first phase sees worst


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of training with a schedule of its own: a warm-up, a plateau, then a cosine down to zero.

    That the rates go up again and down once more: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm
    Restarts" (ICLR 2017).
    """

    name: str
    steps: int
    peak: float  # of the plan's rates
    plateau: float  # share of the steps before the rates go down


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that decides what training does; the defaults made the weights that ship."""

    images: int = 50_000
    held_out: int = 2_048
    vision_steps: int = 4_200
    more_vision_steps: int = 3_600  # after the rates have been down and went up again, for what is hard to see
    language_steps: int = 2_000
    batch: int = 64  # images a step while the vision tower learns
    captioned: int = 14  # images a step that are captioned while language is learned
    questioned: int = 18  # other images, that are asked about
    # Of the loss per token of captions, beside the loss per answer: a caption tells of a defect in one or two of its
    # twenty tokens, so that with a weight of 2 captions were learned less well than answers.
    caption_weight: float = 6.0
    # From which step on which share of a batch is clean: clean images teach faster what a defect looks like, but how
    # often what cannot be seen is what is learned from those that are not.
    clean_shares: tuple[tuple[int, float], ...] = ((0, 0.6), (1_600, 0.75), (7_800, 0.5))
    hard_weight: float = 2.0  # how much oftener an image of `_HARD` is drawn while more of vision is learned
    muon_rate: float = 3e-3  # matrices inside the layers
    adam_rate: float = 1.5e-3  # everything else
    warm_up: int = 100  # steps
    seed: int = 0

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Return the phases in their order."""
        return (
            Phase("vision", self.vision_steps, peak=1.0, plateau=0.6),
            Phase("more vision", self.more_vision_steps, peak=0.7, plateau=0.4),
            Phase("language", self.language_steps, peak=1.0, plateau=0.6),
        )

    @property
    def steps(self) -> int:
        """Return the steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def phase_at(self, step: int) -> tuple[Phase, int]:
        """Return the phase that a step belongs to, and how many steps of it have gone before."""
        for phase in self.phases:
            if step < phase.steps:
                return phase, step
            step -= phase.steps
        return self.phases[-1], step + self.phases[-1].steps


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
        self.step = 0

    @property
    def _checkpoint(self) -> Path:
        return self.out / "training.pt"

    def save(self) -> None:
        """Write all that is needed to go on from here."""
        temporary = self._checkpoint.with_suffix(".tmp")
        state = {
            "plan": json.dumps(asdict(self.plan)),
            "step": self.step,
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
        self.step = state["step"]
        tell(f"resumed after step {self.step:,}")

    def advance(self) -> float:
        """Take one step and return its loss."""
        rng = np.random.default_rng((self.plan.seed, 7, self.step))  # does not depend on where it was resumed
        with torch.autocast(self.device.split(":")[0], torch.bfloat16):
            loss = self._language_loss(rng) if self._phase.name == "language" else self._vision_loss(rng)
        loss.backward()  # type: ignore[no-untyped-call]
        share = self._schedule()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share
        nn.utils.clip_grad_norm_(self.optimizers[1].param_groups[0]["params"], 1.0)  # Muon's steps have a fixed length
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return float(loss.detach())

    def _vision_loss(self, rng: np.random.Generator) -> Tensor:
        batch = draw_batch(self.data, self._pick(rng, self.plan.batch), rng, self.device)
        return vision_loss(self.heads, read_features(self.model, batch.pixels), batch)

    def _language_loss(self, rng: np.random.Generator) -> Tensor:
        """Return the loss of captions and answers; the tower, which has learned, stays as it is."""
        first = self.plan.captioned
        batch = draw_batch(self.data, self._pick(rng, first + self.plan.questioned), rng, self.device)
        with torch.no_grad():
            features = read_features(self.model, batch.pixels)
        said = self.task.caption_loss(self.model, features[:first], batch.truths[:first], rng)
        answered = self.task.answer_loss(self.model, features[first:], batch.seen[first:], rng)
        return self.plan.caption_weight * said + answered

    def _pick(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Return the images of a batch, as many of them clean as the plan says, on average."""
        clean = self.data.clean
        share = next(share for start, share in reversed(self.plan.clean_shares) if self.step >= start)
        number = max(1, int(clean.sum()))
        chance = np.where(clean, share / number, (1 - share) / max(1, len(clean) - number))
        if self._phase.name == "more vision":
            chance = np.where(np.isin(self.data.conditions, _HARD).any(axis=1), self.plan.hard_weight, 1.0) * chance
        return rng.choice(len(clean), size=count, p=chance / chance.sum())

    def _schedule(self) -> float:
        """Return the share of the peak rates at this step."""
        phase, step = self.plan.phase_at(self.step)
        left = min(1.0, (phase.steps - step) / ((1 - phase.plateau) * phase.steps))
        return phase.peak * min(1.0, (step + 1) / self.plan.warm_up) * 0.5 * (1 - math.cos(math.pi * left))

    @property
    def _phase(self) -> Phase:
        return self.plan.phase_at(self.step)[0]

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
        clean = right[self.held_out.clean].mean(axis=0)
        spoilt = right[~self.held_out.clean].mean(axis=0)
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


def train(plan: Plan, out: Path, cache: Path, stop_after: int | None = None) -> None:
    """Train as `plan` says and write to `out`; after `stop_after` steps of this call leave off, to go on later."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = load_or_render(Recipe(seed=1, count=plan.images), cache / "train", tell)
    held_out = load_or_render(Recipe(seed=2, count=plan.held_out), cache / "held_out", tell)
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(plan, out, data, held_out, device)
    trainer.resume()
    trainer.model.train()
    first, losses = trainer.step, []
    with _progress_bar() as bar:
        task = bar.add_task("", total=plan.steps, completed=first)
        while trainer.step < plan.steps:
            losses.append(trainer.advance())
            step = trainer.step
            phase = plan.phase_at(step - 1)[0].name
            bar.update(task, completed=step, description=f"{phase}, loss {np.mean(losses[-50:]):.3f}")
            if step % 50 == 0 and bar.disable:
                tell(f"step {step:,} of {plan.steps:,} ({phase}) · loss {np.mean(losses[-50:]):.3f}")
            if step % 400 == 0 or step == plan.steps or phase != plan.phase_at(step)[0].name:
                tell(trainer.examine())
                trainer.save()
                if phase == "language":
                    export(trainer.model, trainer.processor, out / "weights")
            if stop_after is not None and step - first >= stop_after:
                trainer.save()
                return
    export(trainer.model, trainer.processor, out / "weights")


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
    from vlmgate.builtin.reference import write_reference  # brings the whole captioner, which training does without

    parser = argparse.ArgumentParser(prog="python -m vlmgate.builtin.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints; the model goes to OUT/weights")
    parser.add_argument("--cache", type=Path, help="folder for the rendered training set (default: OUT/cache)")
    defaults = Plan()
    for name, value in asdict(defaults).items():
        if isinstance(value, tuple):
            continue
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"default {value}")
    options = vars(parser.parse_args())
    out, cache = options.pop("out"), options.pop("cache")
    train(Plan(**options), out, cache or out / "cache")
    tell(f"writing {write_reference(out / 'weights')}")


if __name__ == "__main__":
    main()
