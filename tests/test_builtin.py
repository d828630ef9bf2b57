"""The built-in model: its world, its sentences, its training, its weights and the sample images."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from vlmgate.builtin import weights_folder
from vlmgate.builtin.captions import INSTRUCTIONS, NUM_FRAMES, all_captions, caption, majority, parse
from vlmgate.builtin.render import Wanted, render
from vlmgate.builtin.samples import PER_CONDITION, sample_files
from vlmgate.builtin.world import CLEAN, CONDITIONS, DEGRADATIONS, FINISHES, NONE, PARTS, POSITIONS, Truth
from vlmgate.config import DEFAULT_PROMPT
from vlmgate.diversity import vendi_score, word_kernel

REPOSITORY = Path(__file__).resolve().parents[1]
SAMPLES = REPOSITORY / "sample_images"


# --- renders ----------------------------------------------------------------------------------------------------------


def test_same_seed_same_pixels() -> None:
    for seed in range(3):
        first, second = render((9, seed)), render((9, seed))
        assert first.image.tobytes() == second.image.tobytes()
        assert (first.truth, first.degradation, first.severity) == (second.truth, second.degradation, second.severity)
        assert np.array_equal(first.mask, second.mask)
    assert render((9, 0)).image.tobytes() != render((9, 1)).image.tobytes()


def test_every_combination_is_drawn() -> None:
    for i, (part, finish, condition) in enumerate(product(PARTS, FINISHES, CONDITIONS)):
        made = render((9, i), Wanted(part=part, finish=finish, condition=condition, degradation=CLEAN), size=160)
        assert (made.truth.part, made.truth.finish, made.truth.condition) == (part, finish, condition)
        assert made.image.size == (160, 160)
        assert made.image.mode == "RGB"
        if condition == NONE:
            assert made.truth.position is None
            assert not made.mask.any()
        else:
            assert made.truth.position in POSITIONS
            assert made.mask.sum() >= 4, made.truth


def test_a_defect_can_be_sent_to_every_position() -> None:
    for i, position in enumerate(POSITIONS):
        wanted = Wanted(part="plate", condition="dent", position=position, degradation=CLEAN)
        found = [render((9, i, j), wanted, size=160).truth.position for j in range(4)]
        assert majority(found) == position


def test_degradations_change_the_picture_and_not_the_truth() -> None:
    clean = render((9, 5), Wanted(degradation=CLEAN), size=160)
    for kind in DEGRADATIONS:
        mild, strong = (
            render((9, 5), Wanted(degradation=kind, severity=severity), size=160) for severity in (0.2, 1.0)
        )
        assert mild.truth == strong.truth == clean.truth
        mild_change, strong_change = (_difference(clean.image, made.image) for made in (mild, strong))
        assert 0 < mild_change < strong_change


def _difference(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)).mean())


# --- sentences --------------------------------------------------------------------------------------------------------


def test_what_is_said_is_what_is_read() -> None:
    for part, finish, condition, frame in product(PARTS, FINISHES, CONDITIONS, range(NUM_FRAMES)):
        for position in POSITIONS if condition != NONE else (None,):
            said = parse(caption(Truth(part, finish, condition, position), frame))
            assert (said.part, said.finish, said.condition, said.position) == (part, finish, condition, position)


def test_what_is_not_plain_is_not_read() -> None:
    assert parse("A fish on a table.").condition is None
    assert parse("A brass gear with a scratch and a dent at the center.").condition is None
    assert parse("A brass gear with no defect and a dent.").condition is None
    assert parse("").part is None


def test_sentences_are_short_and_one_content_counts_as_nearly_one_reading() -> None:
    assert all(7 <= len(text.split()) <= 20 for text in all_captions())
    for truth in (Truth("gear", "brass", "rust", "upper left"), Truth("plate", "copper", NONE, None)):
        same = [caption(truth, frame) for frame in range(NUM_FRAMES)]
        assert len(set(same)) == NUM_FRAMES
        assert vendi_score(word_kernel(same)) < 1.7


def test_the_default_prompt_is_one_that_training_used() -> None:
    assert DEFAULT_PROMPT in INSTRUCTIONS


# --- training ---------------------------------------------------------------------------------------------------------


def test_training_goes_on_where_it_stopped_and_exports_a_checkpoint(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from vlmgate.builtin.train import Plan, train

    plan = Plan(images=16, held_out=8, vision_steps=2, caption_steps=2, batch=4, warm_up=1)
    cache = tmp_path / "cache"
    train(plan, tmp_path / "whole", cache)
    train(plan, tmp_path / "parts", cache, stop_after=3)
    assert not (tmp_path / "parts" / "weights").exists()
    train(plan, tmp_path / "parts", cache)

    whole, parts = (
        AutoModelForImageTextToText.from_pretrained(tmp_path / name / "weights", dtype=torch.float32)
        for name in ("whole", "parts")
    )
    for name, tensor in whole.state_dict().items():
        assert torch.allclose(tensor, parts.state_dict()[name], rtol=1e-2, atol=1e-3), name
    processor = AutoProcessor.from_pretrained(tmp_path / "whole" / "weights")
    assert processor.chat_template


def test_training_refuses_a_checkpoint_of_another_plan(tmp_path: Path) -> None:
    from vlmgate.builtin.train import Plan, train

    small = {"images": 8, "held_out": 4, "vision_steps": 1, "caption_steps": 1, "batch": 2, "warm_up": 1}
    train(Plan(**small), tmp_path, tmp_path / "cache", stop_after=1)
    with pytest.raises(SystemExit, match="another plan"):
        train(Plan(**small, seed=5), tmp_path, tmp_path / "cache")


# --- weights ----------------------------------------------------------------------------------------------------------


def test_the_weights_are_small_and_load_without_code_of_ours() -> None:
    folder = weights_folder()
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 16_000_000
    script = (
        "import sys; from transformers import AutoModelForImageTextToText as M, AutoProcessor as P\n"
        "m = M.from_pretrained(sys.argv[1]); P.from_pretrained(sys.argv[1])\n"
        "print(type(m).__name__, sum(p.numel() for p in m.parameters()), m.dtype, 'vlmgate' in sys.modules)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True, env=environment
    )
    name, count, dtype, ours = done.stdout.split()
    assert (name, dtype, ours) == ("LlavaForConditionalGeneration", "torch.bfloat16", "False")
    assert 3_000_000 <= int(count) <= 8_000_000


def test_any_prompt_is_tokenised() -> None:
    from transformers import AutoProcessor

    tokenizer = AutoProcessor.from_pretrained(weights_folder()).tokenizer
    for text in (DEFAULT_PROMPT, "Kratzer? Größe 3 µm — 傷はありますか 🔩"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_built_in_model_reads_clean_renders() -> None:
    from vlmgate.builtin.evaluate import draw, read, summarise
    from vlmgate.config import ModelConfig, SamplingConfig

    renders = list(draw(seed=123, clean=40, each=4))
    readings, _ = read(renders, ModelConfig(), SamplingConfig(batch_size=16))
    figures = summarise(readings, clean_in_mix=24)
    clean = figures["accuracy"]["clean"]
    assert clean["part"]["share"] >= 0.95
    assert clean["finish"]["share"] >= 0.95
    assert clean["condition"]["share"] >= 0.75
    scores = figures["median_vendi"]
    assert all(score > scores["clean"] for group, score in scores.items() if group != "clean")


# --- sample images ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn() -> dict[str, bytes]:
    return {file.path: file.content for file in sample_files()}


def test_the_sample_images_are_those_that_the_recipe_draws(drawn: dict[str, bytes]) -> None:
    kept = {path.relative_to(SAMPLES).as_posix() for path in SAMPLES.rglob("*") if path.is_file()}
    assert kept == set(drawn)
    assert sum(len(content) for content in drawn.values()) <= 12_000_000
    for name, content in drawn.items():
        path = SAMPLES / name
        if path.suffix in (".csv", ".txt"):
            assert path.read_text(encoding="utf-8") == content.decode()
        elif name == "inbox/line2/part_0044.jpg":
            with Image.open(path) as broken, pytest.raises(OSError, match="truncated"):
                broken.load()
        else:
            with Image.open(path) as ours, Image.open(io.BytesIO(content)) as again:
                assert (ours.mode, ours.size) == (again.mode, again.size)
                assert _difference(ours, again) < 2.0 if ours.mode != "I;16" else True


def test_the_labelled_samples_say_what_they_show(drawn: dict[str, bytes]) -> None:
    rows = list(csv.DictReader(io.StringIO(drawn["labelled/metadata.csv"].decode())))
    assert len(rows) == len(CONDITIONS) * PER_CONDITION >= 200
    assert list(rows[0]) == ["file_name", "label", "part", "finish", "position", "degradation", "severity"]
    for row in rows:
        assert f"labelled/{row['file_name']}" in drawn
        assert row["file_name"].startswith(row["label"].replace(" ", "_") + "/")
        assert row["part"] in PARTS
        assert row["finish"] in FINISHES
        assert row["position"] in (POSITIONS if row["label"] != NONE else ("",))


def test_the_inbox_holds_what_lines_drop() -> None:
    inbox = SAMPLES / "inbox"
    with Image.open(inbox / "camera7_12bit.tif") as tiff:
        assert tiff.mode == "I;16"
        assert 3000 < np.asarray(tiff).max() <= 4095
    with Image.open(inbox / "handheld_0003.jpg") as turned:
        assert turned.getexif()[0x0112] == 6
        upright = ImageOps.exif_transpose(turned)
        assert turned.height > turned.width
        assert upright.width > upright.height
    with Image.open(inbox / "grey_0005.png") as grey:
        assert grey.mode == "L"
    assert (inbox / "part_0001 (copy).jpg").read_bytes() == (inbox / "part_0001.jpg").read_bytes()
