"""Text that has broken something somewhere: to be carried, by whatever carries captions and file names, unharmed.

All of it is valid UTF-8, since nothing else reaches a result.
"""

from __future__ import annotations

MARKUP = (
    "</script><script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "<svg/onload=alert(1)>",
    "<!--", "-->", "]]>", "<![CDATA[ x ]]>",
    "&lt;b&gt; &amp; &#x41; &nbsp;",
    '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>',
    '" onmouseover="alert(1)', "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "{{ 7 * 7 }} ${7*7} {% include 'x' %} #{7*7}",
    "[bold]part[/bold] [/red] [link=file:///etc/passwd]x[/link]",
    "**bold** _it_ `code` [a](http://example.com) ![i](x) | a | b |",
    ":smile: ~~no~~",
)  # fmt: skip
FORMULAS = (
    "=1+1", "+1+1", "-1+1", "@SUM(A1)",
    '=HYPERLINK("http://example.com?x="&A1,"click")',
    "=cmd|' /C calc'!A0", "+cmd|' /C calc'!A0", "-2+3+cmd|' /C calc'!A0",
    "\t=1+1", "\r=1+1", "\n=1+1", " =1+1", "\u00a0=1+1", "\ufeff=1+1", "\u200b=1+1",
    "＝1+1", "＋1", "－1", "＠SUM(A1)",
    "'=1+1", "''quoted", "'", "' =1",
    "a;=1+1;b", "a\t=1+1", "a,=1+1", "a\n-1", "a;'=1",
    "_x0041_ _x000D_", "1-2", "00012", "1E5", "TRUE", "#REF!", "2026-11-25",
)  # fmt: skip
SEPARATORS = (
    '"', '""', '"quoted"', 'half "quoted', "a,b", "a;b", "a\tb", "a|b", "a | b", "a \\| b", " | ", "\\", "\\\\", "\\n",
    "two\nlines", "two\r\nlines", "two\rlines", "\n", "\r", "ends in a line\n", " spaces around ", "\u00a0",
    "line\u2028separator", "paragraph\u2029separator", "next\x85line", "vertical\x0btab", "form\x0cfeed",
)  # fmt: skip
CONTROL = (
    "nul\0inside", "\0", "bell\x07", "back\x08\x08space", "escape\x1b", "\x1a", "delete\x7f",
    "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x1b[2J\x1b[H", "\x9b31m",
    "every one: " + "".join(map(chr, range(1, 32))),
)  # fmt: skip
UNICODE = (
    "\ufeffbyte order mark", "in\ufeffside", "\ufffe", "\uffff", "\U0010ffff", "\ue000 private", "\U000e0041 tag",
    "evil\u202egnp.exe", "\u2066isolated\u2069", "\u200fright", "zero\u200bwidth", "j\u200doin\u200cer",
    "soft\u00adhyphen",
    "e\u0301 é", "Z\u0351\u036b\u0343a\u0361lgo\u0321" * 3, "\u0301alone", "İıſß ﬁ Å Å Ω Ω",
    "🔩🧰 👩🏽‍🔧 🏳️‍🌈", "𝒮crath 𠮷", "部品に傷はない", "قطعة بلا خدش", "деталь", "ชิ้นส่วน", "\u3000",
)  # fmt: skip
PATHS = (
    "../../etc/passwd", "/etc/passwd", "..", ".", "...", "~/.ssh/id_rsa", "$HOME", "C:\\x\\y.png", "\\\\server\\share",
    "CON", "nul.png", "COM1.jpg", "aux", "a/b.png", "a//b", "a/../b", "./a", ".hidden.png", "__init__.png", "-rf",
    "--help", "a?b=c&d#e%20f", "trailing. ", "a:b", "a*b?", "test_1.png", "metadata.csv", "file:///etc/passwd",
    "x" * 200 + ".png", "part.PNG", "PART.png", "; rm -rf / #", "$(touch x)", "`touch x`", "%s %n %x {0} {}",
)  # fmt: skip
DATA = (
    "NA", "NaN", "nan", "null", "None", "N/A", "inf", "0", "-0.0", "false",
    '{"a": [1, null]}', "[1, 2", "a: b", "- item", "key: !!python/object:os.system x", "# comment", "? complex",
    "'; DROP TABLE results; --", '" OR ""="', "Robert\\'); --", "<?xml version='1.0'?>", "%PDF-", "PK\x03\x04",
)  # fmt: skip
LONG = ("x" * 40_000, "é" * 40_000, "🔩" * 20_000, "=" * 33_000, '"' * 33_000, "word " * 9_000)
EMPTY = ("",)

STRINGS = tuple(dict.fromkeys((*MARKUP, *FORMULAS, *SEPARATORS, *CONTROL, *UNICODE, *PATHS, *DATA, *LONG, *EMPTY)))
