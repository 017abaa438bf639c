"""The redactor: what it hides, and what it must leave alone."""

import io
import json

import pytest

from bigft import redact
from bigft.redact import (
    RedactedStream,
    flag_values,
    is_secret_name,
    redact_text,
    redact_value,
    redact_words,
    remember_secrets,
)

HF = "hf_" + "aB3dE6gH9j" * 3
HEX = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redact, "_known", frozenset())


@pytest.mark.parametrize(
    "name",
    "token hub_token HF_TOKEN hfToken WANDB_API_KEY api-key apikey comet.api_key password"
    " MLFLOW_TRACKING_PASSWORD db_passwd secret client_secret AWS_SECRET_ACCESS_KEY credentials"
    " AWS_ACCESS_KEY_ID GITHUB_TOKEN access_token push_to_hub_token private_key authToken".split(),
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    "pad_token eos_token bos_token unk_token sep_token cls_token mask_token image_token"
    " additional_special_tokens num_memory_tokens max_tokens max_new_tokens tokens"
    " tokens_per_second token_accuracy eval_token_accuracy token_type_ids eos_token_id"
    " pad_token_id tokenizer tokenizer_class num_tokens image_token_index decoder_start_token_id"
    " forced_bos_token_id per_token_loss HF_TOKEN_PATH TOKENIZERS_PARALLELISM secretary_name"
    " keyboard monkey key num_key_value_heads passes stop_token eos_token_ids".split(),
)
def test_names_of_no_secrets(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"downloading with {HF} now", HF),
        (f"HF_TOKEN={HF}", HF),
        ("key sk-proj-abc123def456ghi789jkl", "sk-proj-abc123def456ghi789jkl"),
        ("ghp_0123456789abcdefghij0123", "ghp_0123456789abcdefghij0123"),
        ("AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
        (f"wandb_api_key: {HEX}", HEX),
        (f'{{"api_key": "{HEX}"}}', HEX),
        (f"{{'api_key': '{HEX}'}}", HEX),
        ("password='correct horse battery'", "horse"),
        ('"password": "correct horse battery"', "battery"),
        ("--hub_token plainsecret --seed 1", "plainsecret"),
        ("--ds.comet.api_key=plainsecret", "plainsecret"),
        ("https://user:pw1234@host/x.jsonl", "pw1234"),
        ("https://user:p@w1234@host/x.jsonl", "w1234"),
        ("https:/user:pw1234@host/x: no such folder", "pw1234"),
        ('{"password": "pa\'ss1234"}', "ss1234"),
        ("{'password': 'pa\"ss1234'}", "ss1234"),
        ('{"password": "pa\\"ss1234", "x": 1}', "ss1234"),
        ("{'Authorization': 'Basic1234abc'}", "1234abc"),
        (f"https://{HEX}@host/x.jsonl", HEX),
        ("postgres://me:pw1234@db:5432/x and more", "pw1234"),
        ("https://host/x?token=abcdef&y=1", "abcdef"),
        ("https://s3/x?X-Amz-Signature=abcdef0123", "abcdef0123"),
        ("Authorization: Bearer abcdefghijklmnop0123", "abcdefghijklmnop0123"),
        ("client_secret: words-without-digits", "words-without-digits"),
        ("token: a1b2c3d4e5", "a1b2c3d4e5"),
        ("comet: api_key=plainsecret, project=x", "plainsecret"),
        ("settings={'comet': {'api_key': 'plainsecret'}}", "plainsecret"),
    ],
)
def test_secrets_in_text_are_hidden(text: str, secret: str) -> None:
    assert secret in text
    assert secret not in redact_text(text)
    assert "***" in redact_text(text)
    assert redact_text(redact_text(text)) == redact_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "pad_token='<|endoftext|>' eos_token: </s>",
        '{"pad_token": "<|endoftext|>", "eos_token_id": 2, "num_memory_tokens": 16}',
        "12,345 tokens, tokens_per_second=1234.5, max_tokens: 512",
        "step 7: tokens=4096 token_accuracy=0.51",
        "the special token: <image> is not in the vocabulary",
        "no token at all",
        f"commit {HEX}",
        f"git_commit: {HEX}",
        "pip install scikit-learn, sk-learn-contrib-extras, task-oriented-dialogue-v1",
        "from huggingface_hub import hf_hub_download",
        "hf_transfer is not installed",
        "https://huggingface.co/org/name/resolve/main/x.json?download=true",
        "git+ssh://git@github.com/org/name.git",
        "https://host/a@b/c",
        "org/name@train[:10%]",
        "someone@example.com",
        "s3://bucket/key=value/file.parquet",
        "/data/passwords are not here/x.jsonl",
        "the password is asked for by the hub, not by bigft",
        "a secretary keeps secrets",
        "key: value, primary_key=7, foreign_key=abc",
        "num_key_value_heads=8",
        "sort_keys=True",
        "token: 5",
        "password: none",
        "api_key=null",
        "loss 1.234 at step 5 (basic training)",
        "bearer of good news",
        "bigft train --config ds_configs/zero3.json --data https://host/x.jsonl",
        "TOKENIZERS_PARALLELISM=false HF_TOKEN_PATH=/home/me/.cache/token",
        "generation_config: max_new_tokens=256, stop_token=<end>",
    ],
)
def test_harmless_text_stays_as_it_is(text: str) -> None:
    assert redact_text(text) == text


def test_known_secrets_are_hidden_wherever_they_turn_up() -> None:
    remember_secrets({"MY_PASSWORD": "hunter2x", "HOME": "/home/me", "X_TOKEN": "true"})
    remember_secrets({"OTHER_TOKEN": "hunter2xyz", "EMPTY_SECRET": ""})
    text = "true: /home/me says hunter2xyz and hunter2x!"
    assert redact_text(text) == "true: /home/me says *** and ***!"


def test_tables_keep_their_form() -> None:
    data = {
        "data": ["https://u:p@host/x", "local.jsonl"],
        "comet": {"api_key": "abc", "project": "p", "enabled": True},
        "hub_token": None,
        "seed": 42,
        "eos_token": "</s>",
    }
    assert redact_value(data) == {
        "data": ["https://***@host/x", "local.jsonl"],
        "comet": {"api_key": "***", "project": "p", "enabled": True},
        "hub_token": None,
        "seed": 42,
        "eos_token": "</s>",
    }
    assert data["comet"]["api_key"] == "abc"
    json.dumps(redact_value(data))


def test_command_lines() -> None:
    words = [
        "train",
        "--hub_token",
        "abc",
        "--x.api_key=def",
        "--data",
        "https://u:p@h/x",
        "--seed",
    ]
    assert redact_words(words) == [
        "train", "--hub_token", "***", "--x.api_key=***", "--data", "https://***@h/x", "--seed",
    ]  # fmt: skip
    assert flag_values(words)["--hub_token"] == "abc"
    assert flag_values(words)["--x.api_key"] == "def"


def test_stream_hides_and_passes_on() -> None:
    below = io.StringIO()
    stream = RedactedStream(below)
    print("a", HF, file=stream)
    stream.flush()
    assert below.getvalue() == "a ***\n"
    assert not stream.isatty()


@pytest.mark.parametrize("text", ["a" * 10**6, "a-" * 500_000, "token " * 100_000, "=" * 10**6])
def test_time_is_proportional_to_the_text(text: str) -> None:
    # Quadratic behaviour would take hours: the test would run into the suite's time limit.
    assert redact_text(text) == text
