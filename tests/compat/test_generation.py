"""Generation and iteration, in the forms of nnsight's documentation."""

from typing import Any

import pytest
import torch

from tests.compat.hooks import changed, encoded, first, outputs

pytestmark = pytest.mark.language

LONG = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}


@pytest.fixture
def alone(lm: Any) -> Any:
    """The ids that are generated without a trace, and the output of the head in each step."""
    with outputs(lm._module.lm_head) as seen:
        made = lm._module.generate(**encoded("a b c"), pad_token_id=0, **LONG)
    return made, seen


def test_the_result(lm: Any, alone: Any) -> None:
    with lm.generate("a b c", **LONG) as tracer:
        ids = lm.generator.output.save()
    assert torch.equal(ids, alone[0])
    assert torch.equal(tracer.result, alone[0])
    with lm.generate("a b c", **LONG) as tracer:
        out = tracer.result.save()
    assert torch.equal(out, alone[0])
    assert torch.equal(lm.generate("a b c", **LONG), alone[0])


def test_steps(lm: Any, alone: Any) -> None:
    with lm.generate("a b c", **LONG) as tracer:
        logits = list().save()  # noqa: C408
        for _ in tracer.iter[:]:
            logits.append(lm.lm_head.output)
        after = lm.generator.output.save()
    assert len(logits) == 3
    for one, other in zip(logits, alone[1], strict=True):
        assert torch.equal(one, other)
    assert torch.equal(after, alone[0])


@pytest.mark.parametrize("which", [slice(1, 3), [0, 2], 1], ids=str)
def test_some_steps(lm: Any, alone: Any, which: Any) -> None:
    with lm.generate("a b c", **LONG) as tracer:
        found = {}
        for step in tracer.iter[which]:
            found[step] = lm.lm_head.output.save()
    chosen = range(3)[which] if isinstance(which, slice) else [which] if isinstance(which, int) else which
    assert list(found) == list(chosen)
    for step, logits in found.items():
        assert torch.equal(logits, alone[1][step])


def test_the_older_form(lm: Any, alone: Any) -> None:
    logits, steps = [], []
    with pytest.warns(DeprecationWarning, match="is an old form"), lm.generate("a b c", **LONG) as tracer:
        with tracer.iter[:2] as step:
            logits.append(lm.lm_head.output)
            steps.append(step)
    assert steps == [0, 1]
    assert torch.equal(logits[1], alone[1][1])
    every = []
    with pytest.warns(DeprecationWarning, match="is an old form"), lm.generate("a b c", **LONG) as tracer:
        with tracer.all():
            every.append(lm.lm_head.output.save())
    assert len(every) == 3
    assert torch.equal(every[2], alone[1][2])


def test_going_to_the_next_step(lm: Any, alone: Any) -> None:
    with lm.generate("a b c", **LONG) as tracer:
        one = lm.lm_head.output.save()
        tracer.next()
        two = lm.lm_head.output.save()
        tracer.next()
        three = lm.lm_head.output.save()
    for found, want in zip((one, two, three), alone[1], strict=True):
        assert torch.equal(found, want)
    with pytest.warns(DeprecationWarning, match="is an old name"), lm.generate("a b c", **LONG):
        one = lm.lm_head.output.save()
        two = lm.lm_head.next().output.save()
    assert torch.equal(one, alone[1][0])
    assert torch.equal(two, alone[1][1])


def test_steps_of_an_envoy(lm: Any, alone: Any) -> None:
    with pytest.warns(DeprecationWarning, match="is an old name"), lm.generate("a b c", **LONG):
        found = []
        for _ in lm.lm_head.all():
            found.append(lm.lm_head.output.save())
    assert torch.equal(found[2], alone[1][2])


def test_steering_every_step(lm: Any) -> None:
    direction = torch.linspace(-3, 3, 8)

    def steer(out: Any) -> Any:
        return (first(out) + direction, *out[1:]) if isinstance(out, tuple) else out + direction

    with changed(lm._module.transformer.h[0], steer):
        want = lm._module.generate(**encoded("a b c"), pad_token_id=0, **LONG)
    with lm.generate("a b c", **LONG) as tracer:
        for _ in tracer.all():
            first(lm.transformer.h[0].output)[:] += direction
        ids = lm.generator.output.save()
    assert torch.equal(ids, want)


def test_prompts(lm: Any, alone: Any) -> None:
    """Steps in one prompt beside another without any."""
    with lm.generate(**LONG) as tracer:
        with tracer.invoke("a b c"):
            tokens = []
            for _ in tracer.iter[:]:
                tokens.append(lm.lm_head.output[0, -1].argmax(-1))
            tokens.save()
        with tracer.invoke("d e f"):
            other = lm.lm_head.output[:, -1].save()
        with tracer.invoke():
            ids = lm.generator.output.save()
    assert [int(token) for token in tokens] == alone[0][0, 3:].tolist()
    assert torch.equal(ids[:1], alone[0])
    assert other.shape[0] == 1


def test_elsewhere_is_refused(lm: Any) -> None:
    with pytest.raises(NotImplementedError, match=r"`generate\(remote=True\)`"):
        lm.generate("a", remote=True)
    with lm.generate("a b c", remote=False, **LONG) as tracer:
        pass
    assert tracer.result.shape == (1, 6)
