"""testtime keeps a deployed PyTorch model right while its world changes, without labels."""

__version__ = "0.1.0"
