"""The error of a run on another machine."""

from interlace.compat.nnsight.remote import RemoteException

__all__ = ["RemoteException"]
