"""Read and change the inside of a running PyTorch model, in ordinary Python."""

__version__ = "0.1.0"
