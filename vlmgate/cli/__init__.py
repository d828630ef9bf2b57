"""The command line: a file a command. Call `main`; add a command with `options.command`.

Options become configs, results become exit codes. Heavy imports stay inside the commands, so that `vlmgate --help`
answers at once.
"""

from vlmgate.cli import calibrate, compare, doctor, export, help, merge, results, review, scan  # register commands
from vlmgate.cli.options import app, main

__all__ = ["app", "calibrate", "compare", "doctor", "export", "help", "main", "merge", "results", "review", "scan"]
