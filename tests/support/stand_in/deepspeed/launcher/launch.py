"""Starts the ranks of a host as DeepSpeed's launcher does, without its ten seconds of imports.

Each rank runs the Python source in STAND_IN instead of bigft.
"""

import argparse
import base64
import json
import os
import signal
import subprocess
import sys
import time


def main() -> None:
    ranks = start()
    signal.signal(signal.SIGTERM, lambda *_: end(ranks, 1))
    while ranks:
        for rank in list(ranks):
            code = rank.poll()
            if code is not None:
                ranks.remove(rank)
            if code:
                end(ranks, code)
        time.sleep(0.02)


def start() -> list[subprocess.Popen[bytes]]:
    parser = argparse.ArgumentParser()
    for name in ("--world_info", "--node_rank", "--master_addr", "--master_port"):
        parser.add_argument(name, required=True)
    found, _ = parser.parse_known_args()
    world = json.loads(base64.urlsafe_b64decode(found.world_info))
    counts = [len(devices) for devices in world.values()]
    node = int(found.node_rank)
    place = {
        "WORLD_SIZE": str(sum(counts)),
        "MASTER_ADDR": found.master_addr,
        "MASTER_PORT": found.master_port,
    }
    return [
        subprocess.Popen(
            [sys.executable, "-u", "-c", os.environ["STAND_IN"]],
            env={
                **os.environ,
                **place,
                "RANK": str(sum(counts[:node]) + local),
                "LOCAL_RANK": str(local),
            },
        )
        for local in range(counts[node])
    ]


def end(ranks: list[subprocess.Popen[bytes]], code: int) -> None:
    for rank in ranks:
        rank.terminate()
    for rank in ranks:
        rank.wait()
    sys.exit(code)


if __name__ == "__main__":
    main()
