"""Answers beside captions: the same as asked by themselves, whether or not they go on from the captions' prefill."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers.cache_utils import DynamicCache, DynamicSlidingWindowLayer

from tests.support import tiny_models
from tests.support.naive import TOLERANCE, Forced, naive_logits, random_tokens, tolerance
from tests.support.tiny_models import SIZES, copied, images, in_float64, picture
from vlmgate.captioner import load_captioner
from vlmgate.captioner.local import trials
from vlmgate.captioner.local.engine import TransformersCaptioner
from vlmgate.captioner.local.fork import ForkDecoder
from vlmgate.captioner.local.layers import UnsuitableError
from vlmgate.captioner.local.shared_prefill import Continuation, Tails, find_tails
from vlmgate.captioner.local.trials import alike
from vlmgate.config import ModelConfig, SamplingConfig
from vlmgate.data import Caption, Picture, Sampled

K, T = 3, 6
SHARING = {"idefics3", "internvl", "llava", "qwen2_5_vl"}
QUESTION = SamplingConfig(
    num_samples=K,
    max_new_tokens=8,
    question="Which of these does the part show?",
    choices=("no defect", "scratch", "dent"),
    max_answer_tokens=T,
)

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings(
        # numpy's, at PaliGemma's processor, which turns torch tensors into arrays the old way
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
    ),
]


def load(family: str, factory: pytest.TempPathFactory, **changes: Any) -> TransformersCaptioner:
    folder = tiny_models.build(family, factory.getbasetemp() / "tiny")
    engine = load_captioner(ModelConfig(model=str(folder), device="cpu"), replace(QUESTION, **changes))
    assert isinstance(engine, TransformersCaptioner)
    return engine


@pytest.fixture(scope="module", params=sorted(tiny_models.FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def captioner(family: str, tmp_path_factory: pytest.TempPathFactory) -> TransformersCaptioner:
    return load(family, tmp_path_factory)


@pytest.fixture(scope="module")
def exact(family: str, tmp_path_factory: pytest.TempPathFactory) -> TransformersCaptioner:
    """Return the same in float64, for the tests that compare tokens."""
    if family == "qwen3_5":
        pytest.skip("computes its linear attention in float32, in chunks that shift with padding")
    engine: TransformersCaptioner = in_float64(load(family, tmp_path_factory))
    return engine


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    return [picture(i, size) for i, size in enumerate(SIZES)]


def apart(captioner: TransformersCaptioner) -> TransformersCaptioner:
    """Return the same engine, made to prefill the question by itself."""
    other = copied(captioner)
    other._tails = None
    return other


def words(texts: tuple[Caption, ...] | None) -> list[tuple[str, str, int]]:
    assert texts is not None
    return [(text.text, text.finish, text.num_tokens) for text in texts]


def answer_logits(captioner: TransformersCaptioner, batch: list[Picture], forced: torch.Tensor) -> torch.Tensor:
    """Return the (B·K, T, V) logits of the answers when they are made to say `forced`, captions being sampled."""
    pick = Forced(forced)
    answers = captioner._runner.decoder(pick, T)
    captioner._decode(images(batch), captioner._runner.sampler(batch, "captions"), answers)
    if not answers.tokens:
        captioner._runner.generate(captioner._runner.inputs(captioner._runner.ask, images(batch)), answers)
    return pick.logits


class Calls:
    """Counts how often the first layer of the vision tower runs."""

    def __init__(self, captioner: TransformersCaptioner) -> None:
        self.count = 0
        self._hook = captioner._runner.tap._towers[0][0].register_forward_hook(self._seen)

    def _seen(self, *_: Any) -> None:
        self.count += 1

    def __enter__(self) -> Calls:
        return self

    def __exit__(self, *_: Any) -> None:
        self._hook.remove()


# --- every family -----------------------------------------------------------------------------------------------------


def test_the_prefill_is_shared_where_the_structure_allows_it(family: str, captioner: TransformersCaptioner) -> None:
    assert (captioner._tails is not None) == (family in SHARING)


@pytest.mark.parametrize("sizes", [SIZES, [(64, 64)] * 3], ids=["padded", "unpadded"])
def test_same_logits_as_the_naive_route_with_the_question_alone(
    captioner: TransformersCaptioner, sizes: list[tuple[int, int]]
) -> None:
    batch = [picture(i, size) for i, size in enumerate(sizes)]
    forced = random_tokens(captioner, len(batch) * K, T)
    logits = answer_logits(captioner, batch, forced)
    close = tolerance(captioner)
    for row, tokens in enumerate(forced):
        naive = naive_logits(captioner, batch[row // K], tokens, captioner._runner.ask)
        assert torch.allclose(logits[row], naive, atol=close, rtol=close), row


def test_answers_that_ended_are_dropped_and_the_others_go_on_as_before(
    captioner: TransformersCaptioner, pictures: list[Picture]
) -> None:
    forced = random_tokens(captioner, len(pictures) * K, T)
    lengths = torch.tensor([(5 * row) % T + 1 for row in range(len(forced))])  # 1 to T, in no order
    forced[torch.arange(len(forced)), lengths - 1] = min(captioner._runner.checkpoint.end_ids)
    logits = answer_logits(captioner, pictures, forced)
    close = tolerance(captioner)
    for row, length in enumerate(lengths.tolist()):
        naive = naive_logits(captioner, pictures[row // K], forced[row, :length], captioner._runner.ask)
        assert torch.allclose(logits[row, :length], naive, atol=close, rtol=close), row


def test_pictures_and_the_question_matter(captioner: TransformersCaptioner, pictures: list[Picture]) -> None:
    """Without this, the tests above could pass with the wrong picture, or with the captions' prompt."""
    forced = random_tokens(captioner, 1, T).expand(len(pictures) * K, -1)
    logits = answer_logits(captioner, pictures, forced)[::K]
    for b, one in enumerate(pictures[1:], start=1):
        assert (logits[b] - logits[b - 1]).abs().mean(-1).min() > 100 * TOLERANCE
        assert (logits[b] - naive_logits(captioner, one, forced[0])).abs().mean(-1).min() > 100 * TOLERANCE


