"""The native step, found or built, and its arguments."""

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bigft.errors import LaunchError
from bigft.optim.code8 import Code, signed_code, unsigned_code
from bigft.optim.native.build import NAME, BuildError, build, digest_sources
from bigft.optim.reference import Rates

_VERSION = 1
_ADDRESS = np.uintp

PART = np.dtype(
    [
        ("size", np.int64),
        ("first_block", np.int64),
        ("weights", _ADDRESS),
        ("rest", _ADDRESS),
        ("copy", _ADDRESS),
        ("gradients", _ADDRESS),
        ("moment1", _ADDRESS),
        ("moment2", _ADDRESS),
        ("scale1", _ADDRESS),
        ("scale2", _ADDRESS),
        ("phase", np.int32),
        ("group", np.int32),
    ],
    align=True,
)
"""A contiguous part of one parameter, as `csrc/adamw.h` has it; addresses of host memory."""

GROUP = np.dtype(
    [
        (name, np.float32)
        for name in (
            "beta1",
            "beta2",
            "one_minus_beta1",
            "one_minus_beta2",
            "epsilon",
            "negative_step",
            "decay",
            "inverse_root",
        )
    ]
)

WEIGHTS = {"fp32": 0, "split_16": 1, "split_8": 2}
GRADIENTS = {"float32": 0, "bfloat16": 1}
ISAS = {"scalar": 1, "neon": 2, "avx2": 3, "avx512": 4}


class _Code(ctypes.Structure):
    _fields_ = (
        ("table", ctypes.c_float * 256),
        ("threshold", ctypes.c_float * 9),
        ("slope", ctypes.c_float * 9),
        ("shift", ctypes.c_int32),
        ("zero", ctypes.c_int32),
    )


class Native:
    """The loaded library."""

    def __init__(self, path: Path) -> None:
        """Load it.

        Raises:
            LaunchError: It cannot be loaded, or is of another version.
        """
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            raise LaunchError(
                f"{path}: {error}; the OpenMP library of the compiler has to be there (Debian,"
                " Ubuntu: apt-get install libgomp1)"
            ) from error
        if library.bigft_adamw_version() != _VERSION:
            raise LaunchError(f"{path}: built from other sources; delete it")
        self._step = library.bigft_adamw_step
        self._step.restype = ctypes.c_int64
        self._codes = _pack(signed_code()), _pack(unsigned_code())
        self.isa = next(name for name, n in ISAS.items() if n == library.bigft_adamw_isa())
        """The instruction set that is used."""

    def step(
        self,
        parts: npt.NDArray[Any],
        groups: npt.NDArray[Any],
        *,
        weights: str,
        gradients: str,
        scale: float = 1.0,
        threads: int = 0,
        isa: str = "",
    ) -> int:
        """Take one step over all parts, in place.

        Args:
            parts: `(P,)` of `PART`, `first_block` counted by `number_blocks`.
            groups: `(G,)` of `GROUP`.
            weights: A key of `WEIGHTS`.
            gradients: A key of `GRADIENTS`.
            scale: Gradients are multiplied by it first.
            threads: 0: as many as OpenMP likes. The numbers do not depend on it.
            isa: A key of `ISAS`; absent: the best one. The numbers do not depend on it.

        Returns:
            How many gradients were not finite after scaling; they have counted as 0.

        Raises:
            ValueError: This machine or this build has no such instruction set.
        """
        dropped = self._step(
            parts.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_int64(len(parts)),
            groups.ctypes.data_as(ctypes.c_void_p),
            ctypes.byref(self._codes[0]),
            ctypes.byref(self._codes[1]),
            ctypes.c_int32(WEIGHTS[weights]),
            ctypes.c_int32(GRADIENTS[gradients]),
            ctypes.c_float(scale),
            ctypes.c_int32(threads),
            ctypes.c_int32(ISAS[isa] if isa else 0),
        )
        if dropped < 0:
            raise ValueError(f"no {isa} here")
        return int(dropped)


def pack_groups(rates: Sequence[Rates]) -> npt.NDArray[Any]:
    """Put the rates of a step into an array of `GROUP`."""
    packed = np.zeros(len(rates), GROUP)
    for row, of_group in zip(packed, rates, strict=True):
        for name, value in of_group.fold().items():
            row[name] = value
    return packed


def number_blocks(parts: npt.NDArray[Any]) -> None:
    """Fill in `first_block`, once sizes and phases are there."""
    blocks = -(-(parts["size"] + parts["phase"]) // 256)
    parts["first_block"] = np.cumsum(blocks) - blocks


@cache
def load_native() -> Native:
    """Load the library; build it first where neither `setup.py` nor an earlier run has.

    Raises:
        LaunchError: No compiler, or it failed; says what to install.
    """
    return Native(find_native() or _build())


def find_native() -> Path | None:
    """Find the library that `setup.py` or an earlier run has built; None: there is none yet."""
    packaged = Path(__file__).parent / f"{digest_sources()}-{NAME}"
    return next((path for path in (packaged, _cached()) if path.is_file()), None)


def _cached() -> Path:
    cache_folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache_folder / "bigft" / "native" / digest_sources() / NAME


def _build() -> Path:
    path = _cached()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whoever comes second builds the same, and the later one of two equal files stays.
        build(path)
    except (BuildError, OSError) as error:
        raise LaunchError(
            f"the native optimizer step could not be built in {path.parent}: {error}. Install a C++"
            " compiler with OpenMP (Debian, Ubuntu: apt-get install g++), or set CXX, or"
            " XDG_CACHE_HOME if the folder cannot be written to"
        ) from error
    return path


def _pack(code: Code) -> _Code:
    packed = _Code(shift=code.shift, zero=code.zero)
    packed.table[:] = code.values.tolist()
    packed.threshold[:] = code.threshold.tolist()
    packed.slope[:] = code.slope.tolist()
    return packed
