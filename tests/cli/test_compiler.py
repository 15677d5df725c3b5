"""Commands where Numba compiles nothing, compiles anew, or keeps nothing: a result, or one line."""

from __future__ import annotations

import pytest

GENERATE = ("generate", "--verbose", "-n", "1", "--temperature", "0", "hello")


@pytest.mark.parametrize(
    "setting", ["NUMBA_DISABLE_JIT=1", "NUMBA_NUM_THREADS=0", "NUMBA_NUM_THREADS=-1"]
)
@pytest.mark.parametrize(
    "command",
    [
        ("generate", "-m", "MODEL", "hello"),
        ("bench", "-m", "MODEL"),
        ("eval", "-m", "MODEL", "text"),
        ("compare", "MODEL", "MODEL", "--text", "text"),
        ("convert", "MODEL", "out", "--dtype", "int8"),
        ("train", "text", "--out", "run", "--tokenizer", "MODEL", "--steps", "1"),
    ],
    ids=lambda command: command[0],
)
def test_a_setting_with_which_nothing_can_be_compiled_is_named(
    fails, model, tmp_path, command, setting
):
    name, value = setting.split("=")
    (tmp_path / "text").write_text("hello world " * 99)
    arguments = [str(model) if word == "MODEL" else word for word in command]
    fails(1, name, *arguments, env={name: value})
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


@pytest.mark.parametrize("setting", ["NUMBA_DISABLE_JIT=1", "NUMBA_NUM_THREADS=0"])
def test_what_needs_no_kernels_runs_all_the_same(run, model, setting):
    name, value = setting.split("=")
    text = b"hello world " * 30_000  # long enough for the compiled tokenizer
    expected = run("tokenize", "-m", model, input=text)
    done = run("tokenize", "-m", model, input=text, env={name: value})
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == expected.stdout
    assert run("info", model, env={name: value}).returncode == 0


@pytest.mark.parametrize(
    "environment",
    [
        {"NUMBA_CACHE_DIR": "/nowhere"},
        {"NUMBA_CACHE_LOCATOR_CLASSES": "nonsense"},
        {"NUMBA_THREADING_LAYER": "nonsense"},
        {"NUMBA_NUM_THREADS": "1"},
    ],
    ids=lambda environment: next(iter(environment)),
)
def test_settings_of_what_minigpt_does_not_use_change_nothing(run, model, environment):
    expected = run(*GENERATE, "-m", model)  # compiled from here on
    done = run(*GENERATE, "-m", model, env=environment)
    assert (done.returncode, done.stdout) == (0, expected.stdout)
    assert b"compiling" not in done.stderr


def test_a_setting_that_numba_cannot_read_is_a_warning_of_one_line(run, model):
    done = run("generate", "-m", model, "-n", "1", "hello", env={"NUMBA_NUM_THREADS": "banana"})
    assert done.returncode == 0
    line, *others = done.stderr.decode().splitlines()
    assert (line.startswith("Warning: "), "'NUMBA_NUM_THREADS'" in line, others) == (True, True, [])


@pytest.mark.slow
def test_settings_of_the_compiler_change_no_text(run, model, tmp_path):
    """Neither those that it takes nor those that it does not know."""
    settings = {"OPT": "0", "CPU_NAME": "nonsense", "LOOP_VECTORIZE": "banana"}
    environment = {f"NUMBA_{name}": value for name, value in settings.items()}
    environment["MINIGPT_CACHE"] = str(tmp_path / "cache")
    expected = run(*GENERATE, "-m", model)
    done = run(*GENERATE, "-m", model, env=environment)
    assert (done.returncode, done.stdout) == (0, expected.stdout)


@pytest.mark.slow
def test_a_command_says_that_it_compiles_and_that_nothing_can_be_kept(run, model, tmp_path):
    (tmp_path / "file").write_text("")
    cache = {"MINIGPT_CACHE": str(tmp_path / "file" / "cache")}
    done = run(*GENERATE, "-m", model, "--echo", env=cache)
    lines = done.stderr.decode().splitlines()
    assert done.stdout.decode().startswith("hello")
    assert [line for line in lines if "compiling" in line] == lines[:1]
    (warning,) = [line for line in lines if line.startswith("Warning: ")]
    assert "MINIGPT_CACHE" in warning
