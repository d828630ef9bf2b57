"""Ask a closed question and tell what an answer says.

Knows strings; knows nothing of models, images or scores.
"""

from __future__ import annotations

from collections.abc import Sequence

DEFAULT_QUESTION = "Which of these does the part show?"
ABSTENTION = "unsure"  # the word that the prompt offers


def question_prompt(question: str, choices: Sequence[str], *, abstain: bool) -> str:
    """Return the prompt that asks for one of `choices`; with `abstain` it offers to be unsure as well."""
    offer = f", or {ABSTENTION} if you cannot tell" if abstain else ""
    return f"{question.strip()} Answer with one of: {', '.join(choices)}{offer}."
