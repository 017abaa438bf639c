"""Ranks that only meet and add numbers: `python -m bigft.doctor.meeting`.

Each is told its place by the environment, as by a launcher. The sum has to be right, and the first
one prints a JSON object with the rate of large sums and the time of small ones.
"""

import json
import os
import socket
import subprocess
import sys
import time
from datetime import timedelta

_MEETING_SECONDS = 15
_MEASURED_SECONDS = 1.0
_SIZE = 4 << 20
_SMALL_SUMS = 30


def place_environment(
    rank: int, size: int, address: str, port: int, local_rank: int | None = None
) -> dict[str, str]:
    """Return the variables that tell a rank its place; on one host it is the same place."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank if local_rank is None else local_rank),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    """Find a port that nobody on this host listens at."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def meet() -> None:
    """Join the others, add, and print how fast that was."""
    import torch
    import torch.distributed as dist

    backend = os.environ.get("BIGFT_MEETING_BACKEND", "gloo")
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device("cpu")
    if backend == "nccl":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group(backend, timeout=timedelta(seconds=_MEETING_SECONDS))
    small = torch.full((1 << 18,), rank + 1.0, device=device)
    dist.all_reduce(small)
    if not bool((small == size * (size + 1) / 2).all()):
        raise SystemExit(f"rank {rank}: the sum of all ranks is wrong")
    one = torch.ones(1, device=device)
    times = []
    for _ in range(_SMALL_SUMS):
        begin = time.perf_counter()
        dist.all_reduce(one)
        # A GPU has only been told so far.
        one.fill_(1.0).item()
        times.append(time.perf_counter() - begin)
    large = torch.ones(_SIZE // 4, device=device)
    rounds, start = 0, time.perf_counter()
    go_on = torch.ones(1, device=device)
    while go_on.item():
        dist.all_reduce(large)
        rounds += 1
        # All leave together: the first one's clock decides.
        go_on.fill_(time.perf_counter() - start < _MEASURED_SECONDS)
        dist.broadcast(go_on, 0)
        large.fill_(1.0)
    seconds = time.perf_counter() - start
    # What one rank sends and receives in a ring: 2 (n - 1) / n of the bytes.
    moved = 2 * (size - 1) / size * _SIZE * rounds
    if rank == 0:
        facts = {
            "bytes_per_second": moved / seconds,
            "small_sum_seconds": sorted(times)[len(times) // 2],
            "seconds": seconds,
            "size": size,
        }
        sys.stdout.write(json.dumps(facts) + "\n")
    dist.destroy_process_group()


def start_several(count: int) -> None:
    """Start the other ranks of this host as children, and be the first one."""
    others, first = [], int(os.environ["RANK"])
    for local in range(1, count):
        environ = {**os.environ, "RANK": str(first + local), "LOCAL_RANK": str(local)}
        others.append(subprocess.Popen([sys.executable, "-m", __spec__.name], env=environ))
    meet()
    codes = [other.wait() for other in others]
    if any(codes):
        raise SystemExit(f"ranks left with exit codes {codes}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--several"]:
        start_several(int(sys.argv[2]))
    else:
        meet()
