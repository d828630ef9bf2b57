"""The engine as its callers see it: settings that do not leak, memory, broken logits, ends, what it says of itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support import tiny_models
from tests.support.tiny_models import SIZES, images, in_float64, picture
from vlmgate.captioner import load_captioner
from vlmgate.captioner.local.checkpoint import end_ids
from vlmgate.captioner.local.engine import TransformersCaptioner
from vlmgate.captioner.local.fork import Draw, ForkDecoder
from vlmgate.captioner.local.runner import Runner
from vlmgate.captioner.location import weights_folder
from vlmgate.config import ModelConfig, SamplingConfig
from vlmgate.data import Caption

K, T = 4, 12
PICTURES = [picture(i, size) for i, size in enumerate(SIZES)]

# Every one of these changes what `generate` does when a checkpoint brings it along.
NASTY = {
    "bad_words_ids": [[i] for i in range(40, 90)],
    "begin_suppress_tokens": list(range(90, 130)),
    "cache_implementation": "static",
    "do_sample": True,
    "early_stopping": True,
    "encoder_repetition_penalty": 3.0,
    "epsilon_cutoff": 0.2,
    "exponential_decay_length_penalty": [1, 3.0],
    "forced_bos_token_id": 50,
    "forced_eos_token_id": 2,
    "guidance_scale": 3.0,
    "length_penalty": 0.1,
    "max_length": 3,
    "max_new_tokens": 1,
    "max_time": 0.0,
    "min_length": 500,
    "min_new_tokens": 400,
    "min_p": 0.9,
    "no_repeat_ngram_size": 1,
    "num_beams": 4,
    "num_return_sequences": 3,
    "output_hidden_states": True,
    "output_logits": True,
    "prompt_lookup_num_tokens": 3,
    "remove_invalid_values": True,
    "repetition_penalty": 5.0,
    "return_dict_in_generate": True,
    "stop_strings": ["a", "e"],
    "suppress_tokens": list(range(20, 140)),
    "temperature": 0.1,
    "top_k": 1,
    "top_p": 0.01,
    "typical_p": 0.1,
    "use_cache": False,
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "tiny"


@pytest.fixture
def captioner(root: Path) -> TransformersCaptioner:
    return load(tiny_models.build("llava", root))


def load(folder: Path, **sampling: Any) -> TransformersCaptioner:
    """Load an engine that computes in float64: these tests compare captions over batches of different sizes."""
    settings = {"num_samples": K, "max_new_tokens": T} | sampling
    engine = load_captioner(ModelConfig(model=str(folder), device="cpu"), SamplingConfig(**settings))
    assert isinstance(engine, TransformersCaptioner)
    in_float64(engine)
    return engine


def altered(source: Path, target: Path, file: str, **changes: Any) -> Path:
    """Copy a checkpoint and change one of its JSON files."""
    shutil.copytree(source, target)
    path = target / file
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))
    return target


class TestGenerationConfig:
    @pytest.mark.parametrize("family", ["llava", "gemma3", "florence2"])
    def test_nothing_leaks_in(self, family: str, root: Path, tmp_path: Path) -> None:
        plain = tiny_models.build(family, root)
        nasty = altered(plain, tmp_path / "nasty", "generation_config.json", **NASTY)
        assert load(nasty).read(PICTURES) == load(plain).read(PICTURES)

    def test_settings_in_an_old_config_json_do_not_leak_in(self, root: Path, tmp_path: Path) -> None:
        plain = tiny_models.build("llava", root)
        old = {"temperature": 0.1, "top_k": 1, "repetition_penalty": 9.0, "num_beams": 3, "max_length": 2}
        nasty = altered(plain, tmp_path / "nasty", "config.json", **old)
        (nasty / "generation_config.json").unlink(missing_ok=True)
        assert load(nasty).read(PICTURES) == load(plain).read(PICTURES)

    def test_a_damaged_file_does_not_matter(self, root: Path, tmp_path: Path) -> None:
        plain = tiny_models.build("llava", root)
        damaged = altered(plain, tmp_path / "damaged", "generation_config.json")
        (damaged / "generation_config.json").write_text("{")
        assert load(damaged).read(PICTURES) == load(plain).read(PICTURES)

    def test_our_own_settings_do_act(self, root: Path) -> None:
        folder = tiny_models.build("llava", root)
        plain = load(folder).read(PICTURES)
        for change in ({"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.5}, {"seed": 1}, {"prompt": "What is it?"}):
            assert load(folder, **change).read(PICTURES) != plain
        greedy = load(folder, temperature=1e-4).read(PICTURES)
        assert all(len({caption.text for caption in reading.captions}) == 1 for reading in greedy)

    def test_fewer_samples_or_tokens_are_the_beginning_of_more(self, root: Path) -> None:
        folder = tiny_models.build("llava", root)
        more, fewer = load(folder).read(PICTURES), load(folder, num_samples=2).read(PICTURES)
        assert [[c.text for c in reading.captions[:2]] for reading in more] == [
            [c.text for c in r.captions] for r in fewer
        ]
        for long, short in zip(more, load(folder, max_new_tokens=5).read(PICTURES), strict=True):
            assert all(a.text.startswith(b.text) for a, b in zip(long.captions, short.captions, strict=True))


class TestEnds:
    class Tokenizer:
        eos_token_id = 2
        all_special_ids = (0, 1, 2)
        added_tokens_decoder: dict[int, Any] = {}  # noqa: RUF012

    class Config:
        def __init__(self, own: object, text: object) -> None:
            self.eos_token_id = own
            self._text = text

        def get_text_config(self, decoder: bool) -> Any:
            return type("Text", (), {"eos_token_id": self._text})

    def test_written_ends_and_the_tokenizers_own_count(self) -> None:
        assert end_ids(self.Tokenizer(), {"eos_token_id": [7, 9]}, self.Config(None, None)) == {2, 7, 9}
        assert end_ids(self.Tokenizer(), {"eos_token_id": 7}, self.Config(None, None)) == {2, 7}

    def test_an_end_in_a_model_config_counts_if_the_tokenizer_knows_it_as_special(self) -> None:
        """Llama's class default is 2, which in some vocabularies is an ordinary sign."""
        tokenizer = self.Tokenizer()
        tokenizer.eos_token_id, tokenizer.all_special_ids = 50, (50, 51)
        assert end_ids(tokenizer, {}, self.Config(2, [51, 3])) == {50, 51}
        derived = {"_from_model_config": True, "eos_token_id": [2, 51]}
        assert end_ids(tokenizer, derived, self.Config(None, None)) == {50, 51}

    def test_no_end_at_all(self) -> None:
        tokenizer = self.Tokenizer()
        tokenizer.eos_token_id = None
        assert end_ids(tokenizer, {"eos_token_id": None}, self.Config(None, True)) == frozenset()

    def test_captions_stop_at_an_end_named_only_in_generation_config(self, root: Path, tmp_path: Path) -> None:
        plain = tiny_models.build("llava", root)
        ends = list(range(60, 100))
        folder = altered(
            plain, tmp_path / "ends", "generation_config.json", eos_token_id=ends, _from_model_config=False
        )
        engine = load(folder)
        free = load(plain)._decode(images(PICTURES), load(plain)._runner.sampler(PICTURES, "captions")).tokens
        stopped = engine._decode(images(PICTURES), engine._runner.sampler(PICTURES, "captions")).tokens
        for long, short in zip(free, stopped, strict=True):
            first = next((i for i, token in enumerate(long) if token in {2, *ends}), T - 1)
            assert short == long[: first + 1]
        finishes = [(c.finish, c.num_tokens) for reading in engine.read(PICTURES) for c in reading.captions]
        assert {finish for finish, _ in finishes} >= {"stop"}
        assert all(count == T for finish, count in finishes if finish == "length")

    def test_all_rows_ended_means_no_further_forward(self, captioner: TransformersCaptioner) -> None:
        steps = []

        def pick(logits: torch.Tensor, step: int, rows: torch.Tensor) -> Draw:
            steps.append(step)
            return Draw(torch.full_like(rows, 2), torch.zeros(len(rows)), torch.ones_like(rows, dtype=torch.bool))

        assert captioner._decode(images(PICTURES), pick).tokens == [[2]] * (len(PICTURES) * K)
        assert steps == [0]

    def test_an_empty_caption_is_empty_and_counts_its_end_token(
        self, captioner: TransformersCaptioner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def decode(batch: list[Image.Image], pick: Any, **_: Any) -> ForkDecoder:
            decoder = ForkDecoder(K, T, frozenset({2}), pick)
            decoder.tokens, decoder.logprobs, decoder.finite = [[2]] * K, [[-0.25]] * K, [True] * K
            return decoder

        monkeypatch.setattr(captioner, "_decode", decode)
        assert captioner.read(PICTURES[:1])[0].captions == (Caption("", "stop", -0.25, 1),) * K

    def test_a_tokenizer_without_a_padding_token_will_do(self, root: Path, tmp_path: Path) -> None:
        plain = tiny_models.build("idefics3", root)  # its prompts are of different lengths
        folder = altered(plain, tmp_path / "unpadded", "tokenizer_config.json")
        content = json.loads((folder / "tokenizer_config.json").read_text())
        del content["pad_token"]
        (folder / "tokenizer_config.json").write_text(json.dumps(content))
        captions = [[c.text for c in reading.captions] for reading in load(folder).read(PICTURES)]
        assert captions == [[c.text for c in reading.captions] for reading in load(plain).read(PICTURES)]


class TestMemory:
    class Card:
        """Stands before the engine's decoding and has room for `fits` images."""

        def __init__(self, captioner: TransformersCaptioner, fits: int, error: type[Exception], message: str) -> None:
            self.decode, self.fits, self.error, self.message = captioner._decode, fits, error, message
            self.tried: list[int] = []

        def __call__(self, batch: list[Image.Image], pick: Any, **_: Any) -> ForkDecoder:
            self.tried.append(len(batch))
            if len(batch) > self.fits:
                raise self.error(self.message)
            return self.decode(batch, pick)

    @pytest.mark.parametrize(
        ("error", "message"),
        [
            (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2.00 GiB"),
            (RuntimeError, "MPS backend out of memory (MPS allocated: 9.0 GB)"),
            (RuntimeError, "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
            (RuntimeError, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            (MemoryError, ""),
        ],
    )
    def test_batches_are_halved_and_stay_so(
        self, captioner: TransformersCaptioner, monkeypatch: pytest.MonkeyPatch, error: type[Exception], message: str
    ) -> None:
        expected = [[c.text for c in reading.captions] for reading in captioner.read(PICTURES)]
        card = self.Card(captioner, 2, error, message)
        monkeypatch.setattr(captioner, "_decode", card)
        assert [[c.text for c in reading.captions] for reading in captioner.read(PICTURES)] == expected
        assert card.tried == [5, 2, 2, 1]
        captioner.read(PICTURES)
        assert card.tried[4:] == [2, 2, 1]

    def test_one_picture_that_does_not_fit_raises(
        self, captioner: TransformersCaptioner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        card = self.Card(captioner, 0, torch.OutOfMemoryError, "CUDA out of memory")
        monkeypatch.setattr(captioner, "_decode", card)
        with pytest.raises(torch.OutOfMemoryError):
            captioner.read(PICTURES)
        assert card.tried == [5, 2, 1]

    def test_other_errors_are_not_taken_for_it(
        self, captioner: TransformersCaptioner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        card = self.Card(captioner, 0, RuntimeError, "shapes cannot be multiplied")
        monkeypatch.setattr(captioner, "_decode", card)
        with pytest.raises(RuntimeError, match="multiplied"):
            captioner.read(PICTURES)
        assert card.tried == [5]

    def test_no_more_images_at_once_than_the_batch_size(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        engine = load(tiny_models.build("llava", root), batch_size=2)
        card = self.Card(engine, 99, RuntimeError, "")
        monkeypatch.setattr(engine, "_decode", card)
        engine.read(PICTURES)
        assert card.tried == [2, 2, 1]
        assert engine.read([]) == []


class TestBrokenLogits:
    @pytest.mark.parametrize("packs", [False, True], ids=["fork", "packed"])
    def test_rows_that_break_are_told_and_the_others_stay_as_they_were(
        self, captioner: TransformersCaptioner, packs: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(captioner._runner, "packs", packs)
        good = captioner.read(PICTURES)
        calls = 0

        def spoil(module: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            logits = logits.clone()
            if calls == 1:
                logits[1] = torch.nan  # the whole of image 1, before its first token
            if calls == 4:
                row = logits[2, 1] if packs else logits[2 * K + 1, 0]
                row[7] = torch.inf  # caption 1 of image 2, before its fourth token
            return logits

        hook = captioner._runner.checkpoint.model.lm_head.register_forward_hook(spoil)
        try:
            spoilt = captioner.read(PICTURES)
        finally:
            hook.remove()
        assert spoilt[1].captions == (Caption("", "non-finite", None, 0),) * K
        broken = spoilt[2].captions[1]
        assert (broken.finish, broken.mean_logprob, broken.num_tokens) == ("non-finite", None, 3)
        assert good[2].captions[1].text.startswith(broken.text)
        assert [spoilt[i] for i in (0, 3, 4)] == [good[i] for i in (0, 3, 4)]
        assert [spoilt[2].captions[k] for k in (0, 2, 3)] == [good[2].captions[k] for k in (0, 2, 3)]


class TestForms:
    def test_a_chat_template_is_used_and_starts_the_sequence_once(self, captioner: TransformersCaptioner) -> None:
        assert captioner._runner.encode.form.text.startswith("<s>user: <image>\nDescribe")
        assert captioner._runner.encode.form.text.endswith("assistant: ")
        assert (captioner._runner.encode([PICTURES[0].rgb])["input_ids"] == 1).sum() == 1

    def test_a_plain_prompt_where_there_is_no_template(self, root: Path, tmp_path: Path) -> None:
        source = tiny_models.build("llava", root)
        folder = tmp_path / "plain"
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("chat_template*"))
        engine = load(folder, prompt="What is it?")
        assert engine._runner.encode.form.text == "<image>What is it?"
        assert len(engine.read(PICTURES)) == len(PICTURES)

    def test_a_template_that_cannot_show_an_image_is_left_out(self, root: Path, tmp_path: Path) -> None:
        folder = tmp_path / "textual"
        shutil.copytree(tiny_models.build("llava", root), folder)
        for template in ("{{ raise_exception('no') }}", "{% for m in messages %}{{ m['role'] }}{% endfor %}"):
            (folder / "chat_template.jinja").write_text(template)
            assert load(folder, prompt="What is it?")._runner.encode.form.text == "<image>What is it?"

    def test_a_template_for_plain_text_gets_the_image_as_text(self, root: Path, tmp_path: Path) -> None:
        folder = tmp_path / "textual"
        shutil.copytree(tiny_models.build("llava", root), folder)
        template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %} [answer] "
        (folder / "chat_template.jinja").write_text(template)
        assert load(folder, prompt="What is it?")._runner.encode.form.text == "[user] <image>\nWhat is it? [answer] "

    def test_models_that_think_are_told_not_to(self, root: Path, tmp_path: Path) -> None:
        folder = tmp_path / "thinking"
        shutil.copytree(tiny_models.build("llava", root), folder)
        switch = "{% if enable_thinking is defined and enable_thinking is false %}no thoughts{% endif %}"
        (folder / "chat_template.jinja").write_text(tiny_models.chat_template("<image>") + switch)
        assert load(folder)._runner.encode.form.text.endswith("no thoughts")


class TestInfo:
    def test_it_says_what_it_is(self, root: Path) -> None:
        folder = tiny_models.build("llava", root)
        engine = load(folder)
        info = engine.info
        assert (info.model, info.revision, info.device, info.dtype) == (str(folder), None, "cpu", "float32")
        assert info.architecture == "LlavaForConditionalGeneration"
        assert info.image_processor.startswith("SiglipImageProcessor")
        assert info.num_parameters == sum(p.numel() for p in engine._runner.checkpoint.model.parameters())
        assert info.route in ("packed", "fork")
        assert info.versions["torch"] == torch.__version__
        assert "transformers" in info.versions

    def test_mean_logprobs_are_rounded_and_not_positive(self, captioner: TransformersCaptioner) -> None:
        values = [c.mean_logprob for reading in captioner.read(PICTURES) for c in reading.captions]
        assert all(v is not None and v <= 0 and v == round(v, 6) for v in values)
        assert np.std([v for v in values if v is not None]) > 0


@pytest.mark.skipif(not (weights_folder() / "model.safetensors").exists(), reason="the built-in weights are not there")
def test_the_builtin_model_gives_the_same_captions_in_batches_of_1_and_8() -> None:
    """In float32, as shipped; its captions are short and sure enough that no draw of these falls on a border."""
    engine = load_captioner(ModelConfig(device="cpu"), SamplingConfig(num_samples=4, max_new_tokens=32))
    assert engine.info.architecture == "LlavaForConditionalGeneration"
    pictures = [picture(i, (160, 120)) for i in range(8)]
    together = engine.read(pictures)
    alone = [engine.read([one])[0] for one in pictures]
    said = [[[c.text for c in reading.captions] for reading in readings] for readings in (together, alone)]
    assert said[0] == said[1]


class TestPrepared:
    @pytest.mark.parametrize("question", [None, "Is it ok?"])
    def test_pictures_prepared_ahead_are_read_the_same(self, root: Path, question: str | None) -> None:
        asked = {"question": question, "choices": ("ok", "scratch")} if question else {}
        engine = load(tiny_models.build("llava", root), **asked)
        prepared = engine.prepare(PICTURES)
        assert engine.read_prepared(PICTURES, prepared) == engine.read(PICTURES)
        assert engine.read_prepared(PICTURES, None) == engine.read(PICTURES)

    def test_too_large_a_batch_is_left_to_its_turn(
        self, captioner: TransformersCaptioner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected, prepared = captioner.read(PICTURES), captioner.prepare(PICTURES)
        generate = Runner.generate

        def small(self: Runner, inputs: dict[str, Any], decoder: ForkDecoder, **more: bool) -> None:
            if len(inputs["input_ids"]) > 1:
                raise torch.cuda.OutOfMemoryError("out of memory")
            generate(self, inputs, decoder, **more)

        monkeypatch.setattr(Runner, "generate", small)
        assert captioner.read_prepared(PICTURES, prepared) == expected
        assert captioner.prepare(PICTURES) is None

    def test_the_shape_of_a_picture_counts_where_its_prompt_hangs_on_it(self, root: Path) -> None:
        keys = {f: load(tiny_models.build(f, root)).prompt_key(PICTURES[0]) for f in ("llava", "qwen2_5_vl")}
        assert keys == {"llava": None, "qwen2_5_vl": PICTURES[0].rgb.size}

    def test_times_add_up(self, captioner: TransformersCaptioner) -> None:
        assert captioner.times.decoding == captioner.times.vision_and_prefill == 0
        captioner.read(PICTURES[:1])
        assert captioner.times.decoding > 0 and captioner.times.vision_and_prefill > 0
