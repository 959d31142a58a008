"""JSON whose texts a token budget ended: where it fell inside an escape, half of one stands before the closing quote.

Knows neither types nor modules. A text with a whole escape in it is never touched as long as all of it is JSON.
"""

from __future__ import annotations

import json
import re

_HALF_CODE = re.compile(r'(?<!\\)((?:\\\\)*)\\u[0-9a-fA-F]{0,3}(?=")')
_HALF_ESCAPE = re.compile(r'(?<!\\)(?:\\\\)*\\(?="(?:, |[\]}]))')
"""A backslash before a quote after which a value may end: a cut escape, or a quote in the text."""


def without_half_escapes(text: str) -> str:
    r"""The JSON text with each half of an escape taken out; as it is where that does not make it JSON.

    A lone backslash makes the closing quote a part of the text, which then ends at the next quote, and what follows
    that one fits nowhere: so of `{"a": "x\", "b": 1}` the last such backslash before the place that does not fit.
    """
    found = _HALF_CODE.sub(r"\1", text)
    while True:
        try:
            json.loads(found)
        except RecursionError:
            return text
        except json.JSONDecodeError as error:
            end = len(found) if error.msg.startswith("Unterminated") else error.pos
            places = [half.end() for half in _HALF_ESCAPE.finditer(found, 0, end + 3) if half.end() <= end]
            if not places:
                return text
            found = found[: places[-1] - 1] + found[places[-1] :]
        else:
            return found
