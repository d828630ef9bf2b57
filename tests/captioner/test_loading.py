"""Loading a checkpoint: from where, on what, and one line that says what to do when it cannot be done."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.support import tiny_models
from tests.support.paths import ROOT
from vlmgate.captioner import load_captioner
from vlmgate.captioner.local import checkpoint
from vlmgate.captioner.local.checkpoint import choose_device, choose_dtype, explain
from vlmgate.captioner.location import Hub, Local, locate, model_fingerprint
from vlmgate.config import ModelConfig, SamplingConfig
from vlmgate.errors import ConfigError, ModelError, shorten


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("llava", tmp_path_factory.getbasetemp() / "tiny")


@pytest.fixture
def copy(llava: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llava, tmp_path / "model"))


def failure(model: str | Path, **options: Any) -> ModelError:
    """Return the error of loading a model, after checking that it is one line and names the model."""
    with pytest.raises(ModelError) as caught:
        load_captioner(ModelConfig(model=str(model), **({"device": "cpu"} | options)), SamplingConfig())
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".") or message.endswith(")")
    return caught.value


def change(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


class TestFolders:
    def test_a_missing_folder(self, tmp_path: Path) -> None:
        assert "There is no folder" in str(failure(tmp_path / "nowhere"))
        assert "There is no folder ./nowhere" in str(failure("./nowhere"))

    def test_a_file(self, copy: Path) -> None:
        assert "is a file" in str(failure(copy / "config.json"))

    def test_a_folder_that_holds_no_model(self, tmp_path: Path) -> None:
        assert "holds no config.json" in str(failure(tmp_path))

    def test_pickled_weights_are_refused(self, copy: Path) -> None:
        (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
        assert "pickled ones are refused" in str(failure(copy))

    @pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
    def test_an_adapter_is_not_left_out_in_silence(self, copy: Path, name: str) -> None:
        (copy / name).write_bytes(b"{}")
        message = str(failure(copy))
        assert f"holds an adapter ({name})" in message and "merge_and_unload" in message
        with pytest.raises(ModelError, match="holds an adapter"):  # before anything is loaded, or hashed
            model_fingerprint(ModelConfig(str(copy)))

    def test_nor_one_without_its_base(self, tmp_path: Path) -> None:
        (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
        assert "holds an adapter" in str(failure(tmp_path))

    def test_nor_one_among_the_weights(self, copy: Path) -> None:
        file = copy / "model.safetensors"
        weights = load_file(file)
        lora = {"model.language_model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.ones(2, 48)}
        save_file(weights | lora, file, {"format": "pt"})
        assert "holds 1 weights of an adapter" in str(failure(copy))

    def test_nor_one_on_the_hub(self, llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        commit = "0123456789abcdef" * 2 + "01234567"
        store = tmp_path / "models--owner--x"
        shutil.copytree(llava, store / "snapshots" / commit)
        (store / "snapshots" / commit / "adapter_config.json").write_text("{}")
        (store / "refs").mkdir()
        (store / "refs" / "main").write_text(commit)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        assert "owner/x holds an adapter" in str(failure("owner/x"))

    def test_a_revision_of_a_folder(self, copy: Path) -> None:
        assert "no revisions" in str(failure(copy, revision="main"))

    def test_a_missing_builtin_model(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("vlmgate.captioner.location.weights_folder", lambda: tmp_path)
        assert "built-in weights are missing" in str(failure("builtin"))

    def test_the_builtin_model_is_a_folder_like_any_other(self, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("vlmgate.captioner.location.weights_folder", lambda: copy)
        assert load_captioner(ModelConfig(device="cpu"), SamplingConfig()).info.model == "builtin"
        assert model_fingerprint(ModelConfig())["model"] == "builtin"

    def test_a_folder_wins_over_a_hub_id_of_that_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert locate(ModelConfig("owner/name", "v1")) == Hub("owner/name", "v1")
        (tmp_path / "owner" / "name").mkdir(parents=True)
        (tmp_path / "owner" / "name" / "config.json").touch()
        (tmp_path / "owner" / "name" / "model.safetensors").touch()
        assert locate(ModelConfig("owner/name")) == Local(Path("owner/name"))


class TestCheckpointsThatAreNot:
    def test_a_text_model(self, tmp_path: Path) -> None:
        tokenizer = tiny_models.tokenizer()
        config = transformers.LlamaConfig(**tiny_models._text(len(tokenizer)))
        transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        assert "no vision-language model" in str(failure(tmp_path))

    def test_a_vision_model_that_does_not_speak(self, copy: Path) -> None:
        text = {"text_config": {"hidden_size": 32}, "vision_config": {"hidden_size": 32}}
        (copy / "config.json").write_text(json.dumps({"model_type": "siglip"} | text))
        error = failure(copy)
        assert "no vision-language model" in str(error)
        assert error.__cause__ is not None

    def test_an_unknown_architecture(self, copy: Path) -> None:
        change(copy / "config.json", model_type="frobnicate")
        error = failure(copy)
        assert "does not know" in str(error)
        assert error.__cause__ is not None

    def test_code_of_its_own(self, copy: Path) -> None:
        (copy / "configuration_x.py").write_text("raise SystemExit('this code must not run')")
        change(copy / "config.json", model_type="frobnicate", auto_map={"AutoConfig": "configuration_x.X"})
        assert "--trust-remote-code" in str(failure(copy))

    def test_kernels_from_a_hub(self, copy: Path) -> None:
        change(copy / "config.json", attn_implementation="somebody/fast-attention")
        assert "asks for code from somebody/fast-attention" in str(failure(copy))

    def test_missing_weights_are_not_made_up(self, copy: Path) -> None:
        weights = load_file(copy / "model.safetensors")
        name = next(name for name in weights if "projector" in name)
        del weights[name]
        save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
        assert "lacks 1 of its model's weights" in str(failure(copy))

    def test_weights_of_another_shape(self, copy: Path) -> None:
        weights = load_file(copy / "model.safetensors")
        name = next(name for name in weights if "projector" in name and weights[name].ndim == 2)
        weights[name] = weights[name][:3].contiguous()
        save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
        assert "other shapes" in str(failure(copy))

    def test_half_a_weights_file(self, copy: Path) -> None:
        path = copy / "model.safetensors"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert "damaged weights file" in str(failure(copy))

    def test_a_config_that_is_no_json(self, copy: Path) -> None:
        (copy / "config.json").write_text("{")
        assert "not a valid JSON file" in str(failure(copy))

    @pytest.mark.parametrize(("pattern", "says"), [("*process*", "image processor"), ("token*", "tokenizer")])
    def test_half_a_folder(self, copy: Path, pattern: str, says: str) -> None:
        for path in copy.glob(pattern):
            path.unlink()
        assert says in str(failure(copy))
        assert "Copy the whole model folder" in str(failure(copy))

    def test_a_processor_that_takes_the_prompt_in_no_form(self, copy: Path) -> None:
        change(copy / "processor_config.json", patch_size=0)
        assert "no known form" in str(failure(copy))


class TestHub:
    def test_no_network(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        error = failure("no-such-owner/no-such-model")
        assert "neither on this machine nor on the hub" in str(error)
        assert isinstance(error.__cause__, OSError)

    def test_a_name_that_cannot_be_one(self) -> None:
        assert "Check the spelling" in str(failure("a b/c d"))

    @pytest.mark.parametrize(
        ("error", "says"),
        [
            (OSError("owner/x is not a local folder and is not a valid model identifier listed on"), "spelling"),
            (OSError("You are trying to access a gated repo."), "hf auth login"),
            (OSError("abc is not a valid git identifier (branch name, tag name or commit id)"), "--revision"),
            (OSError("owner/x does not appear to have a file named model.safetensors"), "pickled"),
            (ImportError("XProcessor requires the PyTorchVideo library\nbut it was not found"), "not installed"),
            (torch.OutOfMemoryError("CUDA out of memory."), "does not fit"),
            (KeyError("surprise"), "surprise"),
        ],
    )
    def test_what_the_hub_and_the_loaders_say(self, error: Exception, says: str) -> None:
        message = explain(ModelConfig("owner/x"), Hub("owner/x", None), error)
        assert message.startswith("owner/x ")
        assert says in message and "\n" not in message

    def test_the_commit_is_resolved_once_and_told(
        self, llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A cache as the hub's client lays it out serves a model without network."""
        commit = "0123456789abcdef" * 2 + "01234567"
        store = tmp_path / "models--owner--x"
        shutil.copytree(llava, store / "snapshots" / commit)
        (store / "refs").mkdir()
        (store / "refs" / "main").write_text(commit)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        info = load_captioner(ModelConfig("owner/x", device="cpu"), SamplingConfig()).info
        assert (info.model, info.revision) == ("owner/x", commit)

    def test_long_messages_are_cut(self) -> None:
        assert len(shorten(ValueError("word " * 500))) == 240
        assert shorten(ValueError()) == "ValueError"


