"""`CONFIG`: nnsight's names for settings, those that mean something here over `il.config`."""

import json
from typing import Any

from interlace.compat.nnsight import mounts
from interlace.config import config, file
from interlace.errors import ConfigError, nearest


class Section:
    """A group of settings: `CONFIG.API`, `CONFIG.APP`.

    Args:
        name: Its name.
        ours: nnsight's name of a setting: the name in `il.config`.
        inert: Settings that are kept and change nothing, with their defaults.
    """

    def __init__(self, name: str, ours: dict[str, str], inert: dict[str, Any]) -> None:
        self.__dict__.update(_name=name, _ours=ours, _inert=inert)

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__
        if name == "PYMOUNT" and own["_name"] == "APP":
            return mounts.mounted()
        if name in own["_ours"]:
            return getattr(config, own["_ours"][name])
        if name in own["_inert"]:
            return own["_inert"][name]
        raise AttributeError(self._no_such(name))

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "PYMOUNT" and self._name == "APP":
            mounts.mount_save(bool(value))
        elif name in self._ours:
            setattr(config, self._ours[name], value)
        elif name in self._inert:
            self._inert[name] = value
        else:
            raise ConfigError(self._no_such(name))

    def _no_such(self, name: str) -> str:
        return (
            f"There is no setting `CONFIG.{self._name}.{name}`.{nearest(name, [*self._ours, *self._inert])}"
        )


class Settings:
    """nnsight's `CONFIG`.

    >>> from interlace.compat.nnsight import CONFIG
    >>> CONFIG.APP.PYMOUNT
    True

    `API.HOST`, `API.APIKEY` and `APP.CACHE_DIR` are `il.config`'s `host`, `api_key` and `cache_dir`; `APP.PYMOUNT`
    says whether every object has `.save()`. The rest is accepted and changes nothing: blocks are native.
    """

    def __init__(self) -> None:
        self.API = Section("API", {"HOST": "host", "APIKEY": "api_key"}, {"SSL": True, "ZLIB": True})
        self.APP = Section(
            "APP",
            {"CACHE_DIR": "cache_dir"},
            {
                "REMOTE_LOGGING": True,
                "FRAME_INJECTION": True,
                "GLOBAL_TRACING": True,
                "CROSS_INVOKER": True,
                "TRACE_CACHING": True,
                "DEBUG": False,
            },
        )

    def set_default_api_key(self, key: str) -> None:
        """Set the key, and keep it for later processes."""
        self.API.APIKEY = key
        self.save()

    def set_default_app_debug(self, debug: bool) -> None:
        """Accepted; tracebacks are native, so there is no other kind."""
        self.APP.DEBUG = debug

    def save(self) -> None:
        """Keep `API.HOST`, `API.APIKEY` and `APP.CACHE_DIR` in the user's file, which only the user may read."""
        path = file()
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        kept.update({name: getattr(config, name) for name in ("host", "api_key", "cache_dir")})
        path.touch(mode=0o600)
        path.chmod(0o600)
        path.write_text(
            json.dumps({name: value for name, value in kept.items() if value is not None}, indent=2)
        )


CONFIG = Settings()
"""The settings of this process."""

ConfigModel = Settings
