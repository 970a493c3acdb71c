"""Other names for modules, and other classes for their envoys."""

import warnings

import pytest
import torch
from torch import nn

import interlace as il
from interlace.errors import InterlaceWarning, RenameError
from tests.models import Attention, Bert, Block, Mlp, Transformer, ids, sequential


@pytest.fixture
def net() -> Transformer:
    return Transformer()


def test_an_alias_stands_wherever_the_name_occurs(net: Transformer) -> None:
    """S-51, S-08."""
    model = il.Model(net, rename={"attn": "attention", "h": "layers"})
    assert model.layers is model.h
    assert model.layers[0].attention is model.h[0].attn
    assert model.layers[1].attention is model.h[1].attn
    assert model.layers[1].attention.path == "model.h.1.attn"
    with model.trace(ids()):
        same = model.layers[0].attention.output is model.h[0].attn.output
    assert same


def test_a_name_may_have_several_aliases(net: Transformer) -> None:
    """S-52."""
    model = il.Model(net, rename={"mlp": ["feed_forward", "ffn"]})
    assert model.h[0].feed_forward is model.h[0].ffn is model.h[0].mlp


@pytest.mark.parametrize("key", [".h.0.mlp", "h.0.mlp"])
@pytest.mark.parametrize("alias", [".first_mlp", "first_mlp"])
def test_a_path_is_mounted_where_it_resolves(net: Transformer, key: str, alias: str) -> None:
    """S-53: with or without the leading dot."""
    model = il.Model(net, rename={key: alias})
    assert model.first_mlp is model.h[0].mlp
    assert "(first_mlp/h.0.mlp): Mlp(" in repr(model)


def test_a_path_is_mounted_below_the_root(net: Transformer) -> None:
    """S-53: `mlp.up` resolves in every block."""
    model = il.Model(net, rename={"mlp.up": "gate"})
    assert [block.gate for block in model.h] == [block.mlp.up for block in model.h]


def test_an_alias_leads_on_to_others(net: Transformer) -> None:
    """S-01: aliases resolve multi-part paths."""
    model = il.Model(net, rename={".h": ".blocks", "mlp": "ffn", "up": "w_in"})
    assert model.get("blocks.1.ffn.w_in") is model.h[1].mlp.up


