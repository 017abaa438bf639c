"""A text file: one row, or several when it is a very long one."""

import io
from collections.abc import Iterator
from pathlib import Path

from bigft.data.readers.compression import open_input
from bigft.data.readers.encoding import explain_bytes
from bigft.data.readers.raw import RawRow, is_writable, make_unreadable

PIECE_CHARACTERS = 1 << 24
"""A longer document comes in pieces, so that a book shelf in one file fits into the memory."""


def read_document(path: Path, flag: str) -> Iterator[RawRow]:
    """Read a text file as a row with a `text`.

    A document of more than `PIECE_CHARACTERS` is cut behind blank lines, else behind line ends. A
    blank one is an unreadable row: it should not end the reading of the folder around it.

    Raises:
        DataError: The file is damaged or UTF-16.

    Memory: two pieces.
    """
    is_blank = True
    with open_input(path, flag) as file:
        for piece in _read_pieces(file.stream):
            origin = f"{path}:{file.line + 1}"
            file.line += piece.count("\n")
            if piece.isspace():
                continue
            is_blank = False
            if is_writable(piece):
                yield RawRow({"text": piece}, origin)
            else:
                reason = explain_bytes(piece.encode("utf-8", "surrogateescape"))
                yield RawRow(make_unreadable(reason, piece), origin)
    if is_blank:
        yield RawRow(make_unreadable("the file is blank", ""), str(path))


def _read_pieces(stream: io.BufferedReader) -> Iterator[str]:
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    rest = ""
    while block := text.read(PIECE_CHARACTERS):
        piece = rest + block
        cut = len(piece)
        if len(block) == PIECE_CHARACTERS:
            cut = piece.rfind("\n\n") + 2
            cut = cut if cut > 1 else piece.rfind("\n") + 1
            cut = cut or len(piece)
        yield piece[:cut]
        rest = piece[cut:]
    if rest:
        yield rest
