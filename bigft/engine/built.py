"""Say which of DeepSpeed's operators are built and load: `python -m bigft.engine.built BUILDER...`.

One JSON object per line and builder, and nothing is built. Each library is loaded into this
process: one that was built for the instructions of another machine ends it with a signal, after the
line that announces it.
"""

import ctypes
import importlib.machinery
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

_NEEDS = {"AsyncIOBuilder": ("pin_memory",)}
"""Builder -> operators that hold symbols of its own one."""


def main() -> None:
    """Report on the builders that are named on the command line."""
    # DeepSpeed writes to standard output while it is imported.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from deepspeed.accelerator import get_accelerator
    from deepspeed.git_version_info import installed_ops

    from bigft.engine.operators import find_built, find_lock

    def say(**facts: Any) -> None:
        out.write(json.dumps(facts) + "\n")
        out.flush()

    for name in sys.argv[1:]:
        builder = get_accelerator().create_op_builder(name)
        lock = find_lock(builder.name)
        stale = str(lock.path) if lock and lock.is_stale else ""
        if installed_ops.get(builder.name):
            say(builder=name, state="loads", path="installed with DeepSpeed", stale_lock=stale)
            continue
        libraries = [find_built(part) for part in (*_NEEDS.get(name, ()), builder.name)]
        library = libraries[-1] if all(libraries) else None
        facts = {"builder": name, "path": str(library or ""), "stale_lock": stale}
        say(**facts, state="loading" if library else "missing")
        if library is not None:
            error = _load(builder.name, *filter(None, libraries))
            say(**facts, state="broken" if error else "loads", error=error)
    out.close()


def _load(name: str, *libraries: Path) -> str:
    """Load a library, the last one, after those it needs; return what went wrong."""
    import torch  # noqa: F401  # Its libraries are what the operators are linked with.

    loader = importlib.machinery.ExtensionFileLoader(name, str(libraries[-1]))
    spec = importlib.util.spec_from_file_location(name, libraries[-1], loader=loader)
    try:
        for library in libraries[:-1]:
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        return str(error).strip().splitlines()[0] or repr(error)
    return ""


if __name__ == "__main__":
    main()
