"""Prompts of different lengths in one forward and in one generation: laws 3 and 6, S-72, S-80, S-81, S-86."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import RobertaConfig, RobertaForMaskedLM, T5Config, T5ForConditionalGeneration

import interlace as il
from interlace.errors import InputError, NotReachedError
from tests.tiny import WORDS, save, tokenizer

pytestmark = [pytest.mark.language, pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers")]

SHORT, LONG = "a b", "c d e f a b"
PAIR = ["b c d", "a f e"]


@pytest.fixture(scope="module", params=["gpt2", "llama", "neox"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.manual_seed(0)
    path = save(request.param, tmp_path_factory.mktemp(request.param))
    return il.LanguageModel(path, dispatch=True, attn_implementation="eager")


def close(found: object, expected: object) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_rows_without_padding_are_what_the_prompt_has_alone(model: Any) -> None:
    """S-72, law 3: text and lists of text; tokens, hidden states, logits, attention patterns, gradients."""
    prompts = [SHORT, LONG, PAIR]
    embed = model._module.get_input_embeddings()
    site = next(envoy for envoy in model.modules() if envoy._module is embed)

    def study(tracer: Any) -> list[torch.Tensor]:
        hidden = site.output
        logits = tracer.unpadded(model.output.logits)
        pattern = tracer.unpadded(model.output.attentions[1], -2, -1)
        (grad,) = torch.autograd.grad(logits[:, -1].square().sum(), hidden, retain_graph=True)
        return [tracer.unpadded(hidden), logits, pattern, tracer.unpadded(grad)]

    found: list[list[torch.Tensor]] = []
    with model.trace(output_attentions=True) as tracer:
        for prompt in prompts:
            tracer.invoke(prompt)(lambda: found.append(study(tracer)))
    for prompt, own in zip(prompts, found, strict=True):
        with model.trace(prompt, output_attentions=True) as tracer:
            expected = study(tracer)
        for mine, theirs in zip(own, expected, strict=True):
            close(mine, theirs)


@pytest.mark.parametrize("given", ["input_ids", "a mapping", "inputs_embeds"])
def test_prompts_that_came_without_a_mask_do_not_see_their_padding(model: Any, given: str) -> None:
    """Law 3, S-71: also beside one that has a mask, in a forward and in a generation."""
    short, long = torch.tensor([[2, 3]]), torch.tensor([[4, 5, 6, 7]])
    masked = {"input_ids": torch.tensor([[8, 9, 3]]), "attention_mask": torch.tensor([[0, 1, 1]])}
    embed = model._module.get_input_embeddings()

    def open_for(tracer: Any, ids: torch.Tensor) -> Any:
        if given == "a mapping":
            return tracer.invoke({"input_ids": ids})
        return tracer.invoke(**{given: embed(ids) if given == "inputs_embeds" else ids})

    settings = {"do_sample": False, "max_new_tokens": 3, "pad_token_id": 0, "eos_token_id": None}
    with torch.no_grad():
        with model.trace() as tracer:
            with open_for(tracer, short):
                logits = tracer.unpadded(model.output.logits)
            with open_for(tracer, long):
                other = model.output.logits
        close(logits, model._module(short).logits)
        close(other, model._module(long).logits)
        if given == "inputs_embeds":
            return  # transformers gives back what was generated alone
        with model.trace() as tracer:
            with open_for(tracer, short):
                beside = tracer.unpadded(model.output.logits)
            with tracer.invoke(masked):
                pass
        close(beside, logits)
        with model.generate(**settings) as tracer:
            with open_for(tracer, short):
                ids = tracer.unpadded(tracer.result)
            with open_for(tracer, long):
                pass
        assert ids.tolist() == model.generate(short, **settings).tolist()


@pytest.mark.parametrize("other", ["d e f", "d"])
def test_positions_that_were_given_are_kept(model: Any, other: str) -> None:
    """Law 3, S-95: beside a prompt of the same length, and a shorter one, that has none of its own."""
    ids, own = torch.tensor([[2, 3, 4], [5, 6, 7]]), torch.tensor([[5, 6, 9]])
    with torch.no_grad():
        with model.trace() as tracer:
            with tracer.invoke(input_ids=ids, position_ids=own):
                given = model.output.logits
            with tracer.invoke(other):
                usual = tracer.unpadded(model.output.logits)
        close(given, model._module(ids, position_ids=own).logits)
        with model.trace(other):
            expected = model.output.logits
        close(usual, expected)


def test_positions_of_a_model_that_counts_them_from_its_padding() -> None:
    """Law 3: RoBERTa counts from the number of its padding; texts in one batch, and in prompts of their own."""
    config = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    module = RobertaForMaskedLM(
        RobertaConfig(vocab_size=len(WORDS), max_position_embeddings=32, **config)
    ).eval()
    roberta = il.LanguageModel(module, tokenizer=tokenizer())
    with torch.no_grad():
        alone = [module(torch.tensor([roberta.tokenizer.encode(text)])).logits for text in (SHORT, LONG)]
        with roberta.trace([SHORT, LONG]):
            batch = roberta.output.logits
        with roberta.trace() as tracer:
            with tracer.invoke(SHORT):
                short = tracer.unpadded(roberta.output.logits)
            with tracer.invoke(LONG):
                long = roberta.output.logits
    close(batch[:1, -2:], alone[0])
    close(batch[1:], alone[1])
    close(short, alone[0])
    close(long, alone[1])


@pytest.mark.parametrize("grad", [False, True])
def test_an_edit_without_padding_reaches_the_model(model: Any, grad: bool) -> None:
    """S-72, law 3: in both forms, with gradients through it."""
    embed = model._module.get_input_embeddings()
    site = next(envoy for envoy in model.modules() if envoy._module is embed)
    scale = torch.tensor(3.0, requires_grad=grad)

    def edit(tracer: Any) -> None:
        hidden = tracer.unpadded(site.output)
        hidden[:, 0] = hidden[:, 0].clone() * scale  # the first token of the prompt, wherever it stands
        hidden[:, 1:] *= 0.5

    with torch.set_grad_enabled(grad):
        with model.trace(SHORT) as tracer:
            edit(tracer)
            expected = model.output.logits[:, -1]
        with model.trace() as tracer:
            with tracer.invoke(SHORT):
                hidden = tracer.unpadded(site.output)
                hidden[:, 0] = hidden[:, 0].clone() * scale
                hidden[:, 1:] *= 0.5
                captured = model.output.logits[:, -1]
            with tracer.invoke(LONG):
                other = model.output.logits[:, -1]

            @tracer.invoke(SHORT)  # type: ignore[untyped-decorator]
            def function() -> torch.Tensor:
                edit(tracer)
                return model.output.logits[:, -1]  # type: ignore[no-any-return]

        with model.trace(LONG):
            clean = model.output.logits[:, -1]
        close(captured, expected)
        close(function, expected)
        close(other, clean)
        if grad:
            alone, first, second = (
                torch.autograd.grad(logits.square().sum(), scale, retain_graph=True)[0]
                for logits in (expected, captured, function)
            )
            close(first, alone)
            close(second, alone)


def test_elsewhere_there_is_no_padding(model: Any) -> None:
    """S-72: one prompt, the whole batch, the trace's own block; a value that is no tensor is refused."""
    with model.trace() as tracer:
        with tracer.invoke(SHORT):
            alone = tracer.unpadded(model.output.logits).shape
    with model.trace() as tracer:
        tracer.invoke(SHORT)(lambda: None)
        tracer.invoke(LONG)(lambda: None)
        with tracer.invoke():
            everything = tracer.unpadded(model.output.logits)
        own = model.output.logits
        assert tracer.unpadded(own) is own
        with pytest.raises(TypeError, match="one tensor, not tuple"):
            tracer.unpadded((own,))
    assert alone[:2] == (1, 2)
    assert everything.shape[:2] == (2, 6)


