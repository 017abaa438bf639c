"""The documentation says what the code does."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bigft.config.request import Request
from bigft.run.record import record
from bigft.run.reference import render_reference
from bigft.run.resolve import resolve

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_settings_reference_is_the_generated_one() -> None:
    page = (ROOT / "docs/reference/settings.md").read_text(encoding="utf-8")
    assert page == render_reference(), "run: python docs/generate.py"


def test_the_readme_shows_the_real_folders() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = readme.split("## The tree")[1]
    folders = {p.name for p in (ROOT / "bigft").iterdir() if (p / "__init__.py").is_file()}
    shown = set(re.findall(r"^      (\w+)/ ", tree, re.MULTILINE))
    assert shown == folders


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    broken = [link for link in links if not (page.parent / link).exists()]
    assert broken == []


def _train_commands() -> list[str]:
    commands = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in text.splitlines():
            if re.match(r"    (bigft train|deepspeed .*run\.py) ", line):
                commands.append(line.strip())
    return sorted(set(commands))


def _record_run(folder: Path, model: Path, data: Path) -> None:
    """Write `resolved/` as a run with these leaves it."""
    config = str(ROOT / "ds_configs/zero3.json")
    request = Request("train", settings={"model": str(model), "data": str(data)}, config=config)
    record(resolve(request, {"WORLD_SIZE": "1"}), {}, folder)


@pytest.mark.parametrize("command", _train_commands())
def test_commands_of_the_pages_resolve(command: str, tmp_path: Path) -> None:
    """Every training command that the pages show is accepted, on a model made here."""
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32,'
        ' "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,'
        ' "vocab_size": 256, "max_position_embeddings": 4096}'
    )
    (tmp_path / "mine.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "sft.yaml").write_text("learning_rate: 1e-5\n")
    _record_run(tmp_path / "a", tmp_path, tmp_path / "mine.jsonl")
    words = shlex.split(command)
    words = words[
        next(n for n, w in enumerate(words) if w == "train" or w.endswith("run.py")) + 1 :
    ]
    models = ("Qwen/Qwen3-8B", "google-bert/bert-base-uncased", "google-t5/t5-base")
    known = dict.fromkeys([*models, "FOLDER_OR_ID", "..."], tmp_path)
    words = [str(known.get(word, word)) for word in words]
    words = [w.replace("mine.jsonl", str(tmp_path / "mine.jsonl")) for w in words]
    words = [w.replace("sft.yaml", str(tmp_path / "sft.yaml")) for w in words]
    words = [w.replace("runs/a/", f"{tmp_path}/a/") for w in words]
    if "--data" in words and words[words.index("--data") + 1] == str(tmp_path):
        words[words.index("--data") + 1] = str(tmp_path / "mine.jsonl")
    words = [word for word in words if word != "--dry_run"]
    result = subprocess.run(
        [sys.executable, "-m", "bigft", "train", *words, "--dry_run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "WORLD_SIZE": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert "strategy" in result.stdout


def test_the_recipe_of_the_quickstart_gives_way_to_flags() -> None:
    files = {
        "config": str(ROOT / "ds_configs/zero3.json"),
        "recipe": str(ROOT / "launch_scripts/quickstart.yaml"),
    }
    request = Request("train", settings={"max_steps": "5"}, **files)
    run = resolve(request, {"WORLD_SIZE": "1"}).run
    assert (run.trainer.max_steps, run.optim.learning_rate) == (5, 1e-3)
