"""What the benches count, on made-up readings: no model, and no time that is asserted."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.bench import _common, _peers, engine, export, limits, scores, views
from tests.bench._anomalies import KINDS
from tests.bench._common import Area, Drawing, Read, Source, area, resampled
from tests.bench.builtin import auroc
from vlmgate.data import Caption, Quality, Sampled
from vlmgate.factory.world import DEGRADATIONS, Defect, Truth
from vlmgate.gate.rules import HIGHER_IS_WORSE
from vlmgate.scores.diversity import WordKernel, load_kernel
from vlmgate.scores.novelty import pack
from vlmgate.store.result import read_result

SURE = "A brass washer with a crack at the center."
OTHERS = ("A brass washer without defects.", "A copper gear with rust at the lower left.", "A steel plate with a dent.")
TRUTH = Truth("washer", "brass", (Defect("crack", "center"),))


def captions(*texts: str) -> tuple[Caption, ...]:
    return tuple(Caption(text, "stop", -0.1 * (i + 1), len(text.split())) for i, text in enumerate(texts))


def made_up(number: int, group: str, samples: int = 4, views: tuple[int, ...] | None = None) -> Read:
    """Return a reading that is the more divided the higher its number, modulo the samples."""
    divided = number % samples
    texts = [SURE] * (samples - divided) + [OTHERS[i % len(OTHERS)] for i in range(divided)]
    answers = ["crack"] * (samples - divided // 2) + ["unsure"] * (divided // 2)
    return Read(
        group=group,
        said=Sampled(captions(*texts), captions(*answers), views=views),
        truth=None if group in KINDS else TRUTH,
        novelty=0.5 + number / 10,
        features=pack([float(number), 1.5, -2.0]),
        quality=Quality(100.0 + number, 0.5 - number / 100, 0.2, 3.0, 0.0, None),
    )


@pytest.fixture
def reads() -> list[Read]:
    groups = ["clean"] * 12 + [DEGRADATIONS[0], DEGRADATIONS[1]] * 5 + list(KINDS) * 2
    return [made_up(i, group) for i, group in enumerate(groups)]


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(Drawing(1, 12, 1, 2), model=str(tmp_path / "nowhere"))


# --- areas ------------------------------------------------------------------------------------------------------------


def test_the_area_counts_pairs_and_ties_half() -> None:
    counts = resampled(4, 10, 0)
    assert area([1, 2, 3, 4], [False, False, True, True], counts).value == 1.0
    assert area([4, 3, 2, 1], [False, False, True, True], counts).value == 0.0
    assert area([5, 5, 5, 5], [False, False, True, True], counts).value == 0.5
    assert area([1, 2, 2, math.inf], [False, False, True, True], counts).value == (1 + 0.5 + 2) / 4


def test_the_area_of_every_resample_is_that_of_its_images() -> None:
    random = np.random.default_rng(3)
    values, bad = random.integers(0, 5, 40).astype(float), random.random(40) < 0.3
    counts = resampled(40, 20, 5)
    found = area(values, bad, counts)
    assert found.value == pytest.approx(auroc(values[bad].tolist(), values[~bad].tolist()))
    for draw, times in zip(found.draws, counts, strict=True):
        drawn = np.repeat(np.arange(40), times)
        assert draw == pytest.approx(auroc(values[drawn][bad[drawn]].tolist(), values[drawn][~bad[drawn]].tolist()))


def test_the_interval_covers_the_area_and_is_the_same_for_the_same_seed() -> None:
    random = np.random.default_rng(1)
    bad = random.random(300) < 0.3
    values = random.normal(size=300) + bad
    one, same, other = (area(values, bad, resampled(300, 500, seed)) for seed in (7, 7, 8))
    low, high = one.interval
    assert low < one.value < high and high - low < 0.2
    assert one.interval == same.interval != other.interval


def test_a_score_differs_from_itself_by_exactly_nothing() -> None:
    random = np.random.default_rng(2)
    bad, values = random.random(50) < 0.5, random.normal(size=50)
    one = area(values, bad, resampled(50, 100, 1))
    difference = one.minus(one)
    assert difference.value == 0.0 and difference.interval == (0.0, 0.0)
    assert difference.text(signed=True) == "+0.000 (+0.000 to +0.000)"


def test_without_anything_to_find_there_is_no_area() -> None:
    for found in (area([1, 2], [False, False], resampled(2, 5, 1)), area([], [], resampled(0, 5, 1))):
        assert math.isnan(found.value) and found.text() == "-"
        assert found.told() == {"value": None, "low": None, "high": None}


def test_resamples_without_both_kinds_do_not_count() -> None:
    low, high = Area(0.5, np.array([0.2, math.nan, 0.4])).interval
    assert 0.2 <= low <= high <= 0.4


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        area([1.0, math.nan], [True, False], resampled(2, 3, 1))


# --- readings ---------------------------------------------------------------------------------------------------------


def test_readings_come_back_as_they_were(tmp_path: Path, reads: list[Read], source: Source) -> None:
    several = [*reads, made_up(3, "clean", views=(0, 0, 1, 1))]
    path = tmp_path / "kept" / "readings.json"
    _common.save(path, source.key(), several)
    assert _common.load(path, source.key()) == several
    assert [file.name for file in path.parent.iterdir()] == ["readings.json"]


def test_readings_of_other_images_or_weights_are_refused(tmp_path: Path, reads: list[Read], source: Source) -> None:
    path = tmp_path / "readings.json"
    _common.save(path, source.key() | {"checkpoint": "one"}, reads)
    assert _common.load(path, source.key()) == reads  # the model is not here: nothing to compare
    with pytest.raises(SystemExit, match="another checkpoint"):
        _common.load(path, source.key() | {"checkpoint": "another"})
    with pytest.raises(SystemExit, match="another drawing"):
        _common.load(path, Source(Drawing(2), model=source.model).key())


def test_fewer_samples_are_the_first_and_are_judged_anew() -> None:
    divided = Read("clean", Sampled(captions(SURE, *OTHERS[:1] * 3), captions(*"abcd")), TRUTH)
    assert divided.wrong and not divided.first(1).wrong
    assert divided.first(2).said == Sampled(divided.said.captions[:2], captions(*"ab"))


def test_the_tasks_are_the_mixed_set_and_anomalies_against_clean(reads: list[Read]) -> None:
    wrong, strange = _common.tasks(reads, 1, 5)
    assert len(wrong.bad) == 10 + 10 and len(strange.bad) == 12 + 8  # no more clean than degraded; all of them
    assert [reads[i].wrong for i in wrong.chosen] == wrong.bad.tolist()
    assert strange.found == "8 of 20"


def test_scores_that_a_kernel_does_not_change_are_told_apart(reads: list[Read], source: Source) -> None:
    class Alike(WordKernel):
        def __call__(self, texts: object) -> np.ndarray:
            kernel = np.ones((4, 4)) * 0.3 + np.eye(4) * 0.7
            kernel[3, :3] = kernel[:3, 3] = 0.6  # the last is the typical one
            return kernel

    viewed = [made_up(i, read.group, views=(0, 0, 1, 1)) for i, read in enumerate(reads)]
    by_words, alike = (_common.scores_of(viewed, source.sampling, kernel) for kernel in (WordKernel(), Alike()))
    changed = {name for name in by_words if not np.array_equal(by_words[name], alike[name])}
    assert changed == set(_common.OF_KERNEL)


# --- tables -----------------------------------------------------------------------------------------------------------


def rows_of(reads: list[Read], source: Source) -> tuple[list[scores.Row], list[_common.Task]]:
    over = _common.tasks(reads, 1, 50)
    peer = {"a peer": np.arange(len(reads), dtype=float)}
    kernels = {"findings": load_kernel("findings"), "words": WordKernel()}
    return scores.compared(reads, source.sampling, over, kernels, peer, 1), over


def test_every_score_stands_in_the_tables_once_for_each_kernel(reads: list[Read], source: Source) -> None:
    rows, over = rows_of(reads, source)
    ours = [(row.name, row.kernel) for row in rows if row.kind == "ours"]
    of_kernel = [name for name in _common.OF_KERNEL if name != "view_contrast"]
    others = [n for n in HIGHER_IS_WORSE if n not in (*_common.OF_KERNEL, *_common.OF_QUALITY)]
    assert sorted(ours) == sorted(
        [*itertools.product(of_kernel, ("findings", "words")), *((name, "") for name in others)]
    )
    text = "\n".join(sheet.markdown() for sheet in scores.sheets(rows, over, "a caption"))
    for row in rows:
        assert f"| {'peer: ' * (row.kind == 'peer')}{row.name} | {row.kernel or '-'} |" in text
    for name in ("random", "caption length", "image: sharpness", "image: exposure, away from the clean median"):
        assert any(row.name.startswith(name) for row in rows if row.kind == "simple")
    assert not any("clipped_bright" in row.name for row in rows)  # no image has a value
    json.dumps(scores.figures(rows, over), allow_nan=False)


def test_each_score_stands_against_that_of_before(reads: list[Read], source: Source) -> None:
    rows, _ = rows_of(reads, source)
    pairs = {new.label: old.label for new, old in scores.successors(rows)}
    assert pairs["cocoa, findings"] == "cocoa, words" and pairs["vendi_score, findings"] == "vendi_score, words"
    assert {pairs[name] for name in ("support, findings", "verdict_share", "contradiction")} == {"vendi_score, words"}
    assert not any(row.kind != "ours" for pair in scores.successors(rows) for row in pair)


def test_limits_are_counted_by_what_they_accept_and_by_what_of_that_is_wrong() -> None:
    dent, crack = captions(*["A brass washer with a dent."] * 4), captions(*[SURE] * 4)
    both, none = captions(*[SURE] * 3, OTHERS[1]), captions(*[SURE] * 3, OTHERS[0])
    reads = [Read("clean", Sampled(said), TRUTH, 0.5) for said in (dent, crack, both, none)]
    reads += [Read(KINDS[0], Sampled(crack), None, far) for far in (0.5, 1.5)]
    told = [
        limits.accepted(reads, "findings", vendi, disputed) for vendi, disputed in ((1.25, 0.0), (2, 0.0), (2, 0.5))
    ]
    assert [(one.parts, one.accepted, one.wrong, one.strange) for one in told] == [
        (4, 2, 1, 1),
        (4, 3, 1, 1),
        (4, 4, 1, 1),
    ]


def test_ours_loses_only_outside_the_interval(reads: list[Read], source: Source) -> None:
    rows, over = rows_of(reads, source)
    anomalies = next(i for i, task in enumerate(over) if task.name == _common.ANOMALY)
    peer = next(row for row in rows if row.kind == "peer")  # orders by number, and anomalies come last
    assert peer.areas[anomalies].value == 1.0
    default = scores.champions(rows, anomalies)["default"]
    assert scores.loses(default, peer, anomalies) and not scores.loses(peer, default, anomalies)
    assert not scores.loses(peer, peer, anomalies)
    assert scores.best(rows, anomalies).name == "novelty"
    lines = list(scores.verdict_lines(rows, over))
    assert any("default" in line and "no, to" in line and "a peer" in line for line in lines)


def test_a_peer_without_a_value_is_least_to_be_trusted() -> None:
    def score(texts: list[str]) -> float:
        if texts == ["none"]:
            raise ValueError("no words")
        return math.nan if texts == ["nan"] else 0.25

    values, without = _peers.values_of(score, [["none"], ["nan"], ["some"]])
    assert values.tolist() == [math.inf, math.inf, 0.25] and without == 2


def test_peers_that_are_not_there_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    found, left_out = _peers.peers(tmp_path)
    assert found == {}
    assert [line.split(":")[0] for line in left_out[1:]] == ["vendi-score", "lm-polygraph"]


# --- views ------------------------------------------------------------------------------------------------------------

SECONDS = {(1, 8): 1.0, (1, 10): 1.2, (1, 12): 1.5, (2, 8): 1.3, (4, 8): 0.9, (8, 8): 9.0}


def test_at_equal_time_one_view_has_the_most_samples_that_take_no_longer() -> None:
    assert [views.same_time(SECONDS, (v, 8)) for v in (2, 4, 8)] == [(1, 10), (1, 8), (1, 12)]


def test_views_are_set_against_one_at_equal_samples_and_time(source: Source, tmp_path: Path) -> None:
    groups = ["clean"] * 6 + [DEGRADATIONS[0]] * 6 + list(KINDS) * 2
    for view, samples in ((1, 12), (2, 8), (4, 8), (8, 8)):
        told = tuple(k * view // samples for k in range(samples)) if view > 1 else None
        made = [made_up(i * 3, group, samples, told) for i, group in enumerate(groups)]
        key = views.of(source, (view, samples)).key()
        _common.save(tmp_path / f"views{view}_samples{samples}.json", key, made)
    found = views.measured(source, tmp_path, SECONDS, 1, 50)
    assert list(found.columns) == [(1, 8), (1, 10), (1, 12), (2, 8), (4, 8), (8, 8)]
    text = "\n".join(sheet.markdown() for sheet in views.sheets(found, "a caption"))
    for name in (*_common.OF_KERNEL, "answer_share", "answer_entropy", "abstain_rate", "mean_logprob"):
        assert f"| {name} |" in text
    assert "V = 2, K = 8 against V = 1, K = 10" in text and "V = 8, K = 8 against V = 1, K = 12" in text
    rows = views.gains(found)
    assert {row["score"] for row in rows} >= {"view_contrast", "vendi_score"}
    assert not {row["score"] for row in rows} & {"novelty", "sharpness"}
    assert len(list(views.verdict_lines(found))) == 4


def test_times_are_kept_for_the_model_they_were_measured_with(tmp_path: Path, source: Source) -> None:
    rows = [{"views": v, "samples": k, "seconds": [s, s + 1, s + 5]} for (v, k), s in SECONDS.items()]
    kept = {"checkpoint": "one", "how": "by hand", "ways": rows}
    (tmp_path / "seconds.json").write_text(json.dumps(kept))
    timing = views.times(source, list(SECONDS), tmp_path, 3, 4)
    assert timing.seconds[1, 8] == 2.0 and timing.how == "by hand"


# --- export -----------------------------------------------------------------------------------------------------------


def test_the_bench_of_exports_tells_rows_and_memory_in_a_table_and_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export.main(["--rows", "3000", "--samples", "2", "--row-groups", "1", "--json", str(tmp_path / "told.json")])
    *table, told = capsys.readouterr().out.splitlines()
    assert json.loads(told) == json.loads((tmp_path / "told.json").read_text())
    figures = json.loads(told)
    assert (figures["rows"], figures["samples"], figures["row_groups"], figures["target"]) == (3000, 2, 1, "csv")
    assert figures["output_bytes"] > 3000 * 100 and figures["rows_per_second"] > 0
    assert 50 < figures["peak_megabytes"] < 500
    assert len(table) == 3 and table[2].startswith("| csv | 3,000 | 1 | ")


def test_the_bench_of_exports_writes_a_result_of_so_many_rows(tmp_path: Path) -> None:
    assert export.write_rows(tmp_path / "r.parquet", 10_001, 2) == 2
    records, provenance = read_result(tmp_path / "r.parquet")
    assert len({record.file_name for record in records}) == 10_001 and provenance["run_id"] == "bench"
    assert {len(record.captions or ()) for record in records} == {2}
    with pytest.raises(SystemExit, match="exit code 2"):
        export.measure(tmp_path / "r.parquet", "nothing", 1, 1, 1)


@pytest.mark.slow
def test_four_ways_to_decode_draw_the_same_number_of_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = {"image-tokens": 16, "batch": 2, "samples": 3, "tokens": 4, "rounds": 1, "layers": 2, "hidden": 256}
    arguments = [text for name, value in shape.items() for text in (f"--{name}", str(value))]
    assert engine.main([*arguments, "--dtype", "float32", "--device", "cpu", "--json", str(tmp_path / "e.json")]) == 0
    told = capsys.readouterr().out
    assert all(f"\n{way}" in told for way in engine.WAYS)
    assert {
        way: len(s) for way, s in json.loads((tmp_path / "e.json").read_text())["seconds"].items()
    } == dict.fromkeys(engine.WAYS, 1)
