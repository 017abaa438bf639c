"""How the C library gives freed host memory back."""

import ctypes

# Their numbers in glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

_FIRST_LIMIT = 128 << 10
"""What glibc starts with."""

_LARGEST_LIMIT = 32 << 20
"""How far glibc raises its limit by itself."""

_FIXED_LIMIT = 256 << 10


def give_back_at_once() -> None:
    """Let every block from 128 KiB on go back to the system as soon as it is freed.

    While a model is built and laid out anew each weight is there twice and freed once. glibc raises
    its limit up to 32 MiB on the way, and what is freed below it leaves holes in the heap, over
    which training then spreads its own blocks: 500 MB of holes for a 111M model, all of which were
    in use again after the first step. Does nothing without glibc.
    """
    _set_limits(_FIRST_LIMIT, _FIRST_LIMIT)


def fix_malloc_limits(num_parameters: int) -> None:
    """Choose which freed blocks of host memory glibc hands back to the system at once.

    By itself it starts with those of 128 KiB and raises that limit up to 32 MiB while a program
    runs. Blocks below the limit come from a heap that fragments when their sizes change from step
    to step, as those of logits and gathered layers do: it grew to three times what was in use in a
    111M model on two ranks under `zero3_offload.json` on a CPU, 1.74 GB each with a limit of 8 MiB
    and 1.29 GB with one below the size of its matrices and activations. Larger blocks cost page
    faults, 13% of the processor's time there (with a GPU such blocks are not in host memory), so a
    model whose fp32 copy is below 32 MiB keeps its blocks: they have the same size in every step.

    Fixing one limit fixes the other, for the free end of the heap, at 128 KiB; it is set to the
    double, as glibc does, or the end would be given back and fetched again all the time. Does
    nothing without glibc.
    """
    is_tiny = 4 * num_parameters <= _LARGEST_LIMIT
    _set_limits(_LARGEST_LIMIT if is_tiny else _FIXED_LIMIT, 2 * _LARGEST_LIMIT)


def _set_limits(mapped_from: int, trimmed_from: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, mapped_from)
        mallopt(_M_TRIM_THRESHOLD, trimmed_from)


def give_back_freed_memory() -> None:
    """Give freed blocks back to the system that lie between others in the heap.

    Building an engine moves all weights once, and leaves holes where those below the limit have
    been: 0.9 bytes per parameter of a 234M model. Does nothing without glibc.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
