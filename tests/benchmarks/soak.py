"""A long run on three simulated hosts to which one fault after the other happens.

    python tests/benchmarks/soak.py --minutes 120 --every 360     20 faults, at random moments
    python tests/benchmarks/soak.py --faults 50 --every 0         one after the other

Needs root, iproute2 and openssh-server. Prints one line per fault, and at the end how much of the
time was of use: all of it but what passed between the last step before a fault and the first new
one after it.
"""

import argparse
import contextlib
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/support")]

from host_faults import FAULTS, RECOVERY_SECONDS, Campaign, choose_faults  # noqa: E402
from launches import launch  # noqa: E402
from planting import mounted_disk  # noqa: E402
from simulated_hosts import SimulatedHosts  # noqa: E402

OPTIONS = ["--max_restarts", 10_000, "--check", "quick"]


def main() -> None:
    options = read_options()
    options.folder.mkdir(parents=True, exist_ok=True)
    count = options.faults or int(options.minutes * 60 / options.every)
    faults = choose_faults(count, options.seed, options.hosts)
    if options.only:
        chosen = [fault for fault in FAULTS if fault.name in options.only.split(",")]
        faults = [(chosen[i % len(chosen)], host) for i, (_, host) in enumerate(faults)]
    words = ["--config", options.config, "--max_length", 64, "--max_steps", 100_000]
    words += ["--save_steps", options.save_steps, "--data.eval_fraction", 0]
    words += ["--num_train_epochs", 1000, *options.words]
    disk = options.folder / "disk"
    private = [disk] if options.apart else []
    with (
        contextlib.nullcontext() if options.apart else mounted_disk(disk, "3g"),
        SimulatedHosts(options.folder / "hosts", options.hosts, private=private) as hosts,
        launch(hosts, disk / "run", OPTIONS, words, said=options.folder) as run,
    ):
        run.wait_for_step(options.save_steps + 1)
        campaign = Campaign(
            hosts, run, options.save_steps, options.seed, options.log, is_apart=options.apart
        )
        start = time.monotonic()
        moments = random.Random(options.seed)
        for number, (fault, host) in enumerate(faults):
            # One in each interval, anywhere in its first two thirds: most end before the next.
            moment = start + (number + moments.uniform(0, 0.67)) * options.every
            campaign.rest(max(0.0, moment - time.monotonic()))
            verdict = campaign.suffer(fault, number + 1, host)
            print(campaign.describe(verdict), flush=True)
            if run.process.poll() is not None:
                break
        campaign.rest(max(0.0, start + len(faults) * options.every - time.monotonic()))
        seconds = time.monotonic() - start
        report(campaign, seconds, run.said_by_errors())
        run.signal(signal.SIGTERM)
        code = run.wait()
        run.wait_for_no_orphans(60)
    raise SystemExit(code != 75 or any(verdict.problems for verdict in campaign.verdicts))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--every", type=float, default=360)
    parser.add_argument("--faults", type=int, default=0)
    parser.add_argument("--hosts", type=int, default=3)
    parser.add_argument("--save_steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--config", default="ds_configs/zero3_offload.json")
    parser.add_argument("--only", default="", help="names of faults, separated by commas")
    parser.add_argument("--apart", action="store_true", help="a disk of its own for every host")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True, help="one JSON object per fault")
    parser.add_argument("words", nargs="*")
    return parser.parse_args()


def report(campaign: Campaign, seconds: float, said: str) -> None:
    verdicts = campaign.verdicts
    bad = [verdict for verdict in verdicts if verdict.problems]
    lost = sum(verdict.passed_seconds or RECOVERY_SECONDS for verdict in verdicts if verdict.codes)
    kinds = Counter(verdict.fault for verdict in verdicts)
    print(f"{len(verdicts)} faults ({', '.join(f'{n} {name}' for name, n in kinds.items())})")
    print(f"{len(bad)} with problems; {said.count('start ')} starts; {seconds / 60:.1f} minutes")
    print(f"useful time {1 - lost / seconds:.1%}; newest step {campaign.take()}")


if __name__ == "__main__":
    main()
