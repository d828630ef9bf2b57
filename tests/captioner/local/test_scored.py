"""Choices that are scored as forced branches: what plain forwards say, image by image and token by token."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.support import tiny_models
from tests.support.naive import naive_logits
from tests.support.tiny_models import SIZES, copied, in_float64, picture
from vlmgate.captioner import load_captioner
from vlmgate.captioner.local import scored
from vlmgate.captioner.local.engine import TransformersCaptioner
from vlmgate.captioner.local.scored import Forced, Form, Scoring, forms_of, paths_of, written
from vlmgate.config import ABSTENTION, ModelConfig, SamplingConfig
from vlmgate.data import Caption, Picture, Sampled

K = 4
CHOICES = ("no defect", "scratch", "dent")
ASKED = SamplingConfig(
    num_samples=K, max_new_tokens=6, question="Which?", choices=CHOICES, max_answer_tokens=6, answers="exact"
)
EXACT = [f for f in sorted(tiny_models.FAMILIES) if f != "qwen3_5"]  # whose linear attention is in float32

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings(
        # numpy's, at PaliGemma's processor, which turns torch tensors into arrays the old way
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
    ),
]


def load(family: str, factory: pytest.TempPathFactory, **changes: Any) -> TransformersCaptioner:
    name = family if family == "builtin" else str(tiny_models.build(family, factory.getbasetemp() / "tiny"))
    engine = load_captioner(ModelConfig(model=name, device="cpu"), replace(ASKED, **changes))
    assert isinstance(engine, TransformersCaptioner)
    found: TransformersCaptioner = in_float64(engine)
    return found


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> TransformersCaptioner:
    return load("llava", tmp_path_factory)


@pytest.fixture(scope="module")
def builtin(tmp_path_factory: pytest.TempPathFactory) -> TransformersCaptioner:
    return load("builtin", tmp_path_factory)


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    return [picture(i, size) for i, size in enumerate(SIZES)]


def probabilities(
    engine: TransformersCaptioner, batch: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> tuple[torch.Tensor, list[Sampled]]:
    """Return the (B·V, F) probabilities of the forms as the engine finds them on the way, and what it reads."""
    kept: list[torch.Tensor] = []
    plain = Scoring._probabilities

    def keep(self: Scoring, prefill: Any) -> torch.Tensor:
        kept.append(plain(self, prefill))
        return kept[-1]

    with monkeypatch.context() as patched:
        patched.setattr(Scoring, "_probabilities", keep)
        read = engine.read(batch)
    (found,) = kept
    return found, read


def naive(engine: TransformersCaptioner, one: Picture, form: Form) -> float:
    """Return the probability of a form and its end by a plain forward of one image alone."""
    ends = sorted(engine._runner.checkpoint.end_ids)
    tokens = torch.tensor([*form.tokens, ends[0]])
    logits = naive_logits(engine, one, tokens, engine._runner.ask)
    logprobs = logits.double().log_softmax(-1)
    said = sum(float(logprobs[i, token]) for i, token in enumerate(form.tokens))
    return math.exp(said + float(logprobs[len(form.tokens), ends].logsumexp(-1)))


# --- what plain forwards say ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", EXACT)
def test_every_form_is_as_probable_as_a_plain_forward_says(
    family: str, pictures: list[Picture], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scored, "NEGLIGIBLE", -math.inf)
    engine = load(family, tmp_path_factory)
    assert engine._scoring is not None
    forms = engine._scoring.forms
    assert {form.text for form in forms} >= {*CHOICES, ABSTENTION, "scratch."}
    assert len({len(form.tokens) for form in forms}) > 2, "forms of one length would show no end in its place"
    found, _ = probabilities(engine, pictures, monkeypatch)
    assert found.shape == (len(pictures), len(forms)) and found.dtype == torch.float64
    for i, one in enumerate(pictures):
        expected = [naive(engine, one, form) for form in forms]
        assert found[i].tolist() == pytest.approx(expected, rel=1e-9, abs=0), f"{family} {i}"
    assert len({tuple(row) for row in found.tolist()}) == len(pictures), "the pictures do not matter"


def test_the_built_in_model_is_as_sure_as_a_plain_forward_says(
    builtin: TransformersCaptioner, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, read = probabilities(builtin, pictures, monkeypatch)
    assert builtin._scoring is not None and builtin._runner.packs
    for i, one in enumerate(pictures[:3]):
        expected = {form: naive(builtin, one, form) for form in builtin._scoring.forms}
        assert found[i].tolist() == pytest.approx([*expected.values()], rel=1e-9, abs=1e-7)
        texts: dict[str, float] = {}
        for form, probability in expected.items():
            texts[form.text] = texts.get(form.text, 0.0) + probability
        answers = read[i].answers
        assert answers is not None and {answer.finish for answer in answers} == {"scored"}
        assert len({answer.text for answer in answers}) == len(answers), "a text has one probability"
        for answer in answers:
            assert answer.mean_logprob is not None and 2 <= answer.num_tokens <= 8
            told = math.exp(answer.mean_logprob * answer.num_tokens)
            assert told == pytest.approx(texts[answer.text], rel=1e-7, abs=1e-6)
        assert sum(texts.values()) > 0.95
        ranked = [(answer.mean_logprob or 0.0) * answer.num_tokens for answer in answers]
        assert ranked == sorted(ranked, reverse=True)


def test_what_is_negligible_is_not_gone_on_with_and_changes_nothing_else(
    llava: TransformersCaptioner, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(scored, "NEGLIGIBLE", -math.inf)
        whole, _ = probabilities(llava, pictures, monkeypatch)
    floor = float(whole.flatten().log().median())
    monkeypatch.setattr(scored, "NEGLIGIBLE", floor)
    found, _ = probabilities(llava, pictures, monkeypatch)
    kept = whole > math.exp(floor)
    assert kept.any() and not kept.all()
    assert torch.allclose(found[kept], whole[kept], rtol=1e-9, atol=0)
    assert (found[~kept] <= math.exp(floor)).all() and (found[~kept] == 0).any()


# --- in place of drawing ----------------------------------------------------------------------------------------------


def test_captions_are_the_same_and_answers_are_drawn_where_the_forms_hold_too_little(
    llava: TransformersCaptioner, pictures: list[Picture], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Random weights seldom name a choice, so every answer is drawn, from the streams that drawing has."""
    drawn = load("llava", tmp_path_factory, answers="drawn")
    assert drawn._scoring is None
    for one, other in zip(llava.read(pictures), drawn.read(pictures), strict=True):
        assert one == other and one.answers is not None and len(one.answers) == K


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3", "florence2"])
@pytest.mark.parametrize("views", [1, 2])
def test_each_image_for_itself_is_scored_or_drawn(
    family: str,
    views: int,
    pictures: list[Picture],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Packed and forked, with a prefill that is shared and one that is not, rows that can be left out and ones not."""
    engine = load(family, tmp_path_factory, views=views)
    drawn = load(family, tmp_path_factory, views=views, answers="drawn").read(pictures)
    monkeypatch.setattr(scored, "NEGLIGIBLE", -math.inf)
    found, _ = probabilities(engine, pictures, monkeypatch)
    mass = found.view(len(pictures), views, -1).mean(1).sum(1)
    least = 0.999 * float(mass.median())
    monkeypatch.setattr(scored, "LEAST_MASS", least)
    kinds = []
    for i, (one, other) in enumerate(zip(engine.read(pictures), drawn, strict=True)):
        assert (one.captions, one.views, one.features) == (other.captions, other.views, other.features)
        assert one.answers is not None
        kinds.append({answer.finish for answer in one.answers} == {"scored"})
        assert kinds[i] == (float(mass[i]) > least)
        if kinds[i]:
            told = sum(math.exp((a.mean_logprob or 0.0) * a.num_tokens) for a in one.answers)
            assert told == pytest.approx(float(mass[i]), rel=1e-6)
        else:
            assert one.answers == other.answers
    assert len({*kinds}) == 2


def test_rounds_score_once_and_draw_the_rest(
    llava: TransformersCaptioner, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scored, "NEGLIGIBLE", -math.inf)
    found, _ = probabilities(llava, pictures, monkeypatch)
    monkeypatch.setattr(scored, "LEAST_MASS", 0.999 * float(found.sum(1).median()))
    wanted = {one.file.file_name: (2, 4, 3, 4, 2)[i] for i, one in enumerate(pictures)}
    whole = llava.read(pictures)

    def enough(one: Picture, sampled: Sampled) -> bool:
        return len(sampled.captions) >= wanted[one.file.file_name]

    for one, all_, k in zip(llava.read_in_rounds(pictures, (2, 3, 4), enough), whole, wanted.values(), strict=True):
        assert one.answers is not None and all_.answers is not None
        assert one.captions == all_.captions[:k]
        is_scored = all_.answers[0].finish == "scored"
        assert one.answers == (all_.answers if is_scored else all_.answers[:k])


def test_the_batch_and_its_order_change_no_score(builtin: TransformersCaptioner, pictures: list[Picture]) -> None:
    together = [one.answers for one in builtin.read(pictures)]
    order = [3, 0, 4, 1, 2]
    assert [one.answers for one in builtin.read([pictures[i] for i in order])] == [together[i] for i in order]
    assert [builtin.read([one])[0].answers for one in pictures] == together
    assert [one.answers for one in builtin.with_samples(2).read(pictures)] == together, "nothing hangs on K"


def test_numbers_that_overflow_are_no_score(
    builtin: TransformersCaptioner, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Forced.__call__
    for broken in (math.nan, math.inf):
        for at in (0, 1):

            def spoilt(
                self: Forced,
                logits: torch.Tensor,
                step: int,
                rows: torch.Tensor,
                at: int = at,
                broken: float = broken,
            ) -> Any:
                if step == at:
                    logits = logits.clone()
                    logits[rows < 2, 0] = broken
                return plain(self, logits, step, rows)

            monkeypatch.setattr(Forced, "__call__", spoilt)
            first, *others = builtin.read(pictures)
            assert first.answers is not None and {answer.finish for answer in first.answers} == {"stop"}, "not drawn"
            assert all(one.answers and one.answers[0].finish == "scored" for one in others)


# --- forms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "forms"),
    [
        ("no defect", ["no defect", "no defect.", "No defect", "No defect."]),
        ("OK", ["OK", "OK.", "ok", "ok."]),
        ("A.", ["A.", "a."]),
        ("傷", ["傷", "傷。"]),
    ],
)
def test_an_answer_is_written_in_the_usual_ways(answer: str, forms: list[str]) -> None:
    assert written(answer) == forms


def test_a_choice_that_cannot_be_written_leaves_all_to_be_drawn(llava: TransformersCaptioner) -> None:
    assert forms_of(llava._runner, ["scratch", "傷"]) is None
    found = forms_of(llava._runner, ["scratch"])
    assert found is not None
    assert len({form.tokens for form in found}) == len(found), "a sequence of tokens counts once"
    assert not {form.text for form in found} & {"", " scratch"}


def test_without_an_end_nothing_can_be_scored(llava: TransformersCaptioner) -> None:
    endless = copied(llava)._runner
    endless.checkpoint = replace(endless.checkpoint, end_ids=frozenset())
    assert Scoring.of(endless) is None


def test_any_of_several_end_tokens_ends_a_form() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]], dtype=torch.float64).log()
    forced = Forced.of([(1,)], torch.tensor([[0]]), torch.tensor([[True]]), torch.tensor([2, 3]))
    assert forced(logits, 0, torch.tensor([0])).tokens.tolist() == [1]
    assert forced(logits, 1, torch.tensor([0])).tokens.tolist() == [2]
    assert forced.ended.exp().tolist() == [pytest.approx([0.2 + 0.3, 0.4 * (0.2 + 0.3)])]


def test_what_another_form_begins_with_is_scored_on_the_way() -> None:
    forms = [Form("ok", (1,)), Form("ok.", (1, 7)), Form("ok!", (1, 8)), Form("scratch", (2, 3))]
    assert {*paths_of(forms)} == {(1, 7), (1, 8), (2, 3)}


def test_caption_of_a_score_has_the_probability_of_its_text() -> None:
    one = scored._caption("ok", 0.25, 3)
    assert (one.text, one.finish, one.num_tokens) == ("ok", "scored", 3)
    assert one.mean_logprob is not None and math.exp(3 * one.mean_logprob) == pytest.approx(0.25, rel=1e-8)
    assert scored._caption("ok", 1.0 + 1e-12, 2) == Caption("ok", "scored", 0.0, 2)
