"""Tiny models, data and plain torch loops of several tasks with one body."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from making import WORDS, llama_config, make_tokenizer
from task_rows import bert_config

ENCODER = {
    "topic": {"task": "classification", "weight": 0.5},
    "size": {"task": "regression"},
    "words": {"task": "masked_lm", "weight": 0.3},
}
DECODER = {
    "topic": {"task": "classification"},
    "type": {"task": "classification", "weight": 2.0},
    "text": {"task": "causal_lm", "weight": 0.25},
}
FAMILIES: dict[str, dict[str, Any]] = {"encoder": ENCODER, "decoder": DECODER}

_CLASSES = {
    "classification": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
    "masked_lm": "AutoModelForMaskedLM",
    "causal_lm": "AutoModelForCausalLM",
}


def make_folder(folder: Path, family: str, *, rows: int = 60) -> dict[str, dict[str, Any]]:
    """Save a model of one task with a tokenizer, and data for each task; return the parts."""
    from transformers import BertForMaskedLM, LlamaForCausalLM

    torch.manual_seed(3)
    if family == "encoder":
        # The mask token makes the vocabulary grow.
        model: Any = BertForMaskedLM(bert_config(vocab_size=512))
    else:
        model = LlamaForCausalLM(llama_config(tie_word_embeddings=True))
    model.save_pretrained(folder / "start")
    tokenizer = make_tokenizer(folder / "start")
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    tokenizer.save_pretrained(folder / "start")
    chooser = random.Random(5)
    parts = {}
    for number, (name, part) in enumerate(FAMILIES[family].items()):
        found = []
        for _ in range(rows - 10 * number):
            words = chooser.choices(WORDS, k=chooser.randint(3, 8 + 4 * number))
            label: Any = {
                "topic": next((w for w in words if w in ("cat", "dog")), "none"),
                "type": "long" if len(words) > 6 else "short",
                "size": [len(words) / 8, words.count("the")],
            }.get(name)
            row = {"text": " ".join(words)}
            found.append(row if label is None else {**row, "label": label})
        path = folder / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, found)))
        parts[name] = {**part, "data": str(path)}
    return parts


class Case:
    """A module with its heads as a run begins with it, and its data."""

    def __init__(self, folder: Path, parts: dict[str, dict[str, Any]], *, seed: int = 42) -> None:
        from transformers import AutoTokenizer

        from bigft.data.section import DataSection
        from bigft.engine.zero import Zero
        from bigft.models.facts import read_facts
        from bigft.models.section import ModelSection
        from bigft.models.shared import load_shared
        from bigft.tasks.rows import build_rows
        from bigft.tasks.section import TaskSection
        from bigft.tasks.task import build_task

        self.folder, self.parts = folder, parts
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "start")
        section = TaskSection(name="multitask", parts=self.parts)
        self.data = DataSection(
            train=",".join(part["data"] for part in self.parts.values()),
            max_length=32,
            packing="none",
            eval_fraction=0.1,
            loading={"cache_dir": str(folder / "cache"), "names": list(self.parts)},
        )
        model = ModelSection(name=str(folder / "start"))
        facts = read_facts(model)
        self.rows = build_rows(section, self.data, facts.config)
        self.task: Any = build_task(section, self.rows)
        self.loaded = load_shared(
            model,
            facts,
            Zero({"zero_optimization": {"stage": 0}}),
            self.task.list_heads(self.tokenizer),
            tokenizer=self.tokenizer,
            dtype=torch.float32,
            device=torch.device("cpu"),
            seed=seed,
        )
        self.module: Any = self.loaded.module

    def steps(self, share: Any) -> Any:
        """The steps of the training data, from the first on."""
        from bigft.data.build import build_data
        from bigft.data.order.cursor import Cursor

        data = build_data(
            self.data,
            tokenizer=self.tokenizer,
            share=share,
            local_rank=0,
            eval_batch_size=4,
            seed=42,
            barrier=lambda: None,
            lay_out=self.rows.lay_out,
        )
        return data.train.steps_from(Cursor())


def load_plain(case: Case, name: str, folder: Path) -> Any:
    """A plain model with the weights of the body and of one head, by way of files."""
    from safetensors.torch import save_file

    from bigft.commands.parts.model import write_assets

    write_assets(case.module, case.tokenizer, folder)
    prefix, body = case.module.prefix, case.module.body.state_dict()
    state = {f"{prefix}.{key}": value for key, value in body.items()}
    state |= case.module.find_heads()[name].state_dict()
    own = {key: value.clone().contiguous() for key, value in state.items()}
    save_file(own, folder / name / "model.safetensors", metadata={"format": "pt"})
    return load_head(folder / name, case.parts[name]["task"])


def load_head(folder: Path, kind: str) -> Any:
    """Load an exported head with the class of transformers that its task goes with."""
    import transformers

    auto_class = getattr(transformers, _CLASSES[kind])
    model, info = auto_class.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    return model.eval()


def compute_plain(model: Any, kind: str, batch: Any) -> tuple[torch.Tensor, int]:
    """Transformers' own loss of a batch of one task, as a sum, and the number of its terms."""
    labels = batch.labels
    rows = ~labels.isnan() if labels.is_floating_point() else labels != -100
    # The first token of a text is not predicted.
    terms = int((rows[:, 1:] if kind == "causal_lm" else rows).sum())
    if kind == "classification":
        labels = labels[:, 0]
    loss = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss
    return loss * terms, terms
