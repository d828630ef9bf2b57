"""What may be said of a model server, and what is kept of it: URLs, keys, seeds, gates. Nobody is asked here."""

from __future__ import annotations

import email.utils
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from vlmgate.captioner.location import model_fingerprint
from vlmgate.captioner.server.client import (
    MOST_PATIENCE,
    Server,
    _retry_after,
    find_key,
    is_loopback,
    request_of,
    without,
)
from vlmgate.captioner.server.messages import BadReplyError, captions_of, data_url, parse, thoughts_of
from vlmgate.captioner.server.probe import extras
from vlmgate.captioner.streams import seeds
from vlmgate.cli import app
from vlmgate.config import EndpointConfig, ModelConfig, SamplingConfig, ScanConfig
from vlmgate.errors import ConfigError, GateError
from vlmgate.gate.file import GateFile, differences, sampling_of
from vlmgate.gate.rules import Gate
from vlmgate.gate.run_gate import check_same, gate_of
from vlmgate.store.result import write_gate

URL = "http://gpu:8000/v1"
KEYS = ("content", "refusal", "tool_calls", "reasoning_content", "text", "logprob")


def served(name: str = "m", **changes: Any) -> ModelConfig:
    return ModelConfig(name, endpoint=EndpointConfig(URL, **changes))


class TestUrls:
    @pytest.mark.parametrize("url", ["http://localhost:8000/v1", "https://api.example.com/v1/", "http://[::1]:80/v1"])
    def test_a_plain_one(self, url: str) -> None:
        assert EndpointConfig(url).url == url

    @pytest.mark.parametrize(
        "url",
        ["", "gpu:8000", "ftp://gpu/v1", "http://", "http:///v1", "http://gpu:0/v1", "http://gpu:x/v1", "http://[gpu"],
    )
    def test_what_is_none(self, url: str) -> None:
        with pytest.raises(ConfigError, match="endpoint is"):
            EndpointConfig(url)

    @pytest.mark.parametrize(
        "url", ["http://me:hunter2@gpu/v1", "http://gpu/v1?key=hunter2", "http://gpu/v1#hunter2", "http://hunter2@gpu"]
    )
    def test_one_with_a_secret_is_not_repeated(self, url: str) -> None:
        with pytest.raises(ConfigError, match="VLMGATE_API_KEY") as caught:
            EndpointConfig(url)
        assert "hunter2" not in str(caught.value)

    @pytest.mark.parametrize(
        "options", [{"max_side": 1}, {"concurrency": 0}, {"timeout": 0.0}, {"timeout": float("nan")}, {"retries": -1}]
    )
    def test_other_settings_out_of_range(self, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=f"^{next(iter(options))} is"):
            EndpointConfig(URL, **options)

    def test_what_does_not_go_together(self) -> None:
        with pytest.raises(ConfigError, match="needs --model NAME"):
            ModelConfig(endpoint=EndpointConfig(URL))
        for options in ({"device": "cpu"}, {"dtype": "float32"}, {"revision": "main"}, {"trust_remote_code": True}):
            with pytest.raises(ConfigError, match=f"--{next(iter(options)).replace('_', '-')} is of a model that runs"):
                ModelConfig("m", endpoint=EndpointConfig(URL), **options)  # type: ignore[arg-type]

    def test_the_command_line_says_so_in_one_line(self, tmp_path: Path) -> None:
        for arguments in (["doctor"], ["scan", str(tmp_path)], ["calibrate", str(tmp_path)]):
            done = CliRunner().invoke(app, [*arguments, "--endpoint", "gpu:8000", "--model", "m"])
            assert done.exit_code == 2 and "endpoint is 'gpu:8000'" in done.stderr
            assert len(done.stderr.strip().splitlines()) == 1


