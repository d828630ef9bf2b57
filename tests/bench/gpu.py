"""Time of K captions an image on a GPU, at real model shapes with random weights: naive, fork, packed, graph.

    python -m tests.bench.gpu [--json FILE] [--markdown FILE] [--budget 150] [--device cuda] [--tiny]

Models are built on the device from configurations in this file, without tokenizer, processor or files, so that the
script runs anywhere torch and transformers do. "naive" is `generate(num_return_sequences=K)`; "fork" and "packed" are
the engine's decoders; "graph" is packed with a recorded step. Each way is timed once a round, in turn; medians count.
Before that, a tiny model in float32 must give the same tokens by fork, packed and graph. A case that fails is told and
the others go on; no case begins once the budget is used; the JSON is written after each.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers as tf

from tests.bench.roofline import measure_ceilings, synchronise, timed
from tests.bench.shapes import Shape, build, inputs_of, ways_of

WAYS = ("naive", "fork", "packed", "graph")

SHAPES = {
    "llava 8B": Shape("llava 8B", "llava", 4096, 14336, 32, 32, 8, 128_256),
    "qwen2.5-vl 3B": Shape(
        "qwen2.5-vl 3B", "qwen2_5_vl", 2048, 11008, 36, 16, 2, 151_936, tied=True, vision=(1280, 3420, 32, 16)
    ),
    "qwen2.5-vl 7B": Shape("qwen2.5-vl 7B", "qwen2_5_vl", 3584, 18944, 28, 28, 4, 152_064, vision=(1280, 3420, 32, 16)),
    "llava 0.3B": Shape("llava 0.3B", "llava", 1024, 2816, 16, 16, 4, 32_000, vision=(384, 1536, 6, 6)),
}
TINY = {
    "llava tiny": Shape("llava tiny", "llava", 64, 128, 2, 4, 2, 160, vision=(32, 64, 2, 2)),
    "qwen tiny": Shape("qwen tiny", "qwen2_5_vl", 96, 128, 2, 4, 2, 160, vision=(32, 64, 2, 2)),
}
# In order of what one wants to know first; the budget may end anywhere.
CASES = [
    ("llava 0.3B", 256, (4, 16)),
    ("llava 0.3B", 1024, (4,)),
    ("llava 8B", 256, (4, 16, 1)),
    ("llava 8B", 1024, (4, 16, 1)),
    ("qwen2.5-vl 3B", 256, (4, 16, 1)),
    ("qwen2.5-vl 3B", 1024, (4, 16)),
    ("llava 0.3B", 64, (1,)),
    ("llava 0.3B", 1024, (1, 16)),
    ("qwen2.5-vl 7B", 256, (4, 16)),
    ("qwen2.5-vl 7B", 1024, (4,)),
]


def same_tokens(device: torch.device) -> dict[str, Any]:
    """Compare fork, packed and graph in float32 on the tiny models; returns what was equal."""
    found: dict[str, Any] = {}
    for name, shape in TINY.items():
        try:
            model = build(shape, 16, device, torch.float32)
            ways = ways_of(model, inputs_of(shape, 16, 3, device, torch.float32), 4, 12)
            wanted = ways["fork"]()
            other = ways_of(model, inputs_of(shape, 16, 3, device, torch.float32), 4, 12, seed=3)["fork"]()
            found[name] = {way: ways[way]() == wanted for way in ("packed", "graph")}
            found[name]["graph again"] = ways["graph"]() == wanted
            found[name]["other draws differ"] = other != wanted
        except Exception as error:
            traceback.print_exc()
            found[name] = {"error": repr(error)[:300]}
        print(f"same tokens, {name}: {found[name]}", flush=True)
    return found


def measure(model: Any, shape: Shape, image_tokens: int, batch: int, options: Any, until: float) -> dict[str, Any]:
    """Return medians, spreads and peaks of each way, for one case; a way that fails is told and left out."""
    device, dtype = torch.device(options.device), torch.bfloat16
    inputs = inputs_of(shape, image_tokens, batch, device, dtype)
    ways = ways_of(model, inputs, options.samples, options.tokens)
    ways = {name: ways[name] for name in (*options.ways.split(","), "prefill")}
    case: dict[str, Any] = {"model": shape.name, "image_tokens": image_tokens, "batch": batch, "ways": {}}
    for name, act in list(ways.items()):  # warms up, and tells how much memory it takes
        told = case["ways"][name] = {"seconds": []}
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
        try:
            told["first_seconds"] = timed(act, device)
        except Exception as error:
            traceback.print_exc()
            told["error"] = repr(error)[:300]
            del ways[name]
            continue
        if device.type == "cuda":
            told["peak_mib"] = (torch.cuda.max_memory_allocated(device) - before) / 2**20
    for number in range(options.rounds):
        for name, act in ways.items():
            case["ways"][name]["seconds"].append(timed(act, device))
        if number and time.monotonic() > until:
            break
    for told in case["ways"].values():
        if told["seconds"]:
            told["median"] = statistics.median(told["seconds"])
    return case


def profile(model: Any, shape: Shape, image_tokens: int, batch: int, options: Any) -> str:
    """Return where the time of one packed batch goes, kernels by time on the device."""
    device = torch.device(options.device)
    ways = ways_of(model, inputs_of(shape, image_tokens, batch, device, torch.bfloat16), options.samples, 8)
    ways["packed"]()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    ) as watched:
        ways["packed"]()
        synchronise(device)
    by = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return watched.key_averages().table(sort_by=by, row_limit=30, max_name_column_width=60)


def markdown(report: dict[str, Any]) -> str:
    """Return the report as a table in Markdown."""
    head = [
        f"{report['device']}, torch {report['torch']}, transformers {report['transformers']}, K = {report['samples']}"
    ]
    head += [f"ceilings: {report['ceilings']}", f"same tokens: {report['same_tokens']}", ""]
    names = [*WAYS, "prefill"]
    head += ["| model | image tokens | B | " + " | ".join(f"{n} s/image (×naive, MiB)" for n in names) + " |"]
    head += ["|---" * (3 + len(names)) + "|"]
    for case in report["cases"]:
        if "error" in case:
            head.append(f"| {case['model']} | {case['image_tokens']} | {case.get('batch', '')} | {case['error']} |")
            continue
        first = case["ways"].get("naive", {}).get("median")
        cells = []
        for name in names:
            told = case["ways"].get(name, {})
            if "median" not in told:
                cells.append(told.get("error", "")[:60].replace("|", "/"))
                continue
            ratio = f"{first / told['median']:.2f}×" if first else ""
            cells.append(f"{told['median'] / case['batch']:.4f} ({ratio}, {told.get('peak_mib', 0):.0f})")
        head.append(f"| {case['model']} | {case['image_tokens']} | {case['batch']} | " + " | ".join(cells) + " |")
    return "\n".join(head) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", type=float, default=150.0, help="seconds after which no case begins")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try the script itself")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "torch": torch.__version__,
        "transformers": tf.__version__,
        "samples": options.samples,
        "tokens": options.tokens,
        "ceilings": {},
        "same_tokens": {},
        "cases": [],
    }

    def write() -> None:
        if options.json:
            options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
        if options.markdown:
            profiles = "".join(f"\n```\n{text}\n```\n" for text in report.get("profiles", {}).values())
            options.markdown.write_text(markdown(report) + profiles, encoding="utf-8")

    try:
        sizes = {"size": 512, "copied": 2**20} if options.tiny else {"size": 8192, "copied": 2**30}
        report["ceilings"] = asdict(measure_ceilings(device, **sizes))
    except Exception as error:
        traceback.print_exc()
        report["ceilings"] = {"error": repr(error)}
    print(f"{report['device']}: {report['ceilings']}", flush=True)
    report["same_tokens"] = same_tokens(device)
    write()
    shapes = TINY if options.tiny else SHAPES
    cases = [(name, 16, (1, 2)) for name in TINY] if options.tiny else CASES
    for name, image_tokens, batches in cases:
        if time.monotonic() - began > options.budget:
            break
        model = None
        try:
            model = build(shapes[name], image_tokens, device, torch.bfloat16)
        except Exception as error:
            traceback.print_exc()
            report["cases"].append({"model": name, "image_tokens": image_tokens, "error": repr(error)[:300]})
            continue
        print(f"{name}, {image_tokens}: built, {time.monotonic() - began:.0f} s", flush=True)
        for batch in batches:
            if time.monotonic() - began > options.budget:
                break
            until = min(began + options.budget, time.monotonic() + options.budget / 12)
            try:
                case = measure(model, shapes[name], image_tokens, batch, options, until)
            except Exception as error:
                traceback.print_exc()
                case = {"model": name, "image_tokens": image_tokens, "batch": batch, "error": repr(error)[:300]}
            report["cases"].append(case)
            write()
            print(markdown(report).splitlines()[-1], f"{time.monotonic() - began:.0f} s", flush=True)
        if image_tokens == 256 and name in ("llava 0.3B", "llava 8B"):
            try:
                report.setdefault("profiles", {})[name] = profile(model, shapes[name], image_tokens, 4, options)
            except Exception:
                traceback.print_exc()
        write()
        del model
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    print(markdown(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
