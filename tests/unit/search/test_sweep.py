"""The logic of a sweep, with a stub in the place of the training run."""

import csv
import json
import sys
import textwrap
import threading
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bigft.cli import parse
from bigft.config.options import COMMANDS
from bigft.distributed.signals import StopSignals
from bigft.errors import BigftError, CheckpointError, ConfigError, StoppedError
from bigft.search import conduct
from bigft.search.child import Child, MetricRows, build_command
from bigft.search.plan import Plan, plan_sweep, render_plan
from bigft.search.record import find_best
from bigft.search.results import render_csv, render_json, render_table, write_results
from bigft.search.study import JOURNAL_NAME, Study

ROOT = Path(__file__).resolve().parents[3]
CONFIG = str(ROOT / "ds_configs/zero3.json")

# The loss is what the settings make of it; a file tells how the run ends.
STUB = """
import json, os, signal, sys, time
folder, settings = sys.argv[1], json.loads(sys.argv[2])
rate = float(settings.get("optim.learning_rate", 3e-4))
os.makedirs(folder + "/checkpoints", exist_ok=True)
os.makedirs(folder + "/model", exist_ok=True)
os.makedirs(folder + "/resolved", exist_ok=True)
open(folder + "/resolved/run.yaml", "w").write("# head\\n\\noptim:\\n  learning_rate: %r\\n" % rate)
with open(folder + "/metrics.jsonl", "a", buffering=1) as file:
    for step in (0, 2, 4):
        loss = abs(rate - 5e-4) * 1e4 + (4 - step)
        file.write(json.dumps({"step": step, "eval_loss": loss}) + "\\n")
print("noise")
if rate > 0.5:
    print("bigft: the loss is not finite\\nLower it")
    sys.exit(7)
"""


def plan(tmp_path: Path, *words: str) -> Plan:
    request = parse(["sweep", "--config", CONFIG, "--output_dir", str(tmp_path / "sweep"), *words])
    return plan_sweep(request, {})


