"""The compiler and its friends, DeepSpeed's operators and bigft's native step."""

import json
import shlex
import sys
from collections.abc import Iterator
from typing import Any

from bigft.doctor.finding import WITH_FIX, Finding, failed, passed, skipped
from bigft.doctor.wanted import Wanted, find_tool
from bigft.engine.operators import finds_libaio
from bigft.errors import LaunchError
from bigft.launch.child import ask

_LOAD_SECONDS = 60.0
"""torch and DeepSpeed take 5 s to import here, and a minute from a cold network folder."""


def check_compiler(wanted: Wanted) -> Iterator[Finding]:
    """Look for what builds operators: compiler, ninja, and libaio's headers for NVMe."""
    needs = ", ".join(name.removesuffix("Builder") for name in wanted.builders)
    if not wanted.builders and not wanted.uses_native:
        yield skipped("compiler", "nothing is built for this run")
        return
    command = shlex.split(wanted.environ.get("CXX") or "c++")
    compiler = find_tool(command[0], wanted.environ)
    if compiler is None:
        yield failed(
            "compiler",
            f"no {command[0]} on PATH",
            f"DeepSpeed builds {needs or 'nothing'} here, and bigft its optimizer step",
            "apt-get install g++   (or set CXX)",
        )
    else:
        version = ask([compiler, *command[1:], "--version"], 10.0)
        yield passed("compiler", version.out.partition("\n")[0] or compiler)
    if wanted.builders:
        yield _check_ninja(wanted, needs)
    if "AsyncIOBuilder" in wanted.builders and compiler is not None:
        yield _check_libaio(compiler, wanted)


def _check_ninja(wanted: Wanted, needs: str) -> Finding:
    ninja = find_tool("ninja", wanted.environ)
    if ninja is not None:
        return passed("ninja", ninja)
    return failed(
        "ninja",
        "not on PATH, nor beside the interpreter",
        f"DeepSpeed builds {needs} with it, and looks for it even when they are built",
        f"{sys.executable} -m pip install ninja",
    )


def _check_libaio(compiler: str, wanted: Wanted) -> Finding:
    if finds_libaio(compiler):
        return passed("libaio", "compiles and links")
    if not wanted.is_of_run:
        return skipped("libaio", "missing; needed for offload to NVMe alone")
    return failed(
        "libaio",
        "a program with -laio does not link",
        "DeepSpeed reads and writes NVMe with it",
        "apt-get install libaio-dev",
    )


def check_operators(wanted: Wanted) -> Iterator[Finding]:
    """Load what DeepSpeed has built, in a process of its own, and look for locks left behind."""
    if not wanted.builders:
        yield skipped("operators", "this run needs none")
        return
    command = [sys.executable, "-m", "bigft.engine.built", *wanted.builders]
    environ = {**wanted.environ}
    if wanted.device == "cpu":
        environ["DS_ACCELERATOR"] = "cpu"
    answer = ask(command, _LOAD_SECONDS, environ=environ)
    states: dict[str, dict[str, Any]] = {}
    for line in answer.out.splitlines():
        facts = json.loads(line)
        states[facts["builder"]] = facts
    locks = sorted({facts["stale_lock"] for facts in states.values()} - {""})
    if locks:
        yield failed(
            "build_lock",
            f"{', '.join(locks)}: left by a build that was killed",
            "the next build waits for it without end",
            WITH_FIX,
        )
    else:
        yield passed("build_lock", "none left behind")
    yield _judge_operators(wanted, states, answer.code, answer.last_words)


def _judge_operators(
    wanted: Wanted, states: dict[str, dict[str, Any]], code: int | None, last_words: str
) -> Finding:
    shown = {name: name.removesuffix("Builder") for name in wanted.builders}
    of = {name: states.get(name, {}).get("state", "unknown") for name in wanted.builders}
    dying = next((name for name in of if of[name] == "loading"), None)
    if dying is not None:
        end = "did not load in time" if code is None else f"ended the process (exit {code})"
        return failed(
            "operators",
            f"{shown[dying]} {end}",
            "it was built for another machine's instructions, or with another torch: a folder of"
            " operators must not be shared by unlike hosts",
            f"rm -r {shlex.quote(states[dying]['path'].rpartition('/')[0])}, then {WITH_FIX}",
        )
    if "unknown" in of.values():
        return failed(
            "operators",
            f"DeepSpeed cannot be asked: {last_words}",
            "a run imports it the same way",
            f"{sys.executable} -c 'import deepspeed'   shows why",
        )
    broken = [name for name in of if of[name] == "broken"]
    if broken:
        folder = states[broken[0]]["path"].rpartition("/")[0]
        return failed(
            "operators",
            "; ".join(f"{shown[n]} does not load: {states[n]['error']}" for n in broken),
            "it was built with another torch, or the build was cut short",
            f"rm -r {shlex.quote(folder)}, then {WITH_FIX}",
        )
    missing = [name for name in of if of[name] == "missing"]
    if missing:
        found = f"not built yet: {', '.join(shown[name] for name in missing)}"
        if not wanted.is_of_run:
            return skipped("operators", found, WITH_FIX)
        return failed(
            "operators",
            found,
            "the first run would build them, minutes in which its other ranks wait",
            WITH_FIX,
        )
    return passed("operators", f"{', '.join(shown.values())} load")


def check_native_step(wanted: Wanted) -> Iterator[Finding]:
    """Load bigft's own optimizer step."""
    if wanted.is_of_run and not wanted.uses_native:
        yield skipped("native_step", "this run's optimizer does not step in host memory")
        return
    from bigft.optim.native.binding import Native, find_native  # With numpy.

    path = find_native()
    if path is None:
        found = "not built yet"
        yield (
            failed("native_step", found, "the first run would build it", WITH_FIX)
            if wanted.is_of_run
            else skipped("native_step", found, WITH_FIX)
        )
        return
    try:
        yield passed("native_step", f"loads, uses {Native(path).isa}")
    except (LaunchError, AttributeError) as error:
        yield failed(
            "native_step",
            str(error).replace("\n", " "),
            "every step of the optimizer is done with it",
            f"rm {shlex.quote(str(path))}, then {WITH_FIX}",
        )
