"""Several tasks with one body: losses and gradients are those of plain models, each alone."""

import json

import pytest
import torch
from several_tasks import FAMILIES, Case, compute_plain, load_plain, make_folder

from bigft.data.loading.loader import Share
from bigft.errors import ConfigError


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    return Case(folder, make_folder(folder, request.param))


def test_loss_and_gradients_are_those_of_plain_models(case, tmp_path):
    data = next(case.steps(Share(12)))
    (batch,) = data.micro_batches
    assert sum(batch.step_terms) == data.supervised_tokens
    plain = {name: load_plain(case, name, tmp_path) for name in case.parts}
    case.module.eval()
    case.module.zero_grad()
    found = case.task.loss(case.module, batch)
    assert found.tokens == data.supervised_tokens
    (found.total / data.supervised_tokens).backward()
    wanted, bodies = 0.0, []
    for number, (name, part) in enumerate(case.parts.items()):
        model, mine = plain[name], batch.parts[number]
        total, terms = compute_plain(model, part["task"], mine)
        assert found.by_source[number].tolist() == pytest.approx([total.item(), terms], rel=1e-5)
        assert terms == batch.step_terms[number] > 0
        loss = part.get("weight", 1.0) * total / terms
        loss.backward()
        wanted += loss.item()
        body = getattr(model, model.base_model_prefix)
        bodies.append(dict(body.named_parameters()))
        shared = {id(p) for p in body.parameters()}
        for key, parameter in model.named_parameters():
            if id(parameter) not in shared:
                own = case.module.find_heads()[name].get_parameter(key)
                torch.testing.assert_close(own.grad, parameter.grad, rtol=2e-5, atol=2e-6)
    assert found.total.item() / data.supervised_tokens == pytest.approx(wanted, rel=1e-5)
    moved = 0.0
    for key, parameter in case.module.body.named_parameters():
        grads = [body[key].grad for body in bodies if key in body and body[key].grad is not None]
        expected = sum(grads, torch.zeros_like(parameter))
        torch.testing.assert_close(parameter.grad, expected, rtol=2e-5, atol=3e-6, msg=key)
        moved += float(expected.abs().sum())
    assert moved > 1


def test_a_steps_loss_does_not_depend_on_how_it_is_dealt_out(case):
    """One sequence per micro-step: all but one head stand by in each."""
    case.module.eval()
    (whole,) = next(case.steps(Share(12))).micro_batches
    data = next(case.steps(Share(1, 12)))
    assert {part.step_terms for part in data.micro_batches} == {whole.step_terms}
    found = [case.task.loss(case.module, batch) for batch in data.micro_batches]
    total = case.task.loss(case.module, whole).total.item()
    assert sum(loss.total.item() for loss in found) == pytest.approx(total, rel=1e-5)
    # Every head has a gradient in each of them, of zero where it had no row.
    case.module.zero_grad()
    found[0].total.backward()
    for name, head in case.module.find_heads().items():
        for key, parameter in head.named_parameters():
            assert parameter.grad is not None, (name, key)


def test_rows_of_padding_cost_nothing(case):
    """The last step of an epoch may have less than a row for each rank."""
    steps = case.steps(Share(1, 1, 0, 64))
    data = next(step for step in steps if step.epoch == 1)
    last = next(
        batch
        for step in case.steps(Share(1, 64))
        if step.epoch == 1
        for batch in step.micro_batches[-1:]
    )
    assert (last.labels == -100).all()
    found = case.task.loss(case.module, last)
    assert (found.total.item(), found.tokens) == (0.0, 0)
    assert data.supervised_tokens > 0


def test_heads_of_the_files_are_kept_and_new_ones_are_named(case):
    from safetensors.torch import load_file

    (text,) = (name for name, part in case.parts.items() if part["task"].endswith("_lm"))
    notes = [note for note in case.loaded.notes if note.startswith(f"{text}:")]
    assert not any("new, from random" in note for note in notes)
    assert any(note.startswith("topic: new, from random") for note in case.loaded.notes)
    saved = load_file(case.folder / "start/model.safetensors")
    every = dict(case.module.find_heads()[text].named_parameters(remove_duplicate=False))
    whole = {
        **every,
        **{f"{case.module.prefix}.{k}": v for k, v in case.module.body.state_dict().items()},
    }
    assert len(saved) > 10
    for name, value in saved.items():
        # The vocabulary has grown by the mask token.
        torch.testing.assert_close(whole[name][: len(value)].detach(), value, msg=name)


def test_bodies_that_cannot_be_shared_are_refused(tmp_path):
    from making import make_tokenizer
    from task_rows import t5_config
    from transformers import T5ForConditionalGeneration

    from bigft.models.facts import read_facts
    from bigft.models.section import ModelSection
    from bigft.models.shared import Head, plan_shared_parameters
    from bigft.tasks.causal_lm import CausalLM
    from bigft.tasks.masked_lm import MaskedLM

    parts = make_folder(tmp_path, "encoder")
    assert set(parts) == {"topic", "size", "words"}
    model = ModelSection(name=str(tmp_path / "start"))
    tokenizer = make_tokenizer(tmp_path / "other")
    heads = {"one": Head.of(CausalLM(), tokenizer)}
    with pytest.raises(ConfigError, match="task.parts.one: .* is an encoder: it sees the tokens"):
        plan_shared_parameters(model, read_facts(model), heads, 512)
    T5ForConditionalGeneration(t5_config()).save_pretrained(tmp_path / "t5")
    model = ModelSection(name=str(tmp_path / "t5"))
    heads = {"a": Head.of(MaskedLM(None), tokenizer), "b": Head.of(MaskedLM(None), tokenizer)}
    with pytest.raises(ConfigError, match="2 problems"):
        plan_shared_parameters(model, read_facts(model), heads, 512)
    assert json.loads((tmp_path / "t5/config.json").read_text())["model_type"] == "t5"
