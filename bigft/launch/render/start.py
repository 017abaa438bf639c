"""What every starter is told, and how its words get into a script unchanged."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from bigft.errors import ConfigError
from bigft.launch.hostfile import Host

NOTICE_SECONDS = 600
"""How long before its end a run is told: longer than a step and a save."""

PORT = 29500

PASSED_ON = (
    ("PATH", "HOME", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "CUDA_HOME", "CXX")
    + ("DS_ACCELERATOR", "DEEPSPEED_TIMEOUT", "OMP_NUM_THREADS", "TORCH_EXTENSIONS_DIR")
    + ("XDG_CACHE_HOME", "HF_HOME", "HF_HUB_OFFLINE", "PYTORCH_ALLOC_CONF")
    + ("NCCL_SOCKET_IFNAME", "NCCL_IB_HCA", "NCCL_DEBUG", "GLOO_SOCKET_IFNAME")
)
"""Variables that ranks get, where they are set: by name, and none with a secret."""

_PLACE = re.compile(r"@([A-Z_]+)@")


@dataclass(frozen=True)
class Start:
    """A run, and where it is to be started."""

    words: Sequence[str]
    """The command line of bigft: `train --config ...`."""

    output_dir: str
    """Its run folder, in which a run that is started again finds its checkpoints."""

    hosts: Sequence[Host] = ()
    """Of a hostfile; absent: a scheduler chooses."""

    nodes: int = 1
    """How many, where a scheduler chooses."""

    ranks_per_node: int = 1

    folder: str | None = None
    """Where the ranks run, the same on every host; absent: where the script is started."""

    env: Sequence[str] = ()
    """Names of further variables that the ranks get; values are nowhere in the text."""

    python: str = "python"
    """The interpreter, on every host."""

    image: str = "bigft:latest"
    """Of containers."""

    claim: str = "bigft"
    """The persistent volume claim with `folder`."""

    on_gpus: bool = True

    @property
    def program(self) -> list[str]:
        """What every rank runs."""
        return [self.python, "-m", "bigft", *self.words]

    @property
    def slots(self) -> list[int]:
        """Ranks of every host."""
        return [host.slots for host in self.hosts] or [self.ranks_per_node] * self.nodes

    @property
    def names(self) -> list[str]:
        """Variables to pass on, each once."""
        return list(dict.fromkeys([*PASSED_ON, *self.env]))


def fill(template: str, **texts: str | int) -> str:
    """Put texts where a template says `@NAME@`; a line that is left empty by one goes."""
    lines = []
    for line in template.splitlines(keepends=True):
        filled = _PLACE.sub(lambda found: str(texts[found[1].lower()]), line)
        if filled.strip() or not line.strip():
            lines.append(filled)
    return "".join(lines)


def render_folder(start: Start) -> str:
    """Return the line that goes to where the ranks run."""
    return f"cd -- {shlex.quote(start.folder)}" if start.folder else ""


def render_words(words: Sequence[str], indent: str = "    ") -> str:
    """Return words for a shell, a flag and its value on each line."""
    parts: list[list[str]] = [[]]
    for word in words:
        if word.startswith("--") and parts[-1]:
            parts.append([])
        parts[-1].append(shlex.quote(word))
    return f" \\\n{indent}".join(" ".join(part) for part in parts)


def find_equal_slots(start: Start, starter: str) -> int:
    """Return the ranks that every node has.

    Raises:
        ConfigError: They differ, and the starter cannot do that.
    """
    if len({*start.slots}) > 1:
        listed = ", ".join(f"{host.name} slots={host.slots}" for host in start.hosts)
        raise ConfigError(f"--render {starter}: needs as many ranks on every host, not {listed}")
    return start.slots[0]
