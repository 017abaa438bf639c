"""The errors that torch, DeepSpeed, NCCL and the system raise in a run, in a sentence each.

One table: what a text looks like, what it means, what to do, and the exit code it ends with. The
texts are those of torch 2.13, NCCL 2.27 and DeepSpeed 0.19.8; tests hold one of each.
"""

import errno
import re
from dataclasses import dataclass

from bigft.distributed.place import Facts, describe_place
from bigft.errors import BigftError, ConfigError, LaunchError, TrainingError
from bigft.units import format_bytes, parse_bytes

LESS_HOST_MEMORY = (
    "keep more on NVMe (--config ds_configs/zero3_nvme.json), lower --per_device_train_batch_size,"
    " start fewer ranks per host, or use --optim adamw_8bit"
)

_DEVICE_MEMORY = r"CUDA out of memory|HIP out of memory|XPU out of memory|Tried to allocate [\d.]+"


@dataclass(frozen=True)
class Failure:
    """One kind of failure that happens to a run."""

    name: str
    pattern: str
    """Regular expression, searched in the type and the text of an error, in any case."""
    what: str
    repair: str
    error: type[BigftError]


# The first that fits counts: narrow ones stand before wide ones.
FAILURES = (
    Failure(
        "pinned memory",
        # Of the driver itself: torch's own allocator writes "CUDA out of memory" without "error".
        r"cudaHostAlloc|cudaHostRegister|CUDA error: out of memory|mlock.*(cannot allocate|failed)",
        "host memory could not be pinned (locked for the device)",
        "Raise the limit (`ulimit -l unlimited`; docker run --ulimit memlock=-1), or do without:"
        " --ds.zero_optimization.offload_optimizer.pin_memory false, and offload_param likewise",
        LaunchError,
    ),
    Failure(
        "host memory",
        r"DefaultCPUAllocator: (can't|not enough)|std::bad_alloc|^MemoryError"
        r"|unable to mmap memory|\[Errno 12\]|Cannot allocate memory",
        "host memory is exhausted",
        f"To need less: {LESS_HOST_MEMORY}",
        TrainingError,
    ),
    Failure(
        "device assert",
        r"device-side assert triggered",
        "a kernel on the GPU found an index out of range (a token or a label beyond the size of"
        " the vocabulary or of the classes, most often)",
        "Check that the tokenizer belongs to the model (`bigft data`); CUDA_LAUNCH_BLOCKING=1"
        " shows the line",
        TrainingError,
    ),
    Failure(
        "lost device",
        r"uncorrectable ECC|CUDA error: unknown error|fallen off the bus|device.*is lost"
        r"|illegal instruction was encountered|hardware stack error",
        "the GPU has failed",
        "Look at `nvidia-smi` and `dmesg` (Xid); reset or leave out that device",
        LaunchError,
    ),
    Failure(
        "no kernel image",
        r"no kernel image is available",
        "this torch was not built for this GPU",
        "Install a torch whose CUDA version knows the device (`python -m torch.utils.collect_env`)",
        LaunchError,
    ),
    Failure(
        "driver",
        r"CUDA driver version is insufficient|NVIDIA driver on your system is too old",
        "the NVIDIA driver is older than this torch needs",
        "Update the driver, or install torch for an older CUDA",
        LaunchError,
    ),
    Failure(
        "nccl shared memory",
        r"Error while creating shared memory segment|nccl-[\w]+.*No space left",
        "NCCL found no room in /dev/shm",
        "Give the container more (docker run --shm-size=16g)",
        LaunchError,
    ),
    Failure(
        "shared memory",
        r"unable to (allocate|open|mmap|resize|write) .*shared memory"
        r"|unable to allocate shared memory\(shm\)|unable to open shared memory object"
        r"|unable to write to file </torch_",
        "shared memory between processes could not be had",
        "Give the container a larger /dev/shm (docker run --shm-size=16g)",
        LaunchError,
    ),
    Failure(
        "collective timeout",
        r"Watchdog caught collective operation timeout|Timed out waiting \d+ms for (recv|send)"
        r"|Collective operation timeout|BarrierTimeout",
        "a collective waited for a rank that did not come",
        "log/rank_NN.log has the Python stack of the ranks of this host",
        LaunchError,
    ),
    Failure(
        "port",
        r"EADDRINUSE|Address already in use",
        "the port where the ranks meet is taken, by another run most often",
        "Choose another (`deepspeed --master_port 29501 ...`), or end the other run",
        LaunchError,
    ),
    Failure(
        "interface",
        r"Unable to find (interface|address) for|no socket interface found|Bootstrap : no socket",
        "the network interface that is asked for, or any, was not found",
        "Name one that all hosts have (`ip addr`): NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME",
        LaunchError,
    ),
    Failure(
        "rendezvous",
        r"Timed out after \d+ seconds waiting for clients|client socket has (timed out|failed)"
        r"|DistStoreError",
        "the ranks did not all come to the place where they meet",
        "Check that every host starts the same number of ranks, that names resolve, and that the"
        " firewall lets --master_port through",
        LaunchError,
    ),
    Failure(
        "no route",
        r"No route to host|Network is unreachable|Host is unreachable|EHOSTUNREACH",
        "a host cannot be reached",
        "Look whether it runs; with several networks name one: NCCL_SOCKET_IFNAME=eth0 and"
        " GLOO_SOCKET_IFNAME=eth0",
        LaunchError,
    ),
    Failure(
        "lost peer",
        r"Connection closed by|Connection reset by|connection was (closed|reset)|ncclRemoteError"
        r"|remote process exit|Broken pipe|Got completion from peer|Software caused connection",
        "another rank or its host has gone",
        "Look at the log of that rank; then run the same command again",
        LaunchError,
    ),
    Failure(
        "nccl system",
        r"ncclSystemError|unhandled system error|ncclUnhandledCudaError|unhandled cuda error"
        r"|ncclInternalError",
        "NCCL could not use the network, the shared memory or the device",
        "NCCL_DEBUG=WARN says which; often /dev/shm is too small, or the wrong network is chosen"
        " (NCCL_SOCKET_IFNAME)",
        LaunchError,
    ),
    Failure(
        "too many files",
        r"Too many open files|\[Errno 24\]",
        "this process may not open more files",
        "Raise the limit (`ulimit -n 65536`), or lower --data.loading.num_proc",
        LaunchError,
    ),
    Failure(
        "disk",
        r"No space left on device|\[Errno 28\]|Disk quota exceeded|\[Errno 122\]"
        r"|PytorchStreamWriter failed writing|iostream error",
        "a disk is full",
        "Free space and run the same command again: older checkpoints are untouched",
        LaunchError,
    ),
    Failure(
        "batch equation",
        r"Check batch related parameters",
        "train_batch_size of the DeepSpeed JSON is not micro-batch x accumulation x ranks",
        'Drop train_batch_size from the JSON, or set it to "auto"',
        ConfigError,
    ),
    Failure(
        "cuda toolkit",
        r"CUDAMismatchException|does not match the version torch was compiled|CUDA_HOME does not"
        r" exist|MissingCUDAException|CUDA_HOME environment variable is not set",
        "DeepSpeed found no CUDA toolkit of torch's version to build its operators with",
        "Install the toolkit of torch.version.cuda and set CUDA_HOME, or avoid the operator:"
        ' --optim adamw with offload device "none"',
        LaunchError,
    ),
)