class TestKeys:
    def test_our_own_comes_first(self) -> None:
        both = {"VLMGATE_API_KEY": "ours-0123", "OPENAI_API_KEY": "theirs-0123"}
        assert find_key(both, URL) == "ours-0123"
        assert find_key({}, URL) is None and find_key({"VLMGATE_API_KEY": "  "}, URL) is None

    @pytest.mark.parametrize(
        ("url", "sent"),
        [
            ("https://api.example.com/v1", True),
            ("http://127.0.0.1:80/v1", True),
            (URL, False),
            ("http://10.0.0.7/v1", False),
        ],
    )
    def test_openai_s_does_not_go_over_an_open_line(self, url: str, sent: bool) -> None:
        assert (find_key({"OPENAI_API_KEY": "theirs-0123"}, url) is not None) == sent

    @pytest.mark.parametrize("key", ["two words", "ke\ny-0123456", "schlüssel-01"])
    def test_one_that_no_header_holds_is_not_repeated(self, key: str) -> None:
        with pytest.raises(ConfigError, match="VLMGATE_API_KEY holds a character") as caught:
            find_key({"VLMGATE_API_KEY": key}, URL)
        assert key not in str(caught.value)

    def test_it_is_cut_out_of_texts(self) -> None:
        assert without("secret-0123", "key secret-0123.") == "key [key]."
        assert without("EMPTY", "an EMPTY box") == "an EMPTY box"  # what people write where no key is needed
        assert without(None, "text") == "text"

    @pytest.mark.parametrize(
        ("host", "loopback"),
        [
            ("localhost", True),
            ("127.0.0.53", True),
            ("[::1]", True),
            ("a.localhost", True),
            ("gpu", False),
            ("10.1.2.3", False),
        ],
    )
    def test_this_machine(self, host: str, loopback: bool) -> None:
        assert is_loopback(f"http://{host}:8000/v1") == loopback


class TestRequests:
    def test_seeds_belong_to_an_image_and_a_sample(self) -> None:
        a = seeds(0, "a" * 64, 1, 8)
        assert a == seeds(0, "a" * 64, 1, 16)[:8] and len(set(a)) == 8
        assert all(0 <= one < 2**31 for one in a)
        others = (seeds(0, "b" * 64, 1, 8), seeds(0, "a" * 64, 2, 8), seeds(1, "a" * 64, 1, 8))
        for other in (*others, seeds(0, "a" * 64, 1, 8, "answers")):
            assert not set(a) & set(other)

    def test_a_server_may_say_when_to_come_back(self) -> None:
        assert _retry_after("7") == 7 and _retry_after("0.5") == 0.5
        soon = _retry_after(email.utils.formatdate(time.time() + 100))
        assert soon is not None and 50 < soon <= 100
        for nothing in (None, "", "soon", "-3", "0", "nan", email.utils.formatdate(0)):
            assert _retry_after(nothing) is None

    def test_pauses_grow_and_end(self) -> None:
        pytest.importorskip("openai")
        server = Server(EndpointConfig("http://127.0.0.1:9/v1"))
        pauses = [[server._pause(tried, None) for tried in range(1, 12)] for _ in range(50)]
        assert all(0.5 <= one[0] <= 1 and 30 <= one[-1] <= 60 for one in pauses)
        assert len({one[0] for one in pauses}) > 1  # clients do not come back all at once
        assert server._pause(1, 40.0) == 40 and MOST_PATIENCE >= 60

    def test_what_openai_does_not_know_travels_apart(self) -> None:
        sent = request_of({"model": "m", "seed": 1, **extras(5)[0]})
        assert sent["seed"] == 1 and sent["extra_body"]["top_k"] == 5 and "top_k" not in sent
        assert request_of({"model": "m"}) == {"model": "m"}

    @pytest.mark.parametrize(
        ("size", "sent"), [((300, 20), (100, 7)), ((20, 3000), (1, 100)), ((100, 100), (100, 100))]
    )
    def test_sizes(self, size: tuple[int, int], sent: tuple[int, int]) -> None:
        import base64
        import io

        rgb = Image.new("RGB", size, (10, 200, 30))
        rgb.info["exif"] = b"hall 4"
        data = base64.b64decode(data_url(rgb, 100).removeprefix("data:image/png;base64,"))
        with Image.open(io.BytesIO(data)) as back:
            assert back.size == sent and back.mode == "RGB" and not back.info
            assert np.array_equal(np.unique(np.asarray(back).reshape(-1, 3), axis=0), [[10, 200, 30]])
        assert rgb.info and rgb.size == size  # the picture itself is as it was


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=12,
)

CHOICE = JSON | st.fixed_dictionaries(
    {
        "message": st.dictionaries(st.sampled_from(KEYS), JSON),
        "finish_reason": st.sampled_from(("stop", "length")) | JSON,
    },
    optional={"index": JSON, "logprobs": JSON | st.fixed_dictionaries({"content": st.lists(JSON, max_size=3)})},
)


