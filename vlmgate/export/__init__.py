"""Hand a result on: to a spreadsheet, a program, a labelling tool, a training set.

    rows ──► a writer per format ────► output
    a batch    text_formats, xlsx,         a file in one step,
    at a time  annotation_formats,         or stdout
               imagefolder

`export.export` does it; `sheet.read_sheet` reads back what a person filled in. A result of any size goes through in
constant memory, and what a file name or a caption holds is data everywhere: no formula, no markup, no path.

To add a format, write a subclass of `rows.Writer` in a new file here and name it in `targets.Target`.
"""

from vlmgate.export.targets import Only, Target

__all__ = ["Only", "Target"]
