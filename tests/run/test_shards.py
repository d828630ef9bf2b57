"""A folder read in shards and merged: the result of one scan, and nothing missing without a word."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.cli.test_cli import fake, run, runner  # noqa: F401 - the fixture lets every command read with a fake
from tests.gate.test_gate_file import a_gate
from tests.story.test_resume import Stopping, stack
from tests.support.documents import only
from tests.support.fakes import AGREE, DISAGREE, FakeCaptioner, SilentProgress, config_for, folder_of, picture_file
from tests.support.paths import ROOT
from vlmgate.captioner.location import model_fingerprint
from vlmgate.cli import app
from vlmgate.config import ImageConfig, ScanConfig, Shard
from vlmgate.data import Reason, Record
from vlmgate.errors import ConfigError, GateError, PartsError, StoreError
from vlmgate.gate.file import sampling_of
from vlmgate.gate.rules import Gate, Limit
from vlmgate.run.loop import scan
from vlmgate.run.merge import Merged, merge
from vlmgate.run.shards import holds, place_of, seen
from vlmgate.store.result import read_result, write_gate, write_result

SHARDS = 4


def said(name: str) -> Sequence[str]:
    """Return captions that disagree more or less, in many degrees, so that a budget has something to order."""
    number = int("".join(c for c in name if c.isdigit()) or 0)
    return AGREE if number % 3 == 0 else (*AGREE, *DISAGREE[: 1 + number % 4])


def read_with() -> FakeCaptioner:
    return FakeCaptioner(
        said, answer=lambda n: ("ok",) if "7" in n else ("ok", "unsure"), features=lambda n: (1.0, 2.0)
    )


def a_folder(path: Path) -> Path:
    """Make a folder with all that may be odd: copies in several shards, broken files, pages, a name in another code."""
    folder_of(path, *(f"line{i % 3}/part_{i:02d}.png" for i in range(40)))
    for name in ("copy_a.png", "copy_b.png", "line9/copy_c.png", "line9/copy_d.png"):
        (path / name).parent.mkdir(exist_ok=True)
        shutil.copy(path / "line1/part_07.png", path / name)
    stack(path / "stack.tif", 5)
    for name in ("broken_1.png", "broken_2.png"):
        (path / name).write_bytes(b"\x89PNG\r\n\x1a\n")
    (path / "nowhere.png").symlink_to(path / "not_there.png")
    (path / "notes.txt").write_text("x")
    return path


def scanned(config: ScanConfig) -> Path:
    scan(config, SilentProgress(), load=read_with().load)
    return config.out


def parts_of(config: ScanConfig, count: int = SHARDS) -> list[Path]:
    """Scan a folder in shards; return the parts, the last shard first."""
    out = config.out.parent
    return [
        scanned(replace(config, shard=Shard(i, count), out=out / f"part{Shard(i, count).suffix}.parquet"))
        for i in range(count, 0, -1)
    ]


def timeless(records: Sequence[Record]) -> list[Record]:
    return [replace(record, seconds=None) for record in records]


def written(done: Merged, path: Path) -> Path:
    write_result(path, done.records, done.provenance)
    return path


# --- which file is whose ----------------------------------------------------------------------------------------------


def test_every_name_is_in_exactly_one_shard_and_shares_are_of_one_size() -> None:
    names = [f"line{i % 7}/part_{i:05d}.png" for i in range(8000)]
    sizes = [number for number, _ in seen(names, 16)]
    assert sum(sizes) == 8000 and min(sizes) > 400 and max(sizes) < 600
    assert all(sum(holds(Shard(i, 16), name) for i in range(1, 17)) == 1 for name in names[:200])


def test_the_split_is_the_same_on_every_machine_and_in_every_version() -> None:
    """Shards of one folder may be read by different machines, days apart; these figures must never change."""
    assert [place_of(name, 16) for name in ("a.png", "line1/part_0001.jpg", "größe.png", "\\xff.png")] == [9, 11, 10, 4]


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "3", "a/b", "1/20000", "-1/4", "", "1/4/2"])
def test_what_is_no_shard_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match="--shard is"):
        Shard.parse(text)
    assert str(Shard.parse(" 3/16 ")) == "3/16" and Shard(3, 16).suffix == ".03-of-16"


# --- merged = scanned at once -----------------------------------------------------------------------------------------

GATES: dict[str, dict[str, object]] = {
    "default": {},
    "share": {"review_budget": "30%"},
    "count": {"review_budget": "9", "limits": ("noise <= 60",)},
    "threshold": {"score": "vendi_score", "threshold": 2.0, "limits": ("mean_logprob >= -3",)},
    "other score": {"score": "cocoa", "review_budget": "12"},
}


@pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
def test_merged_shards_are_what_one_scan_writes(tmp_path: Path, gate: dict[str, object]) -> None:
    folder = a_folder(tmp_path / "in")
    config = config_for(folder, tmp_path / "whole.parquet", images=ImageConfig(pages="all"), **gate)
    config = replace(config, sampling=replace(config.sampling, question="Is it ok?", choices=("ok", "scratch")))
    whole, told = read_result(scanned(config))
    parts = parts_of(config)
    rows, provenance = read_result(written(merge(parts), tmp_path / "all.parquet"))
    assert timeless(rows) == timeless(whole)
    assert timeless(merge(parts[::-1]).records) == timeless(whole)
    own = {"run_id", "started", "finished", "time", "merged", "shard"}
    assert {k: v for k, v in provenance.items() if k not in own} == {k: v for k, v in told.items() if k not in own}
    assert [part["shard"] for part in provenance["merged"]["parts"]] == ["1/4", "2/4", "3/4", "4/4"]
    assert provenance["complete"] is True and provenance["merged"]["missing"] == []


def test_copies_in_several_shards_share_the_reading_of_the_first(tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "in")
    done = merge(parts_of(config_for(folder, tmp_path / "r.parquet")))
    copies = {r.file_name: r.duplicate_of for r in done.records if r.duplicate_of}
    assert copies == dict.fromkeys(
        ("line1/part_07.png", "copy_b.png", "line9/copy_c.png", "line9/copy_d.png"), "copy_a.png"
    )
    assert len({place_of(name, SHARDS) for name in (*copies, "copy_a.png")}) > 1
    assert (
        len(
            {
                (r.captions, r.route, r.vendi_score)
                for r in done.records
                if r.duplicate_of or r.file_name == "copy_a.png"
            }
        )
        == 1
    )


def test_a_copy_that_one_shard_could_not_read_gets_the_reading_of_another(tmp_path: Path) -> None:
    """As in one scan, where an image that failed is read as soon as any copy of it can be."""
    folder = folder_of(tmp_path / "in", *(f"{i}.png" for i in range(6)))
    shutil.copy(folder / "0.png", folder / "copy.png")
    names = ("0.png", "copy.png")
    count = next(n for n in range(2, 50) if len({place_of(name, n) for name in names}) == 2)

    class Failing(FakeCaptioner):
        def read(self, pictures):  # type: ignore[no-untyped-def]
            if any(picture.file.file_name == "0.png" for picture in pictures):
                raise RuntimeError("broken")
            return super().read(pictures)

    config = config_for(folder, tmp_path / "r.parquet")
    parts = []
    for i in range(1, count + 1):
        out = tmp_path / f"{i}.parquet"
        scan(replace(config, shard=Shard(i, count), out=out), SilentProgress(), load=Failing().load)
        parts.append(out)
    rows = {row.file_name: row for row in merge(parts).records}
    assert rows["0.png"].reason == rows["copy.png"].reason == Reason.AGREED
    assert rows["0.png"].error is None and rows["copy.png"].duplicate_of == "0.png"


def test_more_shards_than_images_is_no_failure(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "a.png", "b.png")
    config = config_for(folder, tmp_path / "r.parquet")
    parts = parts_of(config, 7)
    assert [len(read_result(part)[0]) for part in parts].count(0) >= 5
    assert timeless(merge(parts).records) == timeless(read_result(scanned(config))[0])
    assert merge(parts).provenance["model"]["architecture"] == "Fake"


def test_merging_again_takes_the_place_of_the_former_result(tmp_path: Path) -> None:
    parts = parts_of(config_for(a_folder(tmp_path / "in"), tmp_path / "r.parquet"))
    for _ in range(2):
        written(merge(parts), tmp_path / "all.parquet")
    assert not list(tmp_path.glob("all.old*"))


# --- what does not belong together ------------------------------------------------------------------------------------


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", *(f"{i}.png" for i in range(12)))
    config = config_for(folder, tmp_path / "r.parquet")
    first, second = parts_of(config, 2)[::-1]
    again = scanned(replace(config, shard=Shard(2, 2), out=tmp_path / "again.parquet"))
    with pytest.raises(PartsError, match="are both shard 2/2"):
        merge([first, second, again])
    whole = scanned(replace(config, out=tmp_path / "whole.parquet"))
    with pytest.raises(PartsError, match="whole folder"):
        merge([first, whole])
    merged = written(merge([first, second]), tmp_path / "all.parquet")
    with pytest.raises(PartsError, match="is a merged result"):
        merge([first, merged])
    third = scanned(replace(config, shard=Shard(2, 3), out=tmp_path / "third.parquet"))
    with pytest.raises(PartsError, match=r"2/3.*1/2"):
        merge([first, third])
    others = {
        "seed": replace(config, sampling=replace(config.sampling, seed=1)),
        "other limits": replace(config, threshold=2.0),
        "pages": replace(config, images=ImageConfig(pages="all")),
        "folder": replace(config, folder=folder_of(tmp_path / "in2", *(f"{i}.png" for i in range(12)))),
    }
    for i, (what, other) in enumerate(others.items()):
        part = scanned(replace(other, shard=Shard(2, 2), out=tmp_path / f"other{i}.parquet"))
        with pytest.raises(PartsError, match=f"made otherwise than .*{what}"):
            merge([first, part])


def test_parts_of_two_models_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", *(f"{i}.png" for i in range(12)))
    config = config_for(folder, tmp_path / "r.parquet")
    first, second = (replace(config, shard=Shard(i, 2), out=tmp_path / f"{i}.parquet") for i in (1, 2))
    scan(first, SilentProgress(), load=FakeCaptioner().load)
    scan(second, SilentProgress(), load=FakeCaptioner(dtype="bfloat16").load)
    with pytest.raises(PartsError, match=r"model\.dtype is 'bfloat16', there 'float32'"):
        merge([first.out, second.out])


def test_a_part_that_was_tampered_with_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", *(f"{i}.png" for i in range(12)))
    first, second = parts_of(config_for(folder, tmp_path / "r.parquet"), 2)[::-1]
    records, provenance = read_result(second)
    write_result(tmp_path / "twice.parquet", [*records, records[0]], provenance | {"images": 8})
    write_result(tmp_path / "foreign.parquet", [*records, read_result(first)[0][0]], provenance | {"images": 8})
    for name in ("twice.parquet", "foreign.parquet"):
        with pytest.raises(StoreError, match="not of shard 2/2 or is there twice"):
            merge([first, tmp_path / name])
    write_result(tmp_path / "odd.parquet", records, provenance | {"shard": {"index": 2, "count": 2, "seen": []}})
    with pytest.raises(StoreError, match="damaged"):
        merge([first, tmp_path / "odd.parquet"])


# --- what is missing --------------------------------------------------------------------------------------------------


def test_a_missing_shard_is_refused_or_its_images_marked(tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "in")
    config = config_for(folder, tmp_path / "r.parquet")
    parts = parts_of(config)
    whole = read_result(scanned(config))[0]
    with pytest.raises(PartsError, match=r"1 of 4 shards are missing: 4 \(\d+ images?\)"):
        merge(parts[1:])
    done = merge(parts[1:], incomplete=True)
    assert [r.file_name for r in done.records] == [r.file_name for r in whole]
    unread = [r for r in done.records if r.reason == Reason.NOT_READ]
    assert {place_of(r.file_name, 4) for r in unread} == {4} and all(r.route == "human_review" for r in unread)
    assert done.provenance["complete"] is False and done.provenance["merged"]["missing"] == [4]
    assert len(done.notes) == 1 and "shards are missing: 4" in done.notes[0]
    folder.rename(tmp_path / "elsewhere")
    told = merge(parts[1:], incomplete=True)
    assert len(told.records) == len(whole) - len(unread)
    assert f"{len(unread)} images of missing shards have no row" in told.notes[1]


def test_a_shard_that_was_stopped_is_refused_or_marked(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", *(f"{i}.png" for i in range(30)))
    config = config_for(folder, tmp_path / "r.parquet", batch_size=2)
    first, second = (replace(config, shard=Shard(i, 2), out=tmp_path / f"{i}.parquet") for i in (1, 2))
    scan(first, SilentProgress(), load=FakeCaptioner().load)
    scan(second, SilentProgress(), load=Stopping(3).load)
    with pytest.raises(PartsError, match=r"2\.parquet: was stopped before its end"):
        merge([first.out, second.out])
    done = merge([first.out, second.out], incomplete=True)
    assert len(done.records) == 30 and done.provenance["complete"] is False
    scan(second, SilentProgress(), load=FakeCaptioner().load)
    done = merge([first.out, second.out])
    assert done.provenance["complete"] is True and not done.notes


def test_files_that_come_while_shards_are_read_are_not_lost(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", *(f"{i}.png" for i in range(12)))
    config = config_for(folder, tmp_path / "r.parquet")
    first, second = (replace(config, shard=Shard(i, 2), out=tmp_path / f"{i}.parquet") for i in (1, 2))
    scanned(first)
    late = [next(f"late_{i}.png" for i in range(99) if holds(Shard(s, 2), f"late_{i}.png")) for s in (1, 2)]
    for name in late:
        picture_file(folder / name)
    scanned(second)
    with pytest.raises(PartsError, match=r"1.parquet: files came or went after shard 1/2 had looked"):
        merge([first.out, second.out])
    done = merge([first.out, second.out], incomplete=True)
    assert [r.file_name for r in done.records if r.reason == Reason.NOT_READ] == late[:1]
    reader = FakeCaptioner()
    scan(first, SilentProgress(), load=reader.load)
    assert reader.read_names == late[:1], "files that are added move no other"
    done = merge([first.out, second.out])
    assert len(done.records) == 14 and done.provenance["complete"] is True


def test_files_that_come_are_not_lost_to_a_clock_that_is_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "in", *(f"{i}.png" for i in range(12)))
    config = config_for(folder, tmp_path / "r.parquet")
    first, second = (replace(config, shard=Shard(i, 2), out=tmp_path / f"{i}.parquet") for i in (1, 2))
    scanned(first)
    picture_file(folder / next(f"late_{i}.png" for i in range(99) if holds(Shard(1, 2), f"late_{i}.png")))
    late = lambda: (datetime.now(UTC) - timedelta(minutes=20)).isoformat(timespec="microseconds")  # noqa: E731
    for module in ("plan", "shards"):
        monkeypatch.setattr(f"vlmgate.run.{module}.now", late)
    scanned(second)
    with pytest.raises(PartsError, match=r"1.parquet: files came or went"):
        merge([first.out, second.out])


def test_what_one_shard_got_no_answer_of_is_not_accepted_by_a_copy(tmp_path: Path) -> None:
    one, two = (
        next(f"{c}{i}.png" for i in range(99) if holds(Shard(s, 2), f"{c}{i}.png")) for s, c in ((1, "a"), (2, "b"))
    )
    folder = folder_of(tmp_path / "in", one)
    shutil.copy(folder / one, folder / two)
    config = config_for(folder, tmp_path / "r.parquet")
    for i, say in ((1, "a steel washer without defects"), (2, "I cannot help with that.")):
        part = replace(config, shard=Shard(i, 2), out=tmp_path / f"{i}.parquet")
        scan(part, SilentProgress(), load=FakeCaptioner(lambda _, say=say: (say,)).load)  # type: ignore[misc]
    done = merge([tmp_path / "1.parquet", tmp_path / "2.parquet"])
    assert [str(record.reason) for record in done.records] == ["refused", "refused"]


def test_a_part_that_lost_a_row_is_refused(tmp_path: Path) -> None:
    config = config_for(folder_of(tmp_path / "in", *(f"{i}.png" for i in range(12))), tmp_path / "r.parquet")
    parts = parts_of(config, 2)
    table = pq.read_table(parts[0])
    pq.write_table(table.slice(1), parts[0])
    with pytest.raises(StoreError, match=r"of its \d+ rows"):
        merge(parts)


def test_files_that_went_do_not_stay_in_the_way(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", *(f"{i}.png" for i in range(12)))
    config = config_for(folder, tmp_path / "r.parquet")
    first, second = (replace(config, shard=Shard(i, 2), out=tmp_path / f"{i}.parquet") for i in (1, 2))
    scanned(first)
    scanned(second)
    gone = next(f"{i}.png" for i in range(12) if holds(Shard(2, 2), f"{i}.png"))
    (folder / gone).unlink()
    scanned(second)
    done = merge([first.out, second.out])
    assert len(done.records) == 11 and done.provenance["gone_first"] == [gone]


# --- with a gate file -------------------------------------------------------------------------------------------------


def test_drift_is_that_of_the_whole_folder_and_the_gate_is_found_again(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", *(f"part_{i:02d}.png" for i in range(60)))
    config = config_for(folder, tmp_path / "whole.parquet", gate=tmp_path / "gate.toml", kernel="words")
    gate = a_gate(
        gate=Gate("vendi_score", 2.0, limits=(Limit("vendi_score", "<=", 1.5, answer="ok"),)),
        checkpoint=model_fingerprint(config.model),
        sampling=sampling_of(asdict(config.sampling)),
    )
    write_gate(tmp_path / "gate.toml", gate, [])
    drift = read_result(scanned(config))[1]["drift"]
    parts = parts_of(config, 3)
    assert drift["images"] == 60 and drift["columns"]
    assert merge(parts).provenance["drift"] == drift
    assert merge(parts).provenance["gate"] == read_result(config.out)[1]["gate"]
    (tmp_path / "gate.toml").rename(tmp_path / "moved.toml")
    with pytest.raises(GateError, match="--gate says where it is"):
        merge(parts)
    assert merge(parts, gate_file=tmp_path / "moved.toml").provenance["drift"] == drift
    write_gate(tmp_path / "other.toml", replace(gate, gate=replace(gate.gate, threshold=1.9)), [])
    with pytest.raises(GateError, match="is not the gate"):
        merge(parts, gate_file=tmp_path / "other.toml")
    with pytest.raises(GateError, match="not made with a gate"):
        merge(parts_of(replace(config, gate=None), 2), gate_file=tmp_path / "moved.toml")


# --- the commands -----------------------------------------------------------------------------------------------------


def test_the_commands_from_shards_to_the_whole(tmp_path: Path) -> None:
    folder_of(tmp_path / "images", *(f"part_{i}.png" for i in range(40)))
    (tmp_path / "images" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    codes = {run_scan(i)[0] for i in (1, 2, 3)}
    assert codes == {0, 3} and {p.name for p in tmp_path.glob("*.parquet")} == {
        f"images.{i}-of-3.parquet" for i in (1, 2, 3)
    }
    out, err = run_scan(2)[1:]
    assert "This is shard 2 of 3" in out and "Shard 2/3: " in err
    parts = sorted(tmp_path.glob("images.*-of-3.parquet"))
    out, err = run("merge", *parts, "-o", "images.parquet", code=3)
    assert "Wrote images.parquet (41 rows)." in out and err == "" and "This is shard" not in out
    told = json.loads(run("merge", *parts, "-o", "images.parquet", "--format", "json", code=3)[0])
    assert told["summary"]["images"] == 41 and told["complete"] is True
    assert run("merge", *parts, "-o", "images.parquet", "--format", "csv", code=3)[0].count("\n") == 42
    assert "--max-routed 1 allows" in run("merge", *parts, "-o", "images.parquet", "--max-routed", 1, code=4)[1]
    assert "merged.parts" in run("info", "images.parquet")[0] and "fingerprint" not in run("info", parts[0])[0]


def run_scan(index: int) -> tuple[int, str, str]:
    result = runner.invoke(app, ["scan", "images", "--shard", f"{index}/3"])
    return result.exit_code, result.stdout, result.stderr


def test_the_command_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    folder_of(tmp_path / "images", *(f"part_{i}.png" for i in range(9)))
    for i in (1, 2):
        run_scan(i)
    parts = sorted(tmp_path.glob("images.*-of-3.parquet"))
    for arguments, code, told in (
        ((*parts, "-o", "all.parquet"), 2, "1 of 3 shards are missing: 3"),
        ((*parts, "-o", parts[0]), 2, "is the result itself"),
        ((*parts, "-o", "all.csv"), 2, "must end in .parquet"),
        ((*parts, tmp_path / "no.parquet", "-o", "all.parquet"), 1, "no such file"),
    ):
        out, err = run("merge", *arguments, code=code)
        assert out == "" and err.count("\n") == 1 and told in err
    assert not (tmp_path / "all.parquet").exists()
    out, err = run("merge", *parts, "-o", "all.parquet", "--incomplete", code=3)
    assert "shards are missing: 3" in err and "Run their shards, then merge again." in out
    assert run("merge", *parts, "-o", "all.parquet", "--incomplete", "-q", code=3)[1] == ""
    assert "--shard is '4/3'" in run("scan", "images", "--shard", "4/3", code=2)[1]


def test_a_shard_without_images_is_told_and_is_no_failure(tmp_path: Path) -> None:
    folder_of(tmp_path / "images", "a.png")
    empty = next(i for i in (1, 2) if not holds(Shard(i, 2), "a.png"))
    out, err = run("scan", "images", "--shard", f"{empty}/2")
    assert f"Shard {empty}/2: 0 of 1 images." in err and "nothing to read in this share" in err
    assert "(0 rows)" in out and "auto-accepted" in out


def test_one_output_is_one_shard(tmp_path: Path) -> None:
    folder_of(tmp_path / "images", *(f"part_{i}.png" for i in range(9)))
    run("scan", "images", "--shard", "1/2", "-o", "r.parquet")
    assert "shard ('1/2' then, '2/2' now)" in run("scan", "images", "--shard", "2/2", "-o", "r.parquet", code=2)[1]
    assert "shard ('1/2' then, None now)" in run("scan", "images", "-o", "r.parquet", code=2)[1]


# --- the lines of the manual ------------------------------------------------------------------------------------------

COMMAND = """#!{python}
import sys
sys.path.insert(0, {root!r})
import vlmgate.run.loop
from tests.support.fakes import FakeCaptioner