def find_failure(text: str) -> Failure | None:
    """Find the first kind of failure that a text tells of."""
    for failure in FAILURES:
        if re.search(failure.pattern, text, re.IGNORECASE | re.MULTILINE):
            return failure
    return None


def explain_failure(error: BaseException, facts: Facts) -> BigftError | None:
    """Turn an error of a library into one sentence with numbers and a repair.

    Args:
        error: As it was raised; its traceback belongs into the log.
        facts: What this process has noted of itself.

    Returns:
        None for what is in no table: a bug, to be shown with its traceback.
    """
    if isinstance(error, BrokenPipeError):
        # The reader of the output has left (`| head`).
        return None
    text = f"{type(error).__name__}: {error}"
    if type(error).__name__ == "OutOfMemoryError" or re.search(_DEVICE_MEMORY, text):
        return _explain_device_memory(str(error), facts)
    failure = find_failure(text)
    if failure is None:
        return None
    said = _first_line(error)
    return failure.error(f"{failure.what}, {describe_place(facts)} ({said}). {failure.repair}")


def find_addresses(text: str) -> list[str]:
    """Find the hosts that an error of gloo (`[10.0.0.2]:43`) or NCCL (`10.0.0.2<43>`) names."""
    found = re.findall(r"\[([0-9a-fA-F.:]+)\]:\d+|([\w.:-]+)<\d+>", text)
    return [gloo or nccl for gloo, nccl in found]


