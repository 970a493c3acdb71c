"""Generation: the same tokens, step by step, read and changed (S-09, S-10, S-81, S-83, S-86, S-95)."""

import copy
import warnings
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
)
from transformers.generation.streamers import BaseStreamer

import interlace as il
from interlace.errors import InterlaceWarning, NotReachedError
from tests.tiny import BLOCKS, head, save

pytestmark = [pytest.mark.language, pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers")]

GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 5, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture(scope="module", params=["gpt2", "llama", "neox"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return request.param, save(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A GPT-2, loaded."""
    return il.LanguageModel(save("gpt2", tmp_path_factory.mktemp("gpt2")), dispatch=True)


IDS = torch.tensor([[2, 3, 4]])
MASK = torch.ones_like(IDS)


def theirs(model: Any, **kwargs: Any) -> Any:
    """What plain transformers generates."""
    return model._module.generate(IDS, attention_mask=MASK, **{**GREEDY, **kwargs})


def test_the_same_tokens(saved: tuple[str, str]) -> None:
    """S-95, S-86: token for token, traced or plain, alone or in a padded batch."""
    path = saved[1]
    model: Any = il.LanguageModel(path)
    plain = AutoModelForCausalLM.from_pretrained(path)
    expected = plain.generate(IDS, attention_mask=MASK, **GREEDY)
    with model.generate("a b c", **GREEDY) as tracer:
        first = head(model).output[:, -1].argmax(-1)
    assert torch.equal(tracer.result, expected)
    assert first == expected[0, 3]
    assert torch.equal(model.generate("a b c", **GREEDY), expected)

    batch = model.tokenizer(["a b c", "d"], padding=True, padding_side="left", return_tensors="pt")
    batch.pop("token_type_ids", None)
    with model.generate(["a b c", "d"], **GREEDY) as tracer:
        pass
    assert torch.equal(tracer.result, plain.generate(**batch, **GREEDY))


def test_padding_in_a_tensor_is_found_by_transformers(model: Any) -> None:
    """S-95: a tensor without a mask is handed over as it is."""
    ids = torch.tensor([[1, 1, 2], [2, 3, 4]])
    settings = {**GREEDY, "pad_token_id": 1}
    with model.generate(ids, **settings) as tracer:
        pass
    assert torch.equal(tracer.result, model._module.generate(ids, **settings))


def test_steps(model: Any) -> None:
    """S-81, S-95: logits and chosen tokens, step by step; the streamer's site does not show the prompt."""
    expected = theirs(model, output_logits=True, return_dict_in_generate=True)
    logits, tokens, steps = [], [], []
    with model.generate("a b c", **GREEDY) as tracer:
        for step in tracer.iter[:]:
            steps.append(step)
            logits.append(model.lm_head.output[:, -1])
            tokens.append(model.generator.streamer.output)
        result = tracer.result
    assert steps == [0, 1, 2, 3, 4]
    assert torch.equal(torch.stack(tokens, 1), expected.sequences[:, 3:])
    for seen, logit in zip(logits, expected.logits, strict=True):
        assert torch.equal(seen, logit)
    assert torch.equal(result, expected.sequences)


def test_steps_of_a_model_that_is_not_loaded_yet(saved: tuple[str, str]) -> None:
    """S-20, S-81: loading inside of `with` leaves the steps right."""
    name, path = saved
    model: Any = il.LanguageModel(path)
    block = model.get(f"{BLOCKS[name]}.0")
    with model.generate("a b c", **GREEDY) as tracer:
        shapes = [block.input.shape[1] for _ in tracer.iter[:]]
    assert shapes == [3, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("which", "steps"),
    [
        (slice(1, 3), [1, 2]),
        (2, [2]),
        ([0, 3], [0, 3]),
        (slice(None, None, 2), [0, 2, 4]),
        (slice(3, 99), [3, 4]),
    ],
    ids=str,
)
def test_some_steps(model: Any, which: Any, steps: list[int]) -> None:
    """S-81"""
    with model.generate("a b c", **GREEDY) as tracer:
        tokens = [(step, int(model.generator.streamer.output)) for step in tracer.iter[which]]
    assert tokens == [(step, int(theirs(model)[0, 3 + step])) for step in steps]


def test_steps_beyond_the_end(model: Any) -> None:
    """Law 6: ten asked for, the model stops at three; the code after the loop runs."""
    seen, after = {}, False
    with model.generate("a b c", **{**GREEDY, "max_new_tokens": 3}) as tracer:
        for step in tracer.iter[:10]:
            seen[step] = model.transformer.h[1].output
        after = True
        length = tracer.result.shape[1]
    assert list(seen) == [0, 1, 2]
    assert after
    assert length == 6


def test_an_early_end(model: Any) -> None:
    """Law 6: the model chooses its end-of-text token."""
    end = int(theirs(model)[0, 4])
    settings = {**GREEDY, "eos_token_id": end}
    with model.generate("a b c", **settings) as tracer:
        steps = list(tracer.all())
    assert torch.equal(tracer.result, theirs(model, eos_token_id=end))
    assert len(steps) == tracer.result.shape[1] - 3 <= 2


def test_next(model: Any) -> None:
    """S-81: `tracer.next()` without a loop."""
    with model.generate("a b c", **GREEDY) as tracer:
        first = model.generator.streamer.output
        tracer.next()
        second = model.generator.streamer.output
        with pytest.raises(NotReachedError):
            tracer.next(9)
    assert [int(first), int(second)] == theirs(model)[0, 3:5].tolist()


def test_the_output_of_the_generator(model: Any) -> None:
    """S-95: without a loop, and after one that ends before the model does."""
    with model.generate("a b c", **GREEDY) as tracer:
        out = model.generator.output
    assert out is tracer.result
    with model.generate("a b c", **GREEDY) as tracer:
        for _ in tracer.iter[:2]:
            model.lm_head.wait_for_output()
        later = model.generator.output
    assert torch.equal(later, out)
    assert torch.equal(out, theirs(model))


def test_replacing_the_output_of_the_generator(model: Any) -> None:
    """S-24, S-86"""
    with model.generate("a b c", **GREEDY) as tracer:
        model.generator.output = torch.zeros_like(model.generator.output)
    assert not tracer.result.any()


def test_edits_change_the_generation(model: Any) -> None:
    """S-95: steps are edited one by one, as a logits processor of transformers would."""

    class Banned(LogitsProcessor):  # type: ignore[misc]
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            if input_ids.shape[1] in (4, 5):
                scores = scores.index_fill(1, banned, -torch.inf)
            return scores

    banned = theirs(model)[0, 4:5]
    with model.generate("a b c", **GREEDY) as tracer:
        for _ in tracer.iter[1:3]:
            model.lm_head.output[:, -1, banned] = -torch.inf
    expected = theirs(model, logits_processor=LogitsProcessorList([Banned()]))
    assert torch.equal(tracer.result, expected)
    assert not torch.equal(tracer.result, theirs(model))


def test_an_edit_in_a_block_equals_a_hook(saved: tuple[str, str]) -> None:
    """Law 2, in every step."""
    name, path = saved
    model: Any = il.LanguageModel(path, dispatch=True)
    mlp = model.get(f"{BLOCKS[name]}.0.mlp")
    with model.generate("a b c", **GREEDY) as tracer:
        for _ in tracer.iter[:]:
            mlp.output[:] = mlp.output * -2
    hook = mlp._module.register_forward_hook(lambda module, args, output: output * -2)
    expected = theirs(model)
    hook.remove()
    assert torch.equal(tracer.result, expected)


def test_stop(model: Any) -> None:
    """S-83: what was read stays, and the statements after it run."""
    with model.generate("a b c", **GREEDY) as tracer:
        tokens, after = [], False
        for step in tracer.iter[:]:
            tokens.append(int(model.generator.streamer.output))
            if step == 1:
                tracer.stop()
                break
        after = True
    assert after
    assert tokens == theirs(model)[0, 3:5].tolist()
    assert torch.equal(model.generate("a b c", **GREEDY), theirs(model))


# -- what generate accepts ---------------------------------------------------------------------------------


class Enough(StoppingCriteria):  # type: ignore[misc]
    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        return torch.full((input_ids.shape[0],), input_ids.shape[1] >= 5)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 3},
        {"num_return_sequences": 4, "do_sample": True},
        {"do_sample": True, "temperature": 2.0, "top_k": 5},
        {"stopping_criteria": StoppingCriteriaList([Enough()])},
        {"repetition_penalty": 1.5},
        {"use_cache": False},
        {"return_dict_in_generate": True, "output_scores": True, "output_hidden_states": True},
        {"disable_compile": True},
        {"prompt_lookup_num_tokens": 2, "eos_token_id": 0},
    ],
    ids="-".join,
)
def test_settings_of_generate(model: Any, settings: dict[str, Any]) -> None:
    """S-95: all pass through."""
    torch.manual_seed(3)
    expected = theirs(model, **settings)
    torch.manual_seed(3)
    with model.generate("a b c", **{**GREEDY, **settings}) as tracer:
        shape = model.lm_head.output.shape
    assert shape[-1] == 21
    found = tracer.result
    if not isinstance(expected, torch.Tensor):
        assert torch.equal(found.scores[2], expected.scores[2])
        found, expected = found.sequences, expected.sequences
    assert torch.equal(found, expected)


def test_a_generation_config(model: Any) -> None:
    """S-95: taken as it is, and left as it was; beams in it too."""
    config = GenerationConfig(**{**GREEDY, "num_beams": 2})
    before = config.to_dict()
    expected = model._module.generate(IDS, attention_mask=MASK, generation_config=copy.deepcopy(config))
    with model.generate("a b c", generation_config=config) as tracer:
        pass
    assert torch.equal(tracer.result, expected)
    assert config.to_dict() == before


def test_an_assistant(model: Any) -> None:
    """S-95: a second model that drafts."""
    drafts = copy.deepcopy(model._module)
    expected = theirs(model, assistant_model=copy.deepcopy(drafts))
    with model.generate("a b c", assistant_model=drafts, **GREEDY) as tracer:
        model.lm_head.wait_for_output()
    assert torch.equal(tracer.result, expected)


def test_a_streamer_of_the_users_own(model: Any) -> None:
    """S-95: it gets the prompt, every token, and the end."""

    class Kept(BaseStreamer):  # type: ignore[misc]
        def __init__(self) -> None:
            self.got: list[Any] = []

        def put(self, value: torch.Tensor) -> None:
            self.got.append(value.tolist())

        def end(self) -> None:
            self.got.append("end")

    alone, traced = Kept(), Kept()
    theirs(model, streamer=alone)
    with model.generate("a b c", streamer=traced, **GREEDY) as tracer:
        tokens = [model.generator.streamer.output.tolist() for _ in tracer.iter[:]]
    assert traced.got == alone.got
    assert tokens == alone.got[1:-1]


def test_text_is_streamed_as_ever(model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with model.generate("a b c", streamer=TextStreamer(model.tokenizer), **GREEDY):
        pass
    assert capsys.readouterr().out.startswith("a b c")


def test_without_a_prompt(model: Any) -> None:
    """S-95: `generate` begins with the first token of the model, as without us."""
    settings = {**GREEDY, "bos_token_id": 2}
    with model.generate(**settings) as tracer:
        pass
    assert torch.equal(tracer.result, model._module.generate(**settings))
    assert torch.equal(model.generate(input_ids=IDS, attention_mask=MASK, **GREEDY), theirs(model))
    assert torch.equal(model.generate(inputs=IDS, attention_mask=MASK, **GREEDY), theirs(model))


@pytest.mark.parametrize("how", ["argument", "config"])
def test_a_static_cache_runs_uncompiled(model: Any, how: str) -> None:
    """A warning says so, once; a plain generation is left alone."""
    model = il.LanguageModel(model._module, tokenizer=model.tokenizer)
    settings = {**GREEDY, "cache_implementation": "static"}
    if how == "config":
        settings = {"generation_config": GenerationConfig(**settings)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = model.generate("a b c", **settings)
    with (
        pytest.warns(InterlaceWarning, match="runs uncompiled"),
        model.generate("a b c", **settings) as tracer,
    ):
        count = len([model.lm_head.output for _ in tracer.iter[:]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with model.generate("a b c", **settings) as again:
            pass
    assert count == 5
    assert torch.equal(tracer.result, plain)
    assert torch.equal(again.result, plain)


# -- ways to open it ---------------------------------------------------------------------------------------


def test_by_name(model: Any) -> None:
    """S-09, S-36: where no `with` follows, `fn=` says what to run."""
    for fn in ("generate", model.generate):
        with model.trace("a b c", fn=fn, **GREEDY) as tracer:
            tokens = [int(model.generator.streamer.output) for _ in tracer.iter[:]]
        assert tokens == theirs(model)[0, 3:].tolist()
        assert torch.equal(tracer.result, theirs(model))


def test_on_standard_input(model: Any) -> None:
    """S-09: no source is needed."""
    found: dict[str, Any] = {"model": model, "settings": GREEDY}
    code = "with model.generate('a b c', **settings) as tracer:\n    out = model.generator.output\n"
    exec(compile(code, "<stdin>", "exec"), found)
    assert torch.equal(found["out"], theirs(model))


@pytest.mark.parametrize("spelling", ["__interlace_generate__", "__nnsight_generate__"])
def test_an_override(model: Any, spelling: str) -> None:
    """S-10: a subclass says what `generate` runs."""

    def short(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._module.generate(*args, **{**kwargs, "max_new_tokens": 1})

    base = il.LanguageModel if spelling.startswith("__interlace") else il.Model
    cls: Any = type("Short", (base,), {spelling: short})
    own = cls(model._module)
    with own.generate(input_ids=IDS, attention_mask=MASK, **GREEDY) as tracer:
        logits = own.lm_head.output
    assert tracer.result.shape == (1, 4)
    assert logits.shape == (1, 1, 21)
    assert own.generate(input_ids=IDS, attention_mask=MASK, **GREEDY).shape == (1, 4)


def test_grad_mode_of_the_block(model: Any) -> None:
    """Law 8: `generate` runs without grad; the block does not."""
    with model.generate("a b c", **GREEDY):
        out = model.lm_head.output
        inside = torch.is_grad_enabled()
    assert inside
    assert not out.requires_grad


def test_generations_do_not_mix(model: Any) -> None:
    """Law 9: one inside another."""
    with model.generate("a b c", **GREEDY) as outer:
        tokens = []
        for step in outer.iter[:]:
            tokens.append(int(model.generator.streamer.output))
            if step == 2:
                with model.generate("d", **GREEDY) as inner:
                    pass
    assert tokens == theirs(model)[0, 3:].tolist()
    assert torch.equal(inner.result, model.generate("d", **GREEDY))


def test_text_streams_nowhere_by_itself(model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with model.generate("a b c", **GREEDY):
        pass
    assert capsys.readouterr().out == ""
