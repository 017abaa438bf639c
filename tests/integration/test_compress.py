"""`bigft compress`: real transformers loads what it writes, and computes what it should."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from making import llama_config, make_messages, make_tokenizer
from safetensors.torch import load_file
from small_runs import ROOT, ds_config, read_metrics

from bigft.cli import main

LLAMA_CPP = os.environ.get("BIGFT_LLAMA_CPP", "")
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model/` in several files, whose weights tell words apart; data, and a cache."""
    from transformers import LlamaForCausalLM

    root = tmp_path_factory.mktemp("compress")
    torch.manual_seed(0)
    config = llama_config(
        hidden_size=64, intermediate_size=128, num_hidden_layers=4, initializer_range=0.1
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(root / "model", max_shard_size="200KB")
    make_tokenizer(root / "model")
    (root / "model/README.md").write_text("# A card\n")
    make_messages(root / "chat.jsonl", rows=24)
    return root


Compress = Callable[..., dict[str, Any]]


@pytest.fixture
def compress(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Compress:
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "cache"))

    def run(*words: Any, model: Path = root / "model") -> dict[str, Any]:
        data = ["--data", str(root / "chat.jsonl"), "--max_length", "64", "--json"]
        main(["compress", str(model), *map(str, words), *data])
        return dict(json.loads(capsys.readouterr().out))

    return run


def load(folder: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", **options).eval()


def load_weights(folder: Path) -> dict[str, Any]:
    return {n: w for file in folder.glob("*.safetensors") for n, w in load_file(file).items()}


def compute(model: Any) -> Any:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 43).view(2, 20)).logits


def is_linear(name: str) -> bool:
    return any(f".{part}." in name for part in LINEAR)


@pytest.mark.parametrize("kind", ["int8", "int4", "fp8"])
def test_a_quantized_model_computes_with_the_rounded_weights(
    compress: Compress, root: Path, tmp_path: Path, kind: str
) -> None:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    out = tmp_path / "out"
    found = compress("--quantize", kind, "--output_dir", out)
    stored = load_weights(out)
    # What a reader finds: the library restores the weights by config.json alone.
    described = json.loads((out / "config.json").read_text())["quantization_config"]
    scheme = QuantizationScheme.model_validate(described["config_groups"]["group_0"])
    compressor = BaseCompressor.get_value_from_registry(described["format"])
    model = load(root / "model")
    for name, part in model.named_modules():
        if is_linear(f"{name}."):
            state = {k.rpartition(".")[2]: v for k, v in stored.items() if k.startswith(f"{name}.")}
            weight = compressor.decompress(state, scheme)["weight"]
            assert weight.dtype == torch.bfloat16
            error = (weight - part.weight).abs().max() / part.weight.abs().max()
            assert 0 < error < {"int8": 0.01, "int4": 0.1, "fp8": 0.05}[kind]
            part.weight.data = weight
        elif hasattr(part, "weight") and isinstance(part.weight, torch.Tensor):
            assert torch.equal(stored[f"{name}.weight"], part.weight), name
    loaded = load(out)
    assert torch.equal(compute(loaded), compute(model))
    before = sum(p.stat().st_size for p in (root / "model").glob("*.safetensors"))
    after = sum(p.stat().st_size for p in out.glob("*.safetensors"))
    assert (found["before"]["bytes"], found["after"]["bytes"]) == (before, after)
    assert after < 0.8 * before
    difference = abs(found["after"]["loss"] - found["before"]["loss"])
    assert 0 < difference < 0.1
    card = (out / "README.md").read_text()
    assert card.startswith("# A card\n")
    assert f"`bigft compress --quantize {kind}`" in card
    assert f"{found['before']['loss']:.4f} -> {found['after']['loss']:.4f}" in card
    assert not out.with_name("out.partial").exists()


