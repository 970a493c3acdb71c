"""Caches and recordings of language models: prompts of several lengths, padding left out (S-84)."""

from pathlib import Path
from typing import Any

import pytest
import torch

import interlace as il
from tests import tiny

pytestmark = pytest.mark.language

TEXTS = ["a b c", "d", "e f g h i", "a a", "p o n m"] * 3


@pytest.fixture(params=list(tiny.SIZES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(name: str) -> Any:
    return il.LanguageModel(tiny.ready(name), tokenizer=tiny.tokenizer())


def alone(model: Any, name: str, text: str) -> torch.Tensor:
    """What the last block gives for one prompt by itself: `pos d_model`."""
    with torch.no_grad(), model.trace(text):
        found = model.get(tiny.BLOCKS[name])[1].output
    hidden: torch.Tensor = found[0] if isinstance(found, tuple) else found
    return hidden[0]


def test_what_is_recorded_of_a_prompt_is_what_it_gives_alone(model: Any, name: str, tmp_path: Path) -> None:
    """Law 3, with no padding kept."""
    site = f"{tiny.BLOCKS[name]}.1"
    acts = model.record(TEXTS, site, tmp_path, batch_size=4, shard_bytes=1500)
    assert acts[site].axes == ("token", "d_model")
    assert len(acts[site]) == sum(len(text.split()) for text in TEXTS)
    for number, text in enumerate(TEXTS):
        row = acts.row(number)
        assert model.tokenizer.decode(row["ids"]).split() == text.split()
        assert torch.allclose(row[f"model.{site}.output"], alone(model, name, text), atol=1e-5)


@pytest.mark.parametrize("positions", [-1, [0, -1], slice(1, None)], ids=str)
def test_positions_of_prompts_are_counted_without_padding(
    model: Any, name: str, tmp_path: Path, positions: Any
) -> None:
    site = f"{tiny.BLOCKS[name]}.1"
    acts = model.record(TEXTS, site, tmp_path, positions=positions, batch_size=4)
    for number, text in enumerate(TEXTS):
        found = acts.row(number)[f"model.{site}.output"]
        assert torch.allclose(found, alone(model, name, text)[positions], atol=1e-5)


def test_prompts_come_in_every_form(model: Any, name: str, tmp_path: Path) -> None:
    site = f"{tiny.BLOCKS[name]}.1"
    listed = [model.tokenizer(text)["input_ids"] for text in TEXTS]
    width = max(map(len, listed))
    padded = [
        {"input_ids": [0] * (width - len(row)) + row, "attention_mask": [0] * (width - len(row)) + [1] * len(row)}
        for row in listed
    ]  # fmt: skip
    forms: list[Any] = [TEXTS, listed, [torch.tensor(row) for row in listed], padded, iter(TEXTS)]
    found = [model.record(rows, site, tmp_path / str(n), batch_size=4) for n, rows in enumerate(forms)]
    for acts in found[1:]:
        assert torch.equal(acts["ids"][:], found[0]["ids"][:])
        assert torch.allclose(acts[site][:], found[0][site][:], atol=1e-5)


def test_prompts_of_one_length_may_be_kept_by_row(model: Any, name: str, tmp_path: Path) -> None:
    site = f"{tiny.BLOCKS[name]}.1"
    acts = model.record(["a b c", "d e f"], [site, tiny.head(model)], tmp_path, by="row")
    assert acts[site].axes == ("row", "pos", "d_model")
    assert acts[tiny.head(model).path].axes == ("row", "pos", "d_vocab")
    with pytest.raises(il.errors.InputError, match=r'(?s)positions and row .*`by="token"`'):
        model.record(["a b c", "d e"], site, tmp_path / "other", by="row")


def test_every_module_may_be_recorded(model: Any, name: str, tmp_path: Path) -> None:
    """Those that give no value of each token, such as embeddings of positions, are left out."""
    acts = model.record(TEXTS, None, tmp_path, batch_size=3)
    block = f"{tiny.BLOCKS[name]}.1"
    assert {"model.output", f"{tiny.head(model).path}.output", f"model.{block}.output"} <= set(acts)
    for number, text in enumerate(TEXTS):
        assert torch.allclose(acts.row(number)[f"model.{block}.output"], alone(model, name, text), atol=1e-5)
    assert not {"model.transformer.wpe.output", "model.model.rotary_emb.output"} & set(acts)


def test_a_folder_of_a_killed_recording_goes_on(model: Any, name: str, tmp_path: Path) -> None:
    how: dict[str, Any] = {"batch_size": 2, "shard_bytes": 700}
    site = f"{tiny.BLOCKS[name]}.1"
    whole = model.record(TEXTS, site, tmp_path / "whole", **how)
    model.record(TEXTS[:7], site, tmp_path / "broken", **how)
    again = model.record(TEXTS, site, tmp_path / "broken", **how)
    assert torch.equal(again["ids"][:], whole["ids"][:])
    assert torch.allclose(again[site][:], whole[site][:], atol=1e-5)


def test_every_token_of_a_generation_is_in_a_cache(model: Any, name: str, tmp_path: Path) -> None:
    site = f"{tiny.BLOCKS[name]}.*.mlp"
    with model.generate("a b c", max_new_tokens=4, do_sample=False, eos_token_id=None) as tracer:
        memory = tracer.cache(site)
        disk = tracer.cache(site, to=tmp_path, shard_bytes=300)
        last = tracer.cache("mlp", positions=-1)
        everything = tracer.cache(to=tmp_path / "all")
    assert len(memory) == 2
    for path in memory:
        assert [out.shape[1] for out in memory[path].output] == [3, 1, 1, 1]
        assert all(torch.equal(a, b) for a, b in zip(memory[path].output, disk[path].output, strict=True))
        assert {tuple(out.shape) for out in last[path].output} == {(1, 8)}
    assert everything.generator.output.shape == (1, 7)
    assert len(everything.generator.streamer.output) == 4


def test_weights_come_when_they_are_needed(tmp_path: Path) -> None:
    where = tiny.save("gpt2", tmp_path / "model")
    lazy = il.LanguageModel(where)
    acts = lazy.record(TEXTS[:3], "transformer.h.*", tmp_path / "acts")
    ready: Any = il.LanguageModel(tiny.ready("gpt2"), tokenizer=tiny.tokenizer())
    assert torch.allclose(
        acts.row(0)["model.transformer.h.1.output"], alone(ready, "gpt2", TEXTS[0]), atol=1e-5
    )
    late = il.LanguageModel(where)
    with late.trace() as tracer:
        cache = tracer.cache("mlp")
        with tracer.invoke("a b"):
            pass
    assert cache.transformer.h[1].mlp.output.device.type == "cpu"
