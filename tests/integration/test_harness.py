"""Tasks of lm-eval on a model folder, from local data, held against the model alone."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from making import WORDS, make_model

from bigft.cli import main
from bigft.errors import BigftError, ConfigError, DataError

ROWS = 6
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}} is"
{more}
metadata:
  version: 2.0
"""
CHOICE = """doc_to_choice: "{{choices}}"
doc_to_target: "{{right}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}"""
WRITTEN = """doc_to_target: "{{choices[right]}}"
generation_kwargs: {until: ["."], max_gen_toks: 6}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, two tasks in `tasks/`, and their data."""
    root = tmp_path_factory.mktemp("harness")
    make_model(root / "model")
    chooser = random.Random(0)
    rows = [
        {
            "question": " ".join(chooser.choices(WORDS, k=4)),
            "choices": chooser.sample(WORDS, 3),
            "right": chooser.randrange(3),
        }
        for _ in range(ROWS)
    ]
    (root / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "tasks").mkdir()
    kinds = {"choose": ("multiple_choice", CHOICE), "write": ("generate_until", WRITTEN)}
    for name, (kind, more) in kinds.items():
        text = TASK.format(name=f"toy_{name}", data=root / "rows.jsonl", kind=kind, more=more)
        (root / f"tasks/{name}.yaml").write_text(text)
    return root


@pytest.fixture
def evaluate(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Any:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")

    def run(*words: Any) -> str:
        main(["evaluate", str(folder / "model"), *map(str, words)])
        return capsys.readouterr().out

    return run


def _choose_plainly(folder: Path) -> float:
    """Share of the rows whose right choice has the largest likelihood."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    hits = 0
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    for row in rows:
        likelihoods = []
        for choice in row["choices"]:
            start = tokenizer(f"{row['question']} is")["input_ids"]
            ids = torch.tensor([tokenizer(f"{row['question']} is {choice}")["input_ids"]])
            assert ids[0, : len(start)].tolist() == start
            with torch.no_grad():
                scores = model(ids).logits[0, :-1].log_softmax(-1)
            each = scores.gather(1, ids[0, 1:, None])[:, 0]
            likelihoods.append(float(each[len(start) - 1 :].sum()))
        hits += max(range(3), key=likelihoods.__getitem__) == row["right"]
    return hits / len(rows)


def test_tasks_of_ones_own_give_what_the_model_alone_gives(evaluate: Any, folder: Path) -> None:
    words = ("--harness", "toy_*", "--harness_folder", folder / "tasks", "--batch_size", 2)
    found = json.loads(evaluate(*words, "--json"))
    assert found["acc/toy_choose"] == pytest.approx(_choose_plainly(folder))
    assert found["exact_match/toy_write"] == 0
    assert found["acc_stderr/toy_choose"] > 0
    facts = {"version": 2.0, "num_fewshot": 0, "examples": ROWS}
    assert found["harness"]["tasks"] == {"toy_choose": facts, "toy_write": facts}


def test_fewer_examples_and_solved_ones_before_each(evaluate: Any, folder: Path) -> None:
    words = ("--harness", "toy_choose", "--harness_folder", folder / "tasks", "--limit", 2)
    found = json.loads(evaluate(*words, "--num_fewshot", 1, "--json"))
    assert found["harness"]["tasks"] == {
        "toy_choose": {"version": 2.0, "num_fewshot": 1, "examples": 2}
    }
    assert [line.split()[0] for line in evaluate(*words).splitlines()] == [
        "acc/toy_choose",
        "acc_stderr/toy_choose",
    ]


@pytest.mark.parametrize(
    ("line", "kind", "text"),
    [
        pytest.param(
            "--harness toy_choice --harness_folder TASKS",
            ConfigError,
            "did you mean toy_choose",
            marks=pytest.mark.nightly,  # Lists all tasks of lm-eval: ten seconds.
        ),
        ("--harness toy --harness_folder nowhere", ConfigError, "no such folder"),
        ("--harness toy_write --data x --metrics f1", ConfigError, "leave --data, --metrics out"),
        ("--limit 3", ConfigError, "--limit: about tasks of lm-eval; add --harness TASKS"),
        ("--harness gone --harness_folder BROKEN", DataError, "lm-eval cannot run it"),
    ],
)
def test_what_cannot_be_run_is_said(
    evaluate: Any,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    kind: type[BigftError],
    text: str,
) -> None:
    from bigft.commands import evaluate as command
    from bigft.config.request import Request

    task = TASK.format(name="gone", data=tmp_path / "gone", kind="multiple_choice", more=CHOICE)
    (tmp_path / "gone.yaml").write_text(task)
    words = line.replace("TASKS", str(folder / "tasks")).replace("BROKEN", str(tmp_path)).split()
    settings = dict(zip([word[2:] for word in words[::2]], words[1::2], strict=True))
    request = Request("evaluate", words=(str(folder / "model"),), settings=settings)
    with pytest.raises(kind) as error:
        command.main(request)
    assert text in str(error.value)
