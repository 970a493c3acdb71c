"""Settings: from the environment, from a file, and from code."""

import json
from pathlib import Path

import pytest

import interlace as il
from interlace.config import Config
from interlace.errors import ConfigError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration folder of the test's own, and nothing in the environment."""
    for name in ("CHECKS", "PROGRESS", "CACHE_DIR", "HOST", "API_KEY"):
        monkeypatch.delenv(f"INTERLACE_{name}", raising=False)
    monkeypatch.setenv("INTERLACE_CONFIG", str(tmp_path))
    return tmp_path


def write(folder: Path, value: object) -> None:
    (folder / "config.json").write_text(json.dumps(value), encoding="utf-8")


def test_defaults() -> None:
    """S-91: checks and progress are on, nothing is remote."""
    config = Config()
    assert config.checks is True
    assert config.progress is True
    assert config.host is None
    assert config.api_key is None
    assert config.cache_dir.startswith("~")
    assert type(il.config) is Config


def test_the_file_is_read(folder: Path) -> None:
    """S-91."""
    write(folder, {"checks": False, "host": "example.org"})
    config = Config()
    assert config.checks is False
    assert config.host == "example.org"


def test_the_environment_wins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S-91."""
    write(folder, {"progress": False, "host": "file"})
    monkeypatch.setenv("INTERLACE_HOST", "environment")
    monkeypatch.setenv("INTERLACE_PROGRESS", "yes")
    assert Config().host == "environment"
    assert Config().progress is True


@pytest.mark.parametrize(
    ("given", "meant"),
    [("1", True), ("TRUE", True), ("on", True), ("0", False), ("no", False), ("Off", False)],
)
def test_words_for_true_and_false(monkeypatch: pytest.MonkeyPatch, given: str, meant: bool) -> None:
    """S-91."""
    monkeypatch.setenv("INTERLACE_CHECKS", given)
    assert Config().checks is meant


def test_other_words_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """S-91."""
    monkeypatch.setenv("INTERLACE_CHECKS", "maybe")
    with pytest.raises(ConfigError, match=r"INTERLACE_CHECKS='maybe': write 1 or 0"):
        Config()


def test_an_unknown_setting_is_an_error(folder: Path) -> None:
    """S-91: wherever it is written, and the nearest is named."""
    with pytest.raises(ConfigError, match=r"There is no setting `check`\. Did you mean `checks`\?"):
        setattr(Config(), "check", True)  # noqa: B010
    with pytest.raises(AttributeError):
        Config().check  # type: ignore[attr-defined]  # noqa: B018
    write(folder, {"hots": "example.org"})
    with pytest.raises(ConfigError, match=r"config\.json: there is no setting `hots`\. Did you mean `host`"):
        Config()


@pytest.mark.parametrize(
    ("name", "value"), [("checks", "no"), ("checks", 0), ("progress", None), ("host", 5), ("cache_dir", None)]
)
def test_a_setting_has_its_type(folder: Path, name: str, value: object) -> None:
    """S-91: in code and in the file."""
    with pytest.raises(ConfigError, match=rf"`{name}`"):
        setattr(Config(), name, value)
    write(folder, {name: value})
    with pytest.raises(ConfigError, match=rf"`{name}`"):
        Config()


def test_a_damaged_file_is_named(folder: Path) -> None:
    """S-91."""
    (folder / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.json is not valid JSON"):
        Config()
    write(folder, ["checks"])
    with pytest.raises(ConfigError, match=r"config\.json must hold one JSON object"):
        Config()


def test_the_key_is_not_shown() -> None:
    """S-91."""
    config = Config()
    config.api_key = "secret"
    assert "secret" not in repr(config)
    assert "checks=True" in repr(config)