class TestDeviceAndDtype:
    @pytest.mark.parametrize("name", ["gpu", "cuda:x", "meta", "xpu", ""])
    def test_unknown_devices(self, name: str) -> None:
        with pytest.raises(ModelError, match="Use auto, cpu, cuda, cuda:N or mps"):
            choose_device(name)

    def test_unknown_dtype(self) -> None:
        with pytest.raises(ConfigError, match="dtype is 'int8'; allowed: auto, float32"):
            ModelConfig(dtype="int8")

    def test_cuda_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(ModelError, match="No CUDA device"):
            choose_device("cuda")

    def test_cuda_that_is_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert [str(choose_device(name)) for name in ("auto", "cuda", "cuda:1")] == ["cuda:0", "cuda:0", "cuda:1"]
        with pytest.raises(ModelError, match=r"no cuda:2: this machine has 2"):
            choose_device("cuda:2")

    def test_automatic_device_without_any_card(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        assert str(choose_device("auto")) == "cpu"
        with pytest.raises(ModelError, match="No Apple GPU"):
            choose_device("mps")

    @pytest.mark.parametrize(
        ("name", "device", "capability", "stored", "chosen"),
        [
            ("auto", "cpu", None, torch.bfloat16, torch.float32),
            ("bfloat16", "cpu", None, torch.float32, torch.bfloat16),
            ("auto", "cuda:0", (9, 0), torch.float32, torch.bfloat16),
            ("auto", "cuda:0", (7, 5), torch.float16, torch.float16),
            ("auto", "cuda:0", (7, 5), "float16", torch.float16),
            ("auto", "cuda:0", (7, 5), torch.bfloat16, torch.float32),
            ("auto", "cuda:0", (7, 5), None, torch.float32),
            ("float16", "cuda:0", (9, 0), torch.bfloat16, torch.float16),
        ],
    )
    def test_dtypes(
        self,
        name: str,
        device: str,
        capability: tuple[int, int] | None,
        stored: object,
        chosen: torch.dtype,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        assert choose_dtype(name, torch.device(device), stored) == chosen

    def test_a_model_in_half_precision_reads(self, llava: Path) -> None:
        config = ModelConfig(model=str(llava), device="cpu", dtype="bfloat16")
        engine = load_captioner(config, SamplingConfig(num_samples=2, max_new_tokens=3))
        assert engine.info.dtype == "bfloat16"
        assert len(engine.read([tiny_models.picture(0, (40, 30))])[0].captions) == 2


class TestFingerprint:
    def test_content_counts_and_the_place_does_not(self, llava: Path, copy: Path) -> None:
        one, two = (model_fingerprint(ModelConfig(model=str(folder))) for folder in (llava, copy))
        assert one == two
        assert one["model"] == "folder" and len(one["content"]) == 64

    def test_what_does_not_change_the_captions_does_not_count(self, copy: Path) -> None:
        before = model_fingerprint(ModelConfig(model=str(copy)))
        (copy / "README.md").write_text("about this model")
        (copy / ".cache").mkdir()
        (copy / ".cache" / "x.json").write_text("{}")
        assert model_fingerprint(ModelConfig(model=str(copy), device="cpu", dtype="bfloat16")) == before

    @pytest.mark.parametrize("name", ["config.json", "chat_template.jinja", "tokenizer.json", "model.safetensors"])
    def test_every_file_that_counts(self, copy: Path, name: str) -> None:
        before = model_fingerprint(ModelConfig(model=str(copy)))
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
        assert model_fingerprint(ModelConfig(model=str(copy))) != before

    def test_large_weights_are_sampled(self, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("vlmgate.captioner.location.WHOLE", 1000)
        monkeypatch.setattr("vlmgate.captioner.location.CHUNK_BYTES", 16)
        before = model_fingerprint(ModelConfig(model=str(copy)))
        path = copy / "model.safetensors"
        content = bytearray(path.read_bytes())
        middle, part = len(content) // 2, len(content) // 100
        content[middle : middle + part] = bytes(part)  # one hundredth of the file, as a layer would be
        path.write_bytes(content)
        changed = model_fingerprint(ModelConfig(model=str(copy)))
        assert changed != before
        path.write_bytes(content + b"\0")
        assert model_fingerprint(ModelConfig(model=str(copy))) != changed

    def test_a_hub_model_is_its_name_and_revision(self) -> None:
        assert model_fingerprint(ModelConfig("owner/x")) == {"model": "owner/x", "revision": "main"}
        assert model_fingerprint(ModelConfig("owner/x", "v2")) == {"model": "owner/x", "revision": "v2"}

    def test_it_needs_neither_torch_nor_numpy(self, llava: Path) -> None:
        code = (
            "import sys; from vlmgate.captioner.location import model_fingerprint as f; import vlmgate.captioner;"
            f"from vlmgate.config import ModelConfig; f(ModelConfig(model={str(llava)!r}));"
            "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
        )
        assert run(code) == (0, "", "")


class TestTheUnexpected:
    def test_it_is_one_line_too(self, llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def burst(*args: Any) -> None:
            raise TypeError("a repository's own code\nfails")

        monkeypatch.setattr("vlmgate.captioner.local.engine.describe", burst)
        error = failure(llava)
        assert "cannot be made ready: a repository's own code fails (TypeError)" in str(error)
        assert isinstance(error.__cause__, TypeError)

    def test_a_missing_library(self, llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "vlmgate.captioner.local.engine", None)
        assert "ModuleNotFoundError" in str(failure(llava))


class TestQuiet:
    @pytest.mark.slow
    def test_a_folder_is_loaded_and_read_in_silence_and_without_network(self, llava: Path) -> None:
        code = f"""
import socket, sys
def refuse(*args, **kwargs): raise SystemExit("the network was asked for")
socket.socket.connect = socket.getaddrinfo = refuse
sys.path.insert(0, {str(ROOT)!r})
from tests.support.tiny_models import picture
from vlmgate.captioner import load_captioner
from vlmgate.config import ModelConfig, SamplingConfig
engine = load_captioner(ModelConfig(model={str(llava)!r}), SamplingConfig(num_samples=2, max_new_tokens=3))
print(len(engine.read([picture(0, (50, 40)), picture(1, (40, 50))])))
"""
        assert run(code) == (0, "2\n", "")

    def test_warnings_go_to_the_handlers_of_the_application(
        self, copy: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def load(*args: Any, **kwargs: Any) -> Any:
            transformers.utils.logging.get_logger("transformers.models.x").warning("mind the gap")
            raise OSError("broken")

        monkeypatch.setattr(checkpoint, "load_processor", load)
        failure(copy)
        assert "mind the gap" in caplog.text


def run(code: str) -> tuple[int, str, str]:
    """Run Python in a fresh interpreter; return exit code, stdout and stderr."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env=environment, timeout=120
    )
    return done.returncode, done.stdout, done.stderr
