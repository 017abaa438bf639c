"""`bigft launch`: start a run on several hosts, watch it, and start it again after a crash."""

import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from types import FrameType

from bigft.commands.doctor import summarize, words_for
from bigft.commands.parts.elsewhere import render_start
from bigft.config.deepspeed import AUTO
from bigft.config.options import LaunchOptions, read_options
from bigft.config.request import Request
from bigft.distributed.signals import STOP_SIGNALS
from bigft.doctor.finding import find_worst
from bigft.doctor.hosts import examine_hosts, probe_hosts
from bigft.doctor.meeting import free_port
from bigft.doctor.report import render_findings
from bigft.doctor.wanted import count_gpus, find_visible
from bigft.errors import ConfigError, LaunchError, StoppedError, raise_together
from bigft.launch.agent import clear
from bigft.launch.child import Answer, end_asked
from bigft.launch.conduct import Conductor, Ending
from bigft.launch.environment import choose_environment, describe_environment
from bigft.launch.filter import choose_hosts
from bigft.launch.hostfile import Host, explain_bad_name, read_hostfile
from bigft.launch.job import find_too_long
from bigft.launch.mpi_conduct import MpiConductor
from bigft.launch.processes import allow_open_files
from bigft.launch.progress import Progress, find_progress
from bigft.launch.remote import ask_there
from bigft.launch.supervise import Facts, Hands, Launch, Starter, Supervisor
from bigft.launch.sync import sync
from bigft.redact import redact_text, remember_secrets
from bigft.run.resolve import default_output_dir, resolve
from bigft.run.resolved import Resolved

_LOOK_SECONDS = 30.0
_CLEAR_SECONDS = 40.0
_AT_ONCE = 64
_LEFT = "{count} processes of the last start had not left {host}, and are ended now"

_FILES_PER_HOST = 3
"""Pipes of the connection to it."""
_FILES = 256
"""Everything else that is open here: files, and programs that look at hosts."""

_ADVICE = frozenset({"open_files", "swap", "overcommit", "memory_speed", "nvme_speed", "clock"})
"""Findings that are told, and are no reason not to start."""


def main(request: Request) -> None:
    """Start what stands behind `--` on every host, and leave with the exit code of the run."""
    options = read_options(request, LaunchOptions)
    inner = _read_inner(request)
    hosts = _choose_hosts(options)
    resolved = _resolve(inner, [*hosts] * options.elsewhere.nodes)
    if options.elsewhere.render:
        sys.stdout.write(render_start(options, inner.argv, hosts, resolved.run.output_dir))
        return
    files = _FILES_PER_HOST * len(hosts) + _FILES
    is_ssh = options.hostfile is not None and options.launcher == "ssh"
    if is_ssh and (granted := allow_open_files(files)) < files:
        raise LaunchError(
            f"{len(hosts)} hosts: {files} open files are needed here, {granted} are granted (ulimit"
            " -Hn); raise that limit, or use --launcher openmpi"
        )
    environ = choose_environment(os.environ, options.env, Path.cwd(), Path.home())
    remember_secrets(environ)
    folder = str(resolved.run.output_dir or default_output_dir(resolved.run, datetime.now()))
    if "\0" in folder:
        raise ConfigError(f"--output_dir {folder[:80]!r}: a path has no NUL in it")
    run = Path(folder).expanduser().absolute()
    # All starts have to find the same folder: it is chosen here.
    words = [*inner.argv, *([] if resolved.run.output_dir else [f"--output_dir={run}"])]
    if too_long := find_too_long(words, environ):
        raise_together(ConfigError, too_long)
    launch = Launch(
        hosts=hosts,
        words=words,
        folder=str(Path.cwd()),
        environ=environ,
        launch_id=uuid.uuid4().hex,
        master_addr=options.master_addr,
        master_port=options.master_port,
        max_restarts=options.restarting.max_restarts,
        min_hosts=options.restarting.min_hosts,
        # What the first rank will choose is not known here.
        global_batch=resolved.ds.get("train_batch_size") if resolved.config else None,
    )
    is_local = options.hostfile is None
    supervisor = Supervisor(launch, _make_hands(launch, run, options), _tell, is_local)
    with _signals_passed_on() as pass_on_to:
        if options.sync:
            _sync(hosts, inner, run)
        facts = _find_local(hosts) if is_local else _check(hosts, inner, resolved, options)
        _tell(f"variables that the ranks get: {describe_environment(environ)}")
        pass_on_to(supervisor)
        ending = supervisor.run(facts)
    _leave(ending)


