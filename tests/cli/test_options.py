"""Options are declared once: what the command line makes of them, in names, help, tables and completion."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from vlmgate.cli import app
from vlmgate.cli.options import option_table
from vlmgate.config import SamplingConfig
from vlmgate.config.calibrate import CALIBRATE
from vlmgate.config.options import build, check_together, load_toml
from vlmgate.config.scan import SCAN
from vlmgate.errors import ConfigError, UsageError

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
SNAPSHOT: dict[str, Any] = json.loads((Path(__file__).parent / "options.json").read_text(encoding="utf-8"))
RARE = ("--top-p", "--max-pixels", "--view-noise", "--retries", "--settle")


def facts_of(command: str, parameter: Any) -> dict[str, Any]:
    """Return what a script that calls a command may rely on."""
    default = getattr(parameter.default, "value", parameter.default)
    option = parameter.param_type_name == "option"
    return {
        "kind": parameter.param_type_name,
        "flags": sorted([*parameter.opts, *parameter.secondary_opts]),
        "default": default if default is None or isinstance(default, int | float | str) else str(default),
        "multiple": bool(getattr(parameter, "multiple", False)),
        "is_flag": bool(getattr(parameter, "is_flag", False)),
        "required": bool(parameter.required),
        "env": f"VLMGATE_{command}_{parameter.name}".upper() if option else None,
        "toml": parameter.name if option else None,
    }


@pytest.mark.parametrize("command", SNAPSHOT)
def test_options_are_those_of_the_snapshot(command: str) -> None:
    """`options.json` was taken before options were declared once; scripts and files of users rely on it."""
    assert {p.name: facts_of(command, p) for p in COMMANDS[command].params} == SNAPSHOT[command]


def help_of(command: str) -> str:
    return CliRunner().invoke(app, [command, "--help"], terminal_width=80).stdout


def test_help_shows_the_everyday_options_by_panel() -> None:
    text = help_of("scan")
    headings = re.findall(r"(?m)^(\w.*):$", text)
    assert headings == [
        "Arguments",
        "What to read",
        "Which go to a person",
        "Model",
        "Sampling",
        "Server",
        "Many machines",
        "Output",
    ]
    assert "env var" not in text and not any(option in text for option in RARE)
    assert "vlmgate help options" in text and "VLMGATE_SCAN_" in text
    assert "Costs" in re.findall(r"(?m)^(\w.*):$", help_of("calibrate"))


@pytest.mark.parametrize("command", SNAPSHOT)
def test_help_fits_80_columns_and_cuts_no_word(command: str) -> None:
    text = help_of(command)
    assert max(map(len, text.splitlines())) <= 80
    shown = " ".join(text.split())
    for parameter in COMMANDS[command].params:
        if parameter.param_type_name == "option" and f"{parameter.opts[0]} " in text:
            assert " ".join(parameter.help.split()) in shown, parameter.name


@pytest.mark.parametrize("command", SNAPSHOT)
def test_the_table_of_a_command_names_all_its_options(command: str) -> None:
    table = option_table(command)
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    options = [p for p in COMMANDS[command].params if p.param_type_name == "option"]
    assert len(rows) == len(options) and {row.replace("\\|", "").count("|") for row in rows} == {4}
    for parameter in options:
        assert f"`{parameter.opts[0]}`" in table


def test_the_table_tells_defaults_and_choices() -> None:
    table = option_table("calibrate")
    assert "| `--num-samples`, `-k` | 16 | Most captions per image. |" in table
    assert "| `--target-risk` | 10% |" in table and "| `--no-page` |  |" in table
    assert "| `--max-pixels` | 500,000,000 |" in table and "| `--novelty-limit` | 1 |" in table
    assert "How stdout is written. One of table, json. |" in table
    assert table.index("**What to read**") < table.index("**Which go to a person**") < table.index("**Output**")


@pytest.mark.parametrize("value", ["1", "0.1.0", "no"])
@pytest.mark.parametrize("name", ["VERSION", "HELP", "SHOW_COMPLETION", "INSTALL_COMPLETION"])
def test_a_variable_of_the_plant_changes_no_command(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(f"VLMGATE_{name}", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    done = CliRunner().invoke(app, ["scan", "nowhere"])
    assert done.exit_code == 2 and "nowhere: no such folder" in done.stderr and not done.stdout
    assert "vlmgate" in CliRunner().invoke(app, ["--version"]).stdout


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("SCAN_MODLE", "did you mean VLMGATE_SCAN_MODEL?"),
        ("SCAN_NUM_SAMPLE", "did you mean VLMGATE_SCAN_NUM_SAMPLES?"),
        ("SCNA_MODEL", "did you mean VLMGATE_SCAN_MODEL?"),
        ("SCAN_ZZZZ", "`vlmgate help options scan` lists what there is."),
        ("SCAN_HELP", "`vlmgate help options scan` lists what there is."),
        ("SCAN", "`vlmgate help options scan` lists what there is."),
    ],
)
def test_a_misspelt_variable_is_told_as_a_misspelt_key_is(
    name: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"VLMGATE_{name}", "x")
    done = CliRunner().invoke(app, ["scan", "nowhere"])
    assert done.exit_code == 2 and told in done.stderr
    assert f"VLMGATE_{name}: no option" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["CALIBRATE_RULE", "SCANNER_IP", "HOME", "API_KEY", "INFO_FORMAT", "SCAN_MODLE="])
def test_variables_of_others_are_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"VLMGATE_{name.rstrip('=')}", "" if name.endswith("=") else "x")
    assert "no option is set" not in CliRunner().invoke(app, ["scan", "nowhere"]).stderr


def test_a_gate_that_the_toml_names_brings_its_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--config is read before --gate, so that a gate from a file counts as one from the command line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "c.toml").write_text('gate = "none.toml"')
    done = CliRunner().invoke(app, ["scan", "images", "--config", "c.toml"])
    assert done.exit_code == 2 and "none.toml: cannot read the gate" in done.stderr


# --- the declarations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("num_samples", 1, "2 to 1024"),
        ("temperature", 0.0, "above 0"),
        ("temperature", float("inf"), "above 0"),
        ("top_p", 1.5, "above 0 and at most 1"),
        ("top_p", float("nan"), "above 0 and at most 1"),
        ("top_k", -1, "0 or more"),
        ("seed", 2**63, r"0 to 2\^63 - 1"),
        ("seed", 10**400, r"0 to 2\^63 - 1"),
        ("prompt", "  ", "a non-empty text"),
    ],
)
def test_a_value_out_of_range_is_refused_whichever_way_it_comes(name: str, value: Any, allowed: str) -> None:
    said = rf"^{name} is .*; allowed: {allowed}"
    with pytest.raises(ConfigError, match=said):
        SamplingConfig(**{name: value})
    with pytest.raises(ConfigError, match=said):
        build(SamplingConfig, {name: value})


def test_what_is_not_given_stays_as_it_is_declared() -> None:
    assert build(SamplingConfig, {"num_samples": None, "no_abstain": False, "unknown": 1}) == SamplingConfig()
    assert not build(SamplingConfig, {"no_abstain": True}).abstain


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"shard": "1/2", "watch": True}, "--shard and --watch exclude each other"),
        ({"ray": "auto", "watch": True}, "--ray and --watch exclude each other"),
        ({"ray": "auto", "endpoint": "http://a/v1"}, "a model server has workers of its own"),
        ({"ray": "auto", "samples": "4..16"}, "Ray draws all samples of every image"),
    ],
)
def test_what_excludes_each_other_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_together(SCAN, given)
    check_together(SCAN, given | dict.fromkeys(list(given)[1:]))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("temprature = 1", "unknown key 'temprature'; did you mean 'temperature'?"),
        ("zzz = 1", "unknown key 'zzz'; known: answers, batch_size, "),
        ("seed = [1]", "'seed' must be a single value"),
        ("restart = 1", "restart = 1 is no value for this option"),
        ("seed = true", "seed = True is no value for this option"),
        ('choices = ["a, b", "c"]', "a comma parts one of 'choices' from the next"),
    ],
)
def test_toml_says_what_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_toml(tmp_path / "c.toml", SCAN)


def test_toml_takes_one_or_several_and_either_spelling(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('label-map = "a=b"\nkernel = ["words", "minilm"]\nchoices = ["a", "b"]\nseed = 3')
    told = load_toml(tmp_path / "c.toml", CALIBRATE)
    assert told == {"label_map": ["a=b"], "kernel": ["words", "minilm"], "choices": "a,b", "seed": 3}


# --- completion -------------------------------------------------------------------------------------------------------


def completed(*words: str) -> list[str]:
    """Return what the shell offers after these words; the last is not finished."""
    environment = {
        **os.environ,
        "_VLMGATE_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["vlmgate", *words]),
        "COMP_CWORD": str(len(words)),
    }
    code = "import sys; sys.argv[0] = 'vlmgate'; from vlmgate.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""
    return done.stdout.split()


def test_the_shell_completes_commands_options_and_choices() -> None:
    assert completed("ca") == ["calibrate"]
    assert completed("scan", "--top") == ["--top-p", "--top-k"]  # those that --help leaves out, too
    assert completed("scan", "--format", "j") == ["json"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_script_for_bash_is_sound() -> None:
    environment = {**os.environ, "_VLMGATE_COMPLETE": "source_bash"}
    code = "import sys; sys.argv[0] = 'vlmgate'; from vlmgate.cli import main; main()"
    script = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "_VLMGATE_COMPLETE=complete_bash" in script.stdout
    subprocess.run(["bash", "-n"], input=script.stdout, text=True, check=True)
    root = CliRunner().invoke(app, ["--help"]).stdout
    assert "--install-completion" in root and "--show-completion" in root
