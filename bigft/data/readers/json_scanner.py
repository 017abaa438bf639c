"""JSON text read block by block: step into arrays and objects, decode their elements one by one."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from bigft.data.readers.compression import InputFile
from bigft.data.readers.encoding import explain_bytes
from bigft.data.readers.raw import MAX_ROW_BYTES, is_writable
from bigft.errors import DataError

_BLOCK_BYTES = 1 << 20
# Longer than any token but a string: `-Infinity` and `\ud83d\ude00`. So near the end of the text
# that was read, an error may only mean that a token is cut in two, and a number may go on.
_MARGIN = 16
_BLANK = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


class JsonScanner:
    """A place in the JSON text of an open file."""

    def __init__(self, file: InputFile) -> None:
        """Start before the first character of `file`."""
        self._file = file
        # Bytes that are not UTF-8 spoil the elements that they stand in, not the file.
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._has_bad_bytes = False
        self._text = ""
        self._position = 0
        file.line = 1

    @property
    def line(self) -> int:
        """The line of the place, from 1."""
        return self._file.line

    def peek(self) -> str:
        """Skip white space and return the next character, or nothing at the end."""
        while True:
            found = _BLANK.match(self._text, self._position)
            self._advance(found.end() if found else self._position)
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._read_more():
                return ""

    def read_elements(self) -> Iterator[None]:
        """Step through the array that begins here; the caller reads each element."""
        self._take("[")
        if self.peek() != "]":
            yield
            while self.peek() == ",":
                self._take(",")
                yield
        self._take("]")

    def read_keys(self) -> Iterator[str]:
        """Step through the object that begins here; the caller reads the value of each key."""
        self._take("{")
        if self.peek() != "}":
            yield self._read_key()
            while self.peek() == ",":
                self._take(",")
                yield self._read_key()
        self._take("}")

    def read_value(self) -> tuple[Any, str]:
        """Decode the value that stands here; also give its text.

        Raises:
            DataError: There is none, or it is larger than `MAX_ROW_BYTES`.
        """
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated string")
                is_cut = is_cut or error.pos > len(self._text) - _MARGIN
                if is_cut and self._read_more():
                    continue
                raise self._fail_at(error.pos, f"not JSON ({error.msg})") from None
            except RecursionError:
                raise self.fail("nested too deeply") from None
            except ValueError as error:  # An integer of more than 4300 digits.
                raise self.fail(f"not JSON ({error})") from None
            if end <= len(self._text) - _MARGIN or not self._read_more():
                break
        text = self._text[self._position : end]
        self._advance(end)
        return value, text

    def find_bad_bytes(self, text: str) -> str | None:
        """Say that `text`, as read here, is not UTF-8; None when it is."""
        if self._has_bad_bytes and not is_writable(text):
            return explain_bytes(text.encode("utf-8", "surrogateescape"))
        return None

    def fail(self, reason: str) -> DataError:
        """Build the error that names the place."""
        return self._file.fail(reason)

    def _read_key(self) -> str:
        if self.peek() != '"':
            raise self._fail_at(self._position, "not JSON (a key in double quotes is missing)")
        key, _ = self.read_value()
        self._take(":")
        return str(key)

    def _take(self, expected: str) -> None:
        if self.peek() != expected:
            raise self._fail_at(self._position, f"not JSON ({expected!r} is missing)")
        self._position += 1

    def _advance(self, end: int) -> None:
        self._file.line += self._text.count("\n", self._position, end)
        self._position = end

    def _fail_at(self, position: int, reason: str) -> DataError:
        self._advance(position)
        shown = self._text[max(0, position - 20) : position + 40]
        return self.fail(f"{reason} at {shown!a}" if shown else f"{reason} at the end of the file")

    def _read_more(self) -> bool:
        """Read another block, at least doubling what is kept; at the end, False and no change."""
        kept = len(self._text) - self._position
        if kept >= MAX_ROW_BYTES:
            raise self.fail(f"a value of more than {MAX_ROW_BYTES >> 20} MiB, or an unclosed quote")
        block = self._file.stream.read(max(_BLOCK_BYTES, kept))
        text = self._decoder.decode(block, not block)
        if not block and not text:
            return False
        self._has_bad_bytes = self._has_bad_bytes or not is_writable(text)
        self._text, self._position = self._text[self._position :] + text, 0
        return True
