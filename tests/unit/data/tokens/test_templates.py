"""Every built-in template: what it writes, and exactly what of it is learned."""

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bigft.data.example import Conversation
from bigft.data.tokens.templates import CHATML_TEMPLATE, TEMPLATES
from bigft.data.tokens.tokenize import tokenize_batch

TALK = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "U"},
    {"role": "assistant", "content": "A"},
    {"role": "user", "content": "V"},
    {"role": "assistant", "content": "B"},
]
CALL = {"name": "add", "arguments": {"a": 1}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
TOOL_TALK = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "U"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "call00001", "type": "function", "function": CALL}],
    },
    {"role": "tool", "tool_call_id": "call00001", "content": "1"},
    {"role": "assistant", "content": "A"},
]
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request."
)
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)

EXPECTED = {
    "chatml": (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
        "A<|im_end|>\n<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n",
        ["A<|im_end|>", "B<|im_end|>"],
    ),
    "llama3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nV<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nB<|eot_id|>",
        ["A<|eot_id|>", "B<|eot_id|>"],
    ),
    "llama2": (
        "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST] A </s><s>[INST] V [/INST] B </s>",
        [" A </s>", " B </s>"],
    ),
    "mistral": ("<s>[INST] S\n\nU[/INST] A</s>[INST] V[/INST] B</s>", [" A</s>", " B</s>"]),
    "gemma": (
        "<s><start_of_turn>user\nS\n\nU<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n"
        "<start_of_turn>user\nV<end_of_turn>\n<start_of_turn>model\nB<end_of_turn>\n",
        ["A<end_of_turn>", "B<end_of_turn>"],
    ),
    "phi3": (
        "<|system|>\nS<|end|>\n<|user|>\nU<|end|>\n<|assistant|>\nA<|end|>\n"
        "<|user|>\nV<|end|>\n<|assistant|>\nB<|end|>\n",
        ["A<|end|>", "B<|end|>"],
    ),
    "zephyr": (
        "<|system|>\nS</s>\n<|user|>\nU</s>\n<|assistant|>\nA</s>\n"
        "<|user|>\nV</s>\n<|assistant|>\nB</s>\n",
        ["A</s>", "B</s>"],
    ),
    "vicuna": ("<s>S USER: U ASSISTANT: A</s>USER: V ASSISTANT: B</s>", [" A</s>", " B</s>"]),
    "alpaca": (
        "<s>S\n\n### Instruction:\nU\n\n### Response:\nA</s>\n\n"
        "### Instruction:\nV\n\n### Response:\nB</s>",
        ["A</s>", "B</s>"],
    ),
}


