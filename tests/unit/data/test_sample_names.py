"""The rows of a step are called by the places in the files that they come from."""

import json
import re
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from bigft.data.build import build_data
from bigft.data.loading.loader import Share, StepBatches
from bigft.data.order.cursor import Cursor

RANKS, MICRO_STEPS, MICRO_BATCH = 2, 2, 2


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Rows that say where they stand: `<file>#<line>#`, in three kinds of files."""
    lines = []
    for number in range(1, 121):
        text = f"json#{number}#" + " word" * (number % 9)
        # Such rows are left out, and those behind them must not take their names.
        lines.append("broken" if number % 10 == 0 else json.dumps({"text": text}))
    # A row that is cut into pieces has one name.
    lines[6] = json.dumps({"text": " ".join(["json#7#"] * 40)})
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    table = "".join(f"csv#{number}# word,x\n" for number in range(2, 40))
    (tmp_path / "b.csv").write_text("text,note\n" + table)
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = [f"parquet#{number}# word" for number in range(1, 31)]
    pq.write_table(pa.table({"text": column}), tmp_path / "c.parquet")
    return {
        "json": f"{tmp_path}/a.jsonl:",
        "csv": f"{tmp_path}/b.csv:",
        "parquet": f"{tmp_path}/c.parquet, row ",
    }


def _find_marks(step: StepBatches, micro_step: int, tokenizer: Any) -> set[tuple[str, str]]:
    ids = step.micro_batches[micro_step].input_ids.tolist()
    text = "\n".join(tokenizer.decode(line, skip_special_tokens=True) for line in ids)
    return set(re.findall(r"(json|csv|parquet)#(\d+)#", text))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("packing", ["none", "best_fit"])
def test_names_lead_to_the_rows_of_each_rank_and_micro_step(
    files: dict[str, str], packing: str, streaming: bool, make_section, tokenizer, tmp_path: Path
) -> None:
    section = make_section(
        train=f"{tmp_path}/a.jsonl,{tmp_path}/b.csv,{tmp_path}/c.parquet",
        packing=packing,
        max_length=64,
        overlong="split",
        on_bad_row="skip",
        eval_fraction=0.0,
        loading={"streaming": streaming},
    )
    ranks = [
        build_data(
            section,
            tokenizer=tokenizer,
            share=Share(MICRO_BATCH, MICRO_STEPS, rank, RANKS),
            local_rank=0,
            eval_batch_size=1,
            seed=1,
            barrier=lambda: None,
            reject=lambda rows: None,
        ).train.steps_from(Cursor())
        for rank in range(RANKS)
    ]
    seen: set[tuple[str, str]] = set()
    for steps in islice(zip(*ranks, strict=True), 30):
        everything: set[str] = set()
        for rank, step in enumerate(steps):
            for micro_step in range(MICRO_STEPS):
                marks = _find_marks(step, micro_step, tokenizer)
                expected = {files[kind] + number for kind, number in marks}
                # Any rank knows the rows of all.
                for other in steps:
                    assert set(other.samples.list_of(rank, micro_step)) == expected
                everything |= expected
                seen |= marks
        for step in steps:
            names = step.samples.list_all()
            assert len(names) == len(set(names))
            assert set(names) == everything
    assert {kind for kind, _ in seen} == {"json", "csv", "parquet"}
    assert ("json", "7") in seen
    assert not [number for kind, number in seen if kind == "json" and int(number) % 10 == 0]


def test_the_built_in_corpus_has_names_too(make_section, tokenizer) -> None:
    data = build_data(
        make_section(train="builtin", max_length=64),
        tokenizer=tokenizer,
        share=Share(2),
        local_rank=0,
        eval_batch_size=1,
        seed=1,
        barrier=lambda: None,
    )
    names = next(data.train.steps_from(Cursor())).samples.list_all()
    assert names
    assert all(name.startswith("builtin:") for name in names)
