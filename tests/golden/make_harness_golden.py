"""Make golden/harness: task files, and what EleutherAI's lm-evaluation-harness gives for them.

    python tests/golden/make_harness_golden.py

It needs lm-eval 0.4.13 with its extra hf, torch and transformers, which the tests do not. The model
is that of golden/tasks, with <|endoftext|> as the token that begins a text. The folder holds

| file          |                                                                             |
|---------------|-----------------------------------------------------------------------------|
| *.jsonl       | a few lines of words in the form in which each task is published            |
| expected.json | {task: the harness's metrics, and ln p of each continuation of each line}   |

The harness reads the files by its own definitions of the tasks; `_shots` are with two examples of
the same file. `generate` holds contexts, options and the texts of generate_until.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import lm_eval
import lm_eval.tasks
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

HERE = Path(__file__).resolve().parent
FOLDER = HERE / "harness"
TASKS = Path(lm_eval.tasks.__file__).parent
WORDS = ["the", "hello", "wader", "a", "here", "h\u00e9llo", "teller", "42", "law,", "it's"]
YAML = {
    "arc": "arc/arc_easy.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "lambada": "lambada/lambada_openai.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "piqa": "piqa/piqa.yaml",
    "wikitext": "wikitext/wikitext.yaml",
    "winogrande": "winogrande/default.yaml",
}
LINES = 12


def words(rng: random.Random, low: int, high: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randrange(low, high)))


def line(task: str, rng: random.Random) -> dict[str, Any]:
    """A line in the form in which the hub publishes a task."""
    several = [words(rng, 1, 8) for _ in range(4)]
    lettered = {"text": several, "label": list("ABCD")}
    key = rng.choice("ABCD")
    match task:
        case "arc":
            return {"question": words(rng, 1, 9) + "?", "choices": lettered, "answerKey": key}
        case "openbookqa":
            return {"question_stem": words(rng, 1, 9), "choices": lettered, "answerKey": key}
        case "piqa":
            return {
                "goal": words(rng, 1, 9), "sol1": several[0], "sol2": several[1],
                "label": rng.randrange(2),
            }  # fmt: skip
        case "hellaswag":
            marks = ["", " [title]", " [step] ", "  "]
            several = [each + rng.choice(marks) + words(rng, 1, 4) for each in several]
            return {
                "activity_label": words(rng, 1, 3),
                "ctx_a": words(rng, 1, 6) + rng.choice(marks),
                "ctx_b": rng.choice(["", words(rng, 1, 4)]),
                "endings": several,
                "label": str(rng.randrange(4)),
            }
        case "winogrande":
            sentence = f"{words(rng, 1, 6)} _ {words(rng, 1, 6)}."
            options = {"option1": rng.choice(WORDS), "option2": words(rng, 1, 3)}
            return {"sentence": sentence, **options, "answer": rng.choice("12")}
        case "lambada":
            return {"text": words(rng, 2, 40)}
    marks = [" , ", " ; ", " @-@ ", " . \n ", ' " a " ', " ( b ) ", " = = "]
    return {"page": "".join(words(rng, 1, 5) + rng.choice(marks) for _ in range(rng.randrange(30)))}


def model_folder(folder: Path) -> Path:
    """The model of golden/tasks as transformers loads it."""
    for name in ("model.safetensors", "vocab.json", "merges.txt"):
        shutil.copy(HERE / "tasks" / name, folder)
    config = json.loads((HERE / "tasks" / "config.json").read_text(encoding="utf-8"))
    end = config["vocab_size"] - 1
    config |= {"bos_token_id": end, "eos_token_id": end}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    token = "<|endoftext|>"
    names = {"tokenizer_class": "GPT2Tokenizer", "bos_token": token, "eos_token": token}
    (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    return folder


def evaluated(lm: HFLM, task: str, shots: int) -> dict[str, Any]:
    """The harness's result of a task on its file here."""
    with tempfile.TemporaryDirectory() as folder:
        data = {"test": str(FOLDER / f"{task}.jsonl")}
        overrides = {
            "include": str(TASKS / YAML[task]),
            "task": f"golden_{task}",
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": data},
            "training_split": None,
            "validation_split": None,
            "test_split": "test",
            "fewshot_split": "test",
        }
        # JSON is YAML, too
        (Path(folder) / "task.yaml").write_text(json.dumps(overrides), encoding="utf-8")
        manager = lm_eval.tasks.TaskManager(include_path=folder, include_defaults=False)
        results = lm_eval.simple_evaluate(
            lm, tasks=[f"golden_{task}"], num_fewshot=shots or None, task_manager=manager,
            bootstrap_iters=2,
        )  # fmt: skip
    metrics = {
        name.removesuffix(",none"): value
        for name, value in results["results"][f"golden_{task}"].items()
        if name.endswith(",none") and isinstance(value, float)
    }
    samples = sorted(results["samples"][f"golden_{task}"], key=lambda sample: sample["doc_id"])
    log_p = [[float(each[0]) if isinstance(each, tuple) else float(each) for each in
              sample["filtered_resps"]] for sample in samples]  # fmt: skip
    return metrics | {"log_p": log_p}


def main() -> None:
    torch.set_num_threads(1)
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    rng = random.Random(7)
    for task in YAML:
        lines = [json.dumps(line(task, rng)) for _ in range(LINES)]
        (FOLDER / f"{task}.jsonl").write_bytes(("\n".join(lines) + "\n").encode())
    with tempfile.TemporaryDirectory() as folder:
        lm = HFLM(str(model_folder(Path(folder))), device="cpu", dtype="float64", batch_size=1)
        expected: dict[str, Any] = {task: evaluated(lm, task, 0) for task in YAML}
        for task in YAML:
            if task not in ("wikitext", "lambada"):
                expected[f"{task}_shots"] = evaluated(lm, task, 2)
        requests = []
        for n in range(8):
            options = {"until": [rng.choice("1SU")], "max_gen_toks": 5 + 3 * n}
            requests.append((words(rng, 1, 60), options))
        instances = [Instance("generate_until", {}, request, 0) for request in requests]
        texts = lm.generate_until(instances)
        expected["generate"] = [[*each, text] for each, text in zip(requests, texts, strict=True)]
    (FOLDER / "expected.json").write_bytes((json.dumps(expected, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
