"""Many names in little memory come back as they went in, in order, wherever they lie."""

from __future__ import annotations

import os
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmgate.data import Source
from vlmgate.images.find import Files, Sources, chosen, path_in

NAMES = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), unique=True)


@given(NAMES, st.data())
def test_what_goes_in_comes_out(names: list[str], data: st.DataObject) -> None:
    elsewhere = {name: f"/other/{i}" for i, name in enumerate(names) if data.draw(st.booleans())}
    wanted = [Source(name, elsewhere.get(name) or path_in("in", name)) for name in sorted(names)]
    sources = Sources("in", sorted(names), elsewhere)
    assert [*sources] == wanted and len(sources) == len(wanted) and bool(sources) == bool(wanted)
    some = data.draw(st.slices(len(wanted)))
    assert [*sources[some]] == wanted[some] and [*sources[some][1:]] == wanted[some][1:]
    assert [*chosen(sources, lambda source: source.file_name in elsewhere)] == [
        source for source in wanted if source.file_name in elsewhere
    ]


def test_numbers_count_from_both_ends_and_no_further() -> None:
    sources = Sources("in", ["a", "b/c", "d"])
    for some in (sources, Files(sources.__getitem__, [0, 1, 2]), sources[:]):
        assert [some[i].file_name for i in (0, 2, -1, -3)] == ["a", "d", "d", "a"]
        for outside in (3, -4):
            with pytest.raises(IndexError):
                some[outside]
    assert sources[1].path == Path("in") / "b" / "c"


def test_a_file_that_cannot_be_had_is_an_error_and_no_end() -> None:
    with pytest.raises(IndexError):
        list(Files(Sources("in", ["a", "b", "c"]).__getitem__, [0, 7, 2]))


def test_slices_of_slices_do_not_nest() -> None:
    some: Sequence[Source] = Sources("in", (f"{i:04}" for i in range(2000)))
    for _ in range(1500):
        some = some[1:]
    assert some[0].file_name == "1500" and len(some) == 500


def test_a_root_may_be_nothing_or_everything() -> None:
    assert path_in("", "a.png") == "a.png" and path_in(os.sep, "a.png") == f"{os.sep}a.png"


@pytest.mark.skipif(sys.flags.dev_mode, reason="the development mode counts memory of its own")
def test_a_name_takes_little_more_than_its_letters() -> None:
    tracemalloc.start()
    try:
        sources = Sources("/a/folder", (f"line{i % 9}/{i:06d}.png" for i in range(20_000)))
        chosen(sources, lambda _: True)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken / len(sources) < 16 + 8 + 6, "letters, where they end, and what an array grows ahead"
