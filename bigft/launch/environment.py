"""Which environment variables the ranks of other hosts get, and what is never passed on."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bigft.errors import LaunchError, raise_together
from bigft.redact import redact_value

# By name or by a narrow family: what nobody has named stays here, secrets above all.
_PASSED_ON = re.compile(
    r"PYTHONPATH|DS_ACCELERATOR|DS_PIN_MEMORY_BACKEND|DEEPSPEED_TIMEOUT|TORCH_EXTENSIONS_DIR"
    r"|XDG_CACHE_HOME|HF_HOME|HF_HUB_OFFLINE|CXX|OMP_NUM_THREADS|TOKENIZERS_PARALLELISM"
    r"|PYTORCH_CUDA_ALLOC_CONF|PYTORCH_ALLOC_CONF|(NCCL|GLOO)_[A-Z0-9_]+"
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}", re.ASCII)
_OF_RANKS = frozenset(
    {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR"}
    | {"MASTER_PORT", "CROSS_RANK", "CROSS_SIZE", "BIGFT_HOST", "BIGFT_LAUNCH", "BIGFT_WORDS"}
    | {"BIGFT_GLOBAL_BATCH"}
)
_MOST_BYTES = 1 << 20
_BLANKS = " \t\r"


def choose_environment(
    environ: Mapping[str, str], names: Sequence[str], folder: Path, home: Path
) -> dict[str, str]:
    """Return what the ranks get beside their host's own environment.

    That is a fixed family of harmless variables, what `.deepspeed_env` says (in the home folder or
    here, `DS_ENV_FILE` names another, as in DeepSpeed), and what `--env` names; later ones win.

    Args:
        environ: Of this process.
        names: From `--env`.
        folder: Where the run is started.
        home: Of the user.

    Raises:
        LaunchError: A name is none, is not set, or is one that only a launcher sets; a line of the
            file cannot be read. All problems are listed, without values.
    """
    problems: list[str] = []
    chosen = {name: text for name, text in environ.items() if _PASSED_ON.fullmatch(name)}
    named = environ.get("DS_ENV_FILE") or ".deepspeed_env"
    for place in dict.fromkeys([home / named, folder / named]):
        chosen |= _read_file(place, problems)
    for name in names:
        if "=" in name:
            # Not what follows: it may be a secret.
            problems.append(f"--env {name.partition('=')[0][:40]!r}=...: name it, and export it")
        elif wrong := explain_name(name):
            problems.append(f"--env {name[:40]!r}: {wrong}")
        elif name not in environ:
            problems.append(f"--env {name}: not set here; export it, or drop the name")
        else:
            chosen[name] = environ[name]
    if problems:
        raise_together(LaunchError, problems)
    return chosen


def describe_environment(chosen: Mapping[str, str]) -> str:
    """Name the variables, never their values."""
    return ", ".join(sorted(chosen)) or "none"


def _read_file(path: Path, problems: list[str]) -> dict[str, str]:
    try:
        # As bytes: text mode would make line breaks of carriage returns.
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path}: cannot be read ({error.__class__.__name__})")
        return {}
    if len(data) > _MOST_BYTES:
        problems.append(f"{path}: longer than {_MOST_BYTES:,} bytes; no process gets that many")
        return {}
    found: dict[str, str] = {}
    for number, name, value, wrong in _read_lines(text):
        if wrong:
            problems.append(f"{path}, line {number}: {wrong}")
        else:
            found[name] = value
    return found


def _read_lines(text: str) -> Iterator[tuple[int, str, str, str | None]]:
    for number, line in enumerate(text.split("\n"), 1):
        words = line.strip(_BLANKS).removeprefix("export ").strip(_BLANKS)
        if not words or words.startswith("#"):
            continue
        name, equals, value = words.partition("=")
        value = value.strip(_BLANKS)
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        if not equals:
            # Not the line itself: it may be a secret with its name forgotten.
            yield number, "", "", "write NAME=VALUE"
        else:
            name = name.strip(_BLANKS)
            yield number, name, value, explain_name(name, value)


def explain_name(name: str, value: str = "") -> str | None:
    """Say why a variable cannot be passed on; None: it can."""
    if not _NAME.fullmatch(name):
        # Not the name itself: in a file it may be a piece of a secret.
        return "no name of a variable (up to 255 letters, digits and _)"
    if name in _OF_RANKS:
        return f"{name} is set for every rank by the launcher; drop it"
    if "\0" in value:
        return f"the value of {name} has a NUL in it"
    return None


def read_here() -> dict[str, str]:
    """Return the harmless family of this process alone, for programs that only look.

    They get it on their command line, which everybody on their host can see: what looks like a
    secret, such as a password in a URL, is left out.
    """
    return {
        name: text
        for name, text in os.environ.items()
        if _PASSED_ON.fullmatch(name) and redact_value(text, name) == text
    }
