"""Files of edits of language models: beside the model in the hub's cache, with its tokenizer, in generations."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import interlace as il
from interlace.errors import ExportError, NoExportError
from tests import tiny

pytestmark = pytest.mark.language

ID = "some-lab/tiny-gpt2"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The hub's cache with one model in it."""
    repository = tmp_path / "hub/models--some-lab--tiny-gpt2"
    tiny.save("gpt2", repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(COMMIT)
    monkeypatch.setattr("interlace.loading.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(il.config, "cache_dir", str(tmp_path / "cache"))
    return tmp_path / "hub"  # type: ignore[return-value]


def load(hub: Path, **kwargs: Any) -> il.LanguageModel:
    return il.LanguageModel(ID, cache_dir=str(hub), **kwargs)


def favor(model: Any) -> None:
    model.lm_head.output[..., 5] = 1e4


def test_edits_are_kept_beside_the_model(hub: Path) -> None:
    """S-43: under its id, in its cache; loaded by name, by an option, as a variant."""
    model = load(hub)
    edited = model.edit(favor)
    with edited.edit(inplace=True):
        edited.transformer.h[0].mlp.output *= 2
    folder = edited.export_edits()
    assert folder == hub / "models--some-lab--tiny-gpt2/interlace/__default__"
    model.edit(lambda m: m.lm_head.output[..., 6].fill_(1e4)).export_edits(variant="six")
    with torch.no_grad():
        expected = edited("a b").logits
        for other in (load(hub, import_edits=True), load(hub)):
            if not other._tree.edits:
                other.import_edits()
            assert next(iter(other._module.parameters())).is_meta  # reading needs no weights
            assert torch.equal(other("a b").logits, expected)
        six = load(hub, import_edits="six")
        assert (six("a b").logits.argmax(-1) == 6).all()
        with pytest.raises(NoExportError, match=r"no variant 'seven'.*\nThere are '__default__', 'six'"):
            load(hub, import_edits="seven")


def test_a_name_or_a_folder_goes_elsewhere(hub: Path, tmp_path: Path) -> None:
    """S-43: the arguments mean what they mean for every model."""
    edited = load(hub).edit(favor)
    assert edited.export_edits("mine") == tmp_path / "cache/exports/mine/__default__"
    assert edited.export_edits(export_dir=tmp_path / "own") == tmp_path / "own/some-lab/tiny-gpt2/__default__"
    other = load(hub)
    other.import_edits("mine")
    other.import_edits(export_dir=tmp_path / "own")
    assert len(other._tree.edits) == 2


def test_a_ready_model_knows_where_it_is_from(hub: Path) -> None:
    """S-43."""
    ready = il.LanguageModel(load(hub).dispatch()._module, tokenizer=tiny.tokenizer())
    folder = ready.edit(favor).export_edits()
    assert folder == hub / "models--some-lab--tiny-gpt2/interlace/__default__"


def test_a_model_that_is_not_from_the_hub_needs_a_name() -> None:
    """S-43."""
    edited = il.demo_model().edit(favor)
    with pytest.raises(ExportError, match=r'not from the hub, .*\nWrite `model.export_edits\("a-name"\)`'):
        edited.export_edits()
    with pytest.raises(ExportError, match=r"not from the hub"):
        il.demo_model(import_edits=True)


def test_generations_and_plain_calls(tmp_path: Path) -> None:
    """S-100: an imported edit acts in every forward, as the original does."""
    model = il.demo_model()
    words, tokenizer, config = [" Paris"], model.tokenizer, model.config

    def prefer(model: Any) -> None:
        for word in words:
            (number,) = tokenizer.encode(word)
            model.lm_head.output[..., number] += config.n_layer

    edited = model.edit(prefer)
    edited.export_edits("prefer", tmp_path)
    other = il.demo_model()
    other.import_edits("prefer", tmp_path)
    prompt = "The capital of Spain is"
    with torch.no_grad():
        assert torch.equal(other(prompt).logits, edited(prompt).logits)
        assert not torch.equal(other(prompt).logits, model(prompt).logits)
    made: list[list[int]] = []
    for each in (edited, other):
        made.append(each.generate(prompt, max_new_tokens=4, do_sample=False)[0].tolist())
        with each.generate(prompt, max_new_tokens=4, do_sample=False) as tracer:
            made.append(tracer.result[0].tolist())
        with each.trace() as tracer:
            with tracer.invoke(prompt):
                logits = each.lm_head.output[0, -1]
            with tracer.invoke("A cat"):
                each.lm_head.output[:] = 0
        made.append(logits.topk(3).indices.tolist())
    assert made[:3] == made[3:]
    assert made[0] == made[1]


def test_the_tokenizer_is_the_models_own(tmp_path: Path) -> None:
    """S-94: and it is missed before anything is loaded."""
    model = il.demo_model()
    tokenizer = model.tokenizer
    folder = model.edit(lambda m: tokenizer.encode("a")).export_edits("e", tmp_path)
    assert '"cells": [{"tokenizer": null}]' in (folder / "manifest.json").read_text()
    bare = il.LanguageModel(model.dispatch()._module)
    with pytest.raises(ExportError, match=r"do not fit this model: this model has no tokenizer"):
        bare.import_edits("e", tmp_path)
    with pytest.raises(il.errors.TravelError, match=r"`tokenizer`, which `<lambda>` reads, cannot travel"):
        bare.edit(lambda m: tokenizer.encode("a")).export_edits("f", tmp_path)


def test_a_model_without_weights_can_export_what_it_imported(hub: Path, tmp_path: Path) -> None:
    """S-41, S-43: what the edits read of it is what it runs with."""
    model = load(hub)
    weight, bias = model.lm_head.weight, torch.ones(8)
    edited = model.edit(lambda m: m.transformer.ln_f.output.add_(weight[1] + bias))
    edited.export_edits("e", tmp_path)
    other = load(hub)
    other.import_edits("e", tmp_path)
    other.export_edits("again", tmp_path)
    third = load(hub)
    third.import_edits("again", tmp_path)
    with torch.no_grad():
        for each in (other, third):
            assert torch.equal(each("a b").logits, edited("a b").logits)


def test_another_model_of_the_same_architecture(tmp_path: Path) -> None:
    """S-42: the modules that the text names must be there."""
    small = il.LanguageModel(tiny.ready("gpt2"), tokenizer=tiny.tokenizer())
    last = 3
    with il.demo_model().edit() as edited:
        edited.transformer.h[0].mlp.output *= 2
    edited.export_edits("first", tmp_path)
    small.import_edits("first", tmp_path)
    with torch.no_grad():
        expected = il.LanguageModel(small._module, tokenizer=small.tokenizer)
        with expected.trace("a b"):
            expected.transformer.h[0].mlp.output *= 2
            logits = expected.output.logits
        assert torch.equal(small("a b").logits, logits)
    with il.demo_model().edit() as edited:
        edited.transformer.h[last].mlp.output *= 2
    edited.export_edits("last", tmp_path)
    before = list(small._tree.edits)
    with pytest.raises(ExportError, match=r"need `transformer\.h\.3\.mlp`: this model has no module"):
        small.import_edits("last", tmp_path)
    llama = il.LanguageModel(tiny.ready("llama"), tokenizer=tiny.tokenizer())
    with pytest.raises(
        ExportError, match=r"need `transformer\.h\.0\.mlp`.*\n.*made for a transformers.*GPT2LMHeadModel"
    ):
        llama.import_edits("first", tmp_path)
    assert small._tree.edits == before
    shutil.rmtree(tmp_path / "first")
