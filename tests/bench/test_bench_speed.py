"""What the benches of speed count, on a few small images: no time is asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench import _timing, adaptive, command, reading, refill, scale
from vlmgate.data import Caption, Sampled
from vlmgate.gate.rules import make_gate


def test_ways_take_turns_and_the_first_round_does_not_count() -> None:
    order: list[str] = []
    taken = _timing.interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b"] * 3 and {name: len(values) for name, values in taken.items()} == {"a": 2, "b": 2}
    assert _timing.ratios({"a": [2.0, 3.0], "b": [1.0, 2.0]}, "a", "b") == [2.0, 1.5]
    assert _timing.spread([3.0, 1.0, 2.0], 1) == "2.0 (1.0 to 3.0)"
    assert _timing.table(["", "n"], [["a", 1]]) == "|  | n |\n| --- | ---: |\n| a | 1 |"


def test_the_bench_of_scale_scans_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scale.main(["--sizes", "60", "--samples", "2", "--json", str(tmp_path / "s.json")])
    told = json.loads((tmp_path / "s.json").read_text())["figures"]["60"]
    assert told["images"] == 60 and told["resume_seconds"] <= told["rerun_seconds"] and told["journal_megabytes"] > 0
    assert "| resume_seconds |" in capsys.readouterr().out


def test_the_bench_of_reading_reads_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--width", "400", "--height", "300", "--images", "2", "--rounds", "1"]
    reading.main([*sizes, "--json", str(tmp_path / "r.json")])
    assert set(json.loads((tmp_path / "r.json").read_text())["figures"]["seconds"]) == {"whole", "smaller"}
    assert "images/s" in capsys.readouterr().out


def test_the_bench_of_refill_ends_rows_where_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--image-tokens", "4", "--batch", "2", "--samples", "2", "--tokens", "8", "--layers", "1"]
    refill.main([*sizes, "--hidden", "64", "--rounds", "1", "--json", str(tmp_path / "f.json")])
    figures = json.loads((tmp_path / "f.json").read_text())["figures"]
    assert {name: len(values) for name, values in figures["seconds"].items()} == {
        **{"full": 1, "prefill": 1},
        **{f"ended {share}": 1 for share in refill.SHARES},
    }
    assert all(figures[f"saved from {share}"][0] < 1 for share in refill.SHARES)
    assert "| 25% to 100 % |" in capsys.readouterr().out


def test_the_bench_of_the_command_takes_of_every_kind(tmp_path: Path) -> None:
    found = command._some(tmp_path / "in", 8)
    assert len({path.parent.name for path in found.rglob("*.*")}) == 8
    assert command._read(lambda batch: [str(len(batch))] * len(batch), [None] * 5, 3) == ["3", "3", "3", "2", "2"]  # type: ignore[list-item]


def test_the_bench_of_adaptive_sampling_holds_decisions_against_those_of_all() -> None:
    same = Sampled((Caption("a dent", "stop", -0.1, 3),) * 16)
    late = Sampled((*same.captions[:8], *(Caption(f"a {c}", "stop", -0.1, 3) for c in "bcdefghi")))
    gate = make_gate(num_samples=16, threshold=2.0, limits=("novelty <= 1",))
    reads = [(same, 0.5), (late, 0.5), (late, 1.5)]
    found = adaptive.outcome(reads, gate, 4, 16)
    assert (found.images, found.differ, found.accepted_wrongly, found.stopped) == (3, 0, 0, 2)
    assert found.samples_of_all == 48 > found.samples
    found = adaptive.outcome(reads, gate, 4, 16, equal=8)
    assert (found.images, found.differ, found.accepted_wrongly, found.stopped) == (3, 1, 1, 3)
    assert found.samples == 8 + 8 + 4
    assert found.tokens_of_all == 3 * 48 and found.saving == found.tokens_of_all / found.tokens
    low, high = found.interval
    assert 0 < low < 1 / 3 < high < 1
