"""Scripts and manifests: equal to the committed ones, and words arrive in them unchanged."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bigft.cli import main
from bigft.errors import ConfigError, LaunchError
from bigft.launch.hostfile import Host
from bigft.launch.mpi import mpi_command, name_variables, render_options
from bigft.launch.render.build import RENDERERS
from bigft.launch.render.examples import render_examples
from bigft.launch.render.kubernetes import START_RANKS
from bigft.launch.render.start import Start, fill

ROOT = Path(__file__).resolve().parents[3]
HOSTILE = [
    "--name=$(touch owned)", "`touch owned`", "a b", "'", '"', "\\", "\n", "-o", "", "$HOME",
    "$(HOME)", "$$(HOME)", "${x:-y}", "; touch owned", "@WORDS@", "*", "~", "#", "{a: b}", "- x",
    "\t", "é€😀", "\x7f\x01", "\u2028", "!!python/object:x", "%s", "&&", "<(x)", "yes", "1e3",
]  # fmt: skip


@pytest.mark.parametrize("name", render_examples())
def test_the_examples_are_the_rendered_ones(name):
    text = (ROOT / "launch_scripts" / name).read_text(encoding="utf-8")
    assert text == render_examples()[name], "run: python docs/generate.py"


WORDS = st.lists(
    st.sampled_from(HOSTILE)
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12),
    max_size=6,
)


@pytest.mark.parametrize("name", RENDERERS)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=WORDS)
@example(words=HOSTILE)
def test_words_arrive_as_they_are(name, words, tmp_path):
    recorder = write_tools(tmp_path)
    given_words = ["train", *words]
    hosts = (Host("localhost", 2),) if name != "slurm" else ()
    # A folder and an output folder that a shell would stumble over, too.
    folder = tmp_path / "-a 'b' $(touch owned)"
    folder.mkdir(exist_ok=True)
    start = Start(
        given_words,
        output_dir="--out $(touch owned)\n'",
        hosts=hosts,
        ranks_per_node=2,
        folder=str(folder),
        python=str(recorder),
    )
    text = RENDERERS[name](start)
    (tmp_path / "seen").unlink(missing_ok=True)
    run_start(name, text, tmp_path)
    seen = (tmp_path / "seen").read_bytes().decode("utf-8").split("\0")[:-1]
    assert seen[-len(given_words) :] == given_words
    assert not [*tmp_path.rglob("owned")]


def write_tools(folder):
    """Programs that note what they are called with, in place of those that start ranks."""
    tool = folder / "bin" / "srun"
    if not tool.exists():
        tool.parent.mkdir()
        tool.write_text('#!/bin/sh\nprintf "%s\\0" "$@" >"$SEEN"\n')
        tool.chmod(0o755)
        for name in ("mpirun", "mpiexec.hydra", "scontrol", "recorder"):
            (folder / "bin" / name).symlink_to(tool)
    return folder / "bin" / "recorder"


def run_start(name, text, folder):
    tools = f"{folder / 'bin'}:{os.environ['PATH']}"
    environ = {"PATH": tools, "SEEN": str(folder / "seen"), "HOME": "/wrong"}
    if name == "kubernetes":
        (container,) = find_pod(text)["containers"]
        command = [expand(word) for word in container["command"]]
        environ |= {"LOCAL_SIZE": "1", "JOB_COMPLETION_INDEX": "0"}
    else:
        command = ["bash", "-c", text, "script", "0"]
    done = subprocess.run(command, env=environ, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def find_pod(text):
    (job,) = yaml.safe_load(text)["spec"]["replicatedJobs"]
    return job["template"]["spec"]["template"]["spec"]


def expand(word):
    """What Kubernetes does with the words of a command: $$ is $, $(NAME) a variable."""
    known = {"HOME": "/wrong"}
    return re.sub(
        r"\$(\$|\(([^)]*)\))",
        lambda m: "$" if m[1] == "$" else known.get(m[2], m[0]),
        word,
    )


def test_the_shell_of_a_pod_has_nothing_that_kubernetes_reads():
    assert "$(" not in START_RANKS
    assert "$$" not in START_RANKS


def test_a_pod_passes_a_stop_on_and_returns_the_worst_code(tmp_path):
    rank = (
        "trap 'sleep 0.$RANK; exit 75' TERM; echo $RANK $LOCAL_RANK >$RANK; while sleep 0.05; do :;"
        " done"
    )
    process = subprocess.Popen(
        ["bash", "-c", START_RANKS, "ranks", "bash", "-c", rank],
        env={**os.environ, "LOCAL_SIZE": "3", "JOB_COMPLETION_INDEX": "1"},
        cwd=tmp_path,
    )
    end = time.monotonic() + 10
    while len([*tmp_path.iterdir()]) < 3:
        assert time.monotonic() < end
        time.sleep(0.02)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 75
    assert {p.read_text() for p in tmp_path.iterdir()} == {"3 0\n", "4 1\n", "5 2\n"}


@pytest.mark.parametrize(
    ("codes", "worst"),
    [
        ((0, 0), 0),
        ((0, 6), 6),
        ((3, 0), 3),
        ((3, 6), 3),
        ((134, 2), 2),
        ((75, 7), 7),
        ((6, 75), 75),
    ],
)
def test_a_pod_returns_what_its_ranks_return(codes, worst):
    rank = f"set -- {codes[0]} {codes[1]}; shift $LOCAL_RANK; exit $1"
    environ = {**os.environ, "LOCAL_SIZE": "2", "JOB_COMPLETION_INDEX": "0"}
    done = subprocess.run(["bash", "-c", START_RANKS, "x", "bash", "-c", rank], env=environ)
    assert done.returncode == worst


def test_the_pods_of_a_jobset_are_all_ranks_and_know_where_to_meet():
    text = render_examples()["kubernetes.yaml"]
    pod = find_pod(text)
    (container,) = pod["containers"]
    environ = {e["name"]: e.get("value") for e in container["env"]}
    jobset = yaml.safe_load(text)
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert environ["WORLD_SIZE"] == str(spec["parallelism"] * int(environ["LOCAL_SIZE"])) == "16"
    name = jobset["metadata"]["name"]
    assert (
        environ["MASTER_ADDR"]
        == f"{name}-{job['name']}-0-0.{jobset['spec']['network']['subdomain']}"
    )
    secret = container["env"][-1]
    assert secret["name"] == "HF_TOKEN"
    assert "value" not in secret
    assert container["resources"]["limits"]["nvidia.com/gpu"] == environ["LOCAL_SIZE"]
    volumes = {v["name"]: v for v in pod["volumes"]}
    assert volumes["shared-memory"]["emptyDir"]["medium"] == "Memory"
    assert volumes["work"]["persistentVolumeClaim"] == {"claimName": "bigft"}
    assert pod["restartPolicy"] == "Never"
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [2, 3, 4, 5, 7]


SLURM_ENDS = [
    # (exit code of srun, checkpoint made, count before, restarts before), (code, requeued, count)
    ((0, False, None, 0), (0, False, None)),
    ((6, True, None, 0), (6, False, None)),
    ((75, True, None, 0), (75, True, "0")),
    ((75, False, None, 0), (75, True, "1")),
    ((75, False, "1", 1), (75, True, "2")),
    ((75, False, "2", 2), (75, False, "3")),
    ((75, True, "2", 2), (75, True, "0")),
    # A new submission counts from the beginning.
    ((75, False, "2", 0), (75, True, "1")),
]


@pytest.mark.parametrize(("before", "after"), SLURM_ENDS)
def test_a_slurm_job_is_queued_again_while_it_makes_progress(before, after, tmp_path):
    code, is_saved, count, restarts = before
    run = tmp_path / "my run"
    (run / "checkpoints/step_00000001").mkdir(parents=True)
    (run / "log").mkdir()
    counted = run / "log/requeued_without_progress"
    if count is not None:
        counted.write_text(count + "\n")
    save = f"mkdir '{run}/checkpoints/step_00000002'" if is_saved else ":"
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, act in {"srun": f"{save}; exit {code}", "scontrol": f'echo "$@" >{tools}/q'}.items():
        (tools / name).write_text(f"#!/bin/sh\n{act}\n")
        (tools / name).chmod(0o755)
    text = RENDERERS["slurm"](Start(["train"], output_dir=str(run)))
    environ = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}
    environ["SLURM_RESTART_COUNT"] = str(restarts)
    done = subprocess.run(["bash", "-c", text], env=environ, capture_output=True, text=True)
    queued = (tools / "q").exists() and (tools / "q").read_text() == "requeue 17\n"
    left = counted.read_text().strip() if counted.exists() else None
    assert (done.returncode, queued, left if code == 75 else None) == after, done.stderr


@pytest.mark.parametrize("name", ["slurm", "kubernetes"])
def test_unequal_hosts_are_refused_where_they_cannot_be_started(name):
    start = Start(["train"], output_dir="o", hosts=(Host("a", 4), Host("b", 8)))
    with pytest.raises(ConfigError, match="a slots=4, b slots=8"):
        RENDERERS[name](start)


def test_no_gpus_are_asked_for_where_there_are_none():
    start = Start(["train"], output_dir="o", on_gpus=False)
    for name in ("slurm", "kubernetes"):
        assert "gpu" not in RENDERERS[name](start).replace("--render", "")


def test_a_line_that_nothing_fills_is_left_out():
    assert fill("a\n@X@\n\nb @Y@\n", x="", y="@X@") == "a\n\nb @X@\n"


def test_mpirun_gets_names_of_variables_and_never_values(monkeypatch, tmp_path):
    for tool in ("mpirun.openmpi", "mpiexec.hydra"):
        (tmp_path / tool).write_text("#!/bin/sh\n")
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "secret")
    hosts = [Host("a", 2), Host("b", 1)]
    words = mpi_command("openmpi", hosts, ["p", "-x"], ["HF_TOKEN", "MASTER_ADDR"], as_root=True)
    assert words[0] == "mpirun.openmpi"
    assert words[-8:] == ["-x", "HF_TOKEN", "-x", "MASTER_ADDR", "-n", "3", "p", "-x"]
    assert "a:2,b:1" in words
    assert "--allow-run-as-root" in words
    words = mpi_command("mpich", hosts, ["p"], ["HF_TOKEN", "MASTER_ADDR"], as_root=True)
    assert words[-4:] == ["-genvall", "-n", "3", "p"]
    assert name_variables("mpich", []) == []
    assert "secret" not in " ".join(words)


def test_mpirun_that_is_missing_is_an_error_of_the_launch(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match="no mpirun.openmpi or mpirun on PATH"):
        mpi_command("openmpi", [Host("a", 1)], ["p"])


@pytest.mark.parametrize("host", [Host("fd00::2", 1), Host("a", 1, devices=(3,))])
def test_mpirun_cannot_have_every_host(host):
    with pytest.raises(LaunchError, match=re.escape(host.name)):
        render_options("openmpi", [host])


def run_launch(capsys, *words):
    try:
        main(["launch", *words])
    except SystemExit as end:
        return end.code, capsys.readouterr().err
    return 0, capsys.readouterr().out


CONFIG = ["--config", str(ROOT / "ds_configs/zero3.json")]


def test_launch_renders_what_stands_behind_the_dashes(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecretsecret")
    words = ["--render", "slurm", "--nodes", "4", "--num_gpus", "2", "--env", "HF_TOKEN", "--"]
    code, text = run_launch(capsys, *words, "train", *CONFIG, "--output_dir", "a b")
    assert code == 0
    assert "#SBATCH --nodes=4\n#SBATCH --ntasks-per-node=2\n" in text
    assert "--output_dir 'a b'" in text
    assert "HF_TOKEN" in text
    assert "hf_secret" not in text
    assert f"cd -- {tmp_path}\n" in text


@pytest.mark.parametrize(
    ("options", "words", "said"),
    [
        (["--render", "slurm"], CONFIG, ["--output_dir: not given"]),
        (
            ["--render", "openmpi", "--nodes", "2", "--env", "A=b"],
            CONFIG,
            ["3 problems", "--output_dir", "--nodes 2: mpirun wants names", "--env 'A=b'"],
        ),
        (
            ["--render", "kubernetes"],
            [*CONFIG, "--output_dir", "/elsewhere"],
            ["outside of", "--claim bigft"],
        ),
        (["--render", "pbs"], [*CONFIG, "--output_dir", "o"], ["--render", "slurm"]),
        (["--render", "slurm"], [*CONFIG, "--learning_rte", "1"], ["learning_rte"]),
    ],
)
def test_what_cannot_be_rendered_is_said_before(options, words, said, capsys):
    code, text = run_launch(capsys, *options, "--", "train", *words)
    assert code == 2
    for part in said:
        assert part in text
