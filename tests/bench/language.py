"""How well captions are compared by what they find, in nine languages: a bank of sentences, and public captions.

    python -m tests.bench.language --half held --markdown language.md
    python -m tests.bench.language --public FOLDER          # see `public`
    python -m tests.bench.language --speed

The bank (`tests/bench/bank`) was written before the rules, by writers who had not seen them. Sentences at even places
were looked at while the rules were written, those at odd places never: `--half held` is the measurement.
A caption is a sentence about a finding among 0 to 6 sentences that say nothing of the part's condition.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vlmgate.data import Caption, Reason, Route, Sampled
from vlmgate.gate.rules import Candidate, Decision, decide, make_gate
from vlmgate.scores.diversity import claim_kernel, load_kernel, vendi_score, word_kernel
from vlmgate.scores.findings import ANY, NO_DEFECT, Claims, load_vocabulary
from vlmgate.scores.measures import is_contrast
from vlmgate.scores.refusals import degenerate
from vlmgate.scores.score import Scorer

BANK = Path(__file__).parent / "bank"
K = 8
LENGTHS = (0, 1, 2, 4, 6)  # further sentences
# Findings that people use one word for; the bank counts them as one.
ALIKE = {"stain": {"dirt", "residue", "haze"}, "chip": {"broken"}, "scratch": {"abrasion"}}
Half = Literal["tune", "held", "all"]


@dataclass(frozen=True, slots=True)
class Bank:
    """Half of the sentences of one language."""

    language: str
    data: dict[str, Any]
    half: Half

    @classmethod
    def load(cls, language: str, half: Half) -> Bank:
        return cls(language, tomllib.loads((BANK / f"{language}.toml").read_text("utf-8")), half)

    def of(self, *keys: str) -> list[Any]:
        """Return the sentences under a key, those of this half."""
        found: Any = self.data
        for key in keys:
            found = found[key]
        step = {"tune": slice(0, None, 2), "held": slice(1, None, 2), "all": slice(None)}[self.half]
        return list(found[step])

    def caption(self, about: str, further: int, rng: random.Random) -> str:
        """Return a caption: a sentence, at any place among so many others."""
        texts = rng.sample(self.of("neutral"), further)
        texts.insert(rng.randint(0, further), about)
        return ("" if self.language in ("ja", "zh") else " ").join(texts)


def languages() -> list[str]:
    return sorted(path.stem for path in BANK.glob("*.toml"))


def auroc(worse: Sequence[float], better: Sequence[float]) -> float:
    """Return how often a worse one has the higher value, ties counted half."""
    a, b = np.asarray(worse)[:, None], np.asarray(better)[None, :]
    return float(((a > b) + 0.5 * (a == b)).mean())


# --- sentences --------------------------------------------------------------------------------------------------------


def sentences(bank: Bank) -> Iterator[tuple[str, bool, bool, str, Claims]]:
    """Yield (kind, right, wrong, text, claims); what is neither right nor wrong is unclear, and goes to a person."""
    claims = load_vocabulary().claims

    def says(one: Claims, *names: str) -> bool:
        return one.certain and all(one.asserted & {name, *ALIKE.get(name, ())} for name in names)

    for name in bank.data["assert"]:
        for text in bank.of("assert", name):
            one = claims(text)
            yield "assert", says(one, name), one.verdict == NO_DEFECT, text, one
        for text in bank.of("deny", name):
            one = claims(text)
            yield "deny", one.verdict == NO_DEFECT, bool(one.certain and one.defects), text, one
    for text in bank.of("sound"):
        one = claims(text)
        yield "sound", one.verdict == NO_DEFECT and ANY in one.denied, one.verdict == "defect", text, one
    for text in bank.of("neutral"):
        one = claims(text)
        yield "neutral", not (one.states or one.hedged), bool(one.defects), text, one
    for text in bank.of("hedge"):
        one = claims(text)
        yield "hedge", not one.certain, one.certain, text, one
    for text, name, denied in bank.of("both"):
        one = claims(text)
        wrong = one.verdict == NO_DEFECT or (one.certain and denied in one.asserted)
        yield "both", says(one, name) and len(one.defects) == 1, wrong, text, one
    for text, name in bank.of("only"):
        one = claims(text)
        yield "only", says(one, name) and len(one.defects) == 1, one.verdict == NO_DEFECT, text, one
    for text, *names in bank.of("two"):
        one = claims(text)
        yield "two", says(one, *names), one.verdict == NO_DEFECT, text, one
    for text, *_ in bank.of("list_deny"):
        one = claims(text)
        yield "list", one.verdict == NO_DEFECT, one.verdict == "defect", text, one
    for text, name in bank.of("double"):
        one, sound = claims(text), name == "sound" or name.startswith("-")
        right = one.verdict == (NO_DEFECT if sound else "defect")
        yield "double", right, one.verdict is not None and not right, f"{text} <{name}>", one
    for text, name in bank.of("markdown"):
        one = claims(text)
        right = one.verdict == NO_DEFECT if name == "sound" else says(one, name) and len(one.defects) == 1
        wrong = one.verdict is not None and (one.verdict == NO_DEFECT) != (name == "sound")
        yield "markdown", right, wrong, text, one
    for key in ("numbers", "compare"):
        for first, same, other in bank.of(key):
            one, two, three = map(claims, (first, same, other))
            says_first, says_same, says_other = (
                {claim for claim in each.asserted if not is_contrast(claim)} for each in (one, two, three)
            )
            yield key, says_first == says_same != set(), False, f"{first} | {same}", two
            alike = one.certain and three.certain and says_first == says_other
            yield f"{key}, other", not alike, alike, f"{first} | {other}", three


def refusals(bank: Bank) -> Iterator[tuple[str, bool, str]]:
    """Yield (kind, right, text) of refusals and of readings."""
    for key in ("refusals", "readings"):
        for text in bank.of(key):
            reason = degenerate([Caption(text, "stop", None, 0)], "")
            claimed = load_vocabulary().claims(text)
            nothing = not (claimed.asserted or claimed.denied)  # eight such captions are no reading either
            refused = reason is not None or nothing
            yield key, refused if key == "refusals" else reason is None, text


# --- pairs and images -------------------------------------------------------------------------------------------------


def pairs(bank: Bank, rng: random.Random, number: int = 400) -> dict[str, float]:
    """Return the AUC of same against opposite meaning, whole captions, by kernel."""
    names = list(bank.data["assert"])
    values: dict[str, tuple[list[float], list[float]]] = {"findings": ([], []), "words": ([], [])}
    claims = load_vocabulary().claims
    for i in range(number):
        name, further = rng.choice(names), rng.choice(LENGTHS)
        said, denied = bank.of("assert", name), [*bank.of("deny", name), *bank.of("sound")]
        one, same = rng.sample(said if i % 2 else denied, 2)
        other = rng.choice(denied if i % 2 else said)
        first, second, third = (bank.caption(text, further, rng) for text in (one, same, other))
        for texts, place in (((first, second), 1), ((first, third), 0)):
            values["findings"][place].append(float(claim_kernel([claims(text) for text in texts])[0, 1]))
            values["words"][place].append(float(word_kernel(texts)[0, 1]))
    return {kernel: auroc(same, other) for kernel, (other, same) in values.items()}


@dataclass(frozen=True, slots=True)
class Judged:
    """One image of K captions: its score under `findings` and `words`, and what the default split says of it."""

    findings: float
    words: float
    contradiction: float
    decision: Decision


def image(texts: Sequence[str]) -> Judged:
    said = Sampled(tuple(Caption(text, "stop", None, 0) for text in texts))
    scores, reason = Scorer("").score(said)
    (decision,) = decide([Candidate.of("", scores, reason)], make_gate(num_samples=len(texts)))
    whole = float(len(texts)) if scores.vendi_score is None else scores.vendi_score
    return Judged(whole, vendi_score(word_kernel(texts)), scores.contradiction or 0.0, decision)


def images(bank: Bank, further: int, rng: random.Random, number: int = 120) -> dict[str, list[Judged]]:
    """Return images whose captions agree, differ four against four, and one against seven."""
    found: dict[str, list[Judged]] = {"agree": [], "four": [], "one": []}
    names = list(bank.data["assert"])
    for i in range(number):
        name = rng.choice(names)
        said, denied = bank.of("assert", name), [*bank.of("deny", name), *bank.of("sound")]
        if i % 2:
            said, denied = denied, said
        for kind, others in (("agree", 0), ("four", K // 2), ("one", 1)):
            several = [rng.choice(said) for _ in range(K - others)] + [rng.choice(denied) for _ in range(others)]
            found[kind].append(image([bank.caption(text, further, rng) for text in several]))
    return found


def accepted(several: Sequence[Judged]) -> float:
    return float(np.mean([one.decision.route is Route.AUTO_ACCEPT for one in several]))


def split_report(bank: Bank, further: int, seed: int) -> str:
    found = images(bank, further, random.Random(seed))
    cells = [f"{bank.language} {further}"]
    for kind in ("four", "one"):
        for score in ("findings", "words", "contradiction"):
            worse, better = ([getattr(one, score) for one in found[key]] for key in (kind, "agree"))
            cells.append(f"{auroc(worse, better):.3f}")
    cells += [f"{accepted(found[kind]):.3f}" for kind in ("agree", "four", "one")]
    return " | ".join(cells)


# --- public captions --------------------------------------------------------------------------------------------------


def public(folder: Path, seed: int = 0) -> Iterator[str]:
    """Yield what is called a refusal or empty among public captions: files of lines {"image": …, "captions": […]}.

    Then how well images are found of which half the captions are another image's (`mixtures`).
    Captions of five VLMs (AoiDragon/POPE, caption_data), by people (li-xirong/flickr8kcn; multi30k/dataset, task 2) and
    of Japanese assistants (turingmotors/heron) were put into that form. None of it is kept here.
    """
    for path in sorted(folder.glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        texts = [text for row in rows for text in row.get("captions", ())]
        if not texts:
            continue
        reasons = [degenerate([Caption(text, "stop", None, 0)], "") for text in texts]
        rates = [
            sum(one is reason for one in reasons) / len(texts) for reason in (Reason.REFUSED, Reason.EMPTY_CAPTION)
        ]
        yield f"{path.stem}: {len(texts):,} captions, refused {rates[0]:.4%}, empty {rates[1]:.4%}"
        yield from mixtures([row["captions"] for row in rows if "captions" in row], random.Random(seed))


def mixtures(rows: Sequence[Sequence[str]], rng: random.Random, most: int = 600) -> Iterator[str]:
    """Yield the AUROC of the Vendi score for images of which half the captions were replaced, by kernel.

    Every second image gets captions of a random other one. It is that of all images, and of those that claim nothing.
    """
    rows = rng.sample(rows, min(most, len(rows)))
    folder: list[list[str]] = []
    for i, captions in enumerate(rows):
        half = len(captions) // 2 if i % 2 else 0
        other = rows[(i + rng.randrange(1, len(rows))) % len(rows)]
        folder.append(rng.sample(captions, len(captions) - half) + rng.sample(other, half))
    mixed = np.arange(len(rows)) % 2 == 1
    claims = load_vocabulary().claims
    silent = np.array([not any(claims(text).states for text in texts) for texts in folder])
    for name in ("words", "findings", "kappa"):
        kernel = load_kernel(name)
        kernel.prepare(folder)
        values = np.array([vendi_score(kernel(texts)) for texts in folder])
        found = [auroc(values[some & mixed], values[some & ~mixed]) for some in (silent | True, silent)]
        yield f"  {name}: mixed against pure, {len(rows)} images {found[0]:.3f}; {silent.sum()} silent {found[1]:.3f}"


# --- speed ------------------------------------------------------------------------------------------------------------


def speed(number: int = 1000) -> str:
    """Return the seconds that 10,000 images of 8 different captions of 90 words take, from so many."""
    rng, bank = random.Random(0), Bank.load("en", "all")
    scorer = Scorer("")
    said = []
    for _ in range(number):
        texts = []
        for _ in range(K):
            text = bank.caption(rng.choice(bank.of("assert", "scratch")), 6, rng)
            texts.append(f"{text} Item {rng.randrange(10**9)}.")  # no two alike
        said.append(Sampled(tuple(Caption(text, "stop", -0.5, 99) for text in texts)))
    words = np.mean([len(re.findall(r"\w+", one.text)) for each in said for one in each.captions])
    begun = time.process_time()
    for one in said:
        scorer.score(one)
    spent = (time.process_time() - begun) * 10_000 / number
    return f"{words:.0f} words a caption: {spent:.1f} s of CPU for 10,000 images of {K}"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--half", choices=("tune", "held", "all"), default="held")
    options.add_argument("--languages", default=",".join(languages()))
    options.add_argument("--show", action="store_true", help="print what went wrong; with --half tune alone")
    options.add_argument("--public", type=Path)
    options.add_argument("--speed", action="store_true")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--markdown", type=Path, help="write the report there, too")
    given = options.parse_args()
    lines: list[str] = []

    def tell(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    if given.speed:
        tell(speed())
    if given.public:
        for line in public(given.public, given.seed):
            tell(line)
    if not (given.speed or given.public):
        banks = [Bank.load(code, given.half) for code in given.languages.split(",")]
        shown = given.show and given.half == "tune"
        tell(f"half: {given.half}; right of all, and wrong; the rest is unclear and goes to a person")
        for bank in banks:
            kinds: dict[str, list[tuple[bool, bool]]] = {}
            for kind, right, wrong, text, one in sentences(bank):
                kinds.setdefault(kind, []).append((right, wrong))
                if shown and not right:
                    print(f"  {'WRONG' if wrong else 'miss '} {kind}: {text!r} -> {one.describe()} [{one.language}]")
            for kind, right, text in refusals(bank):
                kinds.setdefault(kind, []).append((right, not right))
                if shown and not right:
                    print(f"  WRONG {kind}: {text!r}")
            parts = [f"{k} {sum(r for r, _ in v)}/{len(v)}, {sum(w for _, w in v)} wrong" for k, v in kinds.items()]
            tell(f"{bank.language}: {'; '.join(parts)}")
        tell(
            "same against opposite, AUC: "
            + "; ".join(
                f"{bank.language} {figures['findings']:.3f} (words {figures['words']:.3f})"
                for bank in banks
                for figures in [pairs(bank, random.Random(given.seed))]
            )
        )
        tell(
            "language, further sentences | AUROC 4 of 8: findings | words | contradiction | 1 of 8: findings | words | "
            "contradiction | accepted: agree | 4 of 8 | 1 of 8"
        )
        for bank in banks:
            for further in LENGTHS:
                tell(split_report(bank, further, given.seed))
    if given.markdown:
        given.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
