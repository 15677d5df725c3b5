"""Writes tests/golden/torch: small files by torch.save, in its forms, with what is in them.

    python tests/golden/make_torch_files.py        (needs torch; the tests do not)

Each `NAME.bin` is one way that torch writes a state dict; `expected.json` says what every tensor
of `state_dict()` is. Small integers fit every dtype exactly.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parent / "torch"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def state_dict() -> OrderedDict[str, torch.Tensor]:
    """A tensor of every dtype, and of every way to lie in a storage."""
    state: OrderedDict[str, torch.Tensor] = OrderedDict()
    for name, dtype in DTYPES.items():
        numbers = torch.arange(6) % (2 if name == "BOOL" else 7)
        state[f"dtype.{name}"] = numbers.to(dtype).view(2, 3)
    base = torch.arange(24, dtype=torch.float32)
    state["shared.a"] = base.view(4, 6)
    state["shared.b"] = base.view(4, 6)
    state["transposed"] = base.view(4, 6).t()
    state["sliced"] = base.view(4, 6)[1:3, 2::2]
    state["scalar"] = torch.tensor(-1e4)
    state["expanded"] = torch.tensor([[1.0], [2.0]]).expand(2, 5)
    state["empty"] = torch.empty(0, 3)
    state["parameter"] = torch.nn.Parameter(torch.ones(3))
    state["parameter.frozen"] = torch.nn.Parameter(torch.zeros(2), requires_grad=False)
    return state


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    state = state_dict()
    torch.save(state, FOLDER / "zip.bin")
    torch.save(dict(state), FOLDER / "zip-protocol-4.bin", pickle_protocol=4)
    torch.save(state, FOLDER / "legacy.bin", _use_new_zipfile_serialization=False)
    model = torch.nn.Linear(2, 3)  # its state dict has versions of modules as an attribute
    with torch.no_grad():
        model.weight.copy_(torch.arange(6.0).view(3, 2))
        model.bias.fill_(0.5)
    torch.save(model.state_dict(), FOLDER / "module.bin")
    names = {dtype: name for name, dtype in DTYPES.items()}
    expected = {
        name: {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "values": tensor.detach().double().flatten().tolist(),
        }
        for name, tensor in state.items()
    }
    text = json.dumps(expected, indent=1)
    (FOLDER / "expected.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
