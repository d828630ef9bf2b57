"""Take an answer out of what models and servers wrap it in: thoughts, chat tokens, code fences, JSON, tags, LaTeX.

`spoken` returns what is left to read. Where it is not clear what belongs to the answer, nothing is left.
"""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

from vlmgate.scores.answer_words import is_label

# Stands for "final answer:" where a form says that what follows is the answer; no text holds it, for it is private use.
ANSWER = "\ue000"

_THINK = r"(?:think|thinking|thought|thoughts|reasoning|reflection|analysis|scratchpad)"
_OPEN = re.compile(rf"<{_THINK}>|\[think\]|◁think▷|<\|begin_of_thought\|>|<seed:think>", re.IGNORECASE)
_CLOSE = re.compile(rf"</{_THINK}>|\[/think\]|◁/think▷|<\|end_of_thought\|>|</seed:think>", re.IGNORECASE)
_FINAL_CHANNEL = re.compile(r"<\|channel\|>final<\|message\|>")
_ENDS = r"<\|(?:im_end|eot_id|end_of_text|endoftext|eom_id|end|return|eos|pad|user_end|assistant_end)\|>"
_AFTER = re.compile(
    rf"(?:\s|{_ENDS}|</s>|<eos>|<pad>|<end_of_turn>|<turn\|>|<end_of_utterance>|<｜end▁of▁sentence｜>|\[/?s\]|<EOS>)+$"
)
_BEFORE = re.compile(
    r"""
      ^(?:\s|<bos>|<\|begin_of_text\|>|<\|startoftext\|>|\[/INST\]
        |<\|im_start\|>|<\|assistant\|>|<start_of_turn>|<\|start_header_id\|>assistant<\|end_header_id\|>
        |<\|start\|>assistant
        |(?:assistant|model)(?=\s*\n)
        |\**(?:assistant|ai|bot|model|gpt|助手|アシスタント|어시스턴트)\s*[:：]\**)+
    """,
    re.VERBOSE | re.IGNORECASE,
)
_TOKEN = re.compile(
    r"<\|[^<>|]*\|>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>|(?:^|\n)\s*(?:user|human)\s*:", re.IGNORECASE
)
_FENCE = re.compile(
    r"```[ \t]*(?:json|jsonc|text|txt|plaintext|yaml|markdown|md|xml|latex|tex|python)?[ \t]*\n(.*?)\n?[ \t]*```",
    re.DOTALL,
)
_TAG = re.compile(
    r"<(answer|final_answer|finalanswer|final|result|verdict|choice|label|class|output|response)>(.*?)</\1>",
    re.DOTALL | re.IGNORECASE,
)
_BOXED = re.compile(r"(?:\$\$?|\\\[|\\\()?\s*\\f?boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}\s*(?:\$\$?|\\\]|\\\))?")
_BEGIN_OF_BOX = re.compile(r"<\|begin_of_box\|>(.*?)<\|end_of_box\|>", re.DOTALL)
_LATEX = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|textrm|texttt|mbox)\s*\{([^{}]*)\}")
_OBJECT = re.compile(r"([^{}`\\<]*)(\{.*\})\s*", re.DOTALL)
_HARMLESS_TAGS = re.compile(r"</?(?:b|strong|i|em|p|span|code|br) ?/?>", re.IGNORECASE)
_KEYS = frozenset(
    """
    answer final_answer finalanswer choice label class category classification prediction verdict result decision output
    response conclusion selected selection selected_option option
    """.split()
)
# Name what is judged: beside them a "no" may mean either.
_SUBJECTS = frozenset(
    "defect defect_type defecttype type condition status finding diagnosis damage fault quality state".split()
)
_EXPLAINS = frozenset(
    "reason reasoning explanation rationale justification description details analysis location".split()
)
_DEEPEST = 3  # objects in objects


class _UnreadableError(Exception):
    """It is not clear what the answer is."""


def spoken(text: str, polar: bool = False) -> str | None:
    """Return what an answer says without its wrapping; None where that is not clear.

    `ANSWER` stands before what a form gives as the answer. `polar`: the choices are such as "yes" and "no", which a key
    such as "defect" turns round.
    """
    try:
        return _bare(text, polar, 0)
    except _UnreadableError:
        return None


