"""Do few examples teach a new task faster from Reptile's start? Few-shot text classification.

    python tests/benchmarks/reptile.py [--seeds 3] [--steps 2000] [--shots 8]

A task is a pair of modules of the standard library: which of the two is a docstring from (the names
are hidden, and which of the two is called 0 is drawn)? The pairs of 16 modules are for training,
one part of `--data` each; those of 6 others are kept back. A small BERT with random weights is
trained by the real command, with `--trainer.reptile` and without (all parts mixed), for as many
steps on as many sequences. From each start, and from random weights, plain torch then learns each
pair that was kept back from `--shots` docstrings of each side, in 10 steps, and is asked about 40
others of each. The learning rate of these steps is the best of three for each start, found on pairs
of training modules whose docstrings nobody was trained on. Exits with 1 unless Reptile's start is
the best with every seed.
"""

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
MODEL = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 4096,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "id2label": {"0": "0", "1": "1"},
}
NUM_TRAINED, QUERIES, STEPS, LENGTH = 16, 40, 10, 64
RATES = (3e-4, 1e-3, 3e-3)
Rows = list[tuple[str, int]]


def read_modules(seed: int) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Read the docstrings of each module, those for training first; all shuffled."""
    from bigft.data.sources.derived.labels import read_modules as read

    texts: dict[str, list[str]] = {}
    for _, row in sorted(read()):
        texts.setdefault(row["label"], []).append(row["text"])
    chooser = random.Random(seed)
    names = sorted(texts)
    chooser.shuffle(names)
    for name in names:
        chooser.shuffle(texts[name])
    trained, kept = names[:NUM_TRAINED], names[NUM_TRAINED:]
    return {name: texts[name] for name in trained}, {name: texts[name] for name in kept}


def make_pairs(texts: dict[str, list[str]], seed: int) -> list[tuple[list[str], list[str]]]:
    """Pair all modules, in an order of the two that is drawn."""
    chooser = random.Random(seed)
    pairs = itertools.combinations(sorted(texts), 2)
    return [tuple(texts[name] for name in chooser.sample(pair, 2)) for pair in pairs]  # type: ignore[misc]


def train(
    folder: Path, data: list[Path], options: argparse.Namespace, seed: int, **more: Any
) -> Path:
    """Run the real command; returns the exported model."""
    (folder.parent / "model.json").write_text(json.dumps(MODEL))
    settings = {
        "model": folder.parent / "model.json",
        "task": "classification",
        "data": ",".join(map(str, data)),
        "output_dir": folder,
        "max_length": LENGTH,
        "max_steps": options.steps,
        "per_device_train_batch_size": 2 * options.shots,
        "learning_rate": options.learning_rate,
        "optim.lr_scheduler_type": "constant",
        "optim.weight_decay": 0,
        "data.eval_fraction": 0,
        "activation_checkpointing": "none",
        "seed": seed,
        "ds.bf16.enabled": "false",
        **more,
    }
    command = [sys.executable, "-m", "bigft", "train", "--config", "ds_configs/zero2.json"]
    command += [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "DS_ACCELERATOR": "cpu"}
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=environment)
    return folder / "model"


def adapt(start: Any, tokenizer: Any, pair: Any, shots: int, rate: float) -> float:
    """Learn a pair from few examples; returns the accuracy on others."""
    import copy

    import torch

    model = copy.deepcopy(start)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, betas=(0.0, 0.999))

    def load(texts: list[list[str]]) -> tuple[Any, Any]:
        labels = torch.tensor([label for label, own in enumerate(texts) for _ in own])
        flat = [text for own in texts for text in own]
        options = {"truncation": True, "max_length": LENGTH, "padding": True}
        return tokenizer(flat, return_tensors="pt", **options), labels

    batch, labels = load([texts[:shots] for texts in pair])
    for _ in range(STEPS):
        loss = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels)
        optimizer.zero_grad()
        loss.loss.backward()
        optimizer.step()
    batch, labels = load([texts[shots : shots + QUERIES] for texts in pair])
    with torch.no_grad():
        found = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    return float((found.argmax(1) == labels).float().mean())


def score(
    folder: Path | None, tokenizer: Any, known: Any, new: Any, options: Any, seed: int
) -> float:
    """Mean accuracy over new pairs with the rate that is best on known ones."""
    import torch
    from transformers import AutoModelForSequenceClassification, BertConfig

    torch.manual_seed(seed)
    if folder is None:
        start: Any = AutoModelForSequenceClassification.from_config(BertConfig(**MODEL))
    else:
        start = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)

    def measure(pairs: Any, rate: float) -> float:
        return mean(adapt(start, tokenizer, pair, options.shots, rate) for pair in pairs)

    best = max(RATES, key=lambda rate: measure(known, rate))
    found = measure(new, best)
    print(f"    rate {best:g}: {found:.4f}", flush=True)
    return found


def main() -> None:
    """Train, adapt, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--inner_steps", type=int, default=5)
    parser.add_argument("--outer_rate", type=float, default=1.0)
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    table: dict[str, list[float]] = {"random": [], "joint": [], "Reptile": []}
    with tempfile.TemporaryDirectory() as parent:
        for seed in range(1, options.seeds + 1):
            root = Path(parent) / str(seed)
            root.mkdir()
            for name, found in run_seed(root, options, seed).items():
                table[name].append(found)
    for name, values in table.items():
        print(f"{name:<10}" + "".join(f"{value:9.4f}" for value in [*values, mean(values)]))
    others = zip(table["random"], table["joint"], strict=True)
    pairs = zip(table["Reptile"], map(max, others), strict=True)
    sys.exit(0 if all(ours > theirs for ours, theirs in pairs) else 1)


def run_seed(root: Path, options: argparse.Namespace, seed: int) -> dict[str, float]:
    """Train and score the three starts of one seed."""
    from transformers import AutoTokenizer

    trained, kept = read_modules(seed)
    spared = options.shots + QUERIES
    # The last docstrings of the training modules choose the rates of the adaptation.
    known = make_pairs({name: texts[-spared:] for name, texts in trained.items()}, seed)
    new = make_pairs(kept, seed)
    files = []
    for number, pair in enumerate(
        make_pairs({name: texts[:-spared] for name, texts in trained.items()}, seed + 1000)
    ):
        rows: Rows = [(text, label) for label, own in enumerate(pair) for text in own]
        files.append(root / f"pair_{number:03d}.jsonl")
        lines = (json.dumps({"text": text, "label": str(label)}) for text, label in rows)
        files[-1].write_text("\n".join(lines))
    print(f"seed {seed}: {len(files)} tasks to train on, {len(new)} new ones", flush=True)
    reptile = {
        "trainer.reptile.inner_steps": options.inner_steps,
        "trainer.reptile.outer_rate": options.outer_rate,
    }
    starts = {
        "random": None,
        "joint": train(root / "joint", files, options, seed),
        "Reptile": train(root / "reptile", files, options, seed, **reptile),
    }
    tokenizer = AutoTokenizer.from_pretrained(starts["Reptile"])
    chosen = random.Random(seed).sample(known, 8)
    return {
        name: score(folder, tokenizer, chosen, new, options, seed)
        for name, folder in starts.items()
    }


if __name__ == "__main__":
    main()