def ending(model: Any) -> tuple[list[int], dict[str, Any]]:
    """A short prompt, and settings under which it ends before the long one does."""
    settings = {"do_sample": False, "max_new_tokens": 5, "pad_token_id": 0}
    long = model.generate(LONG, eos_token_id=None, **settings)[0, 6:].tolist()
    for token in range(2, 12):
        short = model.generate([token], eos_token_id=None, **settings)[0, 1:4].tolist()
        ends = [end for end in short if end not in long]
        if ends:
            return [token], {**settings, "eos_token_id": ends[0]}
    raise AssertionError("every prompt generates the same")


@pytest.mark.parametrize("form", ["with", "function"])
def test_a_generation_of_several_prompts_is_each_ones_own(model: Any, form: str) -> None:
    """Laws 3 and 6: steps, values, tokens and results, those of rows that finish early included."""
    short, settings = ending(model)

    def study(tracer: Any) -> tuple[list[int], list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
        steps, logits, tokens = [], [], []
        for step in tracer.iter[:]:
            steps.append(step)
            logits.append(model.output.logits[:, -1])
            tokens.append(model.generator.streamer.output)
        return steps, logits, tokens, tracer.unpadded(tracer.result)

    found: list[Any] = []
    with model.generate(**settings) as tracer:
        if form == "function":
            for prompt in (short, LONG):
                tracer.invoke(prompt)(lambda: found.append(study(tracer)))
        else:
            for prompt in (short, LONG):
                with tracer.invoke(prompt):
                    found.append(study(tracer))
        with tracer.invoke():
            count = sum(model.output is not None for _ in tracer.iter[:])
    found.sort(key=lambda own: own[3].shape[1])
    lengths = []
    prompts: list[Any] = [short, LONG]
    for prompt, own in zip(prompts, found, strict=True):
        with model.generate(prompt, **settings) as tracer:
            expected = study(tracer)
        assert own[0] == expected[0]
        close(own[1], expected[1])
        assert [token.tolist() for token in own[2]] == [token.tolist() for token in expected[2]]
        assert own[3].tolist() == expected[3].tolist()
        lengths.append(len(own[0]))
    assert lengths[0] < lengths[1] == count


def test_a_prompt_that_has_ended_has_no_later_steps(model: Any) -> None:
    """Law 6: `next` says so; the code after a loop runs, and what comes last can be read."""
    short, settings = ending(model)
    with model.generate(short, **settings) as tracer:
        alone = sum(1 for _ in tracer.iter[:])
    with pytest.raises(NotReachedError, match="this prompt ended before, while others went on"):
        with model.generate(**settings) as tracer:
            with tracer.invoke(short):
                for _ in tracer.iter[:9]:
                    last = model.output.logits
                ids = model.generator.output
                tracer.next(alone)
            with tracer.invoke(LONG):
                pass
    assert last.shape[0] == 1
    assert ids.shape[0] == 1


def test_edits_in_steps_touch_one_prompt_only(model: Any) -> None:
    """Law 3: step by step, one prompt steered and another not."""
    settings = {"do_sample": False, "max_new_tokens": 4, "pad_token_id": 0, "eos_token_id": None}
    head = model._module.get_output_embeddings()
    site = next(envoy for envoy in model.modules() if envoy._module is head)
    plain = model.generate(LONG, **settings)[0, 6:].tolist()
    with model.generate(**settings) as tracer:
        with tracer.invoke(SHORT):
            for step in tracer.iter[1:3]:
                site.output[:, -1] = 0
                site.output[:, -1, step + 2] = 9
            steered = tracer.unpadded(tracer.result)
        with tracer.invoke(LONG):
            clean = tracer.unpadded(tracer.result)
    assert steered[0, 3:5].tolist() == [3, 4]
    assert clean[0, 6:].tolist() == plain


@pytest.mark.parametrize("given", ["text", "ids"])
def test_the_loss_does_not_count_what_follows_padding(model: Any, given: str) -> None:
    """Law 3, S-95: with labels of several prompts, transformers' loss is the mean over what each alone would count."""

    def labels(text: str) -> Any:
        return text if given == "text" else torch.tensor([model.tokenizer.encode(text)])

    with torch.no_grad():
        with model.trace() as tracer:
            for text in (SHORT, LONG):
                tracer.invoke(text, labels=labels(text))(lambda: None)
            loss = model.output.loss
        parts = [(model(text, labels=text).loss, len(text.split()) - 1) for text in (SHORT, LONG)]
    close(loss, sum(part * count for part, count in parts) / sum(count for _, count in parts))


def test_what_a_decoder_writes_is_not_padded_with_what_its_encoder_reads() -> None:
    """Law 3: labels of an encoder-decoder have a length of their own."""
    torch.manual_seed(0)
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2}
    module = T5ForConditionalGeneration(
        T5Config(vocab_size=len(WORDS), decoder_start_token_id=0, **sizes)
    ).eval()
    t5 = il.LanguageModel(module, tokenizer=tokenizer())
    first, second = torch.tensor([[2, 3, 4]]), torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        with t5.trace() as tracer:
            with tracer.invoke(SHORT, labels=first):
                short = t5.output.logits
            with tracer.invoke(LONG, labels=second):
                long = t5.output.logits
        for text, labels, found in ((SHORT, first, short), (LONG, second, long)):
            close(found, module(torch.tensor([t5.tokenizer.encode(text)]), labels=labels).logits)
        with t5.trace([SHORT, LONG], labels=["b c d", "e"]):
            loss = t5.output.loss
        parts = [
            module(torch.tensor([t5.tokenizer.encode(text)]), labels=labels).loss * labels.shape[1]
            for text, labels in ((SHORT, first + 1), (LONG, torch.tensor([t5.tokenizer.encode("e")])))
        ]
        close(loss, sum(parts) / 4)
        with pytest.raises(InputError, match=r"cannot be combined: `labels` is Tensor\(1, 3\)"):
            with t5.trace() as tracer:
                for text, labels in ((SHORT, first), (LONG, second[:, :2])):
                    tracer.invoke(text, labels=labels)(lambda: None)


