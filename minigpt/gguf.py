"""The name from before minigpt/conversion/gguf_export.py, which keeps working."""

from .conversion.gguf_export import save_gguf

__all__ = ["save_gguf"]