def _read_inner(request: Request) -> Request:
    inner = request.inner
    if inner is None:
        raise ConfigError(
            "bigft launch: say what to run behind --, as in"
            " `bigft launch --hostfile hosts -- train --config ds_configs/zero3.json`"
        )
    if inner.command != "train":
        raise ConfigError(f"bigft launch -- {inner.command}: only `train` runs on several ranks")
    return inner


def _choose_hosts(options: LaunchOptions) -> list[Host]:
    if problems := _find_contradictions(options):
        raise_together(ConfigError, problems)
    if options.hostfile is None:
        return [_choose_local(options)]
    hosts = read_hostfile(Path(options.hostfile))
    chosen = choose_hosts(hosts, options.include, options.exclude)
    least = options.restarting.min_hosts
    if least is not None and least > len(chosen):
        raise ConfigError(f"--min_hosts {least}: there are {len(chosen)} in {options.hostfile}")
    if options.launcher != "ssh" and any(host.devices for host in chosen):
        raise ConfigError(
            f"--launcher {options.launcher}: mpirun cannot choose slots; leave out whole hosts, or"
            " drop --launcher"
        )
    return chosen


def _choose_local(options: LaunchOptions) -> Host:
    """Take the GPUs of this host that are left to the user: others may belong to another job."""
    visible = () if options.elsewhere.render else find_visible(os.environ)
    ranks = options.num_gpus or len(visible) or count_gpus(os.environ)
    if visible and ranks > len(visible):
        raise ConfigError(
            f"--num_gpus {ranks}: CUDA_VISIBLE_DEVICES leaves {len(visible)}; change one of them"
        )
    return Host("localhost", ranks, visible[:ranks])


def _find_contradictions(options: LaunchOptions) -> list[str]:
    """Find flags that would do nothing, or not what was meant."""
    nodes, address = options.elsewhere.nodes, options.master_addr
    restarting = options.restarting
    problems = []
    if nodes > 1 and not options.elsewhere.render:
        problems += [f"--nodes {nodes}: only with --render; name the hosts in a --hostfile"]
    if address is not None and (why := explain_bad_name(address)):
        problems += [f"--master_addr {address[:80]!r}: {why}"]
    if restarting.min_hosts is not None and not restarting.max_restarts:
        problems += [
            f"--min_hosts {restarting.min_hosts}: is for the starts after a crash; add"
            " --max_restarts 20"
        ]
    if options.hostfile is not None:
        if options.num_gpus is not None:
            problems += ["--num_gpus: is for this host alone; the hostfile says slots=N"]
        return problems
    given = {
        "--include": options.include,
        "--exclude": options.exclude,
        "--sync": options.sync,
        "--check": options.check,
        "--min_hosts": restarting.min_hosts,
    }
    if wrong := [flag for flag, value in given.items() if value]:
        problems += [f"{', '.join(wrong)}: only for the hosts of a --hostfile; give one"]
    return problems


def _resolve(inner: Request, hosts: Sequence[Host]) -> Resolved:
    """Find mistakes in the settings here, before anything is started anywhere.

    Where the planner chooses, it is for the hosts and not for this machine, which may be a laptop:
    the first rank does that, and here there is no DeepSpeed JSON.
    """
    world_size = sum(host.slots for host in hosts)
    local_size = max(host.slots for host in hosts)
    environ = {**os.environ, "WORLD_SIZE": str(world_size), "LOCAL_SIZE": str(local_size)}
    return resolve(inner, environ, may_choose=False)


# Looking at hosts, and clearing up on them.


def _find_local(hosts: Sequence[Host]) -> dict[str, Facts]:
    return {host.name: {"free_port": free_port()} for host in hosts}


def _check(
    hosts: Sequence[Host], inner: Request, resolved: Resolved, options: LaunchOptions
) -> dict[str, Facts]:
    """Look at every host, and refuse to start where the run would fail.

    Returns:
        What they say of themselves.

    Raises:
        LaunchError, PlanError, ConfigError: Something is in the way; all of it has been shown.
    """
    probed, findings = probe_hosts(hosts)
    otherwise = "" if findings else ". `--check off` starts all the same"
    check = options.check or "full"
    if not findings and check != "off":
        checks = ["clock"] if check == "quick" else []
        # Without a JSON each host chooses one, so that its memory and its disk are held to a plan.
        request = inner if resolved.config else replace(inner, config=AUTO)
        _tell(f"looking at {len(hosts)} hosts")
        findings = examine_hosts(
            hosts,
            lambda host: words_for(host, request, checks),
            sum(host.slots for host in hosts),
            probed=probed,
            measure_network=check == "full",
            compare_settings=bool(resolved.config),
        )
        # A free port is found for every start.
        findings = [finding for finding in findings if finding.name != "rendezvous_port"]
    faults = [f for f in findings if not f.ok and f.name not in _ADVICE]
    for finding in findings:
        if not finding.ok and finding.name in _ADVICE:
            _tell(f"note: {finding.name} on {finding.host}: {finding.found}; {finding.repair}")
    error = find_worst(faults)
    if error is not None:
        sys.stderr.write(redact_text(render_findings(faults)))
        raise error(f"{summarize(faults)}{otherwise}")
    return {name: host.facts for name, host in probed.items()}


