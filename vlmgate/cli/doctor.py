"""`vlmgate doctor`: can this machine do it?"""

from __future__ import annotations

import json
from typing import Any

from vlmgate.api.options import server_of
from vlmgate.cli.options import (
    ConcurrencyOption,
    DeviceOption,
    DtypeOption,
    EndpointOption,
    Format,
    FormatOption,
    MaxSideOption,
    ModelOption,
    RetriesOption,
    RevisionOption,
    TimeoutOption,
    TrustOption,
    app,
)
from vlmgate.config import BUILTIN, ModelConfig
from vlmgate.errors import VlmgateError
from vlmgate.report.terminal import console, errors_in_one_line
from vlmgate.version import __version__


@app.command(short_help="Tell what this machine and a model can do.")
def doctor(
    model: ModelOption = BUILTIN,
    revision: RevisionOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustOption = False,
    endpoint: EndpointOption = None,
    max_side: MaxSideOption = 2048,
    concurrency: ConcurrencyOption = 16,
    timeout: TimeoutOption = 300.0,
    retries: RetriesOption = 8,
    format: FormatOption = Format.TABLE,
) -> None:
    """Tell what this machine offers, and whether the model, here or at a server, reads a test image."""
    with errors_in_one_line():
        asked = {"max_side": max_side, "concurrency": concurrency, "timeout": timeout, "retries": retries}
        server = server_of({"endpoint": endpoint, **asked})
        from vlmgate.captioner.machine import describe_machine, try_model
        from vlmgate.report.image import print_provenance

        facts: dict[str, Any] = {"vlmgate": __version__} | describe_machine()
        problem: VlmgateError | None = None
        try:
            facts["model"] = try_model(ModelConfig(model, revision, device, dtype, trust_remote_code, server))
        except VlmgateError as error:
            problem, facts["model"] = error, {"answers" if server else "loads": "no", "why": str(error)}
        if format is Format.JSON:
            print(json.dumps({"schema_version": 1} | facts, indent=2))
        else:
            print_provenance(facts, console())
        if problem:
            raise problem
