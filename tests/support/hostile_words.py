"""40 strings that a shell, ssh, rsync, a terminal or a parser may take for more than text."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = Path(__file__).resolve().parent / "stand_in"

TEMPLATES = {
    "semicolon": ";touch CANARY",
    "dollar": "$(touch CANARY)",
    "backticks": "`touch CANARY`",
    "newline": "a\ntouch CANARY\nb",
    "carriage_return": "a\rtouch CANARY",
    "windows_line": "a\r\ntouch CANARY\r\n",
    "single_quote": "'",
    "double_quote": '"',
    "out_of_single": "';touch CANARY;'",
    "out_of_double": '";touch CANARY;"',
    "mixed_quotes": "'\"'\"';touch CANARY;'\"'\"'",
    "backslash": "\\",
    "hidden_quote": "\\';touch CANARY #",
    "trailing_backslash": "a\\",
    "ssh_option": "-oProxyCommand=touch CANARY",
    "double_dash": "--",
    "dash": "-",
    "star": "*",
    "question_mark": "?",
    "brackets": "[a-z]",
    "tilde": "~",
    "home_of_root": "~root",
    "nul": "a\0touch CANARY",
    "right_to_left": "a\u202e;touch CANARY",
    "four_kilobytes": "x" * 4096,
    "percent": "%h",
    "braces": "{a,b}",
    "hash": "#;touch CANARY",
    "spaces": "  a  b  ",
    "and": "&&touch CANARY",
    "background": "& touch CANARY",
    "pipe": "|touch CANARY",
    "redirection": ">CANARY",
    "process": "<(touch CANARY)",
    "field_separator": "x;touch${IFS}CANARY",
    "no_text": "\udcff\udcfe",
    "history": "!!;touch CANARY",
    "terminal": "\x1b]0;x\x07\x1b[2J",
    "tab": "\ttouch\tCANARY",
    "equals": "=ls$HOME",
}

NAMES = sorted(TEMPLATES)

TELL = """
import json, os
facts = {
    "words": json.loads(os.environ["BIGFT_WORDS"]),
    "environ": {n: v for n, v in os.environ.items() if n.startswith("HOSTILE_")},
    "folder": os.getcwd(),
    "address": os.environ["MASTER_ADDR"],
}
with open(os.environ["STAND_IN_OUT"], "w") as file:
    json.dump(facts, file)
"""
"""What a rank runs that only says what has arrived."""


def make_strings(canary: Path) -> dict[str, str]:
    """Return the strings by name; each that is executed creates `canary`."""
    return {name: text.replace("CANARY", str(canary)) for name, text in TEMPLATES.items()}


def stand_in_environ(code: str, **more: str) -> dict[str, str]:
    """Return what a job's ranks get so that each runs `code`."""
    path = os.pathsep.join([str(STAND_IN), str(ROOT)])
    return {"PYTHONPATH": path, "STAND_IN": code, **more}


def make_job(host: str, code: str, folder: Path, **changes: Any) -> Any:
    """Return the job of a host whose ranks run `code`."""
    from bigft.launch.job import HostJob

    environ: Mapping[str, str] = changes.pop("environ", {})
    words: Sequence[str] = changes.pop("words", [])
    given = {
        "host": host,
        "node_rank": 0,
        "world": {host: [0]},
        "master_addr": "127.0.0.1",
        "master_port": 29500,
        "folder": str(folder),
        "words": list(words),
        "environ": {**stand_in_environ(code), **environ},
        "launch_id": "hostile",
    }
    return HostJob(**{**given, **changes})


def read_told(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())
