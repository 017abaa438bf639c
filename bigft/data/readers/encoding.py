"""Texts that are not UTF-8: what they seem to be, and the command that converts them."""

import codecs

BOM = codecs.BOM_UTF8


def find_foreign_encoding(start: bytes) -> str | None:
    """Name the encoding that a file's first four bytes give away, when it is not UTF-8."""
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "UTF-32"
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    # Most files begin with two ASCII characters, which UTF-16 makes a pair with a zero each.
    if len(start) == 4 and [byte == 0 for byte in start] == [False, True, False, True]:
        return "UTF-16LE"
    if len(start) == 4 and [byte == 0 for byte in start] == [True, False, True, False]:
        return "UTF-16BE"
    return None


def explain_conversion(encoding: str) -> str:
    """Write the command that turns a file of `encoding` into one that can be read."""
    return f"convert the file: iconv -f {encoding} -t UTF-8 OLD > NEW"


def explain_bytes(data: bytes) -> str:
    """Say where bytes stop being UTF-8, and what repairs their file."""
    if b"\0" in data:
        return f"not UTF-8 but UTF-16, as it seems; {explain_conversion('UTF-16')}"
    try:
        data.decode()
    except UnicodeDecodeError as error:
        # Latin-1 has no printable characters at 0x80-0x9F, where Windows has quotes and dashes.
        is_windows = any(0x80 <= byte < 0xA0 for byte in data)
        guess = "WINDOWS-1252" if is_windows else "ISO-8859-1"
        shown = data[max(0, error.start - 20) : error.start + 20]
        return (
            f"not UTF-8 at byte {error.start} ({shown!r}); if it is {guess}, "
            f"{explain_conversion(guess)}"
        )
    return "UTF-8"
