"""What a result can be exported to.

Knows names; knows nothing of formats.
"""

from __future__ import annotations

from enum import StrEnum

FILL_IN = ("verdict", "reading", "note")  # columns that are empty in a sheet, for a person to fill in


class Target(StrEnum):
    """A format, by what reads it."""

    CSV = "csv"
    EXCEL_CSV = "excel-csv"
    TSV = "tsv"
    JSONL = "jsonl"
    XLSX = "xlsx"
    LABEL_STUDIO = "label-studio"
    COCO = "coco"
    IMAGEFOLDER = "imagefolder"


class Only(StrEnum):
    """Which rows."""

    ROUTED = "routed"
    ACCEPTED = "accepted"


SHEETS = (Target.CSV, Target.EXCEL_CSV, Target.TSV, Target.XLSX)  # what a person may fill in
