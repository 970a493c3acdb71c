"""What nnsight does on other machines, and this library does not: said where it is asked for."""

from typing import Any

from interlace.errors import InterlaceError

_SERVICE = "It asks a service for models, and this library has none: models run where the code runs."
_ENGINE = "Wrap the PyTorch module with `nnsight.NNsight(module)`; engines that run elsewhere are not traced."

ELSEWHERE = {
    "ndif_status": _SERVICE,
    "is_model_running": _SERVICE,
    "status": _SERVICE,
    "register": _SERVICE,
    "VLLM": _ENGINE,
    "DiffusionModel": "Wrap the parts that are modules: `nnsight.NNsight(pipeline.unet)`.",
    "VisionLanguageModel": "Write `nnsight.TransformersModel(name, automodel='AutoModelForImageTextToText')`.",
    "stop": "Write `tracer.stop()`, with `with model.trace(...) as tracer:`.",
}
"""Names of nnsight that are not here, and what to write instead."""

_OPTIONS = ("remote", "backend", "blocking", "job_id")


class RemoteException(InterlaceError, NotImplementedError):  # noqa: N818  (nnsight's name)
    """A run on another machine was asked for."""


def here(kwargs: dict[str, Any], what: str) -> dict[str, Any]:
    """The arguments of a run without those that say where it is to run; `remote="local"` is here too.

    Raises:
        RemoteException: They say that it is to run elsewhere.
    """
    if kwargs.get("remote") not in (None, False, "local") or kwargs.get("backend") is not None:
        asked = "remote" if kwargs.get("remote") else "backend"
        raise RemoteException(
            f"`{what}({asked}={kwargs[asked]!r})` asks for another machine; no service runs models for this library.\n"
            f"Leave `{asked}=` out: the model runs here. A large one is spread over devices by `device_map='auto'`."
        )
    return {name: value for name, value in kwargs.items() if name not in _OPTIONS}