def _first_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EMFILE, errno.EDQUOT):
        return f"{error.strerror}: {error.filename or 'no file named'}"
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _explain_device_memory(text: str, facts: Facts) -> BigftError:
    asked = _read_size(r"Tried to allocate ([\d.]+ \w+)", text)
    total = _read_size(r"total capacity of ([\d.]+ \w+)", text)
    free = _read_size(r"of which ([\d.]+ \w+) is free", text)
    used = _read_size(r"allocated memory ([\d.]+ \w+) is allocated", text)
    idle = _read_size(r"and ([\d.]+ \w+) is reserved by PyTorch but unallocated", text)
    others = sum(
        parse_bytes(size) for size in re.findall(r"Process \d+ has ([\d.]+ \w+) memory", text)
    )
    numbers = [
        f"{format_bytes(size)} {what}"
        for size, what in (
            (asked, "asked for"),
            (total, "on the device"),
            (free, "free"),
            (used, "in use by tensors"),
            (idle, "reserved but in no use"),
            (others or None, "held by other processes"),
            (facts.get("planned_device_bytes"), "planned"),
        )
        if size is not None
    ]
    said = f" ({', '.join(numbers)})" if numbers else f" ({text.splitlines()[0][:200]})"
    advice = _choose_setting(asked, used, idle, others, facts)
    return TrainingError(f"device memory is exhausted {describe_place(facts)}{said}. {advice}")


def _choose_setting(
    asked: int | None, used: int | None, idle: int | None, others: int, facts: Facts
) -> str:
    """Name the change that costs least, first."""
    steps = []
    if idle and asked and used and idle >= asked and idle > used // 10:
        # Enough is free, in pieces that are too small.
        steps.append("PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True (memory is in pieces)")
    if others > (total := (used or 0) + (idle or 0)) // 4 and total:
        steps.append("end the other processes on this device (`nvidia-smi`)")
    offload = "--config ds_configs/zero3_offload.json"
    if facts.get("phase") in ("forward", "backward", "evaluating"):
        micro = int(facts.get("micro_batch", 1))
        accumulation = int(facts.get("accumulation", 1))
        if facts.get("phase") == "evaluating":
            steps.append("lower --evaluation.per_device_eval_batch_size")
        elif micro > 1:
            half = micro // 2
            more = -(-micro * accumulation // half)
            steps.append(
                f"--per_device_train_batch_size {half} --gradient_accumulation_steps {more}"
                f" (now {micro} and {accumulation})"
            )
        if facts.get("activation_checkpointing", "full") == "none":
            steps.append("--activation_checkpointing full")
        if "max_length" in facts:
            steps.append(f"a shorter --max_length (now {facts['max_length']})")
        steps.append(offload)
    else:
        steps += [offload, "more GPUs", "--optim adamw_8bit"]
    first, *rest = steps
    return f"First: {first}" + (f"; then {'; '.join(rest)}" if rest else "")


def _read_size(pattern: str, text: str) -> int | None:
    found = re.search(pattern, text)
    try:
        return parse_bytes(found[1].replace("bytes", "B")) if found else None
    except ValueError:
        return None


def is_about_others(error: Exception) -> bool:
    """Whether an error is how a collective tells that another rank has gone."""
    # Of torch, which is not imported here.
    if any(kind.__name__ == "DistError" for kind in type(error).__mro__):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        word in text for word in ("gloo", "nccl", "connection", "peer")
    )
