"""The names of nnsight's public documentation, generations 0.5 to 0.8, over this library.

>>> import torch
>>> import interlace.compat.nnsight as nnsight
>>> model = nnsight.NNsight(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU()))
>>> with model.trace(torch.ones(1, 2)):
...     width = model[0].output.shape[-1].save()
...     model[0].output[:] = 1
...     out = model.output.save()
>>> width, out.tolist()
(3, [[1.0, 1.0, 1.0]])

Importing it puts `.save()` on every object and `with loss.backward():` on tensors; see `mounts`.
"""

import importlib
from typing import Any

from interlace.compat.nnsight import elsewhere, mounts, old, util
from interlace.compat.nnsight.intervention.base import NNsight
from interlace.compat.nnsight.intervention.envoy import Envoy, eproperty
from interlace.compat.nnsight.schema.config import CONFIG
from interlace.errors import InterlaceError as NNsightException
from interlace.errors import NameMissError, nearest
from interlace.saving import save

__version__ = "0.8.0"
"""The newest generation of nnsight whose names these are."""

_LATE = {
    "LanguageModel": "modeling.language",
    "TransformersModel": "modeling.transformers",
    "modeling": "",
}
"""What brings in transformers, and is imported when first asked for."""

__all__ = [
    "CONFIG",
    "Envoy",
    "LanguageModel",
    "NNsight",
    "NNsightException",
    "TransformersModel",
    "eproperty",
    "save",
    "util",
]

mounts.mount()


def __getattr__(name: str) -> Any:
    """What needs transformers, what is an old form, and what exists in nnsight only."""
    if name in _LATE:
        module = importlib.import_module(f"{__name__}.{_LATE[name] or name}")
        return getattr(module, name) if _LATE[name] else module
    if name in old.FORMS:
        return old.FORMS[name]
    if name in elsewhere.ELSEWHERE:
        raise NameMissError(f"`nnsight.{name}` is not here. {elsewhere.ELSEWHERE[name]}")
    raise NameMissError(f"`interlace.compat.nnsight` has no `{name}`.{nearest(name, [*__all__, *old.FORMS])}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *old.FORMS})
