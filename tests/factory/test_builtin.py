"""The built-in model: its world, its sentences, its training and its weights."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.bench._sentences import majority, named, read_sentence, right
from tests.support.paths import ROOT
from vlmgate.captioner.location import weights_folder
from vlmgate.config import DEFAULT_PROMPT, DEFAULT_QUESTION, question_prompt
from vlmgate.factory.captions import (
    FULL,
    INSTRUCTIONS,
    NUM_WORDINGS,
    Question,
    Seen,
    random_caption,
    random_question,
    some_captions,
    true_answer,
)
from vlmgate.factory.checkpoint import build_processor
from vlmgate.factory.render import SIZES, Wanted, render, render_relatives
from vlmgate.factory.world import (
    CLEAN,
    CONDITIONS,
    DEFECTS,
    DEGRADATIONS,
    FINISHES,
    LOOK_ALIKES,
    NONE,
    PARTS,
    POSITIONS,
    VISIBLE,
    Defect,
    Truth,
)
from vlmgate.scores.diversity import vendi_score, word_kernel

SAMPLES = ROOT / "sample_images"


# --- renders ----------------------------------------------------------------------------------------------------------


def test_same_seed_same_pixels() -> None:
    for seed in range(3):
        first, second = render((9, seed)), render((9, seed))
        assert first.image.tobytes() == second.image.tobytes()
        assert (first.truth, first.degradation, first.severity) == (second.truth, second.degradation, second.severity)
        assert first.visibilities == second.visibilities
        assert all(np.array_equal(a, b) for a, b in zip(first.masks, second.masks, strict=True))
    assert render((9, 0)).image.tobytes() != render((9, 1)).image.tobytes()


def test_every_combination_is_drawn() -> None:
    for i, (part, finish, condition) in enumerate(product(PARTS, FINISHES, CONDITIONS)):
        wanted = Wanted(part=part, finish=finish, condition=condition, num_defects=1, degradation=CLEAN, size=240)
        made = render((9, i), wanted)
        assert (made.truth.part, made.truth.finish, made.truth.condition) == (part, finish, condition)
        assert made.image.size == (240, 240)
        assert made.image.mode == "RGB"
        if condition == NONE:
            assert made.truth.defects == made.masks == made.visibilities == ()
            assert made.truth.position is None
        else:
            assert made.truth.position in POSITIONS
            assert made.masks[0].sum() >= 4, made.truth


def test_the_world_is_as_rich_as_it_is_said_to_be() -> None:
    made = [render((9, 70, i)) for i in range(100)]
    assert {one.image.width for one in made} == set(SIZES) and 224 <= min(SIZES) <= max(SIZES) <= 320
    assert {one.look_alike for one in made} == {None, *LOOK_ALIKES}
    assert {one.degradation for one in made} == {CLEAN, *DEGRADATIONS}
    assert all((one.severity == 0) == (one.degradation == CLEAN) for one in made)
    several = [one.truth for one in made if len(one.truth.defects) > 1]
    assert len(several) >= 5
    for truth in several:  # the gravest first, none twice
        order = [CONDITIONS.index(defect.condition) for defect in truth.defects]
        assert order == sorted(set(order))
    clean = [v for one in made if one.degradation == CLEAN for v in one.visibilities]
    assert min(clean) < VISIBLE < np.median(clean) < max(clean)


def test_a_defect_can_be_sent_to_every_position() -> None:
    for i, position in enumerate(POSITIONS):
        wanted = Wanted(part="plate", condition="dent", num_defects=1, position=position, degradation=CLEAN, size=240)
        assert majority([render((9, i, j), wanted).truth.position for j in range(4)]) == position


def test_degradations_change_the_picture_and_not_the_truth() -> None:
    clean = render((9, 5), Wanted(condition="stain", degradation=CLEAN, size=240))
    for kind in DEGRADATIONS:
        mild, strong = (
            render((9, 5), Wanted(condition="stain", degradation=kind, severity=severity, size=240))
            for severity in (0.2, 1.0)
        )
        assert mild.truth == strong.truth == clean.truth
        mild_change, strong_change = (_difference(clean.image, made.image) for made in (mild, strong))
        assert mild_change > 0
        # Of a part that has half left the frame no fewer pixels differ than of one that has left it wholly.
        assert mild_change < strong_change or kind == "misframing", kind


def test_what_a_degradation_hides_is_not_visible() -> None:
    plain = Wanted(condition="scratch", num_defects=1, degradation=CLEAN, defect_size=0.8, defect_strength=0.9)
    shown = [render((9, 6, i), replace(plain, defect_contrast=1.0)) for i in range(6)]
    assert all(made.all_visible and made.tells for made in shown)
    faint = [render((9, 6, i), replace(plain, defect_contrast=0.03)) for i in range(6)]
    assert all(a.visibilities < b.visibilities for a, b in zip(faint, shown, strict=True))
    assert not any(made.all_visible for made in faint)
    for kind in ("under-exposure", "over-exposure"):
        hidden = [render((9, 6, i), replace(plain, degradation=kind, severity=1.0)) for i in range(6)]
        assert not any(made.all_visible or made.tells for made in hidden), kind
        sound = [render((9, 6, i), Wanted(condition=NONE, degradation=kind, severity=1.0)) for i in range(6)]
        assert not any(made.tells for made in sound), kind  # a defect would not show there either
    assert all(render((9, 6, i), Wanted(condition=NONE, degradation=CLEAN)).tells for i in range(6))


def _difference(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)).mean())


# --- sentences --------------------------------------------------------------------------------------------------------


def test_what_is_said_is_what_is_read() -> None:
    rng = np.random.default_rng(1)
    for part, finish, count in product(PARTS, FINISHES, range(4)):
        for _ in range(40):
            kinds = sorted(map(str, rng.permutation(DEFECTS)[:count]), key=CONDITIONS.index)
            defects = tuple(Defect(kind, POSITIONS[int(rng.integers(9))]) for kind in kinds)
            truth = Truth(part, finish, defects)
            said = read_sentence(random_caption(truth, rng))
            assert (said.part, said.finish, said.position) == (part, finish, truth.position)
            assert said.conditions == frozenset(kinds)
            assert named(said.conditions) == truth.condition


def test_what_is_not_plain_is_not_read() -> None:
    assert read_sentence("A fish on a table.").conditions is None
    assert read_sentence("A brass gear with no defect and a dent.").conditions is None
    assert read_sentence("A sound brass gear with a fracture at the middle.").conditions is None
    assert read_sentence("").part is None
    assert named(None) is None


def test_one_truth_is_worded_in_many_ways_that_differ_less_than_two_truths() -> None:
    assert all(4 <= len(text.split()) <= 40 for text in some_captions(2000, seed=9))
    rng = np.random.default_rng(2)
    for truth in (Truth("gear", "brass", (Defect("rust", "upper left"),)), Truth("plate", "copper")):
        same = [random_caption(truth, rng) for _ in range(64)]
        assert len(set(same)) >= 20
        assert len({read_sentence(text) for text in same}) == 1
        other = Truth("washer", "copper", (Defect("dent", "center"),))
        both = [random_caption(one, rng) for one in (truth, other) for _ in range(4)]
        assert vendi_score(word_kernel(same[:8])) < vendi_score(word_kernel(both))


def test_the_default_prompt_is_one_that_training_used() -> None:
    assert DEFAULT_PROMPT in INSTRUCTIONS


# --- questions --------------------------------------------------------------------------------------------------------


def test_the_default_question_is_one_that_training_used() -> None:
    for abstain in (True, False):
        asked = Question(("rust", "none"), abstain).text()
        assert asked == question_prompt(DEFAULT_QUESTION, ("rust", "none"), abstain=abstain)
    texts = {Question(("rust", "none"), True, wording).text() for wording in range(NUM_WORDINGS)}
    assert len(texts) == NUM_WORDINGS >= 3
    assert all("rust, none, or unsure if you cannot tell" in text for text in texts)


def test_unsure_is_the_truth_only_where_it_is_offered_and_nothing_shows() -> None:
    plain, hidden = VISIBLE * 2, VISIBLE / 2
    offered, forced = FULL, replace(FULL, abstain=False)
    shown = Seen(("rust",), (plain,), plain)
    assert true_answer(offered, shown) == true_answer(forced, shown) == "rust"
    unseen = Seen(("rust",), (hidden,), hidden)
    assert (true_answer(offered, unseen), true_answer(forced, unseen)) == ("unsure", "rust")
    sound_in_the_dark = Seen((), (), hidden)
    assert (true_answer(offered, sound_in_the_dark), true_answer(forced, sound_in_the_dark)) == ("unsure", "none")
    assert true_answer(offered, Seen((), (), plain)) == "none"


def test_of_several_defects_the_gravest_that_is_listed_and_shows_is_the_answer() -> None:
    seen = Seen(("crack", "dent"), (VISIBLE / 2, VISIBLE * 2), VISIBLE * 2)
    assert true_answer(FULL, seen) == "dent"
    assert true_answer(replace(FULL, abstain=False), seen) == "dent"
    assert true_answer(Question(("ok", "crack"), True), seen) == "unsure"
    assert true_answer(Question(("rust", "ok"), True), seen) == "ok"  # none of those listed
    assert right("dent", ["crack", "dent"], FULL.choices) and not right("none", ["crack", "dent"], FULL.choices)
    assert not right(None, [], FULL.choices) and right("ok", [], ("ok", "rust"))


def test_every_question_drawn_has_a_true_answer_among_its_choices() -> None:
    rng = np.random.default_rng(3)
    for i in range(2000):
        seen = Seen(("rust", "stain")[: i % 3], (5.0, 40.0)[: i % 3], float(rng.uniform(0, 40)))
        question = random_question(seen, rng)
        assert len(set(question.choices)) == len(question.choices) >= 2
        answer = true_answer(question, seen)
        assert answer in question.choices or (answer == "unsure" and question.abstain)


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processor() -> Any:
    return build_processor()


@pytest.fixture
def one_processor(processor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every training use the same tokenizer: to make it takes longer than these trainings."""
    monkeypatch.setattr("vlmgate.factory.train.build_processor", lambda: processor)


