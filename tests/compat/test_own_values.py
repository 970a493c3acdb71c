"""`envoys=` and `eproperty`."""

from typing import Any

import pytest
import torch
from torch import Tensor

from interlace.compat.nnsight import Envoy, NNsight
from interlace.compat.nnsight.intervention.envoy import eproperty
from interlace.compat.nnsight.intervention.hooks import requires_input, requires_output
from interlace.errors import WriteError
from tests.compat.hooks import changed
from tests.models import Attention, Mlp, Transformer, ids


class Heads(Envoy):
    @eproperty(key="proj.input", description="batch pos head d_head")
    @requires_input
    def heads(self) -> None:
        """The stub."""

    @heads.preprocess
    def heads(self, value: Any) -> Tensor:
        args, _ = value
        return args[0].unflatten(-1, (2, -1))

    @heads.postprocess
    def heads(self, value: Tensor) -> Any:
        return (value.flatten(-2),), {}

    @eproperty(key="proj.input")
    def heads_first(self) -> None: ...

    @heads_first.preprocess
    def heads_first(self, value: Any) -> Tensor:
        return value[0][0].unflatten(-1, (2, -1)).movedim(-2, 0).contiguous()

    @heads_first.transform
    def heads_first(self, value: Tensor) -> Any:
        return (value.movedim(0, -2).flatten(-2),), {}


class Hidden(Envoy):
    @eproperty(key="output")
    @requires_output
    def doubled(self) -> None: ...

    @doubled.preprocess
    def doubled(self, value: Tensor) -> Tensor:
        return 2 * value

    @doubled.postprocess
    def doubled(self, value: Tensor) -> Tensor:
        return value / 2

    @doubled.transform
    @staticmethod
    def doubled(value: Tensor) -> Tensor:
        return value / 2

    @eproperty(key="output")
    def copied(self) -> None: ...

    @copied.preprocess
    def copied(self, value: Tensor) -> Tensor:
        return value.clone()


@pytest.fixture
def headed(net: Transformer) -> Any:
    return NNsight(net, envoys={Attention: Heads, Mlp: Hidden})


def test_it_is_read(headed: Any) -> None:
    with headed.trace(ids()):
        heads = headed.h[0].attn.heads.save()
        flat = headed.h[0].attn.proj.input.save()
    assert heads.shape == (2, 5, 2, 4)
    assert torch.equal(heads.flatten(-2), flat)
    assert isinstance(headed.h[0].attn, Heads)
    assert "batch pos head d_head" in repr(headed)


def test_it_is_assigned_and_edited_in_place(net: Transformer, headed: Any) -> None:
    def second_head_only(module: Any, args: Any) -> Any:
        value = args[0].clone()
        value[..., :4] = 0
        return (value,)

    hook = net.h[0].attn.proj.register_forward_pre_hook(second_head_only)
    want = net(ids()).logits
    hook.remove()
    with headed.trace(ids()):
        headed.h[0].attn.heads[:, :, 0] = 0
        edited = headed.output.logits.save()
    with headed.trace(ids()):
        value = headed.h[0].attn.heads.clone()
        value[:, :, 0] = 0
        headed.h[0].attn.heads = value
        assigned = headed.output.logits.save()
    with headed.trace(ids()):
        headed.h[0].attn.heads_first[0] = 0
        copied = headed.output.logits.save()
    assert torch.equal(edited, want)
    assert torch.equal(assigned, want)
    assert torch.equal(copied, want)


def test_it_is_the_same_at_each_look(headed: Any) -> None:
    with headed.trace(ids()):
        for name in ("heads", "heads_first"):
            assert getattr(headed.h[0].attn, name) is getattr(headed.h[0].attn, name)


def test_a_transform_takes_back_what_was_edited(net: Transformer, headed: Any) -> None:
    with changed(net.h[0].mlp, lambda out: out + 1):
        want = net(ids()).logits
    with headed.trace(ids()):
        headed.h[0].mlp.doubled[:] += 2
        edited = headed.output.logits.save()
    with headed.trace(ids()):
        headed.h[0].mlp.doubled = headed.h[0].mlp.doubled + 2
        assigned = headed.output.logits.save()
    assert torch.allclose(edited, want)
    assert torch.allclose(assigned, want)


def test_what_would_be_lost_is_refused(headed: Any) -> None:
    with pytest.raises(
        WriteError, match=r"`model.h\[0\].mlp.copied` was edited in place.*\n.*copied.transform"
    ):
        with headed.trace(ids()):
            headed.h[0].mlp.copied[:] = 0
    with headed.trace(ids()):
        headed.h[0].mlp.copied = torch.zeros(2, 5, 8)
        out = headed.h[0].mlp.output.save()
    assert out.abs().sum() == 0
    with pytest.raises(ValueError, match=r"eproperty\(key='logits'\)`: a module has the values"):
        eproperty(key="logits")(lambda self: None)