def _bare(text: str, polar: bool, depth: int) -> str:
    if ANSWER in text:
        raise _UnreadableError
    said = _without_tokens(_without_thoughts(text))
    if not said:
        raise _UnreadableError
    if said.startswith("[") and said[1:2] in tuple("{\"'"):
        return _of_json(said, polar, depth)
    if (found := _OBJECT.fullmatch(said)) is not None:
        return f"{found[1].strip()}\n{_of_json(found[2], polar, depth)}".strip()
    fences = list(_FENCE.finditer(said))
    if len(fences) == 1 and not said[fences[0].end() :].strip():
        before, inside = said[: fences[0].start()].strip(), fences[0][1].strip()
        if inside.startswith(("{", "[")):
            inside = _of_json(inside, polar, depth)
        said = f"{before}\n{inside}" if before else inside
    elif "```" in said:
        inline = re.fullmatch(r"```([^`\n]+)```", said)
        if not inline:
            raise _UnreadableError
        said = inline[1].strip()
    said = _HARMLESS_TAGS.sub(" ", said)
    said = _BEGIN_OF_BOX.sub(rf"\n{ANSWER} \1\n", said)
    said = _TAG.sub(rf"\n{ANSWER} \2\n", said)
    if "\\" in said:
        said = _BOXED.sub(rf"\n{ANSWER} \1\n", _LATEX.sub(r"\1", said))
    if _TOKEN.search(said) or re.search(r"[\\{}]|</?\w+>", said):  # half an object, half a tag
        raise _UnreadableError
    return said.strip()


def _without_thoughts(text: str) -> str:
    """Return the text behind its thoughts; raises where they do not end, or where something was said before them."""
    finals = list(_FINAL_CHANNEL.finditer(text))
    if finals:
        return text[finals[-1].end() :]
    rest = text.strip()
    closed = list(_CLOSE.finditer(rest))
    if closed:
        opened = list(_OPEN.finditer(rest))
        if opened and rest[: opened[0].start()].strip() and not _only_tokens(rest[: opened[0].start()]):
            raise _UnreadableError
        if opened and opened[-1].start() > closed[-1].start():
            raise _UnreadableError
        for close, following in pairwise(closed):  # between two thoughts nothing may be said
            begins = [one for one in opened if close.end() <= one.start() < following.start()]
            if begins and rest[close.end() : begins[0].start()].strip():
                raise _UnreadableError
        return rest[closed[-1].end() :]
    if _OPEN.search(rest):
        raise _UnreadableError
    return rest


def _only_tokens(text: str) -> bool:
    return not _BEFORE.sub("", text + "\n").strip()


def _without_tokens(text: str) -> str:
    """Return a text without the chat tokens and the role that a server left at its ends."""
    struck = re.search(r"<s>", text) and "</s>" in text  # a line through it, or both ends of a sequence
    if struck:
        raise _UnreadableError
    return _BEFORE.sub("", _AFTER.sub("", text)).strip()


# --- JSON -------------------------------------------------------------------------------------------------------------


def _of_json(text: str, polar: bool, depth: int) -> str:
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_constant=_refuse)
    except (ValueError, RecursionError):
        found = _like_json(text)
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if isinstance(found, str):
        return f"{ANSWER} {_value(found)}"
    if not isinstance(found, dict):
        raise _UnreadableError
    return _of_object(found, polar, depth)


def _of_object(found: dict[str, Any], polar: bool, depth: int) -> str:
    lines: list[str] = []
    for name, value in found.items():
        key = re.sub(r"[\s-]+", "_", name.strip().casefold())
        if key in _KEYS or (not polar and (key in _SUBJECTS or is_label(key))):
            if isinstance(value, list) and len(value) == 1:
                value = value[0]
            if isinstance(value, dict) and depth < _DEEPEST:
                lines.append(_of_object(value, polar, depth + 1))
            elif isinstance(value, str):
                lines.append(f"{ANSWER} {_value(value)}")
            else:
                raise _UnreadableError
        elif key in _EXPLAINS and isinstance(value, str):
            lines.append(_value(value))
        elif key == "confidence" and _is_sure(value):
            continue
        else:
            raise _UnreadableError
    return "\n".join(line for line in lines if line)


def _value(text: str) -> str:
    if ANSWER in text or re.search(r"[<>{}\\]", text):
        raise _UnreadableError
    return " ".join(text.split())


def _is_sure(value: object) -> bool:
    """Say whether a stated confidence is high: above 0.5 or 50 %; 1 may be either."""
    if isinstance(value, str):
        return value.strip().casefold() in ("high", "very high")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0.5 < value < 1 or value > 50 or (isinstance(value, float) and value == 1)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise _UnreadableError
    return dict(pairs)


def _refuse(name: str) -> None:
    raise _UnreadableError


def _like_json(text: str) -> dict[str, Any]:
    """Return an object in single quotes and of one string, as Python writes it."""
    match = re.fullmatch(r"\{\s*['\"]?(\w+)['\"]?\s*:\s*(['\"])([^'\"{}:,]+)\2\s*,?\s*\}", text)
    if match is None:
        raise _UnreadableError
    return {match[1]: match[3]}
