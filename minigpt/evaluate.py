"""The names from before minigpt/evaluation/perplexity.py, which keep working."""

from .evaluation.perplexity import Comparison, Perplexity, Progress, common_ids, compare, perplexity
from .evaluation.perplexity import combined as together

__all__ = [
    "Comparison",
    "Perplexity",
    "Progress",
    "common_ids",
    "compare",
    "perplexity",
    "together",
]
