"""A student learns from a frozen teacher, asked or stored: held against plain torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from making import llama_config, make_model, make_tokenizer
from small_runs import ds_config, read_losses

pytestmark = pytest.mark.distributed

STEPS = 6
COUNT = 8
LENGTH = 96
"""Room for two or three of the conversations in a sequence."""
TEMPERATURE = 3.0
WEIGHT = 0.7


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher."""
    folder = tmp_path_factory.mktemp("distillation")
    make_model(folder / "teacher", hidden_size=64, num_hidden_layers=3, seed=5)
    return folder


def _settings(root: Path, shared: Path, **changes: Any) -> dict[str, Any]:
    return {
        "task": "distillation",
        "task.distillation.teacher": root / "teacher",
        "task.distillation.temperature": TEMPERATURE,
        "task.distillation.weight": WEIGHT,
        "model": shared / "model",
        "data": shared / "chat.jsonl",
        "data.loading.cache_dir": root / "cache",
        "data.eval_fraction": 0.1,
        "max_length": LENGTH,
        "learning_rate": 1e-3,
        "optim.lr_scheduler_type": "constant",
        "optim.weight_decay": 0,
        "per_device_train_batch_size": 4,
        "max_steps": STEPS,
        "ds.bf16.enabled": "false",
        **changes,
    }


def _build_data(root: Path, shared: Path, **changes: Any) -> Any:
    from transformers import AutoTokenizer

    from bigft.data.build import build_data
    from bigft.data.loading.loader import Share
    from bigft.data.section import DataSection

    section = DataSection(
        train=str(shared / "chat.jsonl"),
        max_length=LENGTH,
        eval_fraction=0.1,
        loading={"cache_dir": str(root / "cache")},
        **changes,
    )
    return build_data(
        section,
        tokenizer=AutoTokenizer.from_pretrained(shared / "model"),
        share=Share(micro_batch_size=8),
        local_rank=0,
        eval_batch_size=1,
        seed=42,
        barrier=lambda: None,
    )


def _count_tokens(shared: Path) -> int:
    from transformers import AutoTokenizer

    return 1 + max(AutoTokenizer.from_pretrained(shared / "model").get_vocab().values())


def _diverge(
    logits: torch.Tensor, taught: torch.Tensor, count: int | None, width: int
) -> torch.Tensor:
    p, q = ((values[:, :width] / TEMPERATURE).softmax(1) for values in (taught, logits))
    if count is not None:
        ids = p.topk(count, 1).indices
        p, q = (
            torch.cat([kept := each.gather(1, ids), 1 - kept.sum(1, keepdim=True)], 1)
            for each in (p, q)
        )
    return (p * (p / q).log()).sum(1).mean()