def refusal(tmp_path: Path, *words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        plan(tmp_path, *words)
    return str(caught.value)


def open_study(found: Plan) -> Study:
    found.folder.mkdir(exist_ok=True)
    study = Study(
        found.folder,
        found.space,
        sampler=found.options.sampler,
        pruner=found.options.pruner,
        maximize=found.maximize,
        seed=1,
        total=found.total,
    )
    study.check_same(found.describe())
    study.begin(found.baseline, found.fixed, found.grid)
    return study


@pytest.fixture
def stub(monkeypatch, tmp_path):
    """Let every trial run the stub."""
    script = tmp_path / "stub.py"
    script.write_text(STUB)

    def build(_request, settings, folder, _num_gpus):
        return [sys.executable, str(script), str(folder), json.dumps(dict(settings))]

    monkeypatch.setattr(conduct, "build_command", build)
    monkeypatch.setattr(conduct, "_LOOK_SECONDS", 0.02)
    return script


def run(found: Plan, signals: StopSignals | None = None) -> tuple[Study, list[str]]:
    study, said = open_study(found), []
    conduct.run_sweep(found, study, signals or StopSignals(), said.append)
    return study, said


RATE = ["--search", "learning_rate=log(1e-5,1e-2)"]


def test_several_searches_are_joined_and_switches_are_known():
    request = parse(
        ["sweep", "--search", "seed=int(1,2)", "--json", "--search=max_length=choice(8,9)"]
    )
    assert request.settings == {
        "search": "seed=int(1,2);max_length=choice(8,9)",
        "json": "true",
    }
    with pytest.raises(ConfigError, match="given twice"):
        parse(["sweep", "--trials", "1", "--trials", "2"])


def test_options_of_the_sweep_are_no_settings_of_a_run():
    names = set(COMMANDS["sweep"].own.model_fields)
    assert not names & {"model", "data", "task", "seed", "optim", "resume", "output_dir"}


def test_the_first_trial_takes_the_settings_as_they_stand(tmp_path):
    found = plan(tmp_path, *RATE, "--search", "optim.weight_decay=uniform(0.2,0.5)")
    # 3e-4: the default for a model with random weights; 0.01 lies outside of its range.
    assert found.baseline == {"optim.learning_rate": "0.0003", "optim.weight_decay": "0.01"}
    assert found.fixed == {"optim.learning_rate": 3e-4}
    assert (found.total, found.maximize) == (20, False)
    typed = plan(tmp_path, *RATE, "--learning_rate", "1.23456789e-3")
    assert typed.baseline == {"optim.learning_rate": "0.00123456789"}


def test_everything_wrong_is_said_at_once(tmp_path):
    message = refusal(
        tmp_path,
        "--search",
        "learning_rte=log(1e-5,1e-2);optim.name=choice(adam,adamw);max_steps=log(10,90);"
        "optim.weight_decay=uniform(-1,3);data.eval_fraction=uniform(0,.5);output_dir=choice(a,b)",
        "--metric",
        "loss",
        "--sampler",
        "tpx",
        "--trails",
        "3",
        "--pruner",
        "median",
        "--resume",
        "never",
    )
    for words in (
        "did you mean learning_rate?",
        "did you mean adamw?",
        "write int(a,b) for whole numbers",
        "--optim.weight_decay=-1.0",
        "could not be compared",
        "a folder of its own",
        "begin with eval_",
        "--sampler=tpx",
        "did you mean --trials?",
        "--eval_steps N",
        "--resume",
    ):
        assert words in message


def test_a_setting_that_the_json_decides_cannot_be_searched(tmp_path):
    clip = ["--ds.gradient_clipping=0.5", "--search", "optim.max_grad_norm=choice(1,2)"]
    assert "two answers" in refusal(tmp_path, *clip) or "gradient_clipping" in refusal(
        tmp_path, *clip
    )
    found = plan(tmp_path, "--search", "ds.gradient_clipping=choice(0.5,2)")
    assert found.baseline == {"ds.gradient_clipping": "1"}


def test_the_direction_follows_from_the_metric(tmp_path):
    for metric, maximize in (
        ("eval_loss", False),
        ("eval_loss/a.jsonl", False),
        ("eval_perplexity", False),
        ("eval_mae", False),
        ("eval_token_accuracy", True),
        ("eval_f1_macro", True),
        ("eval_spearman", True),
        ("eval_r2", True),
        ("eval_bleu", True),
        ("eval_accuracy/module", True),
    ):
        assert plan(tmp_path, *RATE, "--metric", metric).maximize is maximize
    assert "--direction" in refusal(tmp_path, *RATE, "--metric", "eval_tokens")
    given = ["--metric", "eval_tokens", "--direction", "maximize"]
    assert plan(tmp_path, *RATE, *given).maximize


def test_a_sweep_finds_better_than_the_settings_as_they_stand(tmp_path, stub):
    found = plan(tmp_path, *RATE, "--trials", "12")
    study, said = run(found)
    records = study.records()
    best = find_best(records, maximize=False)
    assert len(records) == 12
    assert records[0].is_baseline
    assert records[0].value == pytest.approx(2.0)
    assert best.value < 1.0
    assert records[0].reports == {2: pytest.approx(4.0), 4: pytest.approx(2.0)}
    assert "as the settings stand" in said[0]
    assert f"best {best.value:.4f} (trial {best.number})" in said[-1]


def test_a_sweep_that_goes_on_proposes_what_an_undisturbed_one_would(tmp_path, stub):
    words = [*RATE, "--trials", "8"]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    whole = run(plan(tmp_path / "a", *words))[0]
    run(plan(tmp_path / "b", *RATE, "--trials", "3"))
    parted = run(plan(tmp_path / "b", *words))[0]
    assert [r.settings for r in whole.records()] == [r.settings for r in parted.records()]


def test_trials_that_fail_are_kept_and_the_sweep_goes_on(tmp_path, stub):
    found = plan(tmp_path, "--search", "learning_rate=choice(5e-4,0.9,1e-3)", "--sampler", "grid")
    study, said = run(found)
    records = {record.settings["optim.learning_rate"]: record for record in study.records()}
    assert {rate: record.state for rate, record in records.items()} == {
        "0.0003": "complete",
        "5e-4": "complete",
        "0.9": "failed",
        "1e-3": "complete",
    }
    assert records["0.9"].exit_code == 7
    assert records["0.9"].reason == "bigft: the loss is not finite Lower it"
    assert any("failed after" in line and "exit code 7" in line for line in said)
    # The second start has nothing to do; failed trials are not tried again.
    assert run(found)[1] == []
    assert _kept(found.folder) == [records["5e-4"].number]


def _kept(folder: Path) -> list[int]:
    return sorted(int(path.parent.name) for path in folder.glob("trials/*/model"))


@pytest.mark.parametrize(("keep", "expected"), [("all", [1, 2]), ("none", [])])
def test_what_is_kept_on_the_disk_is_chosen(tmp_path, stub, keep, expected):
    found = plan(tmp_path, *RATE, "--trials", "2", "--keep", keep)
    run(found)
    assert _kept(found.folder) == expected
    assert len(list(found.folder.glob("trials/*/metrics.jsonl"))) == 2


def test_a_grid_holds_the_settings_as_they_stand_once(tmp_path, stub):
    words = ["--search", "learning_rate=choice(3e-4,1e-3);seed=int(42,44)", "--sampler", "grid"]
    assert plan(tmp_path, *words).total == 6
    assert plan(tmp_path, *words, "--seed", "7").total == 7
    found = plan(tmp_path, *words, "--trials", "4")
    assert found.total == 4
    run(found)
    study, _ = run(plan(tmp_path, *words))
    tried = [tuple(record.settings.values()) for record in study.records()]
    assert len(tried) == len(set(tried)) == 6


def test_a_wrong_setting_found_by_the_first_trial_ends_the_sweep(tmp_path, stub):
    stub.write_text("import sys; print('bigft: --data x: no rows'); sys.exit(3)")
    found = plan(tmp_path, *RATE, "--trials", "3")
    with pytest.raises(BigftError) as caught:
        run(found)
    assert (caught.value.exit_code, str(caught.value)) == (3, "--data x: no rows")
    stub.write_text(STUB)
    study, _ = run(found)
    assert [record.state for record in study.records()] == ["complete"] * 3


def test_a_metric_that_the_run_does_not_have_ends_the_sweep(tmp_path, stub):
    found = plan(tmp_path, *RATE, "--metric", "eval_accuracy")
    with pytest.raises(ConfigError, match="it has eval_loss"):
        run(found)


def test_a_value_that_is_not_finite_is_a_failure(tmp_path, stub):
    stub.write_text(
        STUB.replace("rate > 0.5", "False").replace("abs(rate", "None if 0 else abs(rate")
    )
    stub.write_text(
        STUB.replace(
            'json.dumps({"step": step, "eval_loss": loss})',
            'json.dumps({"step": step, "eval_loss": None if step == 4 and rate > 0.5 else loss})',
        ).replace("if rate > 0.5", "if False")
    )
    words = ["--search", "learning_rate=choice(3e-4,0.9)", "--sampler", "grid"]
    study, _ = run(plan(tmp_path, *words))
    assert study.records()[1].state == "failed"
    assert "not finite" in study.records()[1].reason


def test_a_stop_leaves_the_trial_to_go_on(tmp_path, stub):
    flag = tmp_path / "started"
    stub.write_text(
        STUB + "\nimport pathlib\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        f"flag = pathlib.Path({str(flag)!r})\n"
        "if not flag.exists() and rate != 3e-4:\n"
        "    flag.touch()\n"
        "    time.sleep(60)\n"
    )
    found, signals = plan(tmp_path, *RATE, "--trials", "3"), StopSignals()

    def stop() -> None:
        while not flag.exists():
            time.sleep(0.01)
        signals.request("SIGTERM")

    study, waiting = open_study(found), threading.Thread(target=stop, daemon=True)
    waiting.start()
    with signals.awaited(), pytest.raises(StoppedError, match="in trial 2 of 3"):
        conduct.run_sweep(found, study, signals, lambda _: None)
    (stopped,) = (r for r in study.records() if r.state == "running")
    study, said = run(found)
    records = study.records()
    assert [record.state for record in records] == ["complete"] * 3
    assert records[1].settings == stopped.settings
    assert said[0].startswith("trial 2 of 3")
    assert said[0].endswith("; goes on")


def test_a_study_for_other_settings_is_refused(tmp_path, stub):
    run(plan(tmp_path, *RATE, "--trials", "1"))
    # How much is logged, and how many trials there are, may change.
    run(plan(tmp_path, *RATE, "--trials", "1", "--monitor.logging_steps", "5"))
    for words in ([*RATE, "--max_length", "64"], ["--search", "learning_rate=log(1e-5,1e-1)"]):
        with pytest.raises(ConfigError, match="other settings"):
            open_study(plan(tmp_path, *words))
    with pytest.raises(ConfigError, match="data.max_length was 1024, is 64"):
        open_study(plan(tmp_path, *RATE, "--max_length", "64"))


def test_a_torn_journal_is_repaired_and_a_damaged_one_refused(tmp_path, stub):
    found = plan(tmp_path, *RATE, "--trials", "2")
    run(found)
    journal = found.folder / JOURNAL_NAME
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":4,"wor')
    assert len(open_study(found).records()) == 2
    assert journal.read_bytes().startswith(whole + b"{")
    journal.write_bytes(whole[:200] + b"\x00\xff rubbish\n" + whole[200:])
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_study(found)


def test_a_journal_of_somebody_else_adds_no_flags(tmp_path, stub):
    found = plan(tmp_path, *RATE, "--trials", "2")
    run(plan(tmp_path, *RATE, "--trials", "1"))
    study = open_study(found)
    study.next_trial().keep(settings={"model.trust_remote_code": "true"})
    assert list(open_study(found).next_trial().settings) == ["optim.learning_rate"]


def test_without_optuna_the_pip_line_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r'pip install "bigft\[sweep\]"'):
        open_study(plan(tmp_path, *RATE))


