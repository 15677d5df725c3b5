"""The names from before minigpt/evaluation/task_files.py, which keep working."""

from .evaluation.task_files import Choice, Document, LastWord
from .evaluation.task_files import TaskLines as Lines
from .evaluation.task_files import read_task_file as read_lines

__all__ = ["Choice", "Document", "LastWord", "Lines", "read_lines"]