def _distil_plainly(
    root: Path,
    shared: Path,
    count: int | None = None,
    *,
    student: Path | None = None,
    teacher: Path | None = None,
) -> list[float]:
    """The formula of Hinton et al. on whole logits, in one process."""
    from transformers import AutoModelForCausalLM

    from bigft.data.order.cursor import Cursor

    learner, master = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        for path in (student or shared / "model", teacher or root / "teacher")
    )
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-3, weight_decay=0.0)
    losses = []
    # The most likely ones are looked for among the tokenizer's tokens.
    width = 512 if count is None else _count_tokens(shared)
    batches = _build_data(root, shared).train.steps_from(Cursor())
    for _ in range(STEPS):
        batch = next(batches).micro_batches[0]
        inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids}
        labels = batch.labels[:, 1:]
        learned = labels != -100
        logits = learner(**inputs, use_cache=False).logits[:, :-1][learned]
        with torch.no_grad():
            taught = master(**inputs, use_cache=False).logits[:, :-1][learned]
        plain = torch.nn.functional.cross_entropy(logits, labels[learned])
        divergence = _diverge(logits, taught, count, width)
        loss = (1 - WEIGHT) * plain + WEIGHT * TEMPERATURE**2 * divergence
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("config", "count"),
    [("zero3_offload", None), ("zero3", COUNT), ("zero2", None)],
)
def test_a_student_learns_as_in_plain_torch(
    two_ranks, root, tmp_path, shared_folder, config, count
):
    """The teacher is frozen and partitioned beside the student, and in no checkpoint."""
    settings = _settings(root, shared_folder)
    if count is not None:
        settings["task.distillation.top_k"] = count
    folder = tmp_path / "run"
    found = two_ranks.run("runs:train_counting_models", settings, str(folder), ds_config(config))
    assert "parameters, frozen" in found[0]["said"]
    assert [rank["models"] for rank in found] == [1, 1]
    assert read_losses(folder) == pytest.approx(
        _distil_plainly(root, shared_folder, count), rel=2e-4
    )
    half = tmp_path / "half"
    first = {**settings, "max_steps": STEPS // 2}
    two_ranks.run("runs:train", first, str(half), ds_config(config))
    two_ranks.run("runs:train", settings, str(half), ds_config(config))
    assert read_losses(half) == pytest.approx(read_losses(folder), rel=1e-6)


def test_teacher_and_student_on_nvme(two_ranks, root, tmp_path, shared_folder, wide_model):
    """Large enough to be swapped: neither may take the other's files away."""
    teacher = make_model(
        root / "wide", hidden_size=512, intermediate_size=2048, num_hidden_layers=1, seed=5
    )
    settings = _settings(
        root, shared_folder, **{"model": wide_model, "task.distillation.teacher": teacher}
    )
    two_ranks.run("runs:train", settings, str(tmp_path / "run"), ds_config("zero3_nvme"))
    wanted = _distil_plainly(root, shared_folder, student=wide_model, teacher=teacher)
    assert read_losses(tmp_path / "run") == pytest.approx(wanted, rel=2e-4)


def test_a_stored_teacher_says_what_the_teacher_says(
    two_ranks, one_rank, root, tmp_path, shared_folder
):
    kept = root / "kept"
    settings = _settings(
        root,
        shared_folder,
        **{"task.distillation.top_k": COUNT, "task.distillation.logits": kept},
    )
    folder, half, alone = (tmp_path / name for name in ("run", "half", "alone"))
    config = ds_config("zero3_offload")
    found = two_ranks.run("runs:train_counting_models", settings, str(folder), config)
    # Asked, and out of memory again on both ranks before the student comes.
    assert "is asked for its 8 most likely tokens" in found[0]["said"]
    assert "50 bytes each" in found[0]["said"]
    assert [rank["models"] for rank in found] == [0, 0]
    # fp16 rounds log-probabilities to a part in two thousand.
    wanted = _distil_plainly(root, shared_folder, COUNT)
    assert read_losses(folder) == pytest.approx(wanted, rel=1e-3)
    # Others read it: a resumed run, and one with another number of ranks and another stage.
    two_ranks.run("runs:train", {**settings, "max_steps": STEPS // 2}, str(half), config)
    said = two_ranks.run("runs:train", settings, str(half), config)[0]["said"]
    assert "frozen" not in said
    assert "it is not loaded" in said
    assert read_losses(half) == pytest.approx(read_losses(folder), rel=1e-6)
    whole = {**settings, "per_device_train_batch_size": 8}
    one_rank.run("runs:train", whole, str(alone), ds_config("zero2"))
    assert read_losses(alone) == pytest.approx(read_losses(folder), rel=2e-4)
    assert len([path for path in kept.iterdir() if path.is_dir()]) == 1
    _check_every_row(root, shared_folder, kept)


@torch.no_grad()
def _check_every_row(root: Path, shared: Path, kept: Path) -> None:
    """Two shuffled epochs of packed sequences, and of rows alone."""
    from transformers import AutoModelForCausalLM

    from bigft.data.order.cursor import Cursor
    from bigft.tasks.causal_lm import CausalLM
    from bigft.tasks.divergence import shorten
    from bigft.tasks.stored import Question, StoredTeacher

    teacher = AutoModelForCausalLM.from_pretrained(root / "teacher", dtype=torch.float32)
    (folder,) = (path for path in kept.iterdir() if path.is_dir())
    width = _count_tokens(shared)
    assert width < 512
    for packing in ("best_fit", "none"):
        data = _build_data(root, shared, packing=packing)
        stored = StoredTeacher(data.rows, [folder], Question(COUNT, TEMPERATURE, width))
        steps = data.train.steps_from(Cursor())
        shared_sequences = 0
        for _ in range(2 * data.train.steps_per_epoch):
            (batch,) = next(steps).micro_batches
            wanted = shorten(CausalLM().predict(teacher, batch).logits, COUNT, TEMPERATURE, width)
            found = stored.load(batch.rows)
            torch.testing.assert_close(found.log_p, wanted.log_p, rtol=1e-3, atol=1e-4)
            # Tokens that are equally likely to a rounding may have changed places.
            assert float((found.ids != wanted.ids).float().mean()) < 0.01
            shared_sequences += len(batch.rows) > len(batch.input_ids)
        assert (shared_sequences > 0) == (packing == "best_fit")


@pytest.mark.parametrize("ranks", ["two_ranks", "one_rank"])
def test_interrupted_asking_goes_on(request, two_ranks, root, tmp_path, shared_folder, ranks):
    kept = tmp_path / "kept"
    settings = _settings(
        root,
        shared_folder,
        **{
            "task.distillation.top_k": COUNT,
            "task.distillation.logits": kept,
            "task.distillation.temperature": 1,
            "max_steps": 1,
            "per_device_train_batch_size": 2,
        },
    )
    folder, config = str(tmp_path / "run"), ds_config("zero3")
    stopped = two_ranks.run("runs:train_interrupted", settings, folder, config, 20)[0]
    assert "interrupted at" in stopped[1]
    done = int(stopped[1].rsplit(" ", 1)[1])
    (unfinished,) = (path for path in kept.iterdir() if path.is_dir())
    assert unfinished.name.startswith(".unfinished-")
    # What was there is not asked again: a mark in it survives.
    table = np.load(unfinished / "logits.npy", mmap_mode="r+")
    mark = int(np.flatnonzero(table["log_p"][:, 0])[0])
    before = table[mark].copy()
    table["ids"][mark] = 500
    table.flush()
    pool = request.getfixturevalue(ranks)
    said = pool.run("runs:train", settings, folder, config)[0]["said"]
    assert f"{done} of " in said
    (final,) = (path for path in kept.iterdir() if path.is_dir())
    assert not final.name.startswith(".")
    found = np.load(final / "logits.npy").copy()
    assert found["ids"][mark].tolist() == [500] * COUNT
    found[mark] = before
    whole = tmp_path / "whole"
    pool.run("runs:train", {**settings, "task.distillation.logits": whole}, folder + "2", config)
    (other,) = (path for path in whole.iterdir() if path.is_dir())
    wanted = np.load(other / "logits.npy")
    assert other.name == final.name
    np.testing.assert_allclose(found["log_p"], wanted["log_p"], rtol=2e-3)
    assert json.loads((final / "info.json").read_text())["learned_tokens"] == len(wanted)


def test_a_folder_that_cannot_be_written_is_refused(one_rank, root, tmp_path, shared_folder):
    settings = _settings(
        root,
        shared_folder,
        **{"task.distillation.top_k": COUNT, "task.distillation.logits": "/proc/bigft"},
    )
    kind, text, code = one_rank.run(
        "runs:try_train", settings, str(tmp_path / "run"), ds_config("zero3")
    )[0]
    assert (kind, code) == ("ConfigError", 2)
    assert "cannot be written" in text


def test_a_teacher_with_other_tokens_is_refused(one_rank, root, tmp_path, shared_folder):
    from transformers import AutoTokenizer, LlamaForSequenceClassification

    other, mine = root / "other", root / "mine"
    LlamaForSequenceClassification(llama_config()).save_pretrained(other)
    make_tokenizer(other)
    tokenizer = AutoTokenizer.from_pretrained(shared_folder / "model")
    tokenizer.add_tokens(["unheard"])
    tokenizer.save_pretrained(mine)
    settings = _settings(
        root, shared_folder, **{"task.distillation.teacher": other, "model.tokenizer": mine}
    )
    kind, text, code = one_rank.run(
        "runs:try_train", settings, str(tmp_path / "run"), ds_config("zero3")
    )[0]
    assert (kind, code) == ("ConfigError", 2)
    assert "has another tokenizer" in text
    assert "'unheard'" in text


def test_a_teacher_that_sees_neighbours_is_refused(one_rank, root, tmp_path, shared_folder):
    """OPT computes positions itself; the student, a Llama, keeps packed examples apart."""
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=512, hidden_size=48, ffn_dim=96, num_hidden_layers=1, num_attention_heads=4,
        word_embed_proj_dim=48, max_position_embeddings=256,
    )  # fmt: skip
    OPTForCausalLM(config).save_pretrained(root / "opt")
    make_tokenizer(root / "opt")
    settings = _settings(root, shared_folder, **{"task.distillation.teacher": root / "opt"})
    kind, text, code = one_rank.run(
        "runs:try_train", settings, str(tmp_path / "run"), ds_config("zero3")
    )[0]
    assert (kind, code) == ("ConfigError", 2)
    assert "OPTForCausalLM does not keep examples apart" in text
