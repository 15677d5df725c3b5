"""Bytes on disk ⇄ named arrays.

hub.py          a path or a hub id → the model's folder, or its GGUF file
folder.py       the files of weights in a folder: single or in shards with an index
safetensors.py  format: safetensors, read and written
torch_bin.py    format: pytorch_model.bin, read; a ZIP archive (zip_entries.py) or an older form,
                with a pickle that is read as data and never run (unpickle.py)
gguf.py         format: GGUF, a whole model in one file or in parts (gguf_parts.py); blocks.py its
                encodings of numbers, gguf_writing.py its writer, gguf_gpt2.py its names in Hugging
                Face's terms
tensors.py      a tensor in a file → an array; named.py: the tensors of a model by name
files.py  strict_json.py  atomic.py  lock.py    safe opening, parsing, replacing and locking
"""

from __future__ import annotations

from .atomic import creating_folder, write_file
from .folder import open_checkpoint
from .hub import resolve
from .named import Checkpoint
from .safetensors import by_width, write_safetensors, write_tensors
from .tensors import TensorInfo

__all__ = [
    "Checkpoint",
    "TensorInfo",
    "by_width",
    "creating_folder",
    "open_checkpoint",
    "resolve",
    "write_file",
    "write_safetensors",
    "write_tensors",
]
