"""What a result can be exported to, and the options of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vlmgate.config.options import Panel, opt
from vlmgate.errors import UsageError

FILL_IN = ("verdict", "reading", "note")  # columns that are empty in a sheet, for a person to fill in


class Target(StrEnum):
    """A format, by its name for `--to`; `writer` is the file in this room and the class in it that write it."""

    writer: str

    def __new__(cls, name: str, writer: str) -> Target:
        member = str.__new__(cls, name)
        member._value_, member.writer = name, writer
        return member

    CSV = "csv", "text_formats.PlainWriter"
    EXCEL_CSV = "excel-csv", "text_formats.ExcelWriter"
    TSV = "tsv", "text_formats.TabWriter"
    JSONL = "jsonl", "text_formats.JsonLinesWriter"
    XLSX = "xlsx", "xlsx.XlsxWriter"
    LABEL_STUDIO = "label-studio", "annotation_formats.LabelStudioWriter"
    COCO = "coco", "annotation_formats.CocoWriter"
    IMAGEFOLDER = "imagefolder", "imagefolder.ImageFolderWriter"


class Only(StrEnum):
    """Which rows."""

    ROUTED = "routed"
    ACCEPTED = "accepted"


@dataclass(frozen=True, slots=True)
class Options:
    """What may be asked of an export; None = the target's own way."""

    only: Only | None = opt(None, "Leave out the rest.", panel=Panel.READ)
    columns: str | None = opt(None, "Which columns, in this order, separated by commas.", panel=Panel.READ)
    images: Path | None = opt(
        None, "Folder that was scanned, for thumbnails and imagefolder.", panel=Panel.READ, usual="as RESULT says"
    )
    thumbnails: bool = opt(False, "xlsx: a small picture in each row.")
    image_root: str | None = opt(None, "label-studio: what comes before file names.", usual="/data/local-files/?d=")
    link: bool = opt(False, "imagefolder: hard links instead of copies.")
    overwrite: bool = opt(False, "Replace the file that is there.")

    def check(self, target: Target) -> None:
        """Raise `UsageError` for what this target makes nothing of."""
        for given, option, others in (
            (self.thumbnails, "--thumbnails", (Target.XLSX,)),
            (self.image_root is not None, "--image-root", (Target.LABEL_STUDIO,)),
            (self.link, "--link", (Target.IMAGEFOLDER,)),
            (self.images is not None, "--images", (Target.XLSX, Target.IMAGEFOLDER)),
        ):
            if given and target not in others:
                raise UsageError(f"{option} goes with --to {' or '.join(others)} only; leave it out.")
        if self.images is not None and target is Target.XLSX and not self.thumbnails:
            raise UsageError("--images is for thumbnails; add --thumbnails, or leave it out.")
