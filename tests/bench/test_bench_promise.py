"""The bench of promises draws what the sample images were drawn like, and counts as a plant would."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench import promise
from tests.support.fakes import FakeCaptioner, let_it_read
from vlmgate.factory.world import CONDITIONS


def truth(name: str) -> str:
    folder, _, rest = name.rpartition("/")
    return folder.replace("_", " ") if folder else CONDITIONS[int(rest.split(".")[0]) % len(CONDITIONS)]


def unsure(name: str) -> bool:
    return int(name.split(".")[0][-3:]) % 4 == 0


@pytest.fixture
def sure_of_two_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read everything as it is, some of it hesitantly, and two of the fresh images wrong without hesitation."""

    def answer(name: str) -> tuple[str, ...]:
        wrong = CONDITIONS[(CONDITIONS.index(truth(name)) + 1) % len(CONDITIONS)]
        if name in ("00001.jpg", "00002.jpg"):
            return (wrong,)
        return (truth(name), wrong, wrong) if unsure(name) else (truth(name),)

    # The captions say what the answers do: one that disputes its answer is never accepted.
    captioner = FakeCaptioner(say=lambda name: (f"a part with {answer(name)[0]}",), answer=answer)
    let_it_read(captioner, monkeypatch)


def test_what_is_accepted_is_compared_with_the_truth(
    sure_of_two_lies: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--repeats", "1", "--images", "24", "--cache", str(tmp_path / "c"), "--json", str(tmp_path / "p.json")]
    code = promise.main(arguments)
    told = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    (row,) = told["rows"]
    assert (row["images"], row["accepted"], row["wrong"], row["target"]) == (24, 18, 2, 0.1)
    assert code == 1 and not row["kept"]  # two of eighteen are more than a tenth
    assert "kept 0 of 1" in capsys.readouterr().out
    assert promise.main(arguments) == 1  # what was read is there already


def test_images_follow_from_their_seed(tmp_path: Path) -> None:
    one, other = promise.draw(tmp_path / "a", 1, 3), promise.draw(tmp_path / "b", 2, 3)
    assert one == other == {f"{i:05d}.jpg": CONDITIONS[i] for i in range(3)}
    assert (tmp_path / "a" / "00000.jpg").read_bytes() != (tmp_path / "b" / "00000.jpg").read_bytes()
    again = promise.draw(tmp_path / "c", 1, 3)
    assert again == one
    assert (tmp_path / "c" / "00001.jpg").read_bytes() == (tmp_path / "a" / "00001.jpg").read_bytes()
