"""Vision features: of the right image, from the forward that captions, and none where it is unclear."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from tests.support import tiny_models
from tests.support.tiny_models import SIZES, in_float64, picture
from vlmgate.captioner import load_captioner
from vlmgate.captioner.local.engine import TransformersCaptioner
from vlmgate.captioner.local.features import WIDTH, FeatureTap, _as_tokens, _pooled, _shares
from vlmgate.captioner.location import weights_folder
from vlmgate.config import ModelConfig, SamplingConfig
from vlmgate.data import Picture, Sampled

PICTURES = [picture(i, size) for i, size in enumerate(SIZES)]

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings(
        # numpy's, at PaliGemma's processor, which turns torch tensors into arrays the old way
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
    ),
]


@pytest.fixture(scope="module", params=sorted(tiny_models.FAMILIES))
def captioner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TransformersCaptioner:
    folder = tiny_models.build(request.param, tmp_path_factory.getbasetemp() / "tiny")
    engine = load_captioner(
        ModelConfig(model=str(folder), device="cpu"), SamplingConfig(num_samples=2, max_new_tokens=2)
    )
    return in_float64(engine)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def together(captioner: TransformersCaptioner) -> NDArray[np.float64]:
    """Return the features of all pictures, read in one batch."""
    return table(captioner.read(PICTURES))


def table(sampled: list[Sampled]) -> NDArray[np.float64]:
    assert all(one.features is not None for one in sampled)
    return np.array([one.features for one in sampled])


# --- every family -----------------------------------------------------------------------------------------------------


def test_they_are_few_and_tell_pictures_apart(together: NDArray[np.float64]) -> None:
    assert together.shape[0] == len(PICTURES) and 32 <= together.shape[1] <= 3 * WIDTH
    for a, b in itertools.combinations(together, 2):
        assert np.abs(a - b).max() > 0.05


def test_they_belong_to_the_picture_whatever_the_batch_and_the_order(
    captioner: TransformersCaptioner, together: NDArray[np.float64]
) -> None:
    alone = table([captioner.read([one])[0] for one in PICTURES])
    assert together == pytest.approx(alone, abs=1e-4)
    order = [3, 0, 4, 1, 2]
    assert together[order] == pytest.approx(table(captioner.read([PICTURES[i] for i in order])), abs=1e-4)


def test_a_look_shows_the_same_without_a_caption(
    captioner: TransformersCaptioner, together: NDArray[np.float64], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captioner._runner, "_caption", None)
    assert np.array(captioner.look(PICTURES)) == pytest.approx(together, abs=1e-4)


def test_they_come_from_layers_of_the_vision_tower_in_its_only_run(captioner: TransformersCaptioner) -> None:
    names = {module: name for name, module in captioner._runner.checkpoint.model.named_modules()}
    tower = captioner._runner.tap._towers[0]
    assert all("vision" in names[layer] or "visual" in names[layer] for layer in tower)
    calls: list[nn.Module] = []
    hooks = [layer.register_forward_hook(lambda layer, *_: calls.append(layer)) for layer in tower]
    captioner.read(PICTURES)
    for hook in hooks:
        hook.remove()
    assert calls == tower


def test_they_are_means_and_deviations_over_the_tokens_of_a_layer(
    captioner: TransformersCaptioner, together: NDArray[np.float64]
) -> None:
    """Computed again by hand, of one picture alone, tile by tile."""
    seen: list[torch.Tensor] = []
    layer = captioner._runner.tap._towers[0][-1]
    hook = layer.register_forward_hook(
        lambda _module, _args, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    captioner.read(PICTURES[4:])
    hook.remove()
    output = seen[0].numpy()
    if output.ndim == 4:  # (1, C, H, W)
        output = output.reshape(*output.shape[:2], -1).swapaxes(1, 2)
    tiles = output.reshape(-1, *output.shape[-2:])  # (tiles, L, D)
    expected = np.concatenate([tiles.mean(1).mean(0), tiles.std(1).mean(0)])
    assert together[4][-len(expected) :] == pytest.approx(expected, abs=1e-4)


# --- a tower of one's own ---------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.linear(x), None


class Model(nn.Module):
    """A vision tower, a text model that is larger, and a tower that pictures do not pass through."""

    def __init__(self, width: int = 8, times: int = 1) -> None:
        super().__init__()
        self.times = times
        self.sound = nn.ModuleList(Block(5 * width) for _ in range(4))
        self.vision = nn.ModuleList(Block(width) for _ in range(5))
        self.text = nn.Module()
        self.text.embed = nn.Embedding(10, width)
        self.text.layers = nn.ModuleList(Block(4 * width) for _ in range(9))

    def get_input_embeddings(self) -> nn.Module:
        return self.text.embed  # type: ignore[return-value]

    def forward(self, x: torch.Tensor) -> None:
        with torch.inference_mode():
            for _ in range(self.times):
                for block in self.vision:
                    x = block(x)[0]


def features(model: Model, x: torch.Tensor, counts: list[int]) -> list[tuple[float, ...] | None]:
    tap = FeatureTap(model)
    with tap.watching(counts):
        model(x)
    return tap.take(len(counts))


def test_text_and_towers_that_do_not_run_are_left_out() -> None:
    (row,) = features(Model(), torch.ones(1, 7, 8), [7])
    assert row is not None and len(row) == 3 * 2 * 8


def test_a_tower_that_runs_twice_gives_none() -> None:
    assert features(Model(times=2), torch.ones(2, 7, 8), [7, 7]) == [None, None]


def test_rows_that_cannot_be_told_apart_give_none() -> None:
    assert features(Model(), torch.ones(3, 7, 8), [7, 7]) == [None, None]


def test_numbers_that_are_not_finite_give_none_for_their_image_alone() -> None:
    pixels = torch.rand(3, 7, 8)
    pixels[1, 2, 3] = torch.nan
    first, second, third = features(Model(), pixels, [7, 7, 7])
    assert second is None and first is not None and third is not None
    wide = features(Model(width=200), torch.full((1, 7, 200), torch.inf), [7])
    assert wide == [None]


def test_nothing_is_kept_of_what_was_not_watched() -> None:
    model = Model()
    tap = FeatureTap(model)
    model(torch.ones(2, 7, 8))
    assert tap.take(2) == [None, None]
    with tap.watching([7, 7]):
        model(torch.ones(2, 7, 8))
    assert None not in tap.take(2)
    assert tap.take(2) == [None, None]


def test_wide_layers_are_projected_and_keep_their_distances() -> None:
    torch.manual_seed(0)
    pixels = torch.randn(8, 7, 400)
    model = Model(width=400)
    rows = features(model, pixels, [7] * 8)
    assert all(row is not None and len(row) == 3 * WIDTH for row in rows)
    again = features(model, pixels, [7] * 8)
    assert rows == again
    first = np.array(rows)[:, :WIDTH]
    with torch.inference_mode():
        output = model.vision[0](pixels)[0]
    exact = torch.cat([output.mean(1), output.std(1, correction=0)], -1).numpy()
    for a, b in itertools.combinations(range(8), 2):
        assert np.linalg.norm(first[a] - first[b]) == pytest.approx(np.linalg.norm(exact[a] - exact[b]), rel=0.25)


class TestGrouping:
    @pytest.mark.parametrize(
        ("total", "counts", "shares"),
        [
            (3, [16, 16, 16], [1, 1, 1]),
            (3, [1, 1, 1], [1, 1, 1]),
            (7, [20, 4, 4], [5, 1, 1]),  # tiles of 4 tokens
            (96, [4, 20], [16, 80]),  # patches, 4 to a token
            (24, [4, 20], [4, 20]),
            (1, [16], [1]),
            (8, [100, 200], None),
            (6, [9, 9], [3, 3]),
            (6, [10, 20], [2, 4]),
            (6, [11, 19], None),
            (5, [0, 0], None),
        ],
    )
    def test_rows_are_shared_out_in_proportion_or_not_at_all(
        self, total: int, counts: list[int], shares: list[int] | None
    ) -> None:
        assert _shares(total, counts) == shares

    def test_tiles_are_averaged_and_packed_tokens_are_split(self) -> None:
        tiles = torch.rand(3, 5, 2, generator=torch.Generator().manual_seed(1))
        pooled = _pooled(tiles, [10, 5])
        assert pooled is not None and torch.allclose(pooled[0, :2], tiles[:2].mean((0, 1)))
        packed = tiles.flatten(0, 1)  # (15, 2)
        for form in (packed, packed[None]):
            pooled = _pooled(form, [10, 5])
            assert pooled is not None and torch.allclose(pooled[1, :2], packed[10:].mean(0))
            assert torch.allclose(pooled[1, 2:], packed[10:].std(0, correction=0))

    def test_maps_tell_their_channels_by_being_square(self) -> None:
        maps = torch.rand(2, 3, 4, 4)
        first, last = _as_tokens(maps), _as_tokens(maps.permute(0, 2, 3, 1))
        assert first is not None and last is not None and torch.equal(first, last)
        assert first.shape == (2, 16, 3)
        assert _as_tokens(torch.rand(2, 4, 4, 4)) is None
        assert _as_tokens(torch.rand(2, 3, 4, 5)) is None
        assert _as_tokens(torch.rand(2)) is None


@pytest.mark.skipif(not (weights_folder() / "model.safetensors").exists(), reason="the built-in weights are not there")
def test_the_builtin_model_has_features_of_three_depths() -> None:
    engine = load_captioner(ModelConfig(device="cpu"), SamplingConfig(num_samples=2, max_new_tokens=2))
    read: list[Sampled] = engine.read([picture(i, (160, 120)) for i in range(3)])
    rows: Any = table(read)
    assert 300 < rows.shape[1] <= 3 * WIDTH
    one: Picture = picture(0, (160, 120))
    assert rows[0] == pytest.approx(engine.read([one])[0].features, abs=1e-3)
