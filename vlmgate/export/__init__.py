"""Hand a result on: to a spreadsheet, a program, a labelling tool, a training set.

    rows ──► columns ──► a writer per target ──► output
    a batch    which, in     delimited, json_lines,    a file in one step,
    at a time  what order    xlsx, label_studio,       or stdout
                             coco, imagefolder

Two promises: a result of any size goes through in constant memory, and what a file name or a caption holds is data
everywhere: no formula, no markup, no path.
`exporting.export` does it, `sheet.read_sheet` reads back what a person filled in. Knows nothing of models.
"""

from vlmgate.export.targets import Only, Target

__all__ = ["Only", "Target"]