@pytest.mark.slow
def test_training_goes_on_where_it_stopped_and_exports_a_checkpoint(one_processor: None, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from vlmgate.factory.train import Plan, train

    plan = Plan(scenes=8, held_out=8, vision_steps=2, language_steps=2, batch=4, warm_up=1)
    cache = tmp_path / "cache"
    train(plan, tmp_path / "whole", cache)
    train(plan, tmp_path / "parts", cache, stop_after=1)
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


@pytest.mark.slow
def test_with_minutes_in_place_of_steps_training_ends_in_time(one_processor: None, tmp_path: Path) -> None:
    from vlmgate.factory.train import Plan, train

    begin = time.monotonic()
    plan = Plan(scenes=4, held_out=4, vision_steps=10**6, language_steps=10**6, minutes=0.02, batch=2, warm_up=1)
    train(plan, tmp_path, tmp_path / "cache")
    assert (tmp_path / "weights" / "model.safetensors").exists()
    assert 1.2 <= time.monotonic() - begin < 120  # seconds; a million steps would take a day


def test_training_refuses_a_checkpoint_of_another_plan(one_processor: None, tmp_path: Path) -> None:
    from vlmgate.factory.train import Plan, train

    small = {"scenes": 4, "held_out": 4, "vision_steps": 2, "language_steps": 1, "batch": 2, "warm_up": 1}
    train(Plan(**small), tmp_path, tmp_path / "cache", stop_after=1)
    with pytest.raises(SystemExit, match="another plan"):
        train(Plan(**small, seed=5), tmp_path, tmp_path / "cache")


def test_relatives_of_a_scene_differ_by_a_defect_or_by_the_degradation_alone() -> None:
    for i in range(12):
        told = render_relatives((11, i))
        degraded, twin_of = told[0][0], [twin for _, twin in told]
        assert degraded.degradation != CLEAN and degraded.severity > 0
        if degraded.degradation == "misframing":
            assert twin_of == [False]
            continue
        assert twin_of == [False, False, True]
        clean, twin = told[1][0], told[2][0]
        assert clean.degradation == twin.degradation == CLEAN and clean.severity == 0
        assert clean.truth == degraded.truth
        mine, others = set(clean.truth.defects), set(twin.truth.defects)
        assert len(mine ^ others) == 1 and len(mine | others) <= 3
        assert len(twin.masks) == len(twin.visibilities) == len(others)
        changed = np.abs(np.asarray(clean.image, np.int16) - np.asarray(twin.image, np.int16)).max(axis=2) > 8
        assert changed.mean() < 0.2  # all else is the same picture


def test_a_batch_is_turned_with_its_patches_and_positions() -> None:
    import torch

    from vlmgate.factory.objectives import _lay_all

    squares = np.arange(8 * 6 * 6).reshape(8, 6, 6)
    laid = _lay_all(torch.from_numpy(squares), np.arange(8)).numpy()
    for way in range(8):
        square = squares[way].T if way & 4 else squares[way]
        assert (laid[way] == square[:: -1 if way & 2 else 1, :: -1 if way & 1 else 1]).all()


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
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