def test_the_results_are_written_and_hold_no_live_text(tmp_path, stub):
    found = plan(tmp_path, "--search", "learning_rate=choice(5e-4,0.9)", *["--sampler", "grid"])
    stub.write_text(
        STUB.replace("bigft: the", "=cmd|' /C calc'!A0 <script>\\x1b[2J").replace("\\nLower", "")
    )
    study, _ = run(found)
    records = study.records()
    write_results(found, records)
    rows = list(csv.DictReader((found.folder / "trials.csv").open()))
    assert [row["state"] for row in rows] == ["complete", "complete", "failed"]
    assert "\x1b" not in rows[2]["reason"] + render_table(found, records)
    assert rows[2]["reason"].startswith("'")
    assert ET.parse(found.folder / "sweep.svg").getroot().tag.endswith("svg")
    assert "<script>" not in (found.folder / "sweep.svg").read_text()
    recipe = (found.folder / "best.yaml").read_text()
    assert "learning_rate: 0.0005" in recipe
    assert "trials/0002/resolved/ds_config.json" in recipe
    answer = json.loads(render_json(found, records))
    assert answer["best"]["trial"] == 2
    assert answer["baseline"]["value"] == pytest.approx(2.0)
    assert [trial["state"] for trial in answer["trials"]] == ["complete", "complete", "failed"]
    table = render_table(found, records)
    assert table.splitlines()[1].startswith("2 ")
    assert "as the settings stand: 2.0000" in table
    assert render_csv(found, records).count("\n") == 4


