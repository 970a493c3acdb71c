"""Old forms: each warns, then works. Settings."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import interlace as il
import interlace.compat.nnsight as nnsight
from interlace.errors import ConfigError
from tests.models import ids


def test_containers_and_calls(model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(DeprecationWarning, match="is an old form") as told, model.trace(ids()):
        found = nnsight.list().save()
        for layer in model.h:
            found.append(layer.output[0])
        total = nnsight.apply(torch.stack, found).save()
        nnsight.log("so far", len(found))
        named = nnsight.dict(a=1).save()
        count = nnsight.int(3).save()
    assert total.shape == (2, 2, 5, 8)
    assert (named, count) == ({"a": 1}, 3)
    assert capsys.readouterr().out == "so far 2\n"
    assert {Path(one.filename).name for one in told} == {"test_old_forms.py"}


@pytest.mark.filterwarnings("ignore:.*is an old form:DeprecationWarning")
def test_conditions(model: Any) -> None:
    def branch(number: int) -> str:
        with model.trace(ids()):
            shape = model.embed.output.shape
            with nnsight.cond(number > shape[0]) as more:
                which = "more"
            with more.else_(number == 2) as same:
                which = "same"
            with same.else_():
                which = "less"
            which.save()
        return which

    assert [branch(number) for number in (3, 2, 1)] == ["more", "same", "less"]
    with pytest.raises(ZeroDivisionError), nnsight.cond(True):
        1 / 0


@pytest.mark.filterwarnings("ignore:.*is an old form:DeprecationWarning")
def test_loops_and_scopes(model: Any) -> None:
    with nnsight.session() as session, model.trace(ids()):
        seen = []
        with nnsight.iter(["a", "b"]) as item:
            seen.append(item)
        for item in nnsight.iter([1, 2]):
            seen.append(item)
        with nnsight.local():
            local = model.h[0].output[0].sum()

    @nnsight.trace
    @nnsight.remote
    def own() -> int:
        return 3

    assert seen == ["a", "b", 1, 2]
    assert local.ndim == 0
    assert own() == 3
    assert session.model is None
    with pytest.raises(NotImplementedError, match=r"nnsight.session\(remote=True\)"):
        nnsight.session(remote=True)


def test_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERLACE_CONFIG", str(tmp_path / "settings"))
    for name in ("host", "api_key", "cache_dir"):
        monkeypatch.setattr(il.config, name, getattr(il.config, name))
    nnsight.CONFIG.API.HOST = "https://example.org"
    nnsight.CONFIG.set_default_api_key("secret")
    file = tmp_path / "settings" / "config.json"
    assert (
        json.loads(file.read_text())["api_key"] == il.config.api_key == nnsight.CONFIG.API.APIKEY == "secret"
    )
    assert file.stat().st_mode & 0o077 == 0
    assert il.config.host == "https://example.org"
    nnsight.CONFIG.APP.CACHE_DIR = str(tmp_path)
    nnsight.CONFIG.save()
    assert json.loads(file.read_text())["cache_dir"] == il.config.cache_dir == str(tmp_path)
    nnsight.CONFIG.set_default_app_debug(True)
    assert nnsight.CONFIG.APP.DEBUG
    nnsight.CONFIG.APP.DEBUG = False
    with pytest.raises(
        ConfigError, match=r"no setting `CONFIG\.APP\.CROSS_INVOKERS`\. Did you mean `CROSS_INVOKER`"
    ):
        nnsight.CONFIG.APP.CROSS_INVOKERS = True
    with pytest.raises(AttributeError, match=r"no setting `CONFIG\.API\.KEY`"):
        nnsight.CONFIG.API.KEY
