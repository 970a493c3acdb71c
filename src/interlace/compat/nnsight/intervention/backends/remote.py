"""The error of a run on another machine."""

from interlace.compat.nnsight.elsewhere import RemoteException

__all__ = ["RemoteException"]
