"""Hugging Face models, by every documented import path."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertForMaskedLM,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

import interlace as il
import interlace.compat.nnsight as nnsight
from interlace.compat.nnsight import LanguageModel, NNsight, TransformersModel
from interlace.errors import InputError
from tests.compat.hooks import encoded, first
from tests.tiny import WORDS, save, tokenizer

pytestmark = [pytest.mark.language, pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers")]

SMALL: dict[str, Any] = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2}
BERT: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save("gpt2", tmp_path_factory.mktemp("gpt2"))


def saved(model: Any, folder: Path, words: bool = True) -> str:
    model.eval().save_pretrained(folder)
    if words:
        tokenizer().save_pretrained(folder)
    return str(folder)


def test_it_is_loaded_when_it_is_needed(gpt2: str) -> None:
    model: Any = LanguageModel(gpt2, device_map="cpu", dispatch=False)
    assert not model.dispatched
    with model.trace("a b c"):
        hidden = first(model.transformer.h[0].output).save()
        logits = model.output.logits.save()
    assert model.dispatched
    assert hidden.shape == (1, 3, 8)
    assert torch.equal(logits, GPT2LMHeadModel.from_pretrained(gpt2).eval()(torch.tensor([[2, 3, 4]])).logits)
    assert model.repo_id == gpt2
    assert isinstance(model, (NNsight,)) and isinstance(model, TransformersModel)  # noqa: PT018
    assert isinstance(model, il.LanguageModel)
    assert LanguageModel(gpt2, dispatch=True).dispatched


def test_a_ready_model_and_other_input(gpt2: str) -> None:
    ready = GPT2LMHeadModel.from_pretrained(gpt2).eval()
    model: Any = LanguageModel(ready, tokenizer=tokenizer(), rename={"transformer": "model", "h": "layers"})
    ids = torch.tensor([[2, 3, 4]])
    for given in (
        "a b c",
        ["a b c"],
        [2, 3, 4],
        ids,
        {"input_ids": ids},
        encoded("a b c"),
    ):
        with model.trace(given):
            logits = model.lm_head.output.save()
        assert torch.equal(logits, ready(ids).logits)
    with model.trace("a b c"):
        hidden = first(model.model.layers[1].output).save()
    assert hidden.shape == (1, 3, 8)
    with pytest.raises(InputError, match="no tokenizer"):
        LanguageModel(ready).trace("a").__enter__()


@pytest.mark.parametrize(
    "automodel", ["AutoModelForSeq2SeqLM", AutoModelForSeq2SeqLM, T5ForConditionalGeneration]
)
def test_encoder_and_decoder(automodel: Any, tmp_path: Path) -> None:
    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=len(WORDS), decoder_start_token_id=0, pad_token_id=0, **SMALL)
    )
    model: Any = TransformersModel(saved(t5, tmp_path), automodel=automodel)
    prompt = encoded("a b c")
    begun = torch.tensor([[0, 5]])
    with model.trace("a b c", decoder_input_ids=begun):
        hidden = model.encoder.block[0].output[0].save()
        logits = model.output.logits.save()
    assert torch.equal(logits, t5(prompt["input_ids"], decoder_input_ids=begun).logits)
    assert hidden.shape == (1, 3, 8)
    with model.generate("a b c", max_new_tokens=3, min_new_tokens=3) as tracer:
        steps = []
        for _ in tracer.iter[:]:
            steps.append(model.lm_head.output.save())
    assert len(steps) == 3
    want = t5.generate(**prompt, max_new_tokens=3, min_new_tokens=3)
    assert torch.equal(tracer.result, want)


def test_an_encoder_of_text(tmp_path: Path) -> None:
    bert = BertForMaskedLM(BertConfig(vocab_size=len(WORDS), **BERT))
    path = saved(bert, tmp_path)
    model: Any = TransformersModel(path, automodel="AutoModelForMaskedLM")
    with model.trace("a b c"):
        logits = model.output.logits.save()
    assert torch.equal(logits, bert(torch.tensor([[2, 3, 4]])).logits)
    bare: Any = TransformersModel(path)
    with bare.trace("a b c"):
        hidden = bare.encoder.layer[1].attention.self.query.output.save()
    assert hidden.shape == (1, 3, 8)


def test_a_model_that_reads_no_text(tmp_path: Path) -> None:
    vit = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **BERT))
    model: Any = TransformersModel(
        saved(vit, tmp_path, words=False), automodel="AutoModelForImageClassification"
    )
    image = torch.rand(1, 3, 8, 8)
    for args, kwargs in (((image,), {}), ((), {"pixel_values": image})):
        with model.trace(*args, **kwargs):
            logits = model.output.logits.save()
        assert torch.equal(logits, vit(image).logits)
    assert model.tokenizer is None


def test_a_class_that_loads_nothing(gpt2: str) -> None:
    with pytest.raises(InputError, match="`automodel='AutoModelForNothing'` is no class of transformers"):
        TransformersModel(gpt2, automodel="AutoModelForNothing")


PATHS = {
    "intervention.base": ["NNsight"],
    "intervention.envoy": ["Envoy", "eproperty"],
    "intervention.interleaver": ["Mediator", "EarlyStopException", "eproperty"],
    "intervention.hooks": ["requires_output", "requires_input"],
    "intervention.backends.remote": ["RemoteException"],
    "intervention.tracing.base": ["Tracer", "WithBlockNotFoundError"],
    "intervention.tracing.tracer": ["InterleavingTracer", "Barrier"],
    "intervention.tracing.invoker": ["Invoker"],
    "intervention.tracing.editing": ["EditingTracer"],
    "intervention.tracing.iterator": ["IteratorTracer", "IteratorProxy"],
    "intervention.tracing.globals": ["save"],
    "modeling.base": ["NNsight"],
    "modeling.language": ["LanguageModel", "TransformersModel"],
    "modeling.transformers": ["TransformersModel"],
    "modeling.huggingface": ["HuggingFaceModel"],
    "util": ["WrapperModule", "apply", "fetch_attr"],
    "schema.config": ["ConfigModel", "CONFIG"],
}


@pytest.mark.parametrize("path", PATHS)
def test_documented_paths(path: str) -> None:
    module = importlib.import_module(f"interlace.compat.nnsight.{path}")
    for name in PATHS[path]:
        assert getattr(module, name) is not None
    here: Any = nnsight
    for part in path.split("."):
        here = getattr(here, part)
    assert here is module