def _find_facts(hosts: Sequence[Host]) -> dict[str, Facts]:
    probed, _ = probe_hosts(hosts)
    return {name: host.facts for name, host in probed.items()}


def _find_progress(run: Path, hosts: Sequence[Host]) -> Progress:
    """Ask the hosts, each of which may keep its checkpoints for itself."""
    words = ["-m", "bigft.launch.progress", str(run)]
    found = [Progress()]
    for answer in _on_all(hosts, lambda host: ask_there(host.name, words, _LOOK_SECONDS)):
        try:
            found.append(Progress.from_line(answer.last_line))
        except ValueError:
            continue
    return max(found, key=lambda progress: progress.commits)


def _clear(launch_id: str, hosts: Sequence[Host]) -> None:
    words = ["-m", "bigft.launch.agent", "--clear", launch_id]
    answers = _on_all(hosts, lambda host: ask_there(host.name, words, _CLEAR_SECONDS))
    for host, answer in zip(hosts, answers, strict=True):
        if answer.code != 0:
            _tell(f"warning: what is left on {host.name} could not be ended: {answer.last_words}")
        elif answer.last_line not in ("", "0"):
            _tell(_LEFT.format(count=answer.last_line[:9], host=host.name))


def _clear_here(launch_id: str) -> None:
    found, left = clear(launch_id)
    if left:
        _tell(f"warning: {left} processes of the last start could not be ended")
    elif found:
        _tell(_LEFT.format(count=found, host="this host"))


def _on_all(hosts: Sequence[Host], call: Callable[[Host], Answer]) -> list[Answer]:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(call, hosts))


def _make_hands(launch: Launch, run: Path, options: LaunchOptions) -> Hands:
    make_conductor = partial(_make_conductor, options)
    if options.hostfile is None:
        return Hands(
            find_facts=_find_local,
            find_progress=lambda hosts: find_progress(run),
            clear=lambda hosts: _clear_here(launch.launch_id),
            make_conductor=make_conductor,
        )
    return Hands(
        find_facts=_find_facts,
        find_progress=partial(_find_progress, run),
        clear=partial(_clear, launch.launch_id),
        make_conductor=make_conductor,
    )


def _make_conductor(options: LaunchOptions) -> Starter:
    if options.launcher == "ssh":
        return Conductor(sys.stdout, sys.stderr)
    return MpiConductor(options.launcher)


def _sync(hosts: Sequence[Host], inner: Request, run: Path) -> None:
    named = [inner.config, inner.recipe, inner.settings.get("model", "")]
    paths = [Path(name).expanduser().absolute() for name in named if name]
    files = [path for path in paths if path.is_file()]
    # Checkpoints are the business of the run, those of earlier ones included.
    for done in sync(hosts, Path.cwd(), files, [run, Path.cwd() / "runs"]):
        what = "sees this folder already" if done.is_shared else "has this folder now"
        _tell(f"{done.host} {what}")


# Signals and the end.


@contextmanager
def _signals_passed_on() -> Iterator[Callable[[Supervisor], None]]:
    """Ask the run to stop at a signal; before there is one, end what looks at the hosts and leave.

    Yields:
        What takes the run.
    """
    runs: list[Supervisor] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        for run in runs:
            run.stop(name)
        if not runs:
            end_asked()
            raise StoppedError(f"stopped by {name} before the first start: nothing has begun")

    numbers = [*STOP_SIGNALS]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        # Else it was started by nohup, and is to outlive its terminal.
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield runs.append
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(ending: Ending) -> None:
    """Leave with the code of the run, and with a word where nobody else has said one."""
    if ending.code == 0:
        return
    first = ending.first
    if ending.code == StoppedError.exit_code or (first is not None and first.code == ending.code):
        # A rank has said it.
        raise SystemExit(ending.code)
    raise LaunchError(first.describe() if first is not None else "the run has ended")


def _tell(text: str) -> None:
    now = datetime.now()
    # It may lead to a file on a disk that is full, or to a reader that has gone: no reason to leave
    # the hosts alone.
    with suppress(OSError):
        sys.stderr.write(redact_text(f"bigft launch {now:%H:%M:%S}: {text}\n"))
        sys.stderr.flush()
