"""What this process runs on and what is guarded in it, as text for a bug report."""

import importlib.metadata
import platform
import sys

import torch

from interlace import compiled, switch, tap, unwind
from interlace.config import config
from interlace.errors import PlatformError

PACKAGES = ("torch", "greenlet", "transformers", "safetensors", "accelerate", "numpy")


class Report(str):
    """Text that shows itself as it reads, also at a prompt."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def report() -> Report:
    """What to paste into a bug report: versions, the machine, what guards a trace, settings.

    It has no names, paths or keys of yours in it, and imports nothing.

    Example:
        >>> import interlace as il
        >>> print(il.report())
        interlace     ...
        python        ...
    """
    home = switch.home()
    rows = [
        ("interlace", _version("interlace")),
        ("python", f"{platform.python_version()} {platform.python_implementation()}, {sys.platform}"),
        *((name, _version(name)) for name in PACKAGES),
        ("platform", f"{platform.platform()} {platform.machine()}"),
        ("devices", _devices()),
        ("stacks", _stacks()),
        ("taps", _taps()),
        ("calls", compiled.how),
        ("kept", f"{len(home.idle)} idle, {len(home.parked)} parked, {len(home.abandoned)} abandoned stacks"),
        ("debugger", _tracer()),
        ("settings", ", ".join(f"{name}={value}" for name, value in _settings().items())),
    ]
    return Report("\n".join(f"{name:<13} {value}" for name, value in rows))


def _version(name: str) -> str:
    loaded = sys.modules.get(name)
    found = getattr(loaded, "__version__", None)  # of what runs, which need not be what is installed
    try:
        return str(found or importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> str:
    if not torch.cuda.is_available():
        return f"cpu, {torch.get_num_threads()} threads"
    names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return f"{', '.join(names)} (CUDA {torch.version.cuda})"


def _stacks() -> str:
    try:
        guarded = unwind.is_guarded(switch.guard())
    except PlatformError as error:
        return f"no traces here: {str(error).splitlines()[0]}"
    if guarded:
        return "guarded: native backtraces end at a trace's own stack"
    return f"NOT guarded: {unwind.ACCEPT}=1 accepts that an error in torch may kill the process"


def _taps() -> str:
    slot = f"nn.Module.{tap.SLOT}"
    return f"{slot} is looked at" if tap.works() else f"{slot} is NOT looked at: no trace sees a module"


def _tracer() -> str:
    tracer = sys.gettrace()
    owner = getattr(tracer, "__self__", tracer)
    return "none" if tracer is None else f"a trace function of {type(owner).__module__}"


def _settings() -> dict[str, object]:
    shown = {name: getattr(config, name) for name in config.__slots__}
    for name in ("cache_dir", "host", "api_key"):
        shown[name] = "set" if shown[name] else "not set"
    return shown
