"""Write text with a model folder: one prompt, or a chat on the terminal."""

import json
import sys
from typing import Any

from bigft.config.options import GenerateOptions, read_options
from bigft.config.request import Request
from bigft.errors import ConfigError


def main(request: Request) -> None:
    """Load the model, then answer one prompt or many."""
    options = read_options(request, GenerateOptions)
    if options.prompt is None and not sys.stdin.isatty():
        options = options.model_copy(update={"prompt": sys.stdin.read().strip() or None})
    if options.prompt is None and not sys.stdin.isatty():
        raise ConfigError("generate: no --prompt, and standard input is empty; give one of them")

    from bigft.evaluation.plain import load_plain, pick_device

    auto_class = _find_auto_class(request.words[0])
    model, tokenizer = load_plain(request.words[0], pick_device(options.device), auto_class)
    if options.seed is not None:
        import torch

        torch.manual_seed(options.seed)
    if options.prompt is None:
        _chat(model, tokenizer, options)
        return
    messages = [{"role": "user", "content": options.prompt}]
    text = _answer(model, tokenizer, messages, options, streamed=not options.as_json)
    if options.as_json:
        sys.stdout.write(json.dumps({"prompt": options.prompt, "text": text}) + "\n")


def _find_auto_class(folder: str) -> Any:
    """Say which class of transformers writes with this model.

    Raises:
        CheckpointError: There is no model.
        ConfigError: It writes no text.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    from bigft.evaluation.plain import check_model
    from bigft.models.facts import read_facts
    from bigft.models.section import ModelSection
    from bigft.tasks.task import find_task

    check_model(folder)
    name = find_task(read_facts(ModelSection(name=folder)).config)
    classes = {"causal_lm": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM}
    if name not in classes:
        raise ConfigError(
            f"{folder}: was made for {name} and writes no text; `bigft evaluate` scores it, and"
            " README.md there shows how transformers loads it"
        )
    return classes[name]


def _chat(model: Any, tokenizer: Any, options: GenerateOptions) -> None:
    sys.stderr.write("Type a message; an empty line or Ctrl-D ends the chat.\n")
    messages: list[dict[str, str]] = []
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            text = ""
        if not text:
            return
        messages.append({"role": "user", "content": text})
        answer = _answer(model, tokenizer, messages, options, streamed=True)
        messages.append({"role": "assistant", "content": answer})


def _answer(
    model: Any,
    tokenizer: Any,
    messages: list[dict[str, str]],
    options: GenerateOptions,
    *,
    streamed: bool,
) -> str:
    """Generate one answer and return it; `streamed` writes it to standard output as it grows.

    A tokenizer with a chat template gets a conversation, one without gets the plain prompt. The
    encoder of a seq2seq model reads the last message alone, as in training.
    """
    from transformers import TextStreamer

    has_encoder = model.config.is_encoder_decoder
    if tokenizer.chat_template and not has_encoder:
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    else:
        text = messages[-1]["content"]
        inputs = tokenizer(_end(text, tokenizer) if has_encoder else text, return_tensors="pt")
    inputs = {
        k: v.to(model.device) for k, v in inputs.items() if k in ("input_ids", "attention_mask")
    }
    choice: dict[str, Any] = {"do_sample": options.temperature > 0}
    if options.temperature > 0:
        choice.update(temperature=options.temperature, top_p=options.top_p)
    streamer = (
        TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True) if streamed else None
    )
    output = model.generate(
        **inputs,
        **choice,
        max_new_tokens=options.max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        streamer=streamer,
    )
    # The output begins with the prompt, or with the token that a decoder starts from.
    start = 1 if has_encoder else inputs["input_ids"].shape[1]
    answer: str = tokenizer.decode(output[0, start:], skip_special_tokens=True)
    return answer


def _end(text: str, tokenizer: Any) -> str:
    """End a source with the tokenizer's end token, unless the tokenizer does that by itself."""
    end = tokenizer.eos_token_id
    is_ended = end is None or tokenizer(text)["input_ids"][-1:] == [end]
    return text if is_ended else text + str(tokenizer.eos_token)
