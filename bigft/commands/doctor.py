"""`bigft doctor`: is this host, or every host of a hostfile, ready for a run?"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from bigft.config.options import DoctorOptions, split_options
from bigft.config.request import Request
from bigft.doctor.examine import examine
from bigft.doctor.finding import Finding, describe_finding, find_worst
from bigft.doctor.hosts import examine_hosts
from bigft.doctor.need import Need
from bigft.doctor.repairs import repair
from bigft.doctor.report import render_findings
from bigft.doctor.wanted import Wanted, count_gpus, count_ranks, plan_wanted
from bigft.errors import ConfigError, list_problems, raise_together
from bigft.launch.hostfile import Host, read_hostfile
from bigft.log import plain_console
from bigft.planner.architecture.case import UnknownArchitectureError
from bigft.planner.forecast import forecast
from bigft.redact import redact_text, redact_value
from bigft.run.job import plan_run
from bigft.run.resolve import default_output_dir, resolve, with_output_dir
from bigft.run.resolved import Resolved


def main(request: Request) -> None:
    """Examine, print, and leave with an exit code that tells what kind of fault there is."""
    start = time.monotonic()
    problems: list[str] = []
    options, rest = split_options(request, DoctorOptions, problems)
    ranks = options.num_gpus or count_gpus(os.environ)
    hosts = [] if options.hostfile is None else read_hostfile(Path(options.hostfile))
    world_size = sum(host.slots for host in hosts)
    if not hosts:
        world_size = max(ranks, count_ranks(os.environ))
    local = max(host.slots for host in hosts) if hosts else ranks
    resolved = _resolve(rest, world_size, local, problems)
    if hosts:
        findings = examine_hosts(
            hosts,
            lambda host: words_for(host, rest, options.checks, fix=options.fix),
            world_size,
            measure_network=not options.checks or "network" in options.checks,
        )
    else:
        wanted = plan_wanted(resolved, ranks, os.environ, find_need(resolved, ranks))
        findings = _examine_here(wanted, options)
    if options.as_json:
        page = _render_json(findings, resolved, time.monotonic() - start)
    else:
        page = render_findings(findings)
    sys.stdout.write(redact_text(page))
    sys.stdout.flush()
    error = find_worst(findings)
    if error is not None:
        raise error(summarize(findings))


def find_need(resolved: Resolved, ranks: int) -> Need:
    """Say what a run needs of a host; without a DeepSpeed JSON nothing is known of the run."""
    if not resolved.config:
        return Need()
    environ = {**os.environ, "LOCAL_SIZE": str(ranks)}
    try:
        plan = forecast(*plan_run(resolved, environ))
    except UnknownArchitectureError:
        return Need()
    return Need(
        host_bytes=plan.host_bytes_per_host,
        pinned_bytes=plan.pinned_bytes_per_rank or None,
        shared_memory_bytes=plan.shared_memory_bytes_per_host or None,
        output_bytes=plan.output_bytes,
        nvme_bytes=plan.nvme_bytes_per_host or None,
    )


def _resolve(request: Request, world_size: int, local_size: int, problems: list[str]) -> Resolved:
    """Resolve the settings; without `--config` the host is looked at in general.

    Raises:
        ConfigError: The settings, or options of this command, are wrong; all is listed.
    """
    environ = {**os.environ, "WORLD_SIZE": str(world_size), "LOCAL_SIZE": str(local_size)}
    try:
        resolved = resolve(request, environ, needs_config=False)
    except ConfigError as error:
        problems += list_problems(error)
    if problems:
        raise_together(ConfigError, problems)
    if resolved.run.output_dir:
        return resolved
    return with_output_dir(resolved, default_output_dir(resolved.run, datetime.now()))


def _examine_here(wanted: Wanted, options: DoctorOptions) -> list[Finding]:
    findings = examine(wanted, options.checks)
    if options.fix and repair(findings, wanted, plain_console().say):
        findings = examine(wanted, options.checks)
    return findings


def words_for(
    host: Host, request: Request, checks: Sequence[str], *, fix: bool = False
) -> list[str]:
    """Return the command line of the doctor for one host of several."""
    words = ["doctor", "--json", f"--num_gpus={host.slots}"]
    if fix:
        words.append("--fix")
    if checks:
        words.append(f"--checks={','.join(checks)}")
    for name, value in (("config", request.config), ("recipe", request.recipe)):
        if value:
            words.append(f"--{name}={value}")
    return [*words, *(f"--{name}={text}" for name, text in request.settings.items())]


def _render_json(findings: Sequence[Finding], resolved: Resolved, seconds: float) -> str:
    report = {
        "ok": all(finding.ok for finding in findings),
        "findings": [describe_finding(finding) for finding in findings],
        "seconds": round(seconds, 3),
        "settings_digest": digest_settings(resolved),
    }
    return json.dumps(report) + "\n"


def digest_settings(resolved: Resolved) -> str:
    """Return one digest of everything that was decided about a run, secrets left out."""
    run = redact_value(resolved.run.model_dump(mode="json", exclude={"output_dir"}))
    facts: dict[str, Any] = {
        "run": run,
        "ds": _without_paths(redact_value(resolved.ds)),
        "model": repr(resolved.facts),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _without_paths(value: Any) -> Any:
    """Drop NVMe paths: each host may have its disk elsewhere, and "auto" has the time in it."""
    if isinstance(value, dict):
        return {k: _without_paths(item) for k, item in value.items() if k != "nvme_path"}
    return value


def summarize(findings: Sequence[Finding]) -> str:
    """Name all faults in one line."""
    faults = [finding for finding in findings if not finding.ok]
    names = dict.fromkeys(
        f"{finding.name} on {finding.host}" if finding.host else finding.name for finding in faults
    )
    several = "s" if len(faults) > 1 else ""
    return f"not ready, {len(faults)} fault{several}: {', '.join(names)}"