def build_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Bytes, BOS and EOS, and the tokens that each template ends a turn with."""
    ends = ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>"]
    entries = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<s>", "</s>", *ends]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=ends,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATES[name]
    return tokenizer


def learn(example: Conversation, tokenizer: PreTrainedTokenizerFast) -> tuple[str, list[str]]:
    """Return the whole text and each run of learned tokens."""
    (found,) = tokenize_batch([example], tokenizer, train_on="assistant", max_length=4096)
    if isinstance(found, ValueError):
        raise found
    (row,) = found.rows
    ids, runs = row.input_ids.tolist(), list[list[int]]()
    for number, marked in enumerate(row.supervised):
        if marked and not row.supervised[number - 1]:
            runs.append([])
        if marked:
            runs[-1].append(ids[number])
    return str(tokenizer.decode(ids)), [str(tokenizer.decode(run)) for run in runs]


def test_each_template_is_tested() -> None:
    assert set(EXPECTED) == set(TEMPLATES)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_writes_its_format_and_the_answers_are_learned(name: str) -> None:
    assert learn(Conversation(TALK), build_tokenizer(name)) == EXPECTED[name]


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_prompt_for_an_answer_is_what_stands_before_it_in_training(name: str) -> None:
    tokenizer = build_tokenizer(name)
    prompt = tokenizer.apply_chat_template(TALK[:4], tokenize=False, add_generation_prompt=True)
    whole, answers = EXPECTED[name]
    assert whole.startswith(prompt + answers[-1])


@pytest.mark.parametrize(
    ("name", "opening"),
    [
        ("vicuna", f"<s>{VICUNA} USER: U ASSISTANT: A</s>"),
        ("alpaca", f"<s>{ALPACA}\n\n### Instruction:\nU\n\n### Response:\nA</s>"),
        ("llama2", "<s>[INST] U [/INST] A </s>"),
        ("gemma", "<s><start_of_turn>user\nU<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n"),
    ],
)
def test_without_a_system_turn_a_template_has_its_own_opening(name: str, opening: str) -> None:
    assert learn(Conversation(TALK[1:3]), build_tokenizer(name))[0] == opening


@pytest.mark.parametrize(
    ("name", "shown", "said"),
    [
        (
            "chatml",
            [
                "<|im_start|>system\nS\n\nYou can call",
                '<tools>\n{"type": "function"',
                "<|im_end|>\n<|im_start|>user\nU<|im_end|>",
                "<|im_start|>tool\n1<|im_end|>",
            ],
            '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>',
        ),
        (
            "llama3",
            ["Environment: ipython\n\nS\n\n", "<|start_header_id|>ipython<|end_header_id|>\n\n1"],
            '{"name": "add", "parameters": {"a": 1}}<|eot_id|>',
        ),
        (
            "mistral",
            [
                '<s>[AVAILABLE_TOOLS] [{"type": "function"',
                "[/AVAILABLE_TOOLS][INST] S\n\nU[/INST]",
                '[TOOL_RESULTS] {"content": "1", "call_id": "call00001"}[/TOOL_RESULTS] A</s>',
            ],
            '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}, "id": "call00001"}]</s>',
        ),
    ],
)
def test_tools_are_shown_called_and_answered(name: str, shown: list[str], said: str) -> None:
    text, runs = learn(Conversation(TOOL_TALK, [TOOL]), build_tokenizer(name))
    assert [part for part in shown if part not in text] == []
    assert runs[0] == said
    assert len(runs) == 2


@pytest.mark.parametrize("name", ["llama2", "gemma", "phi3", "zephyr", "vicuna", "alpaca"])
@pytest.mark.parametrize(
    "example", [Conversation(TALK, [TOOL]), Conversation(TOOL_TALK), Conversation(TOOL_TALK[:3])]
)
def test_templates_without_tools_say_so(name: str, example: Conversation) -> None:
    with pytest.raises(ValueError, match=f"{name} has no place for tools; set --model.chat_temp"):
        learn(example, build_tokenizer(name))


def test_arguments_may_be_json_text() -> None:
    call: dict[str, Any] = {"function": {"name": "add", "arguments": '{"a": 1}'}}
    talk = [TALK[1], {"role": "assistant", "content": "", "tool_calls": [call]}]
    for name in ("chatml", "llama3", "mistral"):
        (said,) = learn(Conversation(talk), build_tokenizer(name))[1]
        assert ': {"a": 1}' in said


def test_a_system_turn_without_a_user_to_carry_it_is_refused() -> None:
    for name in ("llama2", "mistral", "gemma"):
        with pytest.raises(ValueError, match="a system turn needs a turn of the user after it"):
            learn(Conversation([TALK[0], TALK[2]]), build_tokenizer(name))


def test_a_tokenizer_without_bos_and_eos_renders_too() -> None:
    for name in TEMPLATES:
        tokenizer = build_tokenizer(name)
        tokenizer.bos_token = tokenizer.eos_token = None
        text, runs = learn(Conversation(TALK), tokenizer)
        assert text == EXPECTED[name][0].replace("<s>", "").replace("</s>", "")
        assert [run.strip() for run in runs] == [
            said.replace("</s>", "").strip() for said in EXPECTED[name][1]
        ]


def test_a_template_writes_chatml(tokenizer: PreTrainedTokenizerFast) -> None:
    options = {"chat_template": CHATML_TEMPLATE, "tokenize": False}
    head = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    prompt = tokenizer.apply_chat_template(TALK[:2], add_generation_prompt=True, **options)
    assert prompt == head
