"""What continuous refill could save at most: rows that end early, against rows that were always replaced by others.

    python -m tests.bench.refill [--image-tokens 256] [--batch 4] [--samples 8] [--tokens 32] [--rounds 5] [--json FILE]

The engine reads a batch to its end and drops the rows that have ended, so its last steps have few rows, and few rows
use a machine less well than many. Were every ended row replaced at once by one of a later image, every step would have
all its rows. That is not built; here is what it would save, were it free. One model of the llava type decodes, packed
and in turn: all rows to the last token ("full"), rows whose lengths are drawn evenly from a share of that on ("ended"),
and none ("prefill"). The floor of refill is the prefill and the share of full's steps that the tokens of ended are; how
much longer ended takes is the most that refill could save.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers as tf

from tests.bench import shapes
from tests.bench._timing import interleaved, spread, table, write
from tests.bench.shapes import Shape
from vlmgate.captioner.local.checkpoint import DTYPES
from vlmgate.captioner.local.fork import Draw, Sampler, Warp
from vlmgate.captioner.local.layers import attention_in_blocks, prepack
from vlmgate.captioner.local.packed import PackedDecoder

END = 2  # the token at which a row ends; any will do
SHARES = (0.25, 0.5, 0.75)  # of the longest, from which lengths go up to it


class Ending:
    """A `Pick` that draws as another, and ends each row at its length."""

    def __init__(self, pick: Sampler, lengths: torch.Tensor) -> None:
        self._pick, self._lengths = pick, lengths

    def __call__(self, logits: torch.Tensor, step: int, rows: torch.Tensor) -> Draw:
        drawn = self._pick(logits, step, rows)
        tokens = torch.where(drawn.tokens == END, END + 1, drawn.tokens)
        return drawn._replace(tokens=torch.where(self._lengths[rows] == step + 1, END, tokens))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.refill", description=__doc__.splitlines()[0])
    numbers = {"image-tokens": 256, "batch": 4, "samples": 8, "tokens": 32, "rounds": 5, "layers": 16, "hidden": 1024}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    device, dtype = torch.device(options.device), DTYPES[options.dtype]
    heads, vision = options.hidden // 64, (384, 1536, 6, 6)
    numbers_of = (options.hidden, options.hidden * 11 // 4, options.layers, heads, max(1, heads // 4), 32_000)
    shape = Shape("llava", "llava", *numbers_of, vision=vision)
    model = shapes.build(shape, options.image_tokens, device, dtype)
    prepack(model)
    inputs = shapes.inputs_of(shape, options.image_tokens, options.batch, device, dtype)
    rows, most = options.batch * options.samples, options.tokens
    uniforms = torch.Generator().manual_seed(2)
    pick = Sampler(torch.rand(rows, most, dtype=torch.float64, generator=uniforms).to(device), Warp())

    def decode(lengths: torch.Tensor) -> None:
        longest = int(lengths.max())
        decoder = PackedDecoder(options.samples, longest, frozenset({END}), Ending(pick, lengths.to(device)))
        settings = tf.GenerationConfig(max_new_tokens=longest, do_sample=False, pad_token_id=0)
        with torch.inference_mode(), attention_in_blocks(model):
            model.generate(**inputs, generation_config=settings, custom_generate=decoder)
        if [len(said) for said in decoder.tokens] != lengths.tolist():
            raise SystemExit("rows did not end where they were to: the times cannot be compared.")

    drawn = torch.Generator().manual_seed(3)
    lengths = {
        share: torch.randint(max(1, round(share * most)), most + 1, (rows,), generator=drawn) for share in SHARES
    }
    ways = {"full": torch.full((rows,), most), "prefill": torch.ones(rows, dtype=torch.long)}
    ways |= {f"ended {share}": drawn_lengths for share, drawn_lengths in lengths.items()}
    taken = interleaved({name: partial(decode, at) for name, at in ways.items()}, options.rounds)
    lines: list[list[str]] = []
    figures: dict[str, Any] = {"seconds": taken}
    for share, some in lengths.items():
        part = int(some.sum()) / (rows * most)
        most_saved = [
            1 - (before + (full - before) * part) / ended
            for full, before, ended in zip(taken["full"], taken["prefill"], taken[f"ended {share}"], strict=True)
        ]
        figures[f"saved from {share}"] = most_saved
        seconds = statistics.median(taken[f"ended {share}"]) / options.batch
        told = [f"{share:.0%} to 100 %", f"{part:.0%}", f"{seconds:.3f}", spread([100 * one for one in most_saved], 1)]
        lines.append(told)
    print(
        f"llava type, {sum(p.numel() for p in model.parameters()) / 1e6:.0f} M · {device} {options.dtype} · "
        f"{torch.get_num_threads()} threads · {options.image_tokens} image tokens, B = {options.batch}, "
        f"K = {options.samples}, {most} tokens, {options.rounds} rounds"
    )
    print(table(("lengths", "tokens", "s/image", "% that refill could save at most"), lines))
    write(options.json, "refill", vars(options), figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
