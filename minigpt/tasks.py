"""The names from before minigpt/evaluation/tasks.py, which keep working."""

from .evaluation.tasks import Continuation as Ending
from .evaluation.tasks import LastWordAccuracy as WordAccuracy
from .evaluation.tasks import MultipleChoiceAccuracy as ChoiceAccuracy
from .evaluation.tasks import Score, Scores, score
from .evaluation.tasks import last_word_accuracy as last_words
from .evaluation.tasks import make_continuation as make_ending
from .evaluation.tasks import multiple_choice as choices

__all__ = [
    "ChoiceAccuracy",
    "Ending",
    "Score",
    "Scores",
    "WordAccuracy",
    "choices",
    "last_words",
    "make_ending",
    "score",
]
