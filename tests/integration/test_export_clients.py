"""Who reads the export: transformers, safetensors alone, and llama.cpp's converter.

The last one needs llama.cpp's sources; they come with a package of the registry:

    pip install gguf sentencepiece accelerate
    pip download llama-cpp-python --no-binary :all: --no-deps && tar xzf llama_cpp_python-*.tar.gz
    BIGFT_LLAMA_CPP=$PWD/llama_cpp_python-*/vendor/llama.cpp pytest -m nightly tests/integration/...
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from making import llama_config, make_tokenizer
from state_files import write_state

from bigft.checkpoint.consolidate import consolidate
from bigft.checkpoint.manifest import write_manifest

LLAMA_CPP = os.environ.get("BIGFT_LLAMA_CPP", "")
PROMPTS = ["red green", "the dog runs", "a cat eats and", "near", "one two three but the"]
DTYPES = ["float32", "bfloat16"]


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model in memory, and the run folder of a checkpoint that holds it, cut at odd places."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    # 64: what llama.cpp's rotation of heads can cut; random weights alone would repeat one token.
    config = llama_config(hidden_size=64, tie_word_embeddings=request.param, initializer_range=0.3)
    model = LlamaForCausalLM(config).eval()
    run = tmp_path_factory.mktemp("run")
    step_dir = run / "checkpoints" / "step_00000007"
    state = {name: value.detach() for name, value in model.named_parameters()}
    shared = {"lm_head.weight": "model.embed_tokens.weight"} if request.param else {}
    write_state(step_dir, state, world_size=3, shared=shared)
    make_tokenizer(step_dir / "hf")
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(step_dir / "hf")
    write_manifest(step_dir, {"step": 7})
    return model, run


def export(trained: Any, out: Path, dtype: str, max_shard_bytes: int = 50_000) -> Path:
    return consolidate(trained[1], out, dtype=dtype, max_shard_bytes=max_shard_bytes).path


def continue_greedily(model: Any, tokenizer: Any) -> list[list[int]]:
    rows = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        rows.append(out[0].tolist())
    return rows


def expected_tokens(trained: Any, dtype: str, folder: Path) -> list[list[int]]:
    from copy import deepcopy

    from transformers import AutoTokenizer

    model = deepcopy(trained[0])
    # Parameters alone: buffers, such as the frequencies of positions, stay as they are.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))
    rows = continue_greedily(model, AutoTokenizer.from_pretrained(folder))
    assert len({token for row in rows for token in row}) > 20, "a model that says one word"
    return rows


@pytest.mark.parametrize("dtype", DTYPES)
def test_transformers_continues_with_the_same_tokens(
    trained: Any, tmp_path: Path, dtype: str
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = export(trained, tmp_path / "out", dtype)
    assert len(list(folder.glob("*.safetensors"))) > 1
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    assert model.dtype == getattr(torch, dtype)
    found = continue_greedily(model, AutoTokenizer.from_pretrained(folder))
    assert found == expected_tokens(trained, dtype, folder)


@pytest.mark.parametrize("dtype", DTYPES)
def test_safetensors_alone_reads_every_weight(trained: Any, tmp_path: Path, dtype: str) -> None:
    """In a process that has neither torch nor transformers nor bigft."""
    folder = export(trained, tmp_path / "out", dtype)
    code = (
        "import json, sys; from pathlib import Path; from safetensors import safe_open\n"
        "folder = Path(sys.argv[1]); found = {}\n"
        "index = json.loads((folder / 'model.safetensors.index.json').read_text())\n"
        "for name, file in index['weight_map'].items():\n"
        "    with safe_open(folder / file, framework='numpy') as opened:\n"
        "        part = opened.get_slice(name)\n"
        "        found[name] = [part.get_dtype(), list(part.get_shape())]\n"
        "assert not {'torch', 'transformers', 'bigft'} & set(sys.modules)\n"
        "print(json.dumps(found))\n"
    )
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    name = {"float32": "F32", "bfloat16": "BF16"}[dtype]
    assert json.loads(done.stdout) == {
        key: [name, list(value.shape)] for key, value in trained[0].named_parameters()
    }


@pytest.mark.nightly
@pytest.mark.skipif(not LLAMA_CPP, reason="BIGFT_LLAMA_CPP does not name llama.cpp's sources")
@pytest.mark.parametrize("dtype", DTYPES)
def test_llama_cpp_converts_the_export(trained: Any, tmp_path: Path, dtype: str) -> None:
    """Every number in the GGUF is the export's; transformers continues from it with the same."""
    folder = export(trained, tmp_path / "out", dtype)
    target = tmp_path / "model.gguf"
    # The tokenizer of the tests is none that llama.cpp knows by its digest: it is told the kind.
    converter = Path(LLAMA_CPP) / "convert_hf_to_gguf.py"
    kind = {"float32": "f32", "bfloat16": "bf16"}[dtype]
    done = subprocess.run(
        [sys.executable, "-c", _CONVERT, str(converter), str(folder), "--outfile", str(target)]
        + ["--outtype", kind],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    code = [sys.executable, "-c", _READ_BACK, LLAMA_CPP, str(target), json.dumps(PROMPTS)]
    done = subprocess.run(code, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    model = trained[0]
    names = {key.removesuffix(".weight") for key, _ in model.named_parameters()}
    assert found["tensors"] == len(names)
    # GGUF keeps vectors in fp32 and matrices as asked; transformers computes with them in fp32.
    assert found["tokens"] == expected_tokens_of_export(folder)


def expected_tokens_of_export(folder: Path) -> list[list[int]]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return continue_greedily(model, AutoTokenizer.from_pretrained(folder))


_CONVERT = """
import runpy, sys
from pathlib import Path
converter = Path(sys.argv.pop(1))
sys.argv[0] = str(converter)
sys.path[:0] = [str(converter.parent), str(converter.parent / "gguf-py")]
import conversion.base as base
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
runpy.run_path(str(converter), run_name="__main__")
"""

_READ_BACK = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1] + "/gguf-py")
import gguf, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
path = Path(sys.argv[2])
tensors = gguf.GGUFReader(path).tensors
model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(path.parent / "out")
rows = []
for prompt in json.loads(sys.argv[3]):
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    options = dict(max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0)
    out = model.eval().generate(ids, attention_mask=torch.ones_like(ids), **options)
    rows.append(out[0].tolist())
print(json.dumps({"tensors": len(tensors), "tokens": rows}))
"""