def test_same_answers_as_asking_by_itself(exact: TransformersCaptioner, pictures: list[Picture]) -> None:
    for together, alone in zip(exact.read(pictures), apart(exact).read(pictures), strict=True):
        assert words(together.answers) == words(alone.answers)
        assert together.captions == alone.captions


def test_same_answers_whatever_the_batch_and_the_order(exact: TransformersCaptioner, pictures: list[Picture]) -> None:
    together = [words(one.answers) for one in exact.read(pictures)]
    order = [3, 0, 4, 1, 2]
    assert [words(one.answers) for one in exact.read([pictures[i] for i in order])] == [together[i] for i in order]
    assert [words(exact.read([one])[0].answers) for one in pictures] == together
    assert len({str(answers) for answers in together}) == len(pictures)


def test_a_question_changes_no_caption(
    family: str,
    exact: TransformersCaptioner,
    pictures: list[Picture],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    unasked = in_float64(load(family, tmp_path_factory, question=None, choices=()))
    for asked, plain in zip(exact.read(pictures), unasked.read(pictures), strict=True):
        assert plain.answers is None
        assert asked == replace(plain, answers=asked.answers)


def test_the_vision_tower_runs_once_where_the_prefill_is_shared(
    family: str, captioner: TransformersCaptioner, pictures: list[Picture]
) -> None:
    with Calls(captioner) as calls:
        captioner.read(pictures)
    assert calls.count == (1 if family in SHARING else 2)


# --- one family -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> TransformersCaptioner:
    return load("llava", tmp_path_factory)


def test_the_prompt_names_the_choices_and_offers_to_be_unsure(
    llava: TransformersCaptioner, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert llava._runner.ask is not None and "no defect, scratch, dent, or unsure" in llava._runner.ask.form.text
    forced = load("llava", tmp_path_factory, abstain=False)
    assert forced._runner.ask is not None and "unsure" not in forced._runner.ask.form.text
    assert forced._runner.ask.form.text.endswith("no defect, scratch, dent.</s>assistant: ")


def test_an_answer_that_is_cut_off_says_so(pictures: list[Picture], tmp_path_factory: pytest.TempPathFactory) -> None:
    engine = load("llava", tmp_path_factory, max_answer_tokens=2)
    answers = [answer for one in engine.read(pictures) for answer in one.answers or ()]
    assert len(answers) == len(pictures) * K
    assert {answer.num_tokens for answer in answers if answer.finish == "length"} == {2}
    assert all(answer.num_tokens <= 2 for answer in answers)


def test_a_longer_limit_extends_answers(
    llava: TransformersCaptioner, pictures: list[Picture], tmp_path_factory: pytest.TempPathFactory
) -> None:
    short = load("llava", tmp_path_factory, max_answer_tokens=2)
    for long, cut in zip(llava.read(pictures), short.read(pictures), strict=True):
        for a, b in zip(long.answers or (), cut.answers or (), strict=True):
            assert a.text.startswith(b.text)


def test_broken_answers_are_told_and_captions_stay_as_they_were(
    llava: TransformersCaptioner, pictures: list[Picture]
) -> None:
    good = llava.read(pictures)
    calls = 0

    def spoil(module: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        logits = logits.clone()
        if calls == first_of_answers:
            logits[1] = torch.nan
        return logits

    first_of_answers = 1 + max(c.num_tokens for one in good for c in one.captions)  # a forward per caption token
    hook = llava._runner.checkpoint.model.lm_head.register_forward_hook(spoil)
    try:
        spoilt = llava.read(pictures)
    finally:
        hook.remove()
    assert spoilt[1].answers == (Caption("", "non-finite", None, 0),) * K
    assert [replace(one, answers=None) for one in spoilt] == [replace(one, answers=None) for one in good]
    assert [spoilt[i].answers for i in (0, 2, 3, 4)] == [good[i].answers for i in (0, 2, 3, 4)]


def test_memory_that_runs_out_in_the_answers_halves_the_batch(
    llava: TransformersCaptioner, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = llava.read(pictures)
    sizes: list[int] = []
    run = Continuation.run

    def too_much(self: Continuation, model: Any) -> None:
        sizes.append(len(self._input_ids))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        run(self, model)

    monkeypatch.setattr(Continuation, "run", too_much)
    other = copied(llava)
    read = other.read(pictures)
    assert sizes == [5, 2, 2, 1]
    assert [words(one.answers) for one in read] == [words(one.answers) for one in expected]


def test_a_prompt_that_does_not_end_as_it_should_is_prefilled_apart(
    llava: TransformersCaptioner, pictures: list[Picture]
) -> None:
    other = copied(llava)
    assert llava._tails is not None
    other._tails = Tails((*llava._tails.first[:-1], 99), llava._tails.second)
    with Calls(other) as calls:
        read = other.read(pictures)
    assert calls.count == 2
    assert [words(one.answers) for one in read] == [words(one.answers) for one in llava.read(pictures)]


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family_", ["paligemma", "qwen3_5"])
def test_the_trial_finds_what_the_structure_does_not_tell(
    family_: str,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """PaliGemma's beginning sees the whole prompt: passed off as an ordinary model, it fails the comparison."""

    class Ordinary:
        def __init__(self, model: Any) -> None:
            self.config = model.config

    def gullible(model: Any, first: dict[str, Any], second: dict[str, Any], image_ids: frozenset[int]) -> Tails:
        for inputs in (first, second):
            inputs.pop("labels", None)
        return find_tails(Ordinary(model), first, second, image_ids)

    monkeypatch.setattr(trials, "find_tails", gullible)
    with caplog.at_level(logging.INFO, "vlmgate"):
        engine = load(family_, tmp_path_factory)
    assert engine._tails is None
    reasons = {"paligemma": "would come out differently", "qwen3_5": "LinearAttentionLayer cannot be cut back"}
    assert reasons[family_] in caplog.text


class Decoder:
    class config:  # noqa: N801
        is_encoder_decoder = False


def ids(*rows: list[int], **more: Any) -> dict[str, Any]:
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(rows).ne(0)} | more


class TestTails:
    def test_they_begin_where_the_prompts_part(self) -> None:
        first, second = ids([0, 9, 9, 5, 1, 2], [9, 9, 9, 5, 1, 2]), ids([0, 9, 9, 5, 3], [9, 9, 9, 5, 3])
        tails = find_tails(Decoder, first, second, frozenset({9}))
        assert tails == Tails((1, 2), (3,))
        assert tails.fit(first["input_ids"]) and not tails.fit(second["input_ids"])

    def test_a_prompt_that_goes_on_from_the_whole_of_the_other(self) -> None:
        assert find_tails(Decoder, ids([9, 5]), ids([9, 5, 3]), frozenset({9})) == Tails((), (3,))
        assert Tails((), (3,)).fit(torch.tensor([[9, 5]]))

    def test_a_question_that_is_the_beginning_of_the_other_prompt_still_runs_a_token(self) -> None:
        assert find_tails(Decoder, ids([9, 5, 1]), ids([9, 5]), frozenset({9})) == Tails((5, 1), (5,))

    @pytest.mark.parametrize(
        ("first", "second", "says"),
        [
            (ids([5, 9]), ids([6, 9]), "before the image"),
            (ids([9, 5], [9, 6]), ids([9, 7], [9, 7]), "depends on the image"),
            (ids([9, 5], qformer=torch.tensor([5])), ids([9, 6], qformer=torch.tensor([6])), "qformer depends"),
            (ids([9, 5], pixels=[torch.zeros(2)]), ids([9, 6], pixels=[torch.ones(2)]), "pixels depends"),
            (ids([9, 5], pixels=torch.zeros(2)), ids([9, 6]), "pixels depends"),
        ],
    )
    def test_inputs_that_do_not_share_are_refused(
        self, first: dict[str, Any], second: dict[str, Any], says: str
    ) -> None:
        with pytest.raises(UnsuitableError, match=says):
            find_tails(Decoder, first, second, frozenset({9}))


class TestContinuation:
    def begin(self, cache: Any, **state: Any) -> Continuation:
        answers = ForkDecoder(1, 1, frozenset(), Forced(torch.zeros(1, 1)))
        continuation = Continuation(Tails((7, 8), (4, 5, 6)), answers)
        continuation.begin(torch.tensor([[0, 9, 3, 7, 8]]), {"past_key_values": cache, "use_cache": True} | state)
        return continuation

    def cache(self, length: int = 5) -> Any:
        cache = DynamicCache()
        cache.update(torch.arange(2.0 * length).view(1, 1, length, 2), torch.ones(1, 1, length, 2), 0)
        return cache

    def test_cache_mask_and_positions_are_cut_and_count_on(self) -> None:
        cache = self.cache()
        positions = torch.tensor([[0, 0, 4, 5, 6, 7]])  # an image may take up more positions than tokens
        begun = self.begin(cache, position_ids=positions, attention_mask=torch.tensor([[0, 1, 1, 1, 1, 1]]))
        assert begun._input_ids.tolist() == [[0, 9, 3, 4, 5, 6]]
        assert begun._state["position_ids"].tolist() == [[0, 0, 4, 5, 6, 7]]
        assert begun._state["attention_mask"].tolist() == [[0, 1, 1, 1, 1, 1]]
        assert begun._state["past_key_values"].get_seq_length() == 3
        assert cache.get_seq_length() == 5  # the captions go on with theirs

    @pytest.mark.parametrize("state", [{"cross_attention_mask": torch.ones(1, 5)}, {"encoder_outputs": {}}])
    def test_state_of_unknown_kind_is_refused(self, state: dict[str, Any]) -> None:
        with pytest.raises(UnsuitableError, match="may depend on the prompt"):
            self.begin(self.cache(), **state)

    def test_layers_that_forget_or_hold_something_else_are_refused(self) -> None:
        sliding = self.cache()
        sliding.layers[0] = DynamicSlidingWindowLayer(sliding_window=4)
        with pytest.raises(UnsuitableError, match="DynamicSlidingWindowLayer"):
            self.begin(sliding)
        with pytest.raises(UnsuitableError, match="cannot be cut back"):
            self.begin(self.cache(length=17))  # cross-attention: as long as the image, not as the prompt


class TestAlike:
    def test_small_differences_pass_and_a_wrong_row_does_not(self) -> None:
        logits = [torch.randn(4, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in (1, 2)]
        near = [step * (1 + 1e-5) for step in logits]
        assert alike(near, logits, torch.float32) and not alike(near, logits, torch.float64)
        wrong = [step.clone() for step in logits]
        wrong[1][3] += torch.randn(500, generator=torch.Generator().manual_seed(3)) * 0.1
        assert not alike(wrong, logits, torch.float32)
        assert not alike(logits[:1], logits, torch.float32)
        assert not alike([], [], torch.float32)

    def test_masked_tokens_must_be_masked_both_ways_and_broken_logits_fail(self) -> None:
        logits = torch.randn(1, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        masked = torch.where(torch.arange(9) == 4, -torch.inf, logits)
        assert alike([masked], [masked.clone()], torch.float32)
        assert not alike([masked], [logits], torch.float32)
        assert not alike([torch.full((1, 9), torch.nan)], [torch.full((1, 9), torch.nan)], torch.float32)


def test_without_a_question_there_are_no_answers(
    pictures: list[Picture], tmp_path_factory: pytest.TempPathFactory
) -> None:
    read = load("llava", tmp_path_factory, question=None, choices=()).read(pictures)
    assert all(isinstance(one, Sampled) and one.answers is None for one in read)
