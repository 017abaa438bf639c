"""`bigft generate`: models with an encoder, and models that write nothing."""

import json

import pytest
import torch
from making import make_tokenizer
from task_rows import bert_config, t5_config

from bigft.cli import main


def test_a_model_with_an_encoder_writes_what_transformers_says(capsys, tmp_path):
    """The source ends with the end token, as it does in training, whatever the chat template."""
    from transformers import T5ForConditionalGeneration

    torch.manual_seed(3)
    T5ForConditionalGeneration(t5_config()).save_pretrained(tmp_path)
    tokenizer = make_tokenizer(tmp_path)
    words = ("--prompt", "the red cat", "--temperature", "0", "--max_new_tokens", "5", "--json")
    main(["generate", str(tmp_path), *words])
    model = T5ForConditionalGeneration.from_pretrained(tmp_path)
    source = torch.tensor([[*tokenizer("the red cat")["input_ids"], tokenizer.eos_token_id]])
    written = model.generate(source, do_sample=False, max_new_tokens=5)[0, 1:]
    text = tokenizer.decode(written, skip_special_tokens=True)
    assert text
    assert json.loads(capsys.readouterr().out) == {"prompt": "the red cat", "text": text}


def test_a_model_that_writes_nothing_is_refused(capsys, tmp_path):
    from transformers import BertForSequenceClassification

    BertForSequenceClassification(bert_config()).save_pretrained(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["generate", str(tmp_path), "--prompt", "hi"])
    assert caught.value.code == 2
    assert "was made for classification and writes no text; `bigft evaluate`" in (
        capsys.readouterr().err
    )
