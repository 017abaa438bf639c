"""Files of lines that grow while somebody may kill the writer."""

import os
from pathlib import Path


def drop_torn_line(path: Path) -> None:
    """Cut off an unfinished last line, so that the next one does not begin in its middle."""
    with path.open("rb+") as file:
        end = size = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 4096)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)
