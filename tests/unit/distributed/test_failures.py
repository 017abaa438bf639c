"""Each kind of failure is known by the text that its library really writes."""

import errno

import pytest

from bigft.distributed.failures import FAILURES, explain_failure, find_addresses, find_failure
from bigft.engine.operators import explain_build
from bigft.errors import ConfigError, LaunchError, TrainingError

# Of torch 2.13, NCCL and DeepSpeed 0.19.8, as they were seen or stand in the sources.
TEXTS = {
    "pinned memory": "AcceleratorError: CUDA error: out of memory\nSearch for `cudaErrorMemory'",
    "host memory": "RuntimeError: [enforce fail at alloc_cpu.cpp:127] err == 0. "
    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 17592186044416 bytes. Error"
    " code 12 (Cannot allocate memory)",
    "device assert": "AcceleratorError: CUDA error: device-side assert triggered",
    "lost device": "AcceleratorError: CUDA error: uncorrectable ECC error encountered",
    "no kernel image": "AcceleratorError: CUDA error: no kernel image is available for execution on"
    " the device",
    "driver": "RuntimeError: The NVIDIA driver on your system is too old (found version 11040).",
    "nccl shared memory": "DistBackendError: NCCL error in: ../NCCLUtils.hpp:317, unhandled system"
    " error\nncclSystemError: System call failed.\nLast error:\nError while creating shared memory"
    " segment /dev/shm/nccl-EoOvZr (size 7340384)",
    "shared memory": "RuntimeError: unable to allocate shared memory(shm) for file"
    " </torch_32404_1379660699_0>: No space left on device (28)",
    "collective timeout": "[rank0]:[E321 ProcessGroupNCCL.cpp:607] [Rank 0] Watchdog caught"
    " collective operation timeout: WorkNCCL(SeqNum=1580, OpType=ALLREDUCE, NumelIn=466119168,"
    " NumelOut=466119168, Timeout(ms)=600000) ran for 600060 milliseconds before timing out.",
    "port": "DistNetworkError: The server socket has failed to listen on any local network address."
    " port: 29720, useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use",
    "interface": "RuntimeError: [enforce fail at gloo/transport/tcp/device.cc:83] ifa != nullptr."
    " Unable to find interface for: eth7",
    "rendezvous": "DistStoreError: Timed out after 4 seconds waiting for clients. 1/2 clients"
    " joined.",
    "no route": "ncclSystemError: System call failed.\nLast error:\nsocketStartConnect: Connect to"
    " 192.168.19.14<52822> failed : No route to host",
    "lost peer": "RuntimeError: [/gloo/transport/tcp/pair.cc:553] Connection closed by peer"
    " [127.0.0.1]:6816. This is typically caused by a remote worker crashing.",
    "nccl system": "DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:1970, unhandled system"
    " error (run with NCCL_DEBUG=INFO for details), NCCL version 2.20.5",
    "too many files": "OSError: [Errno 24] Too many open files: '/data/x'",
    "disk": "OSError: [Errno 28] No space left on device",
    "batch equation": "AssertionError: Check batch related parameters. train_batch_size is not"
    " equal to micro_batch_per_gpu * gradient_acc_step * world_size 8 != 1 * 1 * 2",
    "cuda toolkit": "MissingCUDAException: CUDA_HOME does not exist, unable to compile CUDA op(s)",
}
MORE = {
    "host memory": "MemoryError: ",
    "collective timeout": "RuntimeError: [/gloo/transport/tcp/unbound_buffer.cc:78] Timed out"
    " waiting 4000ms for recv operation to complete",
    "rendezvous": "DistNetworkError: The client socket has timed out after 3000ms while trying to"
    " connect to (no-such-host.invalid, 29722).",
    "lost peer": "ncclRemoteError: A call failed possibly due to a network error or a remote"
    " process exiting prematurely.\nLast error:\nsocketProgress: Connection closed by remote peer"
    " node2<42830>",
    "pinned memory": "RuntimeError: cudaHostAlloc failed with error 2",
}


def test_every_row_has_a_text():
    assert [failure.name for failure in FAILURES] == list(TEXTS)


@pytest.mark.parametrize(("name", "text"), [*TEXTS.items(), *MORE.items()])
def test_a_text_finds_its_row(name, text):
    failure = find_failure(text)
    assert failure is not None
    assert failure.name == name
    assert failure.error.exit_code in (2, 6, 7)


