"""Time of K captions an image on a GPU, at real model shapes with random weights: naive, fork, packed, graph.

    python -m tests.bench.gpu [--json FILE] [--markdown FILE] [--budget 150] [--device cuda] [--tiny]

Models are built on the device from configurations in this file, without tokenizer, processor or files, so that the
script runs anywhere torch and transformers do. "naive" is `generate(num_return_sequences=K)`; "fork" and "packed" are
the engine's decoders; "graph" is packed with a recorded step. Each way is timed once a round, in turn; medians count.
Before that, a tiny model in float32 must give the same tokens by fork, packed and graph. A case that fails is told and
the others go on; no case begins once the budget is used; the JSON is written after each.

Knows shapes, clocks and the decoders' constructor; knows nothing of how any way works.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as tf

from vlmgate.captioner.fork import ForkDecoder
from vlmgate.captioner.graphs import RecordedDecoder, Recordings
from vlmgate.captioner.packed import PackedDecoder
from vlmgate.captioner.sampling import Sampler, Warp

IMAGE_TOKEN = 7  # any token of the vocabulary will do
WORDS = 24  # tokens of the prompt around the image
WAYS = ("naive", "fork", "packed", "graph")


@dataclass(frozen=True)
class Shape:
    """A family and the numbers of its decoder; the vision tower goes with the family."""

    name: str
    family: str  # llava or qwen2_5_vl
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = False
    vision: tuple[int, int, int, int] = (1152, 4304, 27, 16)  # hidden, intermediate, layers, heads


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


@contextmanager
def _made_on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


def build(shape: Shape, image_tokens: int, device: torch.device, dtype: torch.dtype) -> Any:
    """Return a model with random weights for pictures of so many tokens (a square number for llava)."""
    side = round(image_tokens**0.5)
    hidden, intermediate, layers, heads = shape.vision
    text: dict[str, Any] = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": shape.tied,
    }
    torch.manual_seed(0)
    if shape.family == "llava":
        vision = tf.SiglipVisionConfig(
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            image_size=side * 14,
            patch_size=14,
            vision_use_head=False,
        )
        config: Any = tf.LlavaConfig(
            vision_config=vision,
            text_config=tf.LlamaConfig(**text),
            image_token_id=IMAGE_TOKEN,
            vision_feature_select_strategy="full",
            vision_feature_layer=-1,
            image_seq_length=image_tokens,
            tie_word_embeddings=shape.tied,
        )
        kind: Any = tf.LlavaForConditionalGeneration
    else:
        half = shape.hidden // shape.heads // 2
        third = half * 3 // 8
        text["rope_parameters"] = {"rope_type": "default", "mrope_section": [half - 2 * third, third, third]}
        config = tf.Qwen2_5_VLConfig(
            vision_config={
                "depth": layers,
                "hidden_size": hidden,
                "intermediate_size": intermediate,
                "num_heads": heads,
                "patch_size": 14,
                "window_size": 112,
                "out_hidden_size": shape.hidden,
                "fullatt_block_indexes": [i for i in range(layers) if i % 8 == 7] or [layers - 1],
            },
            text_config=text,
            image_token_id=IMAGE_TOKEN,
            video_token_id=IMAGE_TOKEN + 1,
            vision_start_token_id=IMAGE_TOKEN + 2,
            vision_end_token_id=IMAGE_TOKEN + 3,
            tie_word_embeddings=shape.tied,
        )
        kind = tf.Qwen2_5_VLForConditionalGeneration
    with _made_on(device, dtype):
        model = kind(config)
    model = model.to(device=device, dtype=dtype).eval()
    model.generation_config = tf.GenerationConfig()
    return model


def inputs_of(shape: Shape, image_tokens: int, batch: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Return what a processor would: B prompts of WORDS tokens and one image each."""
    side = round(image_tokens**0.5)
    generator = torch.Generator().manual_seed(1)
    low = IMAGE_TOKEN + 4
    words = torch.randint(low, shape.vocabulary, (batch, WORDS), generator=generator)
    middle = torch.full((batch, image_tokens), IMAGE_TOKEN)
    around: tuple[list[int], list[int]] = ([], [])
    if shape.family != "llava":
        around = ([IMAGE_TOKEN + 2], [IMAGE_TOKEN + 3])
    before, after = (torch.tensor(part, dtype=torch.long).expand(batch, -1) for part in around)
    ids = torch.cat([words[:, :4], before, middle, after, words[:, 4:]], dim=1)
    found: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if shape.family == "llava":
        found["pixel_values"] = torch.randn(batch, 3, side * 14, side * 14, generator=generator).to(dtype)
    else:
        found["pixel_values"] = torch.randn(batch * 4 * side * side, 3 * 2 * 14 * 14, generator=generator).to(dtype)
        found["image_grid_thw"] = torch.tensor([[1, 2 * side, 2 * side]]).expand(batch, -1).contiguous()
        found["mm_token_type_ids"] = (ids == IMAGE_TOKEN).int()
    return {name: value.to(device) for name, value in found.items()}


def ways_of(
    model: Any, inputs: dict[str, Any], samples: int, tokens: int, seed: int = 2
) -> dict[str, Callable[[], Any]]:
    """Return what is timed, by name; each returns its tokens, B·K rows of them."""
    batch, prompt = inputs["input_ids"].shape
    device = inputs["input_ids"].device
    table = torch.rand(batch * samples, tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    table = table.to(device)
    recordings = Recordings()

    pick = Sampler(table, Warp())

    def naive() -> list[list[int]]:
        settings = tf.GenerationConfig(
            do_sample=True, top_k=0, max_new_tokens=tokens, num_return_sequences=samples, pad_token_id=0
        )
        with torch.inference_mode():
            said = model.generate(**inputs, generation_config=settings)
        return said[:, prompt:].tolist()

    def decode(kind: Callable[..., ForkDecoder], length: int = tokens) -> list[list[int]]:
        decoder = kind(num_samples=samples, max_new_tokens=length, end_ids=frozenset(), pick=pick)
        settings = tf.GenerationConfig(max_new_tokens=length, do_sample=False, pad_token_id=0)
        with torch.inference_mode():
            model.generate(**inputs, generation_config=settings, custom_generate=decoder)
        return decoder.tokens

    return {
        "naive": naive,
        "fork": lambda: decode(ForkDecoder),
        "packed": lambda: decode(PackedDecoder),
        "graph": lambda: decode(functools.partial(RecordedDecoder, recordings=recordings)),
        "prefill": lambda: decode(ForkDecoder, 1),
    }


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(act: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds until an action and all it started on the device are done."""
    _synchronise(device)
    begun = time.perf_counter()
    act()
    _synchronise(device)
    return time.perf_counter() - begun


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


def ceilings(device: torch.device, tiny: bool) -> dict[str, float]:
    """Measure what the device can do: a bf16 product (FLOP/s), a copy (bytes/s), one launch (seconds)."""
    n = 512 if tiny else 8192
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(2**20 if tiny else 2**30, dtype=torch.uint8, device=device).zero_()
    target = torch.empty_like(source)
    small = torch.zeros(8, device=device)

    def launches() -> None:
        for _ in range(200):
            small.add_(1.0)

    def best(act: Callable[[], Any]) -> float:
        return min(timed(act, device) for _ in range(5))

    return {
        "bf16_flop_per_s": 2 * n**3 / best(lambda: a @ b),
        "copy_bytes_per_s": 2 * source.numel() / best(lambda: target.copy_(source)),
        "launch_seconds": best(launches) / 200,
    }


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
        _synchronise(device)
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
        report["ceilings"] = ceilings(device, options.tiny)
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
