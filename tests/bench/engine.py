"""Time of K captions an image by four ways to decode them: naive, loop, fork, packed.

    python -m tests.bench.engine [--image-tokens 256] [--batch 4] [--samples 8] [--tokens 32] [--rounds 5] [--json FILE]
    python -m tests.bench.engine --grid [--quick] [--budget SECONDS] [--json FILE]

The first form takes one shape. Random weights of a llava-type model (SigLIP tower, Llama decoder, grouped queries) are
built in a temporary folder and loaded by the ordinary path. "naive" is `generate(num_return_sequences=K)` of
transformers, "loop" K calls of it, "fork" and "packed" are the engine's. All draw the same number of tokens, for no way
knows an end. Every way is timed once a round, in turn, so that a busy machine slows all of them; the medians and their
ratios to naive count.

The second form takes families × image tokens × images at once, on smaller models built from configurations alone, and
says how far fork and packed are above the floor of what they compute (see `roofline`), measured in the same run. It
ends with 1 where packed took over 1.05 times as long as fork, by the median of the rounds' ratios. On one core of a
server the whole grid takes three quarters of an hour.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from PIL import Image

from tests.bench import roofline, shapes
from tests.bench._timing import interleaved
from tests.bench.roofline import Ceilings
from tests.bench.shapes import Shape
from tests.support.tiny_models import chat_template, tokenizer
from vlmgate.captioner import load_captioner
from vlmgate.captioner.local.checkpoint import DTYPES
from vlmgate.captioner.local.engine import TransformersCaptioner
from vlmgate.captioner.local.fork import ForkDecoder
from vlmgate.captioner.local.layers import UnsuitableError, prepack
from vlmgate.captioner.local.packed import PackedDecoder, check_structure
from vlmgate.captioner.local.runner import moved
from vlmgate.config import ModelConfig, SamplingConfig
from vlmgate.data import ImageFile, Picture

VOCABULARY = 32_000
PATCH = 14  # pixels
FAMILIES = ("llava", "idefics3", "internvl", "qwen2_5_vl", "gemma3", "paligemma")  # the last two fork only
WAYS = ("naive", "loop", "fork", "packed")
LOOPED = 256  # image tokens of a batch up to which a grid times the loop, too; it takes twice as long as all others


def build(folder: Path, image_tokens: int, layers: int, hidden: int) -> Path:
    """Write a llava-type checkpoint with random weights; `image_tokens` is a square number."""
    side = round(image_tokens**0.5)
    if side * side != image_tokens:
        raise SystemExit(f"{image_tokens} image tokens are no square; give 64, 256, 576 or 1024.")
    tok = tokenizer()
    heads = hidden // 64
    config = tf.LlavaConfig(
        vision_config=tf.SiglipVisionConfig(
            hidden_size=384,
            intermediate_size=1536,
            num_hidden_layers=6,
            num_attention_heads=6,
            image_size=side * PATCH,
            patch_size=PATCH,
            vision_use_head=False,
        ),
        text_config=tf.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=hidden,
            intermediate_size=hidden * 11 // 4,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads // 4,
            max_position_embeddings=4096,
        ),
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        image_seq_length=image_tokens,
    )
    torch.manual_seed(0)
    tf.LlavaForConditionalGeneration(config).to(torch.bfloat16).eval().save_pretrained(folder)
    images = tf.SiglipImageProcessorPil(size={"height": side * PATCH, "width": side * PATCH})
    template = chat_template("<image>\n")
    tf.LlavaProcessor(
        images, tok, patch_size=PATCH, vision_feature_select_strategy="full", chat_template=template
    ).save_pretrained(folder)
    return folder


def picture(index: int, size: int = 320) -> Picture:
    """Return coarse random squares."""
    squares = np.random.default_rng(index).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    rgb = Image.fromarray(squares).resize((size, size), Image.Resampling.BICUBIC)
    name = f"{index}.png"
    sha256 = hashlib.sha256(name.encode()).hexdigest()
    return Picture(ImageFile(name, Path(name), sha256, 1, 1, size, size, "RGB", None, 1, 1), rgb)


def ways_of(engine: TransformersCaptioner, batch: Sequence[Picture], samples: int, tokens: int) -> dict[str, Any]:
    """Return what is timed, by name; each returns the number of tokens that it drew."""
    runner = engine._runner
    model = runner.checkpoint.model
    images = [one.rgb for one in batch]

    def generate(count: int) -> int:
        inputs = moved(
            runner.inputs(runner.encode, images),
            runner.checkpoint.device,
            runner.checkpoint.dtype,
        )
        settings = tf.GenerationConfig(
            do_sample=True, top_k=0, max_new_tokens=tokens, num_return_sequences=count, pad_token_id=0
        )
        with torch.inference_mode():
            said = model.generate(**inputs, generation_config=settings)
        return (said.shape[1] - inputs["input_ids"].shape[1]) * len(said)

    def decode(kind: type[ForkDecoder]) -> int:
        decoder = runner.decoder(runner.sampler(batch, "captions"), tokens, kind)
        decoder.end_ids = frozenset()
        runner.generate(runner.inputs(runner.encode, images), decoder)
        return sum(map(len, decoder.tokens))

    return {
        "naive": lambda: generate(samples),
        "loop": lambda: sum(generate(1) for _ in range(samples)),
        "fork": lambda: decode(ForkDecoder),
        "packed": lambda: decode(PackedDecoder),
    }


def measure(ways: dict[str, Callable[[], int]], rounds: int, expected: Mapping[str, int]) -> dict[str, list[float]]:
    """Return the seconds that each way took in each round."""

    def checked(name: str) -> None:
        drawn = ways[name]()
        if drawn != expected[name]:
            raise SystemExit(f"{name} drew {drawn} tokens, not {expected[name]}: the times cannot be compared.")

    return interleaved({name: functools.partial(checked, name) for name in ways}, rounds)


def grid_of(quick: bool) -> list[tuple[str, int, int]]:
    """Return family, image tokens and images at once of each case."""
    if quick:
        return [("llava", 256, 4), ("llava", 1024, 2), ("qwen2_5_vl", 256, 4), ("gemma3", 64, 1)]
    sizes = [(64, 1), (64, 4), (256, 1), (256, 4), (1024, 1), (1024, 2)]
    return [(family, *size) for family in FAMILIES for size in sizes]


def measure_case(
    family: str, image_tokens: int, batch: int, options: argparse.Namespace, ceilings: Ceilings
) -> dict[str, Any]:
    """Time every way that a family knows, with floors for those of ours."""
    device = torch.device("cuda" if options.device == "auto" and torch.cuda.is_available() else "cpu")
    heads = options.hidden // 64
    shape = Shape(
        family,
        family,
        options.hidden,
        options.hidden * 11 // 4,
        options.layers,
        heads,
        max(1, heads // 4),
        VOCABULARY,
        vision=(384, 1536, 6, 6),
    )
    dtype = DTYPES[options.dtype]
    model = shapes.build(shape, image_tokens, device, dtype)
    prepack(model)  # as the engine does; naive and loop gain by it, too
    inputs = shapes.inputs_of(shape, image_tokens, batch, device, dtype)
    known = shapes.ways_of(model, inputs, options.samples, options.tokens)
    names = [*options.ways.split(","), "prefill"]
    if "loop" in names and image_tokens * batch > LOOPED:
        names.remove("loop")
    try:
        check_structure(model)
    except UnsuitableError:
        names.remove("packed")
    ways = {name: (lambda act=known[name]: sum(map(len, act()))) for name in names}
    drawn = batch * options.samples
    expected = {name: drawn * (1 if name == "prefill" else options.tokens) for name in names}
    taken = measure(ways, options.rounds, expected)
    case: dict[str, Any] = {"family": family, "image_tokens": image_tokens, "batch": batch, "ways": {}}
    for name, values in taken.items():
        against = sorted(a / b for a, b in zip(taken[names[0]], values, strict=True))
        case["ways"][name] = {"seconds": values, "median": statistics.median(values), "ratio": against}
    for name in {"fork", "packed"} & set(names):
        with roofline.counting(model, ceilings) as work:
            known[name]()
        with roofline.counting(model, ceilings) as prefill:
            known["prefill"]()
        told = case["ways"][name]
        told["floor"] = {
            "vision": prefill.seconds["vision"],
            "prefill": prefill.seconds["text"],
            "decode": work.floor - prefill.floor,
        }
        told["flops"], told["bytes"] = work.flops, work.bytes
        before = case["ways"]["prefill"]["median"]
        told["over_floor"] = told["median"] / work.floor
        told["prefill_over_floor"] = before / prefill.floor
        told["decode_over_floor"] = (told["median"] - before) / (work.floor - prefill.floor)
    if "packed" in names and "fork" in names:
        case["packed_to_fork"] = statistics.median(p / f for p, f in zip(taken["packed"], taken["fork"], strict=True))
    return case


def grid(options: argparse.Namespace) -> int:
    """Measure family by family, and print a table."""
    begun, cases = time.monotonic(), []
    device = torch.device("cuda" if options.device == "auto" and torch.cuda.is_available() else "cpu")
    ceilings = roofline.measure_ceilings(device)
    print(
        f"{device} {options.dtype} · {torch.get_num_threads()} threads · K = {options.samples}, "
        f"{options.tokens} tokens, {options.rounds} rounds · {ceilings.flops / 1e9:.0f} GFLOP/s, "
        f"{ceilings.bandwidth / 1e9:.1f} GB/s"
    )
    print("s/image (times as fast as naive, least and most of the rounds) [times the floor: all, prefill, decode]")
    wanted = [case for case in grid_of(options.quick) if case[0] in options.families.split(",")]
    for family, image_tokens, batch in wanted:
        if options.budget and time.monotonic() - begun > options.budget:
            print(f"The budget of {options.budget:.0f} s is used; {len(wanted) - len(cases)} cases left.")
            break
        case = measure_case(family, image_tokens, batch, options, ceilings)
        cases.append(case)
        print(f"{family}, {image_tokens} image tokens, B = {batch}")
        for name, told in case["ways"].items():
            line = f"  {name:8s}{told['median'] / batch:8.3f}"
            if name != "prefill":
                middle, (low, *_, high) = statistics.median(told["ratio"]), [*told["ratio"], told["ratio"][-1]]
                line += f"  ({middle:.2f} ×, {low:.2f} to {high:.2f})"
            if "over_floor" in told:
                parts = (told[f"{part}over_floor"] for part in ("", "prefill_", "decode_"))
                line += "  [" + ", ".join(f"{part:.1f}" for part in parts) + "]"
            print(line, flush=True)
        if options.json:
            found = {"options": {k: str(v) for k, v in vars(options).items()}, "ceilings": asdict(ceilings)}
            options.json.write_text(json.dumps(found | {"cases": cases}, indent=2), encoding="utf-8")
    slow = [c for c in cases if c.get("packed_to_fork", 0.0) > 1.05]
    for case in slow:
        print(
            f"packed is slower than fork: {case['family']}, {case['image_tokens']}, B = {case['batch']}: "
            f"{case['packed_to_fork']:.2f} ×"
        )
    return int(bool(slow))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.engine", description=__doc__.splitlines()[0])
    numbers = {"image-tokens": 256, "batch": 4, "samples": 8, "tokens": 32, "hidden": 1024}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, help="5; 3 for a grid")
    parser.add_argument("--layers", type=int, help="of the decoder: 16; 6 for a grid")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--ways", default=",".join(WAYS), help="separated by commas")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--grid", action="store_true", help="families × image tokens × images at once")
    parser.add_argument("--quick", action="store_true", help="a few cases of the grid")
    parser.add_argument("--families", default=",".join(FAMILIES), help="of the grid, separated by commas")
    parser.add_argument("--budget", type=float, help="seconds after which no further case of the grid begins")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (3 if options.grid else 5)
    options.layers = options.layers or (6 if options.grid else 16)
    if options.grid:
        return grid(options)
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder), options.image_tokens, options.layers, options.hidden)
        sampling = SamplingConfig(num_samples=options.samples, batch_size=options.batch, max_new_tokens=options.tokens)
        engine = load_captioner(ModelConfig(folder, device=options.device, dtype=options.dtype), sampling)
    assert isinstance(engine, TransformersCaptioner)
    all_ways = ways_of(engine, [picture(i) for i in range(options.batch)], options.samples, options.tokens)
    ways = {name: all_ways[name] for name in options.ways.split(",")}
    taken = measure(ways, options.rounds, dict.fromkeys(ways, options.batch * options.samples * options.tokens))
    middle = {name: statistics.median(values) for name, values in taken.items()}
    first = next(iter(middle.values()))
    info = engine.info
    print(
        f"llava type, {info.num_parameters / 1e6:.0f} M · {info.device} {info.dtype} · {options.image_tokens} image "
        f"tokens, B = {options.batch}, K = {options.samples}, {options.tokens} tokens, {options.rounds} rounds"
    )
    for name, values in taken.items():
        each = options.batch
        spread = f"{min(values) / each:.3f} to {max(values) / each:.3f}"
        print(f"{name:8s} {middle[name] / each:8.3f} s/image ({spread})  {first / middle[name]:6.2f} × as fast")
    if options.json:
        told = {"options": {k: str(v) for k, v in vars(options).items()}, "seconds": taken, "median": middle}
        options.json.write_text(json.dumps(told, indent=2), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
