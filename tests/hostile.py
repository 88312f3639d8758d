"""Names that attack the place where they are shown: a terminal, a page, a log, a table of figures."""

from __future__ import annotations

NAMES = {
    "colour": "\x1b[31mred",
    "title": "\x1b]0;owned\x07",
    "c1": "\x9b2J",
    "line feed": "a\nok    server    forged",
    "carriage return": "a\rok    server    forged",
    "backspace": "abc\b\b\bxyz",
    "nul": "a\0b",
    "delete": "a\x7fb",
    "line separator": "a\u2028b\u2029c\x85d",
    "override": "invoice\u202egpj.exe",
    "isolate": "\u2066a\u2069",
    "zero width": "pay\u200bpal\ufeff\u200d",
    "tag": "a\U000e0041b",
    "surrogate": "a\udcffb",
    "markup": "[red]a[/blue] :warning: [link=x]y",
    "element": "<img src=x onerror=alert(1)>",
    "attribute": "\"' onmouseover='alert(1)' x=\"",
    "script": "</title></svg><script>alert(1)</script>",
    "template": "{{ 7 * 7 }}{% endfor %}",
    "formula": "=1+1",
    "percent": "%s%n{0}",
}
"""By the kind of attack."""