@pytest.mark.parametrize("method", ["magnitude:0.5", "wanda:2:4"])
def test_a_pruned_model_is_the_same_with_zeros(
    compress: Compress, root: Path, tmp_path: Path, method: str
) -> None:
    out = tmp_path / "out"
    found = compress("--prune", method, "--output_dir", out, "--calibration_sequences", 4)
    before, after = load_weights(root / "model"), load_weights(out)
    assert before.keys() == after.keys()
    for name, weight in after.items():
        kept = (weight != 0) | ~torch.tensor(is_linear(name))
        assert torch.equal(weight[kept], before[name][kept]), name
        if is_linear(name):
            assert ((weight == 0).sum(1) == weight.shape[1] // 2).all()
    if method == "wanda:2:4":
        assert ((after["model.layers.1.mlp.up_proj.weight"] == 0).view(-1, 4).sum(1) == 2).all()
    assert found["zero_share"] == 0.5
    assert found["after"]["bytes"] == pytest.approx(found["before"]["bytes"], rel=1e-3)
    assert "the files are no smaller" in (out / "README.md").read_text()
    for name, parameter in load(out).named_parameters():
        assert torch.equal(parameter, after[name]), name
    assert found["after"]["loss"] != found["before"]["loss"]
    words = ("--quantize", "int8", "--output_dir", tmp_path / "twice", "--evaluate", "none")
    assert compress(*words, model=out)["before"].keys() == {"bytes"}


@pytest.fixture(scope="module")
def shallow(root: Path) -> Path:
    """A model of which the third layer does nothing, without it."""
    model = load(root / "model")
    layer = model.model.layers[2]
    layer.self_attn.o_proj.weight.data.zero_()
    layer.mlp.down_proj.weight.data.zero_()
    model.save_pretrained(root / "idle")
    make_tokenizer(root / "idle")
    return root / "idle"


def test_a_layer_that_does_nothing_is_not_missed(
    compress: Compress, shallow: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    found = compress("--drop_layers", 1, "--output_dir", out, model=shallow)
    assert found["layers_dropped"] == [2]
    assert found["angles"][2] < 0.01 < min(found["angles"][:2])
    assert found["after"]["loss"] == found["before"]["loss"]
    assert found["after"]["bytes"] < 0.9 * found["before"]["bytes"]
    model = load(out)
    assert model.config.num_hidden_layers == 3
    assert torch.equal(compute(model), compute(load(shallow)))


def test_other_layers_keep_their_kind(compress: Compress, tmp_path: Path) -> None:
    """Gemma's layers look at all tokens or at those nearby, by a rule that counts layers."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    small = dict(hidden_size=32, intermediate_size=64, num_attention_heads=2, head_dim=16)
    config = Gemma3TextConfig(
        **small, num_hidden_layers=7, num_key_value_heads=1, vocab_size=512, pad_token_id=0
    )
    Gemma3ForCausalLM(config).save_pretrained(tmp_path / "gemma")
    make_tokenizer(tmp_path / "gemma")
    # As older files are: the kinds are not written down.
    file = tmp_path / "gemma/config.json"
    values = json.loads(file.read_text())
    del values["layer_types"]
    file.write_text(json.dumps({**values, "sliding_window_pattern": 6}))
    words = ("--drop_layers", 2, "--output_dir", tmp_path / "out", "--evaluate", "none")
    dropped = compress(*words, model=tmp_path / "gemma")["layers_dropped"]
    kinds = [kind for n, kind in enumerate(config.layer_types) if n not in dropped]
    model = load(tmp_path / "out")
    assert model.config.layer_types == kinds
    assert model.config.num_hidden_layers == 5
    whole = load(tmp_path / "gemma")
    kept = [n for n in range(7) if n not in dropped]
    for layer, number in zip(model.model.layers, kept, strict=True):
        for one, other in zip(
            layer.parameters(), whole.model.layers[number].parameters(), strict=True
        ):
            assert torch.equal(one, other)


@pytest.mark.distributed
def test_a_pruned_model_learns_from_the_whole_one(
    compress: Compress, one_rank: Any, root: Path, tmp_path: Path
) -> None:
    """Prune and distil: the recipe, as it is but for its length."""
    from bigft.evaluation.plain import load_plain

    compress("--drop_layers", 2, "--output_dir", tmp_path / "pruned", "--evaluate", "none")
    settings = {
        "recipe": ROOT / "launch_scripts/recipes/prune_and_distill.yaml",
        "model": tmp_path / "pruned",
        "task.distillation.teacher": root / "model",
        "data": root / "chat.jsonl",
        "data.loading.cache_dir": root / "cache",
        "data.eval_fraction": 0.1,
        "learning_rate": 3e-3,
        "max_length": 64,
        "max_steps": 12,
        "per_device_train_batch_size": 4,
    }
    one_rank.run("runs:train", settings, str(tmp_path / "run"), ds_config("zero3"))
    losses = [row["loss"] for row in read_metrics(tmp_path / "run") if "loss" in row]
    assert len(losses) == 12
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    teacher, student = (
        load_plain(str(folder), torch.device("cpu"))[0]
        for folder in (root / "model", tmp_path / "run/model")
    )
    assert (teacher.config.num_hidden_layers, student.config.num_hidden_layers) == (4, 2)


def test_an_encoder_is_quantized_as_well(compress: Compress, root: Path, tmp_path: Path) -> None:
    from task_rows import bert_config
    from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

    torch.manual_seed(0)
    config = bert_config(
        hidden_size=64, intermediate_size=128, num_attention_heads=4, id2label={0: "a", 1: "b"}
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    make_tokenizer(tmp_path / "bert")
    words = ("--output_dir", tmp_path / "out", "--evaluate", "none")
    compress("--quantize", "int8", *words, model=tmp_path / "bert")
    names = load_weights(tmp_path / "out").keys()
    packed = [name for name in names if name.endswith("_packed")]
    assert len(packed) == 6 * config.num_hidden_layers
    assert {"classifier.weight", "bert.pooler.dense.weight"} <= names
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        one, other = (
            AutoModelForSequenceClassification.from_pretrained(tmp_path / name)
            .eval()(input_ids=ids)
            .logits
            for name in ("bert", "out")
        )
    assert torch.allclose(one, other, atol=0.02)
    assert not torch.equal(one, other)


def fails(*words: Any) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["compress", *map(str, words)])
    return int(caught.value.code or 0)


def test_all_mistakes_are_told_at_once(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").touch()
    assert fails("/no/such", "--prune", "guess:0.5", "--output_dir", tmp_path / "there") == 2
    said = capsys.readouterr().err
    assert "3 problems" in said
    for words in ("unknown method 'guess'", "exists already", "/no/such: no such folder"):
        assert words in said
    assert fails("/no/such", "--prune", "wanda:0.5", "--output_dir", tmp_path / "out") == 5
    model = root / "model"
    assert fails(model, "--output_dir", tmp_path / "out") == 2
    assert "no method: give one of" in capsys.readouterr().err
    words = ("--quantize", "int8", "--drop_layers", 1, "--output_dir", tmp_path / "out")
    assert fails(model, *words) == 2
    assert "--quantize and --drop_layers: give one" in capsys.readouterr().err
    assert fails(model, "--quantize", "int5") == 2
    assert fails(model, "--drop_layers", 4, "--output_dir", tmp_path / "out") == 2
    assert "the model has 4 layers" in capsys.readouterr().err
    assert fails(model, "--prune", "magnitude:0.5", "--output_dir", model / "x") == 2
    assert "lies in the model's folder" in capsys.readouterr().err
    assert fails(model / "config.json", "--quantize", "int8", "--output_dir", tmp_path / "o") == 2
    assert not (tmp_path / "out").exists()


def test_an_earlier_export_does_not_give_way(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(root / "model", tmp_path / "old")
    (tmp_path / "old/bigft_export.json").write_text("{}")
    words = ("--quantize", "int8", "--output_dir", tmp_path / "old")
    assert fails(root / "model", *words) == 2
    assert "exists already" in capsys.readouterr().err


def test_architectures_that_do_not_go(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from task_rows import t5_config
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        Qwen3MoeConfig,
        Qwen3MoeForCausalLM,
        T5ForConditionalGeneration,
    )

    small = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=64)
    expert = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
    models = {
        "t5": T5ForConditionalGeneration(t5_config()),
        "gpt2": GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64)),
        "moe": Qwen3MoeForCausalLM(Qwen3MoeConfig(**small, **expert, num_key_value_heads=2)),
    }
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    out = ("--output_dir", tmp_path / "out")
    for name, words in (
        ("t5", ("--prune", "wanda:0.5")),
        ("t5", ("--quantize", "int8")),
        ("t5", ("--drop_layers", 1)),
        ("gpt2", ("--prune", "magnitude:0.5")),
        ("moe", ("--quantize", "int8")),
    ):
        assert fails(tmp_path / name, *words, *out) == 2
        assert "unsupported architecture" in capsys.readouterr().err, name
    config = json.loads((root / "model/config.json").read_text())
    shutil.copytree(root / "model", tmp_path / "done")
    config["quantization_config"] = {"quant_method": "compressed-tensors"}
    (tmp_path / "done/config.json").write_text(json.dumps(config))
    assert fails(tmp_path / "done", "--quantize", "int8", *out) == 2
    assert "quantized already" in capsys.readouterr().err
    make_odd(tmp_path / "odd")
    assert fails(tmp_path / "odd", "--quantize", "int4", *out) == 2
    assert "use --quantize int8" in capsys.readouterr().err


def make_odd(folder: Path) -> None:
    from transformers import LlamaForCausalLM

    LlamaForCausalLM(llama_config()).save_pretrained(folder)
    make_tokenizer(folder)


def test_a_missing_library_is_named(
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    words = ("--quantize", "int8", "--output_dir", tmp_path / "out")
    assert fails(root / "model", *words) == 2
    assert 'pip install "bigft[compress]"' in capsys.readouterr().err


def test_what_cannot_be_loaded_gets_no_name(
    compress: Compress, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bigft.compression import write

    def write_half(source: Any, folder: Path, change: Any) -> None:
        real(source, folder, lambda name, w: {} if "layers.1.mlp" in name else change(name, w))

    real = write.write_weights
    monkeypatch.setattr(write, "write_weights", write_half)
    with pytest.raises(SystemExit) as caught:
        compress("--prune", "magnitude:0.5", "--output_dir", tmp_path / "out")
    assert caught.value.code == 5
    assert list(tmp_path.iterdir()) == []


def test_text_is_calibrated_on_by_the_columns_that_it_is_scored_by(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "cache"))
    rows = [{"review": "the red cat runs near one blue dog and sleeps"} for _ in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ("--prune", "wanda:0.5", "--output_dir", str(tmp_path / "out"), "--max_length", "32")
    data = ("--data", str(tmp_path / "rows.jsonl"), "--data.columns.text", "review")
    main(["compress", str(root / "model"), *words, *data])
    assert (tmp_path / "out/config.json").is_file()


def test_an_architecture_that_transformers_cannot_load_is_said(
    compress: Compress, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """transformers 5.23 looks for the weights of ModernBERT's layers where packed ones are."""
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    config = ModernBertConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        vocab_size=576, pad_token_id=0, bos_token_id=0, eos_token_id=0, cls_token_id=0,
        sep_token_id=0,
    )  # fmt: skip
    ModernBertForMaskedLM(config).save_pretrained(tmp_path / "model")
    tokenizer = make_tokenizer(tmp_path / "model")
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    tokenizer.save_pretrained(tmp_path / "model")
    words = ("--quantize", "int8", "--output_dir", tmp_path / "out")
    with pytest.raises(SystemExit) as caught:
        compress(*words, model=tmp_path / "model")
    assert caught.value.code == 5
    assert "cannot load a ModernBertForMaskedLM that was compressed" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


FAKE = """
import argparse, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("model"); parser.add_argument("--outfile"); parser.add_argument("--outtype")
given = parser.parse_args()
assert (pathlib.Path(given.model) / "config.json").is_file()
assert given.outtype != "f16", "this one breaks"
pathlib.Path(given.outfile).write_text(given.outtype)
"""


def test_the_converter_is_asked_and_its_failure_told(
    compress: Compress,
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ("--output_dir", tmp_path / "out", "--evaluate", "none")
    monkeypatch.delenv("BIGFT_LLAMA_CPP", raising=False)
    assert fails(root / "model", "--gguf", "q8_0", *words) == 2
    assert "set BIGFT_LLAMA_CPP" in capsys.readouterr().err
    monkeypatch.setenv("BIGFT_LLAMA_CPP", str(tmp_path))
    assert fails(root / "model", "--gguf", "q8_0", *words) == 2
    assert "no convert_hf_to_gguf.py there" in capsys.readouterr().err
    (tmp_path / "convert_hf_to_gguf.py").write_text(FAKE)
    assert compress("--gguf", "q8_0", *words)["after"] == {"bytes": 4}
    assert (tmp_path / "out/model.gguf").read_text() == "q8_0"
    assert (tmp_path / "out/tokenizer.json").is_file()
    words = ("--output_dir", tmp_path / "broken", "--evaluate", "none")
    assert fails(root / "model", "--gguf", "f16", *words) == 5
    assert "this one breaks" in capsys.readouterr().err
    assert not (tmp_path / "broken").exists()


# The tokenizer of the tests is none that llama.cpp knows by its digest: it is told the kind.
CONVERT = """
import runpy, sys
sys.path[:0] = [{folder!r}, {folder!r} + "/gguf-py"]
sys.argv[0] = {folder!r} + "/convert_hf_to_gguf.py"
import conversion.base as base
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.nightly
@pytest.mark.skipif(not LLAMA_CPP, reason="BIGFT_LLAMA_CPP does not name llama.cpp's sources")
@pytest.mark.parametrize(("kind", "near"), [("bf16", 0.0), ("q8_0", 0.01)])
def test_transformers_loads_the_gguf(
    compress: Compress,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    near: float,
) -> None:
    script = CONVERT.format(folder=str(Path(LLAMA_CPP).resolve()))
    (tmp_path / "convert_hf_to_gguf.py").write_text(script)
    monkeypatch.setenv("BIGFT_LLAMA_CPP", str(tmp_path))
    found = compress("--gguf", kind, "--output_dir", tmp_path / "out")
    weights = load(tmp_path / "out", gguf_file="model.gguf").state_dict()
    for name, weight in load(root / "model").state_dict().items():
        error = (weights[name] - weight).abs().max() / weight.abs().max()
        assert error <= near, name
    # llama.cpp's numbers are bf16, computed with in fp32.
    assert found["after"]["loss"] == pytest.approx(found["before"]["loss"], abs=0.02)
