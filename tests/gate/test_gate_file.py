"""A gate file says the same when it is read again, and is refused where it would not hold."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmgate.config import SamplingConfig
from vlmgate.errors import GateError
from vlmgate.gate.drift import Kept
from vlmgate.gate.file import GateFile, differences, read_gate, sampling_of, text_of
from vlmgate.gate.rules import Gate, Limit, never
from vlmgate.store.result import read_provenance, write_gate, write_result

SAMPLING = SamplingConfig(question="Which?", choices=("ok", "a dent"), num_samples=8)


def a_gate(**changes: object) -> GateFile:
    from dataclasses import asdict

    gate = Gate(
        "vendi_score", 1.75, limits=(Limit("novelty", "<=", 1.0), Limit("vendi_score", "<=", 1.25, answer="ok"))
    )
    made = GateFile(
        gate=gate,
        kernel="words",
        model="builtin",
        revision=None,
        checkpoint={"model": "builtin", "content": "ab"},
        sampling=sampling_of(asdict(SAMPLING)),
        data={"date": "2026-11-25T20:00:00", "images": 208, "classes": {"ok": 100, "a dent": 108}},
        promise={"target": "risk", "target_risk": 0.05, "confidence": 0.95},
        drift={"noise": Kept(30, tuple(i / 7 for i in range(101)))},
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "gate.toml"
    write_gate(path, a_gate(), ["for people:\n[gate] = never"])
    read = read_gate(path)
    assert read.gate.threshold == 1.75 and read.gate.origin == "gate.toml, 2026-11-25"
    assert read.gate.limits == a_gate().gate.limits
    assert read.sampling["choices"] == SAMPLING.choices
    assert read.drift["noise"].count == 30 and len(read.drift["noise"].quantiles) == 101
    assert "vendi_score ≤ 1.25 where the answer is 'ok'" in read.gate.describe()
    assert path.read_text(encoding="utf-8").count("\n[gate]") == 1


def test_an_answer_that_is_never_accepted_stays_so(tmp_path: Path) -> None:
    gate = replace(a_gate().gate, limits=(never("vendi_score", "ok"),))
    write_gate(tmp_path / "g.toml", a_gate(gate=gate))
    (limit,) = read_gate(tmp_path / "g.toml").gate.limits
    assert limit.answer == "ok" and not limit.holds(1.0)


def test_a_limit_on_an_answer_that_no_choice_is_says_so(tmp_path: Path) -> None:
    gate = replace(a_gate().gate, limits=(never("vendi_score", "OK"),))
    write_gate(tmp_path / "g.toml", a_gate())
    text = (tmp_path / "g.toml").read_text(encoding="utf-8").replace('answer = "ok"', 'answer = "OK"')
    (tmp_path / "g.toml").write_text(text, encoding="utf-8")
    assert gate.limits[0].answer in text
    with pytest.raises(GateError, match="limits the answer 'OK', which is none of its choices"):
        read_gate(tmp_path / "g.toml")


HOSTILE = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30).filter(str.strip)


@settings(deadline=None)
@given(prompt=HOSTILE, label=HOSTILE)
def test_no_text_escapes_its_place(tmp_path_factory: pytest.TempPathFactory, prompt: str, label: str) -> None:
    path = tmp_path_factory.mktemp("gate") / "gate.toml"
    made = a_gate(data={"date": label, "classes": {label: 3}}, sampling=a_gate().sampling | {"prompt": prompt})
    path.write_text(text_of(made, [label], path), encoding="utf-8")  # not forced to the disk a hundred times
    assert read_gate(path).sampling["prompt"] == prompt
    assert tomllib.loads(path.read_text(encoding="utf-8"))["data"]["classes"] == {label: 3}


def test_a_former_gate_is_kept_aside(tmp_path: Path) -> None:
    for _ in range(2):
        write_gate(tmp_path / "gate.toml", a_gate())
    assert (tmp_path / "gate.old.toml").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": "Something else"}, "prompt"),
        ({"num_samples": 4}, "num-samples"),
        ({"temperature": 0.7}, "temperature"),
        ({"choices": ("ok", "a crack")}, "choices"),
        ({"abstain": False}, "abstain"),
        ({"views": 2}, "views"),
    ],
)
def test_other_sampling_is_named(changes: dict[str, object], said: str) -> None:
    found = differences(a_gate(), replace(SAMPLING, **changes), {"model": "builtin", "content": "ab"}, "first")  # type: ignore[arg-type]
    assert len(found) == 1 and said in found[0]


def test_batch_size_and_seed_are_free_and_weights_are_not() -> None:
    free = replace(SAMPLING, batch_size=3, seed=99, view_noise=5.0)
    assert differences(a_gate(), free, {"model": "builtin", "content": "ab"}, "first") == []
    assert differences(a_gate(), SAMPLING, {"model": "builtin", "content": "cd"}, "first") == [
        "another model or other weights"
    ]
    assert "pages all" in differences(a_gate(), SAMPLING, {"model": "builtin", "content": "ab"}, "all")[0]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("vlmgate_gate = 1", "vlmgate_gate = 2", "version"),
        ('score = "vendi_score"', 'score = "beauty"', "known score"),
        ("threshold = 1.75", "threshold = nan", "finite threshold"),
        ("threshold = 1.75", "threshold =", "not valid TOML"),
        ('"novelty <= 1"', '"novelty >= 1"', "worst"),
        ("num_samples = 8", "num_samples = 1", "num_samples"),
        ("[reads.checkpoint]", "[elsewhere]", None),
    ],
)
def test_a_damaged_gate_is_refused_in_one_line(tmp_path: Path, old: str, new: str, said: str | None) -> None:
    path = tmp_path / "gate.toml"
    write_gate(path, a_gate())
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    if said is None:
        assert differences(read_gate(path), SAMPLING, {"model": "builtin", "content": "ab"}, "first")
        return
    with pytest.raises(GateError, match=said) as caught:
        read_gate(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_gate_names_who_writes_one(tmp_path: Path) -> None:
    with pytest.raises(GateError, match="vlmgate calibrate"):
        read_gate(tmp_path / "none.toml")


def test_a_result_says_that_an_answer_is_never_accepted(tmp_path: Path) -> None:
    """JSON has no infinity; a gate with such a limit left a night without its result."""
    kept = {"kernel": "words", "folder": "in", "sampling": {}, "image_config": {}, "fingerprint": {}}
    for score in ("vendi_score", "agreement"):
        gate = Gate(score, 0.5, limits=(never(score, "ok"),))
        write_result(tmp_path / "r.parquet", [], {"run_id": score, "gate": gate.told()} | kept)
        assert Gate.of(read_provenance(tmp_path / "r.parquet")["gate"]) == gate
