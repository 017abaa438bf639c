"""Files of a checkpoint that other hosts have: which, where, and what brings them here.

Hosts and paths are what a manifest says: they are shown, quoted, and never used to reach a host.
"""

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bigft.errors import CheckpointError

_NAMED_FILES = 16


class PartsElsewhereError(CheckpointError):
    """Files of a checkpoint are not here, and its manifest says on which host they were written."""


class Part(NamedTuple):
    """What the ranks at one storage wrote of a checkpoint."""

    hosts: tuple[str, ...]
    path: str
    """Of the checkpoint there."""
    files: tuple[str, ...]


def list_parts(manifest: Mapping[str, Any]) -> list[Part]:
    """Return where the files of a checkpoint were written; nothing of one on a single storage."""
    try:
        return [
            Part(tuple(map(str, one["hosts"])), str(one["path"]), tuple(map(str, one["files"])))
            for one in manifest.get("storages", ())
        ]
    except (TypeError, KeyError) as error:
        raise CheckpointError(
            "manifest.json: damaged (`storages` is no list of hosts, paths and files); use another"
            " checkpoint"
        ) from error


def find_lost(manifest: Mapping[str, Any], present: Collection[str]) -> list[str]:
    """List the files of a checkpoint that are not among those that are there."""
    known = set(present)
    return [entry["path"] for entry in manifest["files"] if entry["path"] not in known]


def find_hosts(manifest: Mapping[str, Any], lost: Collection[str]) -> list[str]:
    """List the hosts that wrote these files."""
    parts = (part for part in list_parts(manifest) if set(part.files) & set(lost))
    return list(dict.fromkeys(host for part in parts for host in part.hosts))


def explain_lost(folder: Path, manifest: Mapping[str, Any], lost: Sequence[str]) -> str:
    """Say which files are missing, on which hosts they are, and the commands that bring them."""
    lines = list(_explain_parts(folder, manifest, lost))
    places = "; ".join(words for words, _ in lines)
    commands = " and ".join(f"`{command}`" for _, command in lines if command)
    return (
        f"{folder}: {len(lost)} of its {len(manifest['files'])} files are not here: {places}."
        f" Bring them ({commands or 'from a copy'}), or make a model of it with"
        f" `bigft consolidate {_quote(str(folder))} --hostfile FILE`"
    )


def _explain_parts(
    folder: Path, manifest: Mapping[str, Any], lost: Sequence[str]
) -> Iterator[tuple[str, str]]:
    left = set(lost)
    for part in list_parts(manifest):
        names = [name for name in part.files if name in left]
        left -= set(names)
        if names:
            host = _quote(part.hosts[0]) if part.hosts else "an unknown host"
            place = f"{host}:{part.path.rstrip('/')}/"
            yield (
                f"{_name_some(names)} on {host} in {_quote(part.path)}",
                f"rsync -a -- {_quote(place) if part.hosts else place} {_quote(f'{folder}/')}",
            )
    if left:
        yield f"{_name_some(sorted(left))} on a host that nobody knows", ""


def _name_some(names: Sequence[str]) -> str:
    shown = ", ".join(map(_quote, names[:_NAMED_FILES]))
    more = len(names) - _NAMED_FILES
    return f"{shown} and {more:,} more" if more > 0 else shown


def _quote(text: str) -> str:
    """Make what a file says safe to show and to copy into a shell."""
    return shlex.quote(text if text.isprintable() else ascii(text)[1:-1])