def test_a_key_that_matches_nothing_is_ignored(net: Transformer) -> None:
    """S-54: one map serves many architectures."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = il.Model(net, rename={"h": "layers", "model.layers": "layers", "self_attn": "attention"})
    assert model.layers is model.h


def test_a_map_that_matches_nothing_warns(net: Transformer) -> None:
    """S-54."""
    with pytest.warns(
        InterlaceWarning, match=r"No key of `rename=` matches a module: 'embde'\. Did you mean `embed`\?"
    ) as told:
        il.Model(net, rename={"embde": "embeddings"})
    assert told[0].filename == __file__


@pytest.mark.parametrize("key", ["h", "h.0", "0", "h.*", Mlp, "nothing"])
@pytest.mark.parametrize("alias", ["a.b", ".a.b", ["one", "a.b"]])
def test_an_alias_is_one_name(net: Transformer, key: str | type, alias: str | list[str]) -> None:
    """S-51, S-53: keys are paths, aliases are not; the message says what to write."""
    spelled = "`Mlp`" if key is Mlp else repr(key)
    with pytest.raises(RenameError) as told:
        il.Model(net, rename={key: alias})
    last = alias if isinstance(alias, str) else alias[-1]
    assert str(told.value).startswith(f"An alias is one name, and {last!r} (for {spelled}) is not.\n")
    assert f"Write `rename={{{spelled.strip('`')}: 'b'}}`. What is above it" in str(told.value)


def test_names_for_several_parts_of_a_path_make_another_path(net: Transformer) -> None:
    """S-51: what the message of a dotted alias advises."""
    model = il.Model(net, rename={"h": "layers", "mlp": "ffn"})
    assert model.layers[0].ffn is model.h[0].mlp


@pytest.mark.parametrize("alias", ["", "."])
def test_an_alias_has_a_name(net: Transformer, alias: str) -> None:
    with pytest.raises(RenameError, match=r"Write `rename=\{'h': 'name'\}`"):
        il.Model(net, rename={"h": alias})


def test_an_alias_may_not_hide_an_attribute_of_the_module(net: Transformer) -> None:
    """S-55."""
    with pytest.raises(
        RenameError, match=r"alias `lm_head` for `model\.ln_f` would hide `Transformer\.lm_head` at `model`"
    ):
        il.Model(net, rename={"ln_f": "lm_head"})
    with pytest.raises(ValueError, match=r"would hide `Block\.training`"):
        il.Model(net, rename={"mlp": "training"})


@pytest.mark.parametrize("feature", ["output", "trace", "path", "iter"])
def test_an_alias_may_not_hide_a_feature(net: Transformer, feature: str) -> None:
    """S-55."""
    with pytest.raises(
        RenameError, match=rf"alias `{feature}` for `model\.h` would hide the feature `Envoy\.{feature}`"
    ):
        il.Model(net, rename={"h": feature})


def test_an_alias_may_not_hide_a_name_of_an_own_envoy_class(net: Transformer) -> None:
    """S-55, S-97."""

    class Own(il.Envoy):
        def pattern(self) -> int:
            return 1

    with pytest.raises(
        RenameError, match=r"alias `pattern` for `model\.h\.0\.attn\.proj` would hide `Own\.pattern`"
    ):
        il.Model(net, rename={"proj": "pattern"}, envoys={Attention: Own})


def test_one_alias_stands_for_one_thing(net: Transformer) -> None:
    """S-55."""
    with pytest.raises(
        RenameError, match=r"alias `norm` stands for both `model\.h\.0\.ln_1` and `model\.h\.0\.ln_2`"
    ):
        il.Model(net, rename={"ln_1": "norm", "ln_2": "norm"})


def test_wildcards_stand_for_one_component(net: Transformer) -> None:
    """S-57."""
    model = il.Model(net, rename={"h.*.attn": "mixer"})
    assert [block.mixer for block in model.h] == [block.attn for block in model.h]
    assert not hasattr(model, "mixer")


def test_a_class_is_a_key(net: Transformer) -> None:
    """S-57."""
    model = il.Model(net, rename={Attention: "mixer", Mlp: ["ffn"]})
    assert model.h[0].mixer is model.h[0].attn
    assert model.h[1].ffn is model.h[1].mlp


def test_an_ambiguous_key_is_an_error(net: Transformer) -> None:
    """S-57."""
    with pytest.raises(
        RenameError,
        match=r"key `LayerNorm` is ambiguous: it matches `model\.h\.0\.ln_1` and `model\.h\.0\.ln_2`",
    ):
        il.Model(net, rename={nn.LayerNorm: "norm"})
    with pytest.raises(RenameError, match=r"'h\.0\.\*' is ambiguous"):
        il.Model(net, rename={"h.0.*": "part"})


# -- own classes ----------------------------------------------------------------------------------------------------


class Own(il.Envoy):
    def hello(self) -> str:
        return f"I am {self.path}"


class Other(Own):
    pass


def test_one_class_for_all(net: Transformer) -> None:
    """S-97."""
    model = il.Model(net, envoys=Own)
    assert {type(envoy) for envoy in model.modules()[:-1]} == {Own}
    assert type(model) is il.Model
    assert model.h[0].hello() == "I am model.h.0"


def test_a_class_for_a_class_of_module(net: Transformer) -> None:
    """S-97."""
    model = il.Model(net, envoys={Block: Own})
    assert type(model.h[0]) is Own
    assert type(model.h[0].mlp) is il.Envoy
    with model.trace(ids()):
        hidden = model.h[0].output[0]
    assert hidden.shape == (2, 5, 8)


def test_a_subclass_of_module_is_matched(net: Transformer) -> None:
    """S-97: the nearest class of the module wins."""

    class Wide(Mlp):
        pass

    net.h[1].mlp = Wide(8)
    model = il.Model(net, envoys={nn.Module: Own, Mlp: Other})
    assert type(model.h[0].mlp) is type(model.h[1].mlp) is Other
    assert type(model.h[1].attn) is Own


def test_paths_wildcards_and_aliases_are_keys(net: Transformer) -> None:
    """S-97: the longest path wins, and paths win over classes."""
    model = il.Model(
        net,
        rename={"attn": "mixer"},
        envoys={"mixer": Own, "h.*.mlp": Own, "h.1.mlp": Other, nn.LayerNorm: Own, "ln_f": Other},
    )
    assert type(model.h[0].attn) is Own
    assert type(model.h[0].mlp) is Own
    assert type(model.h[1].mlp) is Other
    assert type(model.h[0].ln_1) is Own
    assert type(model.ln_f) is Other
    assert type(model.lm_head) is il.Envoy


def test_a_model_class_may_carry_a_default_map(net: Transformer) -> None:
    """S-97: inherited, and replaced by what is given."""

    class Wrapped(il.Model):
        envoys = {Mlp: Own}  # noqa: RUF012

    class More(Wrapped):
        pass

    assert type(More(net).h[0].mlp) is Own
    assert type(More(net, envoys={Mlp: Other}).h[0].mlp) is Other


def test_a_class_map_that_matches_nothing_warns(net: Transformer) -> None:
    """S-97."""
    with pytest.warns(
        InterlaceWarning, match=r"No key of `envoys=` matches a module: 'atn'\. Did you mean `attn`"
    ):
        il.Model(net, envoys={"atn": Own})


def test_only_envoy_classes_are_taken(net: Transformer) -> None:
    """S-97."""
    with pytest.raises(TypeError, match=r"`envoys=` takes subclasses of Envoy, not int"):
        il.Model(net, envoys=int)
    with pytest.raises(TypeError, match=r"`envoys=` takes subclasses of Envoy, not Linear"):
        il.Model(net, envoys={"h": nn.Linear})


@pytest.mark.filterwarnings("ignore::interlace.errors.InterlaceWarning")
def test_own_classes_and_submodules_named_like_features() -> None:
    """S-97, S-07."""
    model = il.Model(nn.Sequential(Bert()), envoys={Bert: Own})
    assert isinstance(model[0], Own)
    assert model[0].output.path == "model.0.output"
    assert model[0].hello() == "I am model.0"


def test_aliases_reach_replaced_modules() -> None:
    """S-20."""
    net = sequential()
    model = il.Model(net, rename={"2": "head"})
    net[2] = nn.Identity()
    with model.trace(torch.ones(1, 3)):
        same = model.head.output is model.head.input
    assert same
