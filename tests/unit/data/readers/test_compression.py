import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigft.data.readers.compression import open_input
from bigft.errors import DataError

Read = Callable[[str, bytes], list[Any]]
Compress = Callable[[bytes, str], bytes]

LINES = b"".join(b'{"text": "%d"}\n' % number for number in range(20_000))
ARRAY = json.dumps([{"text": str(number)} for number in range(20_000)]).encode()
SUFFIXES = (".gz", ".bz2", ".xz", ".zst")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_cut_off_file_is_an_error_and_not_a_short_one(
    read: Read, compress: Compress, suffix: str
) -> None:
    for kind, content in ((".jsonl", LINES), (".json", ARRAY), (".csv", LINES), (".txt", LINES)):
        packed = compress(content, suffix)
        for cut in (len(packed) // 2, len(packed) - 3):
            with pytest.raises(DataError, match=rf"a{kind}{suffix}.*cannot be read to its end"):
                read(f"a{kind}{suffix}", packed[:cut])


def test_the_last_line_before_the_damage_is_named(read: Read) -> None:
    with pytest.raises(DataError, match=r"cannot be read to its end after line [1-9]\d+: "):
        read("a.jsonl.gz", gzip.compress(LINES * 10)[:-9])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_only_bears_the_name_of_a_compressed_file_is_an_error(read: Read, suffix: str) -> None:
    with pytest.raises(DataError, match=rf"--data=.*a\.jsonl{suffix}: cannot be read"):
        read(f"a.jsonl{suffix}", LINES)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_joined_files_are_read_to_the_last(read: Read, compress: Compress, suffix: str) -> None:
    packed = compress(b'{"text": "one"}\n', suffix) + compress(b'{"text": "two"}\n', suffix)
    assert read(f"a.jsonl{suffix}", packed) == [{"text": "one"}, {"text": "two"}]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt"])
def test_an_encoding_of_two_bytes_is_named_with_the_repair(
    read: Read, name: str, encoding: str
) -> None:
    shown = encoding.upper().replace("16-", "16")
    with pytest.raises(DataError, match=rf"{name}: {shown}, .* iconv -f {shown} -t UTF-8"):
        read(name, '{"text": "a"}\n'.encode(encoding))


def test_the_file_is_closed_behind_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES)
    with pytest.raises(KeyError), open_input(path, "--data") as file:
        raise KeyError
    assert file.stream.closed
