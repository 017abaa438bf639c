"""A model folder for evaluation and generation, found or refused."""

from pathlib import Path

import pytest
import torch

from bigft.errors import CheckpointError
from bigft.evaluation.plain import load_plain

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["runs/mine/model", "./model"])
def test_missing_folder_is_not_asked_of_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=f"{name}: no such folder; give the model/ folder of"):
        load_plain(name, CPU)


def test_run_folder_points_to_its_model(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    with pytest.raises(
        CheckpointError, match=f"no config.json there; did you mean {tmp_path}/model"
    ):
        load_plain(str(tmp_path), CPU)
    with pytest.raises(CheckpointError, match="a config.json but no weights"):
        load_plain(str(tmp_path / "model"), CPU)


def test_a_model_of_another_task_is_not_taken_for_a_writer(tmp_path):
    from task_rows import bert_config
    from transformers import AutoModelForMaskedLM, BertForSequenceClassification

    BertForSequenceClassification(bert_config()).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="was made for something else .BertForSequenceClass"):
        load_plain(str(tmp_path), CPU, AutoModelForMaskedLM)