vlmgate.run.loop.scan.__kwdefaults__["load"] = FakeCaptioner().load
from vlmgate.cli import main
main()
"""


@pytest.mark.slow
def test_the_loop_of_the_manual_does_what_it_says(tmp_path: Path) -> None:
    folder_of(tmp_path / "images", *(f"part_{i}.png" for i in range(12)))
    command = tmp_path / "vlmgate"
    command.write_text(COMMAND.format(python=sys.executable, root=str(ROOT)))
    command.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = "set -eu\n" + only("shard lines")
    subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, check=True, capture_output=True)
    rows, provenance = read_result(tmp_path / "images.parquet")
    assert len(rows) == 12 and provenance["complete"] and len(provenance["merged"]["parts"]) == 4


def test_the_slurm_script_runs_one_shard_of_the_array(tmp_path: Path) -> None:
    """Variables of the environment stand for Slurm, and a folder for the storage of a cluster."""
    script = only("slurm lines")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "inspection").mkdir()
    command = tmp_path / "venv" / "bin" / "vlmgate"
    command.write_text('#!/bin/bash\nprintf "%s\\n" "$@" > told\n')
    command.chmod(0o755)
    here = os.environ | {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "16"}
    subprocess.run(["bash", "-c", script.replace("/shared", str(tmp_path))], env=here, check=True)
    told = (tmp_path / "inspection" / "told").read_text().split("\n")
    assert told[:2] == ["scan", "images"] and told[told.index("--shard") + 1] == "3/16"


def test_the_script_that_starts_a_cluster_is_a_script() -> None:
    subprocess.run(["bash", "-n"], input=only("ray lines"), text=True, check=True)
