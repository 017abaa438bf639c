"""Starts the ranks of a host as DeepSpeed's launcher does, without its ten seconds of imports.

Each rank runs the Python source in STAND_IN instead of bigft.
"""

import argparse
import base64
import json
import os
import subprocess
import sys
import time


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--world_info", "--node_rank", "--master_addr", "--master_port"):
        parser.add_argument(name, required=True)
    found, _ = parser.parse_known_args()
    world = json.loads(base64.urlsafe_b64decode(found.world_info))
    counts = [len(devices) for devices in world.values()]
    node = int(found.node_rank)
    ranks = [
        subprocess.Popen(
            [sys.executable, "-u", "-c", os.environ["STAND_IN"]],
            env={
                **os.environ,
                "RANK": str(sum(counts[:node]) + place),
                "LOCAL_RANK": str(place),
                "WORLD_SIZE": str(sum(counts)),
                "MASTER_ADDR": found.master_addr,
                "MASTER_PORT": found.master_port,
            },
        )
        for place in range(counts[node])
    ]
    left = list(ranks)
    while left:
        for rank in list(left):
            code = rank.poll()
            if code is not None:
                left.remove(rank)
            if code:
                for other in left:
                    other.terminate()
                for other in left:
                    other.wait()
                sys.exit(code)
        time.sleep(0.02)


if __name__ == "__main__":
    main()