@pytest.mark.parametrize(
    "error",
    [
        TypeError("'NoneType' object is not subscriptable"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        AssertionError(""),
    ],
)
def test_a_bug_stays_a_bug(error):
    assert explain_failure(error, {}) is None


FACTS = {"phase": "backward", "step": 3, "total_steps": 9}


def test_the_sentence_says_where_and_what_to_do():
    error = RuntimeError(TEXTS["host memory"].partition(": ")[2])
    explained = explain_failure(error, FACTS)
    assert isinstance(explained, TrainingError)
    text = str(explained)
    assert text.startswith("host memory is exhausted, in step 3 of 9 (backward) (")
    assert "17592186044416 bytes" in text
    assert "zero3_nvme.json" in text
    disk = explain_failure(OSError(errno.ENOSPC, "No space left on device", "/data/x"), FACTS)
    assert isinstance(disk, LaunchError)
    assert "(No space left on device: /data/x)" in str(disk)
    batch = explain_failure(AssertionError(TEXTS["batch equation"]), FACTS)
    assert isinstance(batch, ConfigError)


class OutOfMemoryError(RuntimeError):
    """As torch calls its own."""


def _device(asked="2.00 GiB", used="20.10 GiB", idle="200.00 MiB", others=""):
    return OutOfMemoryError(
        f"CUDA out of memory. Tried to allocate {asked}. GPU 0 has a total capacity of 23.65 GiB of"
        f" which 11.06 MiB is free. {others}Including non-PyTorch memory, this process has"
        f" 22.60 GiB memory in use. Of the allocated memory {used} is allocated by"
        f" PyTorch, and {idle} is reserved by PyTorch but unallocated. If reserved but"
        " unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
        " to avoid fragmentation."
    )


@pytest.mark.parametrize(
    ("error", "facts", "first"),
    [
        (
            _device(),
            {"phase": "forward", "micro_batch": 8, "accumulation": 2},
            "--per_device_train_batch_size 4 --gradient_accumulation_steps 4 (now 8 and 2)",
        ),
        (
            _device(),
            {"phase": "backward", "micro_batch": 1, "activation_checkpointing": "none"},
            "--activation_checkpointing full;",
        ),
        (
            _device(),
            {"phase": "backward", "micro_batch": 1, "max_length": 4096},
            "a shorter --max_length (now 4096)",
        ),
        (_device(), {"phase": "optimizer", "micro_batch": 8}, "--config ds_configs/zero3_offload"),
        (_device(), {"phase": "loading the model"}, "--config ds_configs/zero3_offload"),
        (_device(), {"phase": "evaluating"}, "lower --evaluation.per_device_eval_batch_size"),
        (
            _device(used="14.00 GiB", idle="8.50 GiB"),
            {"phase": "forward", "micro_batch": 8},
            "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
        ),
        (
            _device(others="Process 606 has 14.91 GiB memory in use. ", used="7.00 GiB"),
            {"phase": "forward", "micro_batch": 8},
            "end the other processes on this device",
        ),
    ],
)
def test_device_memory_names_the_cheapest_change_first(error, facts, first):
    explained = explain_failure(error, {**facts, "planned_device_bytes": 20 << 30})
    assert isinstance(explained, TrainingError)
    text = str(explained)
    assert f"First: {first}" in text
    assert "2.00 GiB asked for, 23.65 GiB on the device" in text
    assert "20.00 GiB planned" in text


def test_half_a_micro_batch_keeps_the_global_batch():
    """An odd one cannot be halved: the batch may grow, never shrink."""
    facts = {"phase": "forward", "micro_batch": 3, "accumulation": 1}
    text = str(explain_failure(_device(), facts))
    assert "--per_device_train_batch_size 1 --gradient_accumulation_steps 3" in text


def test_addresses_of_gloo_and_nccl():
    assert find_addresses(TEXTS["lost peer"]) == ["127.0.0.1"]
    assert find_addresses(MORE["lost peer"]) == ["node2"]
    assert find_addresses(TEXTS["no route"]) == ["192.168.19.14"]


COMMAND = (
    "[1/3] c++ -MMD -MF x.o.d -D_GLIBCXX_USE_CXX11_ABI=1 -I/usr/local/cuda/include -O3 -std=c++17"
    " -march=native -fopenmp -laio -c x.cpp -o x.o"
)


@pytest.mark.parametrize(
    ("line", "repair"),
    [
        ("/bin/sh: 1: c++: not found", "apt-get install g++"),
        ("fatal error: libaio.h: No such file or directory", "apt-get install libaio-dev"),
        ("fatal error: Python.h: No such file or directory", "apt-get install python3-dev"),
        ("c++: fatal error: Killed signal terminated program cc1plus", "MAX_JOBS=1"),
        ("x.cpp:3: fatal error: error writing to /tmp/a.s: No space left on device", "TMPDIR"),
        ("error: -- unsupported GNU version! gcc versions later than 12", "set CXX and CC"),
        ("x.cpp:1:1: error: 'foo' was not declared", "TORCH_EXTENSIONS_DIR"),
    ],
)
def test_the_telling_line_of_a_compiler(line, repair):
    output = (
        f"Error building extension 'cpu_adam': {COMMAND}\nFAILED: x.o\n{COMMAND}\n{line}\n"
        "ninja: build stopped: subcommand failed."
    )
    explained = explain_build(output)
    assert explained.startswith(line)
    assert repair in explained
