"""Bytes on disk ⇄ named arrays.

hub.py          a folder's path or a hub id → a folder, or a GGUF file
folder.py       the files of weights in it; shards and their index
safetensors.py  one of the formats of weights, read and written
torch_bin.py    another, read: a ZIP archive (zip_entries.py) or older, holding a pickle
                (unpickle.py), which is read as data and never run
gguf.py         the third, a whole model in one file: gguf_gpt2.py tells it in Hugging Face's terms,
                blocks.py has its ways to hold numbers, gguf_writing.py writes it
tensors.py      a tensor in a file → an array; named.py: those of a model, by name
files.py  strict_json.py  atomic.py    opening, parsing and replacing files with care
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
