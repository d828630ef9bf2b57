"""What labelled readings come to: ties, and answers that nobody drew."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from vlmgate.calibration.readings import Labelled, columns_there, evidence
from vlmgate.data import Record

CAPTIONS = ("a grey part",) * 4  # dispute no answer


def labelled(*answers: dict[str, float], label: str = "ok", finish: str = "stop") -> Labelled:
    """Return an image for each; its answers with their probabilities, in turn where four are drawn."""
    records = []
    for i, chances in enumerate(answers):
        texts = [*chances] if finish == "scored" else [[*chances][k % len(chances)] for k in range(4)]
        row = Record(file_name=f"{i}.png", page=1, seed=0, sha256=f"{i:064}", num_samples=4, captions=CAPTIONS)
        row = replace(row, caption_finishes=("stop",) * 4, caption_logprobs=(-0.1,) * 4, answers=tuple(texts))
        row = replace(row, answer_finishes=(finish,) * len(texts), answer_tokens=(1,) * len(texts))
        records.append(replace(row, answer_logprobs=tuple(math.log(chances[text]) for text in texts)))
    labels = (label,) * len(records)
    return Labelled(
        "class", tuple(records), labels, ("ok", "dent"), "ok", "", None, 4, 1, labels, (None,) * len(records)
    )


def test_a_tie_counts_as_wrong_and_is_accepted_by_the_probability_alone() -> None:
    found = evidence(labelled({"ok": 0.9}, {"ok": 0.6, "dent": 0.2}, {"dent": 0.5, "unsure": 0.3}), 4)
    assert found.answers == ("ok", "ok", "dent") and found.wrong.tolist() == [False, True, True]
    assert np.isfinite(found.gated("answer_probability")).tolist() == [True, True, True]
    assert found.gated("answer_probability").tolist() == [-0.9, -0.6, -0.5]
    for column in ("answer_share", "vendi_score"):
        assert np.isfinite(found.gated(column)).tolist() == [True, False, True]


def test_scored_answers_are_the_same_however_many_samples_are_looked_at() -> None:
    one = labelled({"ok": 0.9, "dent": 0.05, "unsure": 0.04}, {"dent": 0.7, "ok": 0.29}, finish="scored")
    two, four = evidence(one, 2), evidence(one, 4)
    assert two.answers == four.answers == ("ok", "dent") and two.wrong.tolist() == [False, True]
    assert two.scores["answer_probability"].tolist() == four.scores["answer_probability"].tolist() == [-0.9, -0.7]
    assert "answer_share" not in columns_there(two) and "abstain_rate" in columns_there(two)