def test_the_plan_is_shown_by_a_dry_run(tmp_path):
    page = render_plan(plan(tmp_path, *RATE))
    assert "log(1e-5,1e-2), now 0.0003" in page


def test_the_command_of_a_trial_replaces_what_is_searched(tmp_path):
    request = parse(
        ["sweep", "--config", "a.json", "--learning_rate", "1", "--model", "m", "--output_dir", "x"]
    )
    command = build_command(request, {"optim.learning_rate": "2e-5"}, tmp_path, None)
    assert command[1:] == [
        "-m", "bigft", "train", "--config=a.json", "--model=m", "--optim.learning_rate=2e-5",
        f"--output_dir={tmp_path}", "--resume=auto",
    ]  # fmt: skip
    launched = build_command(request, {}, tmp_path, 2)
    assert launched[1:5] == ["-m", "deepspeed.launcher.runner", "--num_gpus", "2"]
    assert "--learning_rate=1" in launched


def test_a_trial_is_over_when_all_of_its_processes_are(tmp_path):
    script = "import subprocess; subprocess.Popen(['sleep', '1.5'])"
    child = Child([sys.executable, "-c", script], tmp_path)
    started = time.monotonic()
    assert child.wait() == 0
    assert time.monotonic() - started > 1.4


def test_metrics_are_read_while_they_grow(tmp_path):
    rows = MetricRows(tmp_path, "eval_loss")
    assert rows.read() == []
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 3}\n{"step": 1, "eval_lo')
    assert rows.read() == []
    with file.open("a") as out:
        out.write('ss": 2.5, "eval_perplexity": 9}\nrubbish\n[1]\n{"step": 2, "eval_loss": null}\n')
    assert rows.read() == [(1, 2.5)]
    assert rows.names == {"eval_loss", "eval_perplexity"}
    assert rows.last is None
    assert rows.has_metric
    # What a crash left unfinished is cut off by the run that goes on.
    with file.open("a") as out:
        out.write('{"step": 3, "eval_loss": 7')
    assert rows.read() == []
    with file.open("r+") as out:
        out.truncate(file.stat().st_size - 26)
        out.seek(0, 2)
        out.write('{"step": 3, "eval_loss": 1.5}\n')
    assert rows.read() == [(3, 1.5)]


def test_a_trial_is_worth_what_its_best_checkpoint_is(tmp_path, stub):
    stub.write_text(
        STUB.replace("(4 - step)", "(7 if step == 4 else 4 - step)")
        + 'open(folder + "/checkpoints/best", "w").write("step_00000002\\n")\n'
    )
    words = ["--search", "learning_rate=choice(5e-4,7e-4)", "--sampler", "grid", "--keep", "all"]
    best = ["--checkpoint.best", "loss", "--eval_steps", "2", "--save_steps", "2"]
    study, _ = run(plan(tmp_path, *words, *best))
    values = {r.settings["optim.learning_rate"]: r.value for r in study.records()}
    assert values["5e-4"] == 2
    assert values["7e-4"] == pytest.approx(4)
    # Without the note of the best one, the last value counts.
    stub.write_text(STUB.replace("(4 - step)", "(7 if step == 4 else 4 - step)"))
    (tmp_path / "sweep").rename(tmp_path / "before")
    study, _ = run(plan(tmp_path, *words))
    values = {r.settings["optim.learning_rate"]: r.value for r in study.records()}
    assert values["5e-4"] == 7


def test_a_pruned_trial_is_stopped_and_the_baseline_never(tmp_path, stub):
    stub.write_text(
        textwrap.dedent(STUB).replace(
            "        file.write",
            "        time.sleep(0.15)\n        file.write",
        )
        + "\ntime.sleep(0.3)"
    )
    words = ["--learning_rate", "0.4", "--eval_steps", "2", "--pruner", "halving"]
    words += ["--search", "learning_rate=choice(5e-4,0.3)", "--sampler", "grid"]
    study, _ = run(plan(tmp_path, *words))
    states = {r.settings["optim.learning_rate"]: r.state for r in study.records()}
    assert states == {"0.4": "complete", "5e-4": "complete", "0.3": "pruned"}
    assert next(r for r in study.records() if r.state == "pruned").value is not None
