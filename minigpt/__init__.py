"""minigpt runs and trains models of the GPT-2 architecture with NumPy and Numba kernels.

    from minigpt import GPTModel, GPTTokenizer

    tokenizer = GPTTokenizer.from_pretrained()
    model = GPTModel.from_pretrained()
    ids = tokenizer.encode("Once upon a time", return_tensors="np")
    print(tokenizer.decode(model.generate(ids, max_new_tokens=40)[0]))

The names in `__all__` are the public interface. Each is imported when it is first used, so
`import minigpt` is quick and loads no Numba.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import GPTModel as GPTModel
    from .config import GPTConfig as GPTConfig
    from .conversion.convert import convert as convert
    from .conversion.gguf_export import save_gguf as save_gguf
    from .description import describe as describe
    from .errors import CheckpointError as CheckpointError
    from .errors import ConfigError as ConfigError
    from .errors import InputError as InputError
    from .errors import MinigptError as MinigptError
    from .errors import MinigptWarning as MinigptWarning
    from .errors import SourceError as SourceError
    from .errors import TokenizerError as TokenizerError
    from .evaluation.perplexity import compare as compare
    from .evaluation.perplexity import perplexity as perplexity
    from .generation.scheduler import Scheduler as Scheduler
    from .generation.text_stream import TextStream as TextStream
    from .tokenizer.tokenizer import GPTTokenizer as GPTTokenizer
    from .tokenizer.training import train_tokenizer as train_tokenizer
    from .training.config import TrainingConfig as TrainingConfig
    from .training.create import train as train

__version__ = "0.1.0"

# The module of each public name. Type checkers read the imports above, and a test compares both.
_MODULES = {
    "CheckpointError": ".errors",
    "ConfigError": ".errors",
    "GPTConfig": ".config",
    "GPTModel": ".api",
    "GPTTokenizer": ".tokenizer.tokenizer",
    "InputError": ".errors",
    "MinigptError": ".errors",
    "MinigptWarning": ".errors",
    "Scheduler": ".generation.scheduler",
    "SourceError": ".errors",
    "TextStream": ".generation.text_stream",
    "TokenizerError": ".errors",
    "TrainingConfig": ".training.config",
    "compare": ".evaluation.perplexity",
    "convert": ".conversion.convert",
    "describe": ".description",
    "perplexity": ".evaluation.perplexity",
    "save_gguf": ".conversion.gguf_export",
    "train": ".training.create",
    "train_tokenizer": ".tokenizer.training",
}
__all__ = list(_MODULES)

# In a checkout, kernels/ and cli/ lie at its root, and symbolic links put them into this folder.
# Where the file system has no links (Git on Windows writes text files in their place), the root
# joins the folders in which Python looks for subpackages.
_ROOT = Path(__file__).resolve().parent.parent
if not (_ROOT / "minigpt" / "kernels").is_dir() and (_ROOT / "kernels" / "jit.py").is_file():
    __path__.append(str(_ROOT))


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(_MODULES[name], __name__)
    except ImportError as error:
        from .errors import MinigptError
        from .kernels.events import CompilerError

        if isinstance(error, CompilerError):
            raise MinigptError(str(error)) from error
        raise
    globals()[name] = getattr(module, name)
    return globals()[name]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
