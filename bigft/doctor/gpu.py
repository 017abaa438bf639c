"""NVIDIA GPUs: driver, memory, neighbours, and whether they reach each other."""

import csv
import io
import json
import sys
from collections.abc import Generator, Iterator

from bigft.doctor.finding import Finding, failed, passed, skipped
from bigft.doctor.meeting import free_port, place_environment
from bigft.doctor.wanted import Wanted, find_tool
from bigft.launch.child import Answer, ask
from bigft.units import format_bytes

_ASK_SECONDS = 10.0
_TORCH_SECONDS = 40.0
_REDUCE_SECONDS = 40.0
_FIELDS = "index,name,driver_version,memory.total,memory.free"
_BUSY = 0.1
"""Share of a device's memory that others may have: a display, a monitor."""

# One process asks torch, because a driver that hangs must not hang the doctor.
_ASK_TORCH = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
apart = [[a, b] for a in range(count) for b in range(count)
         if a != b and not torch.cuda.can_device_access_peer(a, b)]
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "count": count,
                  "bf16": count > 0 and torch.cuda.is_bf16_supported(including_emulation=False),
                  "apart": apart}))
"""


def check_gpus(wanted: Wanted) -> Iterator[Finding]:
    """Ask the driver, then torch, then let the GPUs exchange numbers."""
    if wanted.device == "cpu":
        yield skipped("gpu", "none used here: a run would be on the CPU")
        return
    devices = yield from _check_driver(wanted)
    if not devices:
        return
    yield _check_free(_keep_used(devices, wanted))
    yield _check_others(wanted)
    count = yield from _check_torch(wanted)
    if count > 1:
        yield check_all_reduce(wanted, min(count, max(wanted.ranks, 2)))


def _check_driver(wanted: Wanted) -> Generator[Finding, None, list[list[str]]]:
    """Yield what the driver says; returns its devices, none if it does not answer."""
    why = "without a driver that answers no rank finds its GPU"
    tool = find_tool("nvidia-smi", wanted.environ)
    if tool is None:
        yield failed(
            "gpu_driver",
            "there is a GPU, but no nvidia-smi",
            why,
            "apt-get install nvidia-utils   (in a container: docker run --gpus all)",
        )
        return []
    answer = _query(tool, f"--query-gpu={_FIELDS}")
    rows = _read_rows(answer)
    if answer.code != 0 or not rows:
        end = "does not answer" if answer.code is None else answer.last_words
        repair = "restart the host, or load the driver that fits its library: modprobe -r"
        yield failed("gpu_driver", end, why, f"{repair} nvidia_uvm nvidia && modprobe nvidia")
        return []
    if wanted.ranks > len(rows):
        yield failed(
            "gpu",
            f"{len(rows)} for {wanted.ranks} ranks",
            "each rank needs a GPU of its own",
            f"start with `deepspeed --num_gpus {len(rows)}`",
        )
    else:
        yield passed("gpu", f"{len(rows)} x {rows[0][1]}")
    yield passed("gpu_driver", rows[0][2])
    return rows


def _keep_used(devices: list[list[str]], wanted: Wanted) -> list[list[str]]:
    """Leave out devices that the run does not use: another job may have them."""
    chosen = wanted.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        numbers = {number.strip() for number in chosen.split(",")}
        # Names of other kinds (GPU-..., MIG-...) are not in this table: then all are looked at.
        devices = [device for device in devices if device[0] in numbers] or devices
    return devices[: wanted.ranks]


def _check_free(devices: list[list[str]]) -> Finding:
    taken, shown = [], []
    for index, _, _, total, free in devices:
        if not (total.isdigit() and free.isdigit()):
            return skipped("gpu_memory", f"GPU {index} does not say how much it has")
        shown.append(int(free) << 20)
        if int(free) < (1 - _BUSY) * int(total):
            taken.append(f"GPU {index} has {int(free):,} of {int(total):,} MiB free")
    if taken:
        return failed(
            "gpu_memory",
            "; ".join(taken),
            "the plan of a run counts on the whole GPU",
            "nvidia-smi   shows who has it; end it, or choose GPUs with CUDA_VISIBLE_DEVICES",
            "space",
        )
    return passed("gpu_memory", f"{format_bytes(min(shown))} free on each")


def _check_others(wanted: Wanted) -> Finding:
    tool = find_tool("nvidia-smi", wanted.environ)
    assert tool is not None
    answer = _query(tool, "--query-compute-apps=pid,used_memory")
    if answer.code != 0:
        return skipped("gpu_processes", "cannot be listed here")
    pids = [row[0] for row in _read_rows(answer)]
    if pids:
        return failed(
            "gpu_processes",
            f"{len(pids)} other processes: pid {', '.join(pids)}",
            "they share the GPU's time and memory with the run",
            f"end them if they are yours: kill {' '.join(pids)}",
        )
    return passed("gpu_processes", "no others")


def _check_torch(wanted: Wanted) -> Generator[Finding, None, int]:
    """Yield what torch can do with the GPUs; returns how many it sees."""
    answer = ask([sys.executable, "-c", _ASK_TORCH], _TORCH_SECONDS, environ=wanted.environ)
    if answer.code != 0:
        end = "does not answer in time" if answer.code is None else answer.last_words
        yield failed("gpu_torch", end, "a run asks it the same way", "restart the host")
        return 0
    facts = json.loads(answer.out.splitlines()[-1])
    if not facts["count"]:
        built = f"for CUDA {facts['cuda']}" if facts["cuda"] else "without CUDA"
        yield failed(
            "gpu_torch",
            f"torch {facts['version']}, built {built}, finds no GPU",
            "the run would be on the CPU",
            f"{sys.executable} -m pip install torch   from the index of a CUDA version that the"
            " driver knows",
        )
        return 0
    bf16 = "bf16" if facts["bf16"] else "no bf16"
    yield passed("gpu_torch", f"torch {facts['version']} finds {facts['count']}, {bf16}")
    if wanted.is_of_run and wanted.is_bf16 and not facts["bf16"]:
        yield failed(
            "gpu_bf16",
            "the GPU has no bf16 arithmetic",
            "torch would emulate it, many times slower",
            "--ds.bf16.enabled=false --ds.fp16.enabled=true",
            "settings",
        )
    if facts["count"] > 1:
        apart = facts["apart"]
        found = f"not between {len(apart) // 2} pairs: through host memory" if apart else "all"
        yield passed("gpu_peers", found)
    return int(facts["count"])


def check_all_reduce(wanted: Wanted, ranks: int) -> Finding:
    """Let ranks on the GPUs of this host add numbers with NCCL, within a time limit."""
    port = free_port()
    words = [sys.executable, "-m", "bigft.doctor.meeting", "--several", str(ranks)]
    environ = {
        **wanted.environ,
        **place_environment(0, ranks, "127.0.0.1", port),
        "BIGFT_MEETING_BACKEND": "nccl",
    }
    answer = ask(words, _REDUCE_SECONDS, environ=environ)
    if answer.code != 0:
        end = f"not done in {_REDUCE_SECONDS:.0f} s" if answer.code is None else answer.last_words
        return failed(
            "gpu_all_reduce",
            f"{ranks} GPUs: {end}",
            "every step of a run waits for such sums",
            "NCCL_DEBUG=INFO shows where it stands; NCCL_P2P_DISABLE=1 where a virtual machine or"
            " the IOMMU keeps the GPUs apart",
        )
    rate = json.loads(answer.out.splitlines()[-1])["bytes_per_second"]
    return passed("gpu_all_reduce", f"{ranks} GPUs, {rate / 1e9:.1f} GB/s")


def _query(tool: str, what: str) -> Answer:
    return ask([tool, what, "--format=csv,noheader,nounits"], _ASK_SECONDS)


def _read_rows(answer: Answer) -> list[list[str]]:
    rows = csv.reader(io.StringIO(answer.out), skipinitialspace=True)
    return [row for row in rows if row and row[0].isdigit()]
