"""The manual: one Markdown page a topic, which `vlmgate help TOPIC` shows. Call `topics` first, then `page`.

A page begins with `# Title`, then says in one line what it is for. The comment `<!-- options: scan -->` stands for the
table of a command's options, which the command line puts in its place. A new page is a new file and its name below.
"""

from __future__ import annotations

from vlmgate.errors import UsageError

SECTIONS: dict[str, tuple[str, ...]] = {
    "Reading images": ("scan", "images", "models", "builtin", "servers", "questions", "samples"),
    "Long runs": ("resume", "watch", "clusters", "speed"),
    "Deciding": (
        "limits",
        "findings",
        "languages",
        "scores",
        "calibrate",
        "labels",
        "costs",
        "drift",
        "safety",
        "compare",
        "separation",
    ),
    "Results": ("results", "columns", "review", "export"),
    "Reference": ("changes", "options", "exit-codes", "doctor", "python", "develop"),
}

# Other words that people look a page up by: commands without a page, options, terms.
ALSO: dict[str, str] = {
    **dict.fromkeys(("merge", "shards", "slurm", "ray"), "clusters"),
    **dict.fromkeys(("show", "info", "rescore"), "results"),
    **dict.fromkeys(("threshold", "review-budget", "limit"), "limits"),
    **dict.fromkeys(("terms", "contradiction", "claims"), "findings"),
    **dict.fromkeys(("score", "kernel", "novelty", "quality"), "scores"),
    **dict.fromkeys(("question", "choices", "answers"), "questions"),
    **dict.fromkeys(("gate", "promise"), "calibrate"),
    **dict.fromkeys(("risk", "risks", "damage"), "safety"),
    **dict.fromkeys(("config", "environment", "help"), "options"),
    **{"model": "models", "endpoint": "servers", "views": "samples", "restart": "resume", "verdicts": "review"},
}


def topics() -> dict[str, str]:
    """Return every topic with the line that says what its page is for, section by section."""
    return {topic: page(topic).split("\n", 3)[2] for section in SECTIONS.values() for topic in section}


def page(topic: str) -> str:
    """Return the Markdown of a topic, or of the one that another word stands for; raises `UsageError` for neither."""
    from importlib.resources import files  # here, as every command imports this module

    known = [topic for section in SECTIONS.values() for topic in section]
    name = ALSO.get(topic, topic)
    if name not in known:
        import difflib

        near = difflib.get_close_matches(topic, [*known, *ALSO], n=1)
        hint = f"did you mean '{near[0]}'?" if near else "`vlmgate help` lists the topics."
        raise UsageError(f"help: there is no topic '{topic}'; {hint}")
    return files(__name__).joinpath(f"{name}.md").read_text(encoding="utf-8")
