"""The sampler: one uniform in, one token out, exactly as often as its probability says."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from vlmgate.captioner.local.fork import Warp, draw
from vlmgate.captioner.streams import fixed_normal, uniforms, view_noise

SHA = hashlib.sha256(b"a picture").hexdigest()
ALMOST_ONE = float(np.nextafter(1.0, 0.0))


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log().float()


def stratified(rows: int) -> torch.Tensor:
    """Return the midpoints of `rows` equal parts of [0, 1)."""
    return (torch.arange(rows, dtype=torch.float64) + 0.5) / rows


def counts(logits: torch.Tensor, uniform: torch.Tensor, warp: Warp = Warp()) -> torch.Tensor:  # noqa: B008
    tokens = draw(logits.expand(len(uniform), -1), uniform, warp).tokens
    return torch.bincount(tokens, minlength=logits.shape[-1])


class TestUniforms:
    def test_shape_range_and_type(self) -> None:
        values = uniforms(0, SHA, 1, num_samples=5, num_tokens=1000)
        assert values.shape == (5, 1000)
        assert values.dtype == np.float64
        assert values.min() >= 0 and values.max() < 1
        assert abs(values.mean() - 0.5) < 0.02

    def test_every_part_of_the_key_changes_every_stream(self) -> None:
        other = hashlib.sha256(b"another picture").hexdigest()
        keys = [(0, SHA, 1), (1, SHA, 1), (2**32, SHA, 1), (0, other, 1), (0, SHA, 2)]
        streams = [uniforms(*key, num_samples=3, num_tokens=4) for key in keys]
        rows = np.concatenate(streams)
        assert len(np.unique(rows[:, 0])) == len(rows)

    def test_more_captions_or_tokens_extend_and_change_nothing(self) -> None:
        small = uniforms(7, SHA, 1, num_samples=2, num_tokens=3)
        large = uniforms(7, SHA, 1, num_samples=9, num_tokens=50)
        assert np.array_equal(large[:2, :3], small)

    def test_values_are_frozen(self) -> None:
        """Stored results are reproducible only as long as these numbers stay."""
        values = uniforms(2**40 + 1, SHA, 3, num_samples=2, num_tokens=2)
        assert values.tolist() == FROZEN

    def test_answers_have_streams_of_their_own(self) -> None:
        captions = uniforms(7, SHA, 1, num_samples=9, num_tokens=4)
        answers = uniforms(7, SHA, 1, num_samples=9, num_tokens=4, use="answers")
        assert len(np.unique([captions, answers])) == captions.size + answers.size
        fewer = uniforms(7, SHA, 1, num_samples=2, num_tokens=3, use="answers")
        assert np.array_equal(answers[:2, :3], fewer)


FROZEN = [[0.9905660075524643, 0.3153712457219542], [0.4962353271978347, 0.6818080699701304]]


class TestNormals:
    def test_they_are_normal(self) -> None:
        values = np.sort(view_noise(0, SHA, 1, 1, (301, 201, 3)).ravel())
        assert values.shape == (301 * 201 * 3,)
        assert values.mean() == pytest.approx(0, abs=0.01) and values.std() == pytest.approx(1, abs=0.01)
        inside = [np.mean(np.abs(values) < sigma) for sigma in (1, 2, 3)]
        assert inside == pytest.approx([0.6827, 0.9545, 0.9973], abs=0.003)

    def test_every_part_of_the_key_changes_them(self) -> None:
        other = hashlib.sha256(b"another picture").hexdigest()
        keys = [(0, SHA, 1, 1), (1, SHA, 1, 1), (0, other, 1, 1), (0, SHA, 2, 1), (0, SHA, 1, 2)]
        values = np.stack([view_noise(*key, shape=(500,)) for key in keys])
        assert np.abs(np.corrcoef(values) - np.eye(len(keys))).max() < 0.2

    def test_values_are_frozen(self) -> None:
        assert view_noise(0, SHA, 1, 1, (3,)) == pytest.approx(FROZEN_NOISE, abs=1e-12)
        assert fixed_normal((2, 1)).ravel() == pytest.approx(FROZEN_NORMAL, abs=1e-12)


FROZEN_NOISE = [-1.1122394971789125, -1.7631389110755886, 0.18613868999374342]
FROZEN_NORMAL = [1.300120213835345, -1.676420168252694]


class TestFrequencies:
    def test_stratified_uniforms_give_exact_counts(self) -> None:
        probabilities = (0.1, 0.2, 0.0, 0.4, 0.3)
        assert counts(logits_of(*probabilities), stratified(1000)).tolist() == [100, 200, 0, 400, 300]

    def test_exact_counts_across_many_blocks_of_the_vocabulary(self) -> None:
        generator = torch.Generator().manual_seed(1)
        weights = torch.rand(2000, generator=generator, dtype=torch.float64) ** 4
        probabilities = weights / weights.sum()
        rows = 6000
        found = counts(probabilities.log().float()[None], stratified(rows))
        # A stratified count is off by less than one at each end of a token's interval, plus float32 rounding.
        assert (found - probabilities * rows).abs().max() < 1.01

    @pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
    def test_chi_square_over_many_images(self, temperature: float) -> None:
        logits = torch.tensor([[0.0, 1.0, -1.0, 2.0, 0.5, -3.0]])
        shas = (hashlib.sha256(bytes([i, j])).hexdigest() for i in range(16) for j in range(16))
        uniform = torch.from_numpy(np.concatenate([uniforms(0, sha, 1, 4, 16).ravel() for sha in shas]))
        found = counts(logits, uniform, Warp(temperature))
        expected = (logits[0].double() / temperature).softmax(-1) * len(uniform)
        assert float(((found - expected) ** 2 / expected).sum()) < 20.5  # 0.1 % point of chi-square, 5 degrees

    def test_logprobs_are_of_temperature_one_and_of_the_whole_vocabulary(self) -> None:
        logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(50, -1)
        drawn = draw(logits, stratified(50), Warp(temperature=3.0, top_k=2, top_p=0.9))
        expected = logits.log_softmax(-1).gather(-1, drawn.tokens[:, None])[:, 0]
        assert torch.allclose(drawn.logprobs, expected, atol=1e-6)
        assert set(drawn.tokens.tolist()) == {0, 1}

    def test_rare_tokens_of_a_large_vocabulary_are_not_lost(self) -> None:
        """A float32 running sum over 262,144 equal entries is off by far more than one of them."""
        size = 262_144
        tokens = draw(torch.zeros(4, size), torch.tensor([0.0, 0.25, 0.5, ALMOST_ONE]), Warp()).tokens
        assert tokens.tolist() == [0, size // 4, size // 2, size - 1]


class TestEdges:
    def test_uniform_zero_never_draws_a_token_of_probability_zero(self) -> None:
        logits = torch.tensor([[-torch.inf, -torch.inf, 0.0, -torch.inf, 0.0]])
        assert draw(logits, torch.zeros(1, dtype=torch.float64), Warp()).tokens.tolist() == [2]

    def test_uniform_near_one_stays_on_the_last_token_above_zero(self) -> None:
        logits = torch.full((1, 3000), -torch.inf)
        logits[0, [5, 700, 1300]] = torch.tensor([1.0, 2.0, 0.1])
        assert draw(logits, torch.tensor([ALMOST_ONE]).double(), Warp()).tokens.tolist() == [1300]

    @pytest.mark.parametrize("value", [0.0, 0.1, 0.3, 1 / 3, 0.5, 0.9, ALMOST_ONE])
    def test_no_uniform_draws_a_masked_token(self, value: float) -> None:
        generator = torch.Generator().manual_seed(3)
        logits = torch.randn(64, 2000, generator=generator) * 20
        logits[torch.rand(64, 2000, generator=generator) < 0.7] = -torch.inf
        drawn = draw(logits, torch.full((64,), value, dtype=torch.float64), Warp())
        assert torch.isfinite(logits.gather(-1, drawn.tokens[:, None])).all()
        assert drawn.finite.all()

    def test_one_token_alone(self) -> None:
        drawn = draw(torch.tensor([[3.0]]), torch.tensor([0.7]).double(), Warp())
        assert (drawn.tokens.item(), drawn.logprobs.item()) == (0, 0.0)

    def test_low_temperatures_are_greedy_down_to_the_smallest(self) -> None:
        logits = torch.tensor([[1.0, 1.5, 1.4]])
        for temperature in (1e-3, 1e-30, 5e-324):
            assert counts(logits, stratified(20), Warp(temperature)).tolist() == [0, 20, 0]

    def test_high_temperature_is_uniform(self) -> None:
        assert counts(torch.tensor([[1.0, 5.0, -5.0, 0.0]]), stratified(40), Warp(1e9)).tolist() == [10] * 4

    def test_half_precision_logits(self) -> None:
        logits = torch.tensor([[1.0, 2.0, 3.0]])
        for dtype in (torch.bfloat16, torch.float16):
            half = draw(logits.to(dtype).expand(90, -1), stratified(90), Warp())
            assert torch.equal(half.tokens, draw(logits.expand(90, -1), stratified(90), Warp()).tokens)

    def test_a_row_is_drawn_alike_alone_and_among_others(self) -> None:
        generator = torch.Generator().manual_seed(5)
        logits = torch.randn(9, 4000, generator=generator) * 3
        uniform = torch.rand(9, generator=generator, dtype=torch.float64)
        for warp in (Warp(), Warp(0.7, top_k=50), Warp(1.3, top_p=0.95), Warp(1.0, 300, 0.8)):
            together = draw(logits, uniform, warp).tokens
            alone = torch.cat([draw(logits[i : i + 1], uniform[i : i + 1], warp).tokens for i in range(9)])
            assert torch.equal(together, alone)

    def test_the_logits_are_left_as_they_were(self) -> None:
        logits = torch.tensor([[0.0, torch.nan], [1.0, 2.0]])
        before = logits.clone()
        draw(logits, torch.zeros(2).double(), Warp(0.5, 1, 0.5))
        assert torch.equal(logits, before) or torch.equal(logits.isnan(), before.isnan())


class TestTopKAndTopP:
    def test_top_k_keeps_the_likeliest(self) -> None:
        found = counts(logits_of(0.1, 0.4, 0.2, 0.3), stratified(700), Warp(top_k=2))
        assert found.tolist() == [0, 400, 0, 300]

    def test_top_k_keeps_ties_with_the_last_one(self) -> None:
        found = counts(logits_of(0.2, 0.4, 0.2, 0.2), stratified(100), Warp(top_k=2))
        assert found.tolist() == [20, 40, 20, 20]

    @pytest.mark.parametrize("top_k", [0, 4, 100])
    def test_top_k_off_or_beyond_the_vocabulary_keeps_all(self, top_k: int) -> None:
        assert counts(logits_of(0.1, 0.4, 0.2, 0.3), stratified(100), Warp(top_k=top_k)).tolist() == [10, 40, 20, 30]

    @pytest.mark.parametrize(
        ("top_p", "kept"),
        [(1e-9, {1}), (0.39, {1}), (0.41, {1, 3}), (0.69, {1, 3}), (0.71, {1, 2, 3}), (0.95, {0, 1, 2, 3})],
    )
    def test_top_p_keeps_the_smallest_set_that_holds_the_mass(self, top_p: float, kept: set[int]) -> None:
        found = counts(logits_of(0.1, 0.4, 0.2, 0.3), stratified(1000), Warp(top_p=top_p))
        assert set(found.nonzero()[:, 0].tolist()) == kept

    def test_top_p_acts_inside_top_k(self) -> None:
        """After top-k the two left have 4/7 and 3/7: the first alone holds 0.55 of the mass, not only 0.4."""
        found = counts(logits_of(0.1, 0.4, 0.2, 0.3), stratified(100), Warp(top_k=2, top_p=0.55))
        assert found.tolist() == [0, 100, 0, 0]

    def test_top_p_acts_after_temperature(self) -> None:
        logits = logits_of(0.1, 0.4, 0.2, 0.3)
        assert (counts(logits, stratified(100), Warp(temperature=0.2, top_p=0.75)) > 0).sum() == 1
        assert (counts(logits, stratified(100), Warp(temperature=5.0, top_p=0.75)) > 0).sum() == 3

    def test_a_wide_nucleus_is_found_by_looking_further(self) -> None:
        """Some 780 of 900 near-equal tokens hold the mass: far beyond the first few hundred looked at."""
        logits = torch.linspace(0.0, 1e-3, 900)[None]
        kept = counts(logits, stratified(7200), Warp(top_p=0.8667)) > 0
        probabilities = logits[0].double().softmax(-1).sort(descending=True).values
        assert int(kept.sum()) == int((probabilities.cumsum(-1) < 0.8667).sum()) + 1
        assert kept[-1] and not kept[0]

    def test_rows_with_different_nuclei(self) -> None:
        logits = torch.zeros(2, 1000)
        logits[0, 3] = 50.0
        drawn = draw(logits, torch.tensor([0.999, 0.999]).double(), Warp(top_p=0.9))
        assert drawn.tokens[0] == 3
        assert drawn.tokens[1] == 999  # ties: all equal tokens stay


class TestNonFinite:
    @pytest.mark.parametrize("warp", [Warp(), Warp(0.5, top_k=2, top_p=0.9)])
    def test_broken_rows_are_told_and_leave_the_others_alone(self, warp: Warp) -> None:
        good = [1.0, 3.0, 2.0]
        inf, nan = torch.inf, torch.nan
        rows = [good, [nan, 0, 0], [0, inf, 0], [-inf, -inf, -inf], [nan, nan, nan], [0, nan, -inf], good]
        drawn = draw(torch.tensor(rows), torch.full((7,), 0.5).double(), warp)
        assert drawn.finite.tolist() == [True, *[False] * 5, True]
        assert drawn.tokens.tolist() == [1, 0, 0, 0, 0, 0, 1]
        assert drawn.logprobs.isfinite().tolist() == drawn.finite.tolist()

    def test_a_masked_token_does_not_break_its_row(self) -> None:
        drawn = draw(torch.tensor([[-torch.inf, 0.0, 1.0]]), torch.tensor([0.1]).double(), Warp())
        assert drawn.finite.item() and drawn.tokens.item() == 1
