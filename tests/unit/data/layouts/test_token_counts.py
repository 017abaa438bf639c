"""What is counted as tokens is text, whatever else stands in a row."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from making import make_tokenizer

from bigft.data.build import build_data
from bigft.data.loading.loader import Share
from bigft.data.order.cursor import Cursor
from bigft.data.section import DataSection
from bigft.tasks.rows import build_rows
from bigft.tasks.section import TaskSection

WORDS = ["red", "green cat", "the blue dog runs", "one two three", "a bird eats and sleeps", "far"]
ROWS = {
    "classification": [{"text": t, "label": "ab"[n % 2]} for n, t in enumerate(WORDS)],
    "regression": [{"text": t, "label": [n, n / 2, 1.0]} for n, t in enumerate(WORDS)],
    "seq2seq": [{"source": t, "target": "cat"} for t in WORDS],
}
LEARNS = {"classification": "labels", "regression": "numbers", "seq2seq": "in targets"}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("streaming", [False, True])
def test_tokens_of_a_step_are_those_of_its_texts(
    tmp_path: Path, name: str, streaming: bool
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS[name])))
    tokenizer = make_tokenizer(tmp_path)
    section = DataSection(
        train=str(path),
        eval=str(path),
        packing="none",
        loading={"cache_dir": str(tmp_path / "cache"), "streaming": streaming},
    )
    chosen = TaskSection(name=name, labels=["a", "b"] if name == "classification" else None)
    rows = build_rows(chosen, section, {})
    data: Any = build_data(
        section,
        tokenizer=tokenizer,
        share=Share(len(WORDS)),
        local_rank=0,
        eval_batch_size=1,
        seed=0,
        barrier=lambda: None,
        lay_out=rows.lay_out,
    )
    step = next(data.train.steps_from(Cursor()))
    expected = sum(len(tokenizer(text)["input_ids"]) for text in WORDS)
    if name == "seq2seq":  # Both texts, and what ends each.
        expected += len(WORDS) * (2 + len(tokenizer("cat")["input_ids"]))
    assert step.tokens == expected
    (batch,) = step.micro_batches
    if name != "seq2seq":
        assert int(np.asarray(batch.attention_mask).sum()) == expected
    if not streaming:
        # Training and evaluation data are the same rows here.
        assert data.info["tokens"] == 2 * expected
        assert data.info["learns"] == LEARNS[name]
        assert data.info["terms"] == 2 * step.supervised_tokens
