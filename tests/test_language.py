"""Language models: loading, prompts in a trace, positions, labels (S-95, S-20, S-36, S-48)."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BartConfig,
    CLIPConfig,
    LlavaConfig,
    T5Config,
    ViTConfig,
)

import interlace as il
from interlace.errors import InputError
from tests.tiny import BLOCKS, head, ready, save, tokenizer

pytestmark = [pytest.mark.language, pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers")]

NAMES = ["gpt2", "llama", "neox"]


@pytest.fixture(scope="module", params=NAMES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A kind of model, and where one is saved."""
    return request.param, save(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save("gpt2", tmp_path_factory.mktemp("gpt2"))


def own(path: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(path)


def text(path: str, **kwargs: Any) -> Any:
    return il.LanguageModel(path, **kwargs)


# -- loading -----------------------------------------------------------------------------------------------


def test_weights_are_loaded_when_they_are_needed(saved: tuple[str, str]) -> None:
    """S-95, S-20: the same envoys serve the real model; every parameter and buffer is there."""
    name, path = saved
    model = text(path)
    block, last = model.get(f"{BLOCKS[name]}.1"), head(model)
    assert model.device == torch.device("meta")
    with model.trace("a b c"):
        hidden = block.output
        logits = last.output
    assert model.get(f"{BLOCKS[name]}.1") is block
    assert head(model) is last
    real = own(path)
    assert torch.equal(logits, real(torch.tensor([[2, 3, 4]])).logits)
    assert (hidden[0] if isinstance(hidden, tuple) else hidden).shape == (1, 3, 8)
    held = dict(model._module.state_dict(keep_vars=True), **dict(model._module.named_buffers()))
    assert not any(tensor.is_meta for tensor in held.values())
    assert not model._module.training
    for key, tensor in real.named_buffers():
        assert torch.equal(held[key], tensor)


def test_dispatch_at_once(gpt2: str) -> None:
    """S-95"""
    model = text(gpt2, dispatch=True)
    module = model._module
    assert model.device == torch.device("cpu")
    assert model.dispatch() is model
    assert model._module is module


@pytest.mark.parametrize(
    "need",
    [
        lambda model: model("a"),
        lambda model: model.generate("a", max_new_tokens=1),
        lambda model: model.transformer.wte(torch.tensor([2])),
        lambda model: model.lm_head.weight,
        lambda model: next(model.parameters()),
        lambda model: model.cpu(),
        lambda model: model.interleave(None, "a"),
        lambda model: copy.copy(model),
        lambda model: pickle.dumps(model),
    ],
)
def test_what_needs_weights(gpt2: str, need: Any) -> None:
    """S-95, S-48"""
    model = text(gpt2)
    found = need(model)
    assert model.device == torch.device("cpu")
    assert not getattr(found, "is_meta", False)


REQUESTS: dict[str, Any] = {
    "read": lambda model, mlp: mlp.output.shape,
    "input": lambda model, mlp: mlp.input.shape,
    "write": lambda model, mlp: setattr(mlp, "output", mlp.output * 0),
    "input written": lambda model, mlp: setattr(mlp, "input", mlp.input * 0),
    "skip": lambda model, mlp: mlp.skip(torch.zeros(2, 3, 8)),
    "waits": lambda model, mlp: mlp.wait_for_output(),
    "operation": lambda model, mlp: mlp.source.self_c_fc_0.output.shape,
    "side": lambda model, mlp: mlp(torch.ones(1, 1, 8), hook=True).shape,
}


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("opened", ["trace", "generate"])
def test_the_first_request_of_a_block_brings_the_weights(gpt2: str, opened: str, request_: str) -> None:
    """S-20, S-95: the input is in invokes, so the modules are replaced after the block has begun."""

    def made(model: Any) -> Any:
        with getattr(model, opened)(**({"max_new_tokens": 2} if opened == "generate" else {})) as tracer:
            for prompt in ("a b c", "d e f"):
                tracer.invoke(prompt)(lambda: None)
            seen = REQUESTS[request_](model, model.transformer.h[0].mlp)
            return seen, model.lm_head.output.clone()

    fresh, loaded = made(text(gpt2)), made(text(gpt2).dispatch())
    assert fresh[0] == loaded[0]
    assert torch.equal(fresh[1], loaded[1])


def test_a_child_alone_needs_weights(gpt2: str) -> None:
    """S-20, S-36: any envoy of the tree can be traced first."""
    model = text(gpt2)
    with model.transformer.h[0].mlp.trace(torch.ones(1, 2, 8)):
        out = model.transformer.h[0].mlp.c_fc.output
    assert out.shape == (1, 2, 32)
    assert not out.is_meta


def test_a_ready_model() -> None:
    """S-95: it is used as it is."""
    module = ready("llama")
    model = il.LanguageModel(module, tokenizer=tokenizer())
    with model.trace("a b"):
        logits = model.lm_head.output
    assert model._module is module
    assert torch.equal(logits, module(torch.tensor([[2, 3]])).logits)


def test_a_ready_model_without_a_tokenizer() -> None:
    """S-95: it takes ids, and says what it needs for text."""
    model = il.LanguageModel(ready("gpt2"))
    with pytest.raises(InputError, match="no tokenizer"):
        model.trace("a b").__enter__()
    with model.trace([[2], [3, 4]]):
        logits = model.lm_head.output
    assert logits.shape == (2, 2, 21)


def test_what_names_no_model_is_not_asked_of_the_hub() -> None:
    with pytest.raises(TypeError, match=r"hub id, its path, or ready, not by int"):
        il.LanguageModel(3)  # type: ignore[arg-type]


def test_a_ready_model_takes_no_loading_arguments() -> None:
    with pytest.raises(TypeError, match="takes no revision"):
        il.LanguageModel(ready("gpt2"), revision="main")


def test_arguments_of_from_pretrained(gpt2: str) -> None:
    """S-95: they pass through, and the model on meta has them too."""
    model = text(
        gpt2, dtype=torch.bfloat16, attn_implementation="eager", revision="main", output_attentions=True
    )
    assert model.config._attn_implementation == "eager"
    assert model._module.dtype == torch.bfloat16
    with model.trace("a b"):
        out = model.output
    assert model._module.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    assert out.attentions[0].shape == (1, 2, 2, 2)


def test_configuration_in_arguments(gpt2: str) -> None:
    """S-95: an entry of the configuration, or a configuration."""
    assert len(text(gpt2, n_layer=1).transformer.h) == 1
    config = AutoConfig.from_pretrained(gpt2)
    config.n_layer = 1
    model = text(gpt2, config=config)
    assert len(model.transformer.h) == 1
    assert len(model.dispatch().transformer.h) == 1
    assert len(text(gpt2, config=gpt2).transformer.h) == 2


@pytest.mark.parametrize("where", ["cpu", "auto", {"": "cpu"}], ids=str)
def test_device_map(gpt2: str, where: Any) -> None:
    """S-95: transformers and accelerate place the weights."""
    model = text(gpt2, device_map=where)
    with model.trace("a b"):
        logits = model.lm_head.output
    bare = own(gpt2).to(logits.device)
    assert torch.equal(logits, bare(torch.tensor([[2, 3]], device=logits.device)).logits)


def test_tokenizer_arguments(gpt2: str) -> None:
    """S-95: `tokenizer_kwargs` is for the tokenizer alone, and a tokenizer given is taken as it is."""
    assert text(gpt2, tokenizer_kwargs={"pad_token": "<unk>"}).tokenizer.pad_token == "<unk>"
    given = tokenizer()
    assert text(gpt2, tokenizer=given).tokenizer is given


def test_the_pad_token_is_the_end_of_text() -> None:
    """S-95: only where there is none; nothing else of the tokenizer changes."""
    bare, other = tokenizer(), tokenizer()
    other.pad_token, other.padding_side = "<unk>", "right"
    side = bare.padding_side
    il.LanguageModel(ready("gpt2"), tokenizer=bare)
    il.LanguageModel(ready("gpt2"), tokenizer=other)
    assert (bare.pad_token, bare.padding_side) == ("<eos>", side)
    assert (other.pad_token, other.padding_side) == ("<unk>", "right")


def test_a_wrong_path(tmp_path: Path) -> None:
    """S-95: transformers' own error."""
    with pytest.raises((OSError, ValueError)) as caught:
        text(str(tmp_path / "nothing"))
    assert not isinstance(caught.value, InputError)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (T5Config, "encoder-decoder model.*AutoModelForSeq2SeqLM"),
        (BartConfig, "encoder-decoder model.*AutoModelForSeq2SeqLM"),
        (LlavaConfig, "multimodal model.*AutoModelForImageTextToText"),
        (CLIPConfig, "multimodal model"),
        (ViTConfig, "no causal language model.*AutoModel"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_other_kinds_of_models(config: Any, says: str, tmp_path: Path) -> None:
    """S-95: an error that names the class to use."""
    config().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"(?s){says}"):
        text(str(tmp_path))


def test_a_failed_loading_can_be_tried_again(gpt2: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = text(gpt2)

    def fails() -> Any:
        raise OSError("no connection")

    real, model._tree.loader = model._tree.loader, fails
    with pytest.raises(OSError, match="no connection"):
        model.dispatch()
    model._tree.loader = real
    assert model.dispatch().device == torch.device("cpu")


def test_the_progress_bars_are_transformers_own(gpt2: str, capfd: pytest.CaptureFixture[str]) -> None:
    """S-95: loading says what `from_pretrained` says, and no more."""

    def bars(said: str) -> list[str]:
        return sorted({line.split(":")[0].strip() for line in said.replace("\r", "\n").splitlines()} - {""})

    own(gpt2)
    theirs = capfd.readouterr()
    text(gpt2, dispatch=True)
    ours = capfd.readouterr()
    assert ours.out == theirs.out
    assert bars(ours.err) == bars(theirs.err)


# -- prompts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt",
    [
        "a b c",
        [2, 3, 4],
        torch.tensor([[2, 3, 4]]),
        {"input_ids": torch.tensor([[2, 3, 4]])},
        tokenizer()("a b c", return_tensors="pt", return_token_type_ids=False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_prompt_gives_what_transformers_gives(saved: tuple[str, str], prompt: Any) -> None:
    """S-95, law 1: bit for bit."""
    model = text(saved[1])
    with model.trace(prompt):
        logits = model.output.logits
    expected = own(saved[1])(torch.tensor([[2, 3, 4]])).logits
    assert torch.equal(logits, expected)
    assert torch.equal(model.trace(prompt, trace=False).logits, expected)
    assert torch.equal(model(prompt).logits, expected)


def test_arguments_of_the_forward(gpt2: str) -> None:
    """S-95: by name they pass through; a trace of names alone works."""
    model = text(gpt2)
    embeds = torch.randn(1, 3, 8)
    with model.trace(inputs_embeds=embeds, output_hidden_states=True):
        out = model.output
    assert torch.equal(
        out.hidden_states[-1], own(gpt2)(inputs_embeds=embeds, output_hidden_states=True).hidden_states[-1]
    )
    with pytest.raises(InputError, match="nothing to run on: labels"), model.trace(labels=torch.ones(1, 1)):
        pass
    with pytest.raises(InputError, match="without an input"), model.trace():
        pass
    with model.trace("a"):  # and nothing is broken by an error before
        pass


def test_batched_equals_one_by_one(saved: tuple[str, str]) -> None:
    """S-95: padding on the left, with the positions of each prompt its own."""
    model = text(saved[1])
    prompts = ["a b c d e", "f", "g h i"]
    with model.trace(prompts):
        together = head(model).output
    for row, prompt in enumerate(prompts):
        with model.trace(prompt):
            alone = head(model).output
        torch.testing.assert_close(together[row, -alone.shape[1] :], alone[0], rtol=1e-4, atol=1e-5)


def test_positions(gpt2: str) -> None:
    """S-95: those of the user stay; a mask gives the right ones; with a cache, the last."""
    model = text(gpt2)

    def positions(*args: Any, **kwargs: Any) -> Any:
        with model.trace(*args, **kwargs):
            return model.inputs[1].get("position_ids")

    assert positions("a b") is None
    assert positions(["a b", "c"]).tolist() == [[0, 1], [0, 0]]
    ids, given = torch.tensor([[2, 3], [0, 4]]), torch.tensor([[5, 6], [7, 8]])
    assert positions(["a b", "c"], position_ids=given) is given
    assert positions(ids, attention_mask=torch.tensor([[1, 0], [1, 1]])).tolist() == [[0, 0], [0, 1]]
    assert positions(input_ids=ids, attention_mask=torch.tensor([[1, 1], [0, 1]])).tolist() == [
        [0, 1],
        [0, 0],
    ]
    embeds = torch.randn(2, 2, 8)
    assert positions(inputs_embeds=embeds, attention_mask=torch.tensor([[0, 1], [1, 1]])).tolist()[0] == [
        0,
        0,
    ]
    past = model(["a b", "c"], use_cache=True).past_key_values
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    assert positions(ids[:, :1], attention_mask=mask, past_key_values=past).tolist() == [[2], [1]]


@pytest.mark.parametrize("labels", ["text", "ids"])
def test_the_loss_is_transformers_own(saved: tuple[str, str], labels: str) -> None:
    """S-95: labels pass through."""
    model = text(saved[1])
    with model.trace("a b c", labels="a b c" if labels == "text" else torch.tensor([[2, 3, 4]])):
        loss = model.output.loss
    ids = torch.tensor([[2, 3, 4]])
    assert torch.equal(loss, own(saved[1])(ids, labels=ids).loss)


def test_the_loss_of_a_padded_batch(gpt2: str) -> None:
    """S-95: what fills a row is not counted."""
    model = text(gpt2)
    with model.trace(["a b c d", "e f"], labels=["a b c d", "e f"]):
        loss = model.output.loss
    parts = [model(one, labels=one).loss for one in ("a b c d", "e f")]
    torch.testing.assert_close(loss, (3 * parts[0] + parts[1]) / 4, rtol=1e-4, atol=1e-5)


def test_methods_that_take_no_prompt(gpt2: str) -> None:
    """S-09: they simply run, on what they are given."""
    model = text(gpt2)
    assert model.num_parameters() == own(gpt2).num_parameters()
    assert set(model.state_dict()) == set(own(gpt2).state_dict())
    assert model.eval() is model
    assert model.config.n_layer == 2
    assert model.get_input_embeddings() is model.transformer.wte or model.get_input_embeddings() is not None


def test_a_function_that_takes_token_ids(gpt2: str) -> None:
    """S-36: `fn=` may be a callable; it gets the prompt as ids where it takes them."""
    model = text(gpt2)

    def twice(input_ids: torch.Tensor, **kwargs: Any) -> Any:
        model._module(input_ids)
        return model._module(input_ids).logits

    with model.trace("a b", fn=twice) as tracer:
        seen = [model.lm_head.output.shape for _ in tracer.iter[:]]
    assert len(seen) == 2
    assert tracer.result.shape == (1, 2, 21)


# -- the rest ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [copy.deepcopy, copy.copy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies(gpt2: str, way: Any) -> None:
    """A copy reads, generates and has its tokenizer."""
    model = text(gpt2)
    twin = way(model)
    assert twin.tokenizer.pad_token == "<eos>"
    with twin.generate("a b", max_new_tokens=2, do_sample=False) as tracer:
        token = twin.generator.streamer.output
    assert torch.equal(tracer.result, model.generate("a b", max_new_tokens=2, do_sample=False))
    assert token.shape == (1,)


def test_the_root_outlives_its_last_reference(gpt2: str) -> None:
    """S-96: the root that a child leads to is a language model still."""
    last = text(gpt2).lm_head
    root = last.root
    assert root.tokenizer is not None
    with root.trace("a b"):
        assert last.output.shape == (1, 2, 21)


def test_the_embedded_model() -> None:
    """S-95: loaded by the ordinary path, and it knows."""
    model = il.demo_model()
    assert model.device == torch.device("meta")
    with model.trace(["The capital of France is", "The opposite of hot is"]):
        best = model.lm_head.output[:, -1].argmax(-1)
    assert [model.tokenizer.decode(token) for token in best] == [" Paris", " cold"]
    assert il.demo_model(attn_implementation="eager").config._attn_implementation == "eager"


def test_importing_the_package_leaves_transformers_alone() -> None:
    """Law 7: transformers comes with the first language model."""
    code = (
        "import sys, torch; before = set(sys.modules); import interlace as il\n"
        "assert 'transformers' not in sys.modules and 'tokenizers' not in sys.modules\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "assert not new & {'matplotlib', 'safetensors', 'huggingface_hub', 'tqdm'}, new\n"
        "il.LanguageModel; assert 'transformers' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
