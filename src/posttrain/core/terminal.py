"""Text for terminals: the one place where what a terminal would obey is made visible.

A row, a name, a model's answer or another library's error must not move the cursor, set the title
or turn the direction of reading. Whatever is printed goes through here (`core.console` prints with
it, and `emit` where no layout is wanted); a test asserts that nothing else prints.
"""

from __future__ import annotations

import re
import sys

from posttrain.core.errors import lost

# C0 and C1 controls and DEL; separators of lines and paragraphs; marks that turn the direction of
# reading (embeddings, overrides, isolates); halves of characters, which cannot be encoded
_HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_PICTURES = 0x2400  # Unicode's pictures of the C0 controls begin here: ␀, ␁, …


def escape(text: str) -> str:
    """Text that a terminal shows and does not obey; line breaks and tabs stay.

    ESC becomes `␛`, the byte 0x9b `\\u009b`. Beyond C0, which JSON escapes itself, the form is
    JSON's: a JSON text stays the same JSON.
    """
    return _HARMFUL.sub(_visible, text)


def one_line(text: str) -> str:
    """The same for a field of one line: a line break becomes `␊`, a tab `␉`."""
    return escape(text).replace("\n", "␊").replace("\t", "␉")


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(_PICTURES + code) if code < 0x20 else f"\\u{code:04x}"


def emit(text: str, *, stderr: bool = False, end: str = "\n") -> None:
    """Write text as it is laid out.

    Raises:
        BrokenPipeError: its reader has gone. Other errors of standard output are remembered in
            `core.errors.lost`.
    """
    stream = sys.stderr if stderr else sys.stdout
    try:
        stream.write(escape(text) + end)
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        if not stderr:
            lost.append(error)