BEAMS: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 3},
    "all beams": {"num_beams": 3, "num_return_sequences": 3},
    "some beams": {"num_beams": 4, "num_return_sequences": 2},
    "samples": {"num_return_sequences": 2, "do_sample": True, "top_k": 1},
}


@pytest.mark.parametrize("form", ["with", "function"])
@pytest.mark.parametrize("kind", BEAMS)
def test_every_beam_of_a_prompt_is_its_own(model: Any, kind: str, form: str) -> None:
    """Law 3, S-72: steps and results of its rows only, and an edit reaches no other's."""
    settings = {
        "max_new_tokens": 3,
        "pad_token_id": 0,
        "eos_token_id": None,
        "do_sample": False,
        **BEAMS[kind],
    }
    head = model._module.get_output_embeddings()
    site = next(envoy for envoy in model.modules() if envoy._module is head)

    def study(tracer: Any, edits: bool) -> tuple[list[torch.Tensor], torch.Tensor]:
        seen = []
        for _ in tracer.iter[:]:
            if edits:
                site.output[..., 7] = 50
            seen.append(site.output[:, -1].clone())
        return seen, tracer.unpadded(tracer.result)

    found: list[Any] = [None, None, None]
    prompts = [(SHORT, False), (LONG, True), (SHORT, False)]
    with model.generate(**settings) as tracer:
        for n, (prompt, edits) in enumerate(prompts):
            if form == "with":
                with tracer.invoke(prompt):
                    found[n] = study(tracer, edits)
            else:

                def block(n: int = n, edits: bool = edits) -> None:
                    found[n] = study(tracer, edits)

                tracer.invoke(prompt)(block)
        with tracer.invoke():
            rows = tracer.result.shape[0]
    for (prompt, edits), own in zip(prompts, found, strict=True):
        with model.generate(prompt, **settings) as tracer:
            expected = study(tracer, edits)
        close(own[0], expected[0])
        assert own[1].tolist() == expected[1].tolist()
    assert found[1][1][0, -3:].tolist() == [7, 7, 7]
    assert rows == 3 * settings.get("num_return_sequences", 1)


def test_a_part_is_skipped_for_every_beam_of_a_prompt(model: Any) -> None:
    """Law 3, S-31: one prompt skips its rows, the others run."""
    settings = {
        "max_new_tokens": 2,
        "pad_token_id": 0,
        "eos_token_id": None,
        "do_sample": False,
        "num_beams": 2,
    }
    head = model._module.get_output_embeddings()
    site = next(envoy for envoy in model.modules() if envoy._module is head)

    def skip(tracer: Any) -> torch.Tensor:
        for _ in tracer.iter[:]:
            logits = torch.zeros(*site.input.shape[:2], head.weight.shape[0])
            logits[..., 9] = 5
            site.skip(logits)
        return tracer.unpadded(tracer.result)  # type: ignore[no-any-return]

    with model.generate(**settings) as tracer:
        with tracer.invoke(SHORT):
            skipped = skip(tracer)
        with tracer.invoke(LONG):
            other = tracer.unpadded(tracer.result)
    assert skipped[0, -2:].tolist() == [9, 9]
    with model.generate(LONG, **settings) as tracer:
        pass
    assert other.tolist() == tracer.result.tolist()
