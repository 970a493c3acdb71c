"""Read and change the inside of a running PyTorch model, in ordinary Python.

>>> import torch, interlace as il
>>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
>>> model = il.Model(net)
>>> with model.trace(torch.ones(1, 2)):
...     hidden = model[0].output
>>> hidden.shape
torch.Size([1, 3])
"""

from typing import TYPE_CHECKING, Any

from interlace import errors
from interlace.cache import Cache
from interlace.config import config
from interlace.environment import report
from interlace.envoy import Envoy
from interlace.grad import backward
from interlace.model import Model
from interlace.nonfinite import find_nonfinite
from interlace.recording import Recording
from interlace.saving import save
from interlace.trace import Trace
from interlace.version import __version__
from interlace.views import view
from interlace.writes import insist

if TYPE_CHECKING:
    from interlace.demo import demo_model
    from interlace.language import LanguageModel

__all__ = [
    "Cache",
    "Envoy",
    "LanguageModel",
    "Model",
    "Recording",
    "Trace",
    "__version__",
    "backward",
    "config",
    "demo_model",
    "errors",
    "find_nonfinite",
    "insist",
    "report",
    "save",
    "view",
]


def __getattr__(name: str) -> Any:
    """Language models bring in transformers, so they are imported when first asked for."""
    if name == "LanguageModel":
        from interlace.language import LanguageModel

        return LanguageModel
    if name == "demo_model":
        from interlace.demo import demo_model

        return demo_model
    raise AttributeError(f"module 'interlace' has no attribute {name!r}")
