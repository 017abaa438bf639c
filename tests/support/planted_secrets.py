"""Twelve secrets of all forms, and a look at every command line of this machine meanwhile."""

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

PEM = "\n".join(
    [
        "-----BEGIN PRIVATE KEY-----",
        "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj",
        "MzEfYyjiWA4R4ypbHqGC0H0e0uOLcBUaAJyO5IpBv3dSMUnE1v7vWRrzGNDq8nhM",
        "-----END PRIVATE KEY-----",
    ]
)

SECRETS = {
    "HF_TOKEN": "hf_" + "aB3dE6gH9j" * 3,
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "OPENAI_KEY": "sk-proj-abc123def456ghi789jkl",
    "DATABASE_URL": "postgres://me:pw4711in0url@db:5432/runs",
    "HTTP_HEADER": "Authorization: Bearer bE4rErT0k3nbE4rErT0k3n",
    "SESSION": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n",
    "HOOK": "https://hooks.slack.com/services/T00000000/B00000000/XXXXXXXXXXXXXXXXXXXXXXXX",
    "MLFLOW_TRACKING_PASSWORD": "correct-horse-battery",
    "QUOTED_PASSWORD": 'it\'s a "quo73d" w0rd\\, with more',
    "LONG_PASSPHRASE": "the f1rst half of it\nthe s3cond half of it",
    "SHORT_PASSWORD": "hun7er",
    "DEPLOY_PRIVATE_KEY": PEM,
}
"""Name of a variable -> what it holds."""

_PARTS = {
    "DATABASE_URL": ["pw4711in0url"],
    "HTTP_HEADER": ["bE4rErT0k3nbE4rErT0k3n"],
    "SESSION": ["eyJzdWIiOiIxMjM0NTY3ODkwIn0", "dozjgNryP4J3jVmNHl0w5N"],
    "HOOK": ["B00000000", "XXXXXXXXXXXXXXXXXXXXXXXX"],
    "QUOTED_PASSWORD": ["quo73d", "w0rd"],
    "LONG_PASSPHRASE": ["f1rst half", "s3cond half"],
    "DEPLOY_PRIVATE_KEY": PEM.split("\n")[1:3],
}

NEGATIVES = (
    "pad_token=</s>; eos_token: <eos>; bos_token='<s>'; num_memory_tokens=16; max_new_tokens=256;"
    " tokens_per_second=1234.5; token_accuracy=0.51; pad_token_id=0; image_token_index: 7;"
    " per_token_loss=1.5; num_key_value_heads=8; sort_keys=True; primary_key=7; HF_TOKEN_PATH=/x;"
    " TOKENIZERS_PARALLELISM=false; tokenizer=builtin; stop_token=<end>; eyJ is no token;"
    " a.b.c; eyJhbGci.only.two; task-oriented-dialogue-v1; hf_hub_download; git@github.com;"
    " https://hooks.slack.com; https://discord.com/developers/docs; someone@example.com;"
    " s3://bucket/key=value; step_00000500; https://host/webhook/readme; -----BEGIN CERTIFICATE"
).split("; ")
"""What looks a little like a secret and is none."""


def find_hits(*texts: bytes | str) -> list[str]:
    """Return the names of the secrets of which any part is in a text."""
    joined = b"\n".join(t if isinstance(t, bytes) else t.encode("utf-8", "replace") for t in texts)
    return [
        name
        for name, value in SECRETS.items()
        if any(part.encode() in joined for part in _PARTS.get(name, [value]))
    ]


class CommandLines:
    """What has been on command lines, of all hosts that are simulated here, while it was looked."""

    def __init__(self) -> None:
        self.seen: dict[int, set[bytes]] = {}
        self.looks = 0
        self.seconds = 0.0

    @property
    def rate(self) -> float:
        return self.looks / self.seconds

    def find_hits(self, typed_at: Iterable[int] = ()) -> dict[int, list[str]]:
        """Process -> secrets, apart from command lines that a user has typed.

        A child has that of its parent until it becomes another program.
        """
        typed = {line for pid in typed_at for line in self.seen.get(pid, ())}
        found = {pid: find_hits(*lines - typed) for pid, lines in self.seen.items()}
        return {pid: hits for pid, hits in found.items() if hits}

    def look(self) -> None:
        for folder in os.scandir("/proc"):
            if folder.name.isdigit():
                with contextlib.suppress(OSError):
                    line = Path(folder.path, "cmdline").read_bytes()
                    self.seen.setdefault(int(folder.name), set()).add(line)
        self.looks += 1


@contextlib.contextmanager
def watch_command_lines() -> Iterator[CommandLines]:
    """Look at all command lines at least ten times a second."""
    lines, is_over = CommandLines(), threading.Event()

    def watch() -> None:
        start = time.monotonic()
        while not is_over.wait(0.03):
            lines.look()
        lines.seconds = time.monotonic() - start

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield lines
    finally:
        is_over.set()
        watcher.join()
