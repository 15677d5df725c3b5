"""Module and function names from before the rooms, as README and CHANGELOG gave them."""

from __future__ import annotations

from pathlib import Path

import minigpt.evaluation.perplexity
import minigpt.evaluation.task_files
import minigpt.evaluation.tasks
from minigpt import GPTModel, GPTTokenizer

TASKS = Path(__file__).resolve().parents[1] / "golden" / "tasks"


def test_the_example_of_the_old_readme_runs() -> None:
    from minigpt.questions import read_lines
    from minigpt.tasks import choices, last_words

    model, tokenizer = GPTModel.from_pretrained(TASKS), GPTTokenizer.from_pretrained(TASKS)
    questions = read_lines(str(TASKS / "choices.jsonl"))
    assert 0 < choices(model, tokenizer, questions).accuracy_per_token < 1
    assert 0 < last_words(model, tokenizer, read_lines(str(TASKS / "words.jsonl"))).accuracy < 1


def test_old_names_are_the_new_objects() -> None:
    from minigpt import evaluate, questions, tasks

    rooms = minigpt.evaluation
    assert questions.read_lines is rooms.task_files.read_task_file
    assert questions.Choice is rooms.task_files.Choice
    assert tasks.choices is rooms.tasks.multiple_choice
    assert tasks.last_words is rooms.tasks.last_word_accuracy
    assert tasks.Ending is rooms.tasks.Continuation
    assert tasks.make_ending is rooms.tasks.make_continuation
    assert evaluate.perplexity is rooms.perplexity.perplexity
    assert evaluate.together is rooms.perplexity.combined
    assert evaluate.compare is rooms.perplexity.compare
    assert evaluate.common_ids is rooms.perplexity.common_ids
    for module in (evaluate, questions, tasks):
        assert all(hasattr(module, name) for name in module.__all__)


def test_save_gguf_is_still_in_minigpt_gguf() -> None:
    from minigpt.gguf import save_gguf

    assert save_gguf is minigpt.save_gguf