class TestReplies:
    @settings(max_examples=100, deadline=None)
    @given(st.lists(CHOICE, max_size=4), JSON)
    def test_whatever_comes_nothing_breaks_and_nothing_passes_unsaid(self, choices: list[Any], usage: Any) -> None:
        reply = {"choices": choices, "usage": usage}
        found = captions_of(reply, 3)
        assert len(found) <= min(3, len(choices)) and len(thoughts_of(reply)) <= len(choices)
        for caption in found:
            said = [c for c in choices if isinstance(c, dict) and c.get("finish_reason") == "stop"]
            assert caption.finish != "stop" or said
            assert caption.mean_logprob is None or (caption.mean_logprob <= 0 and np.isfinite(caption.mean_logprob))
            assert caption.num_tokens >= 0

    @settings(max_examples=100, deadline=None)
    @given(st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
    def test_a_body_is_a_completion_or_is_none(self, body: bytes) -> None:
        try:
            assert isinstance(parse(body)["choices"], list)
        except BadReplyError as error:
            assert str(error).startswith("it answered with")


def test_a_server_takes_no_torch() -> None:
    """The client's machine need not spend seconds, and gigabytes, on what runs elsewhere."""
    code = (
        "import sys, vlmgate.captioner.server.engine; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class TestGates:
    def gate(self, path: Path, model: ModelConfig) -> Path:
        told = sampling_of({f: getattr(SamplingConfig(), f) for f in SamplingConfig.__dataclass_fields__})
        file = GateFile(
            gate=Gate(threshold=1.5),
            kernel="words",
            model=model.model,
            revision=None,
            checkpoint=model_fingerprint(model),
            sampling=told,
            data={"endpoint": URL} if model.endpoint else {},
        )
        write_gate(path, file)
        return path

    def test_the_place_does_not_count_and_all_else_does(self) -> None:
        here = model_fingerprint(served())
        moved = ModelConfig("m", endpoint=EndpointConfig("https://other/v1", concurrency=1, timeout=1, retries=0))
        assert model_fingerprint(moved) == here
        for other in (served("n"), served(max_side=512), served(structured_answers=True), ModelConfig()):
            assert model_fingerprint(other) != here

    def test_a_gate_of_a_server_refuses_other_models(self, tmp_path: Path) -> None:
        gate = self.gate(tmp_path / "gate.toml", served())

        def scan(model: ModelConfig) -> None:
            config = ScanConfig(tmp_path, tmp_path / "out.parquet", model=model, gate=gate)
            check_same(gate_of(config), config, model_fingerprint(model))

        scan(served())
        with pytest.raises(GateError, match=r"model 'n' \(calibrated with 'm'\)"):
            scan(served("n"))
        with pytest.raises(GateError, match=r"max-side '512' \(calibrated with '2048'\)"):
            scan(served(max_side=512))
        with pytest.raises(GateError, match=r"structured-answers 'yes' \(calibrated with 'None'\)"):
            scan(served(structured_answers=True))
        with pytest.raises(GateError, match=f"on m at {URL}; name a server of that model: --endpoint URL"):
            scan(ModelConfig("m"))  # nobody's images are sent to where a file says

    def test_a_gate_of_a_model_here_refuses_servers(self, tmp_path: Path) -> None:
        gate = self.gate(tmp_path / "gate.toml", ModelConfig())
        with pytest.raises(GateError, match="which ran here; leave --endpoint out"):
            gate_of(ScanConfig(tmp_path, tmp_path / "out.parquet", model=served("builtin2"), gate=gate))
        assert (
            "another model"
            in differences(
                gate_of(ScanConfig(tmp_path, tmp_path / "o.parquet", gate=gate)).file or pytest.fail("no file"),
                SamplingConfig(),
                model_fingerprint(served()),
                "first",
            )[0]
        )

    def test_what_needs_vision_features_is_refused_at_once(self, tmp_path: Path) -> None:
        config = ScanConfig(tmp_path, tmp_path / "out.parquet", model=served())
        for changed in (
            replace(config, limits=("novelty <= 1",)),
            replace(config, score="doubt", threshold=2.0),
            replace(config, reference=tmp_path),
        ):
            with pytest.raises(GateError, match="which a model server does not show"):
                gate_of(changed)


@pytest.mark.parametrize(
    "option", ["--timeout 10", "--max-side 512", "--concurrency 2", "--retries 0", "--structured-answers"]
)
@pytest.mark.parametrize("command", [["scan"], ["calibrate"], ["doctor"]])
def test_what_only_a_server_heeds_is_refused_without_one(
    command: list[str], option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    told = CliRunner().invoke(app, [*command, *([] if command == ["doctor"] else ["a.png"]), *option.split()])
    assert told.exit_code == 2 and f"{option.split()[0]} is of model servers; name one with --endpoint." in told.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
