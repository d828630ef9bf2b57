"""`vlmgate doctor`: can this machine do it?"""

from __future__ import annotations

import json
from typing import Any

from vlmgate.cli.options import Format, Given, command
from vlmgate.config import ModelConfig
from vlmgate.config.options import build, options_of
from vlmgate.errors import VlmgateError
from vlmgate.report.terminal import console
from vlmgate.version import __version__


@command(options_of(ModelConfig), short_help="Tell what this machine and a model can do.")
def doctor(given: Given, format: Format = "table") -> None:
    """Tell what this machine offers, and whether the model, here or at a server, reads a test image."""
    config = build(ModelConfig, given)
    from vlmgate.captioner.machine import describe_machine, try_model
    from vlmgate.report.image import print_provenance
    from vlmgate.scores.novelty import checkpoint_reference

    facts: dict[str, Any] = {"vlmgate": __version__} | describe_machine()
    problem: VlmgateError | None = None
    try:
        checkpoint_reference(config)
        facts["model"] = try_model(config)
    except VlmgateError as error:
        problem, facts["model"] = error, {"answers" if config.endpoint else "loads": "no", "why": str(error)}
    if format == "json":
        print(json.dumps({"schema_version": 1} | facts, indent=2))
    else:
        print_provenance(facts, console())
    if problem:
        raise problem
