"""Settings: one object, `interlace.config`, read from the environment and from a file of the user's."""

import json
import os
from pathlib import Path
from typing import Any

from interlace.errors import ConfigError, nearest

_DEFAULTS: dict[str, Any] = {
    "checks": True,
    "progress": True,
    "cache_dir": "~/.cache/interlace",
    "host": None,
    "api_key": None,
    "full_tracebacks": False,
}


class Config:
    """The settings of this process.

    | setting    | environment          | meaning                                                              |
    |------------|----------------------|----------------------------------------------------------------------|
    | `checks`   | `INTERLACE_CHECKS`   | writes are compared with what they replace                           |
    | `progress` | `INTERLACE_PROGRESS` | progress bars on what takes longer than a second                     |
    | `cache_dir`| `INTERLACE_CACHE_DIR`| where files that the library makes are kept                          |
    | `host`     | `INTERLACE_HOST`     | address of a remote server                                           |
    | `api_key`  | `INTERLACE_API_KEY`  | key for it                                                           |
    | `full_tracebacks` | `INTERLACE_FULL_TRACEBACKS` | errors show the library's own frames too               |

    The file is `config.json` in the configuration folder (`INTERLACE_CONFIG`, default `~/.config/interlace`); the
    environment wins over it.

    >>> import interlace as il
    >>> il.config.checks
    True
    """

    checks: bool
    progress: bool
    cache_dir: str
    host: str | None
    api_key: str | None
    full_tracebacks: bool

    __slots__ = tuple(_DEFAULTS)

    def __init__(self) -> None:
        values = dict(_DEFAULTS)
        values.update(_from_file())
        for name in _DEFAULTS:
            given = os.environ.get(f"INTERLACE_{name.upper()}")
            if given is not None:
                values[name] = _boolean(name, given) if isinstance(_DEFAULTS[name], bool) else given
        for name, value in values.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _DEFAULTS:
            raise ConfigError(
                f"There is no setting `{name}`.{nearest(name, _DEFAULTS)} Known: {', '.join(_DEFAULTS)}."
            )
        if isinstance(_DEFAULTS[name], bool) and not isinstance(value, bool):
            raise ConfigError(f"The setting `{name}` is True or False, not {value!r}.")
        if not isinstance(_DEFAULTS[name], bool) and not isinstance(value, (str, type(_DEFAULTS[name]))):
            raise ConfigError(f"The setting `{name}` is text, not {value!r}.")
        object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        shown = {name: getattr(self, name) for name in _DEFAULTS}
        shown["api_key"] = "***" if shown["api_key"] else None
        return "Config(" + ", ".join(f"{name}={value!r}" for name, value in shown.items()) + ")"


def _boolean(name: str, given: str) -> bool:
    words = {
        "1": True,
        "true": True,
        "yes": True,
        "on": True,
        "0": False,
        "false": False,
        "no": False,
        "off": False,
    }
    if given.lower() not in words:
        raise ConfigError(f"INTERLACE_{name.upper()}={given!r}: write 1 or 0.")
    return words[given.lower()]


def file() -> Path:
    """The file of the user's settings, which need not exist."""
    return Path(os.environ.get("INTERLACE_CONFIG", "~/.config/interlace")).expanduser() / "config.json"


def _from_file() -> dict[str, Any]:
    path = file()
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f'{path} must hold one JSON object, as {{"checks": true}}.')
    unknown = [name for name in found if name not in _DEFAULTS]
    if unknown:
        raise ConfigError(f"{path}: there is no setting `{unknown[0]}`.{nearest(unknown[0], _DEFAULTS)}")
    return found


config = Config()
"""The settings of this process."""
