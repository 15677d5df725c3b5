"""The folder of a run: complete at every moment, and checked before it is resumed."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_run import N, contents, create, result, resume

from minigpt import GPTConfig, GPTTokenizer
from minigpt.checkpoint import open_checkpoint
from minigpt.errors import CheckpointError, InputError, SourceError
from minigpt.training.limits import Limits
from minigpt.training.metrics import read_metrics
from minigpt.training.run_folder import digest, open_run, run_lock
from minigpt.training.schedule import learning_rate
from minigpt.training.state_json import read_state_json, to_json
from minigpt.weights.table import tensor_shapes

pytestmark = pytest.mark.usefixtures("fast")


def test_the_folder_is_a_model_source(run: Path) -> None:
    resume(run)
    config = GPTConfig.from_source(run)
    weights = open_checkpoint(run)
    found = {f"transformer.{name}": shape for name, shape in tensor_shapes(config).items()}
    assert {name: info.shape for name, info in weights.tensors.items()} == found
    assert {info.dtype for info in weights.tensors.values()} == {"F32"}
    assert GPTTokenizer.from_pretrained(run).encode("cat") == [99, 256]


def test_what_a_killed_process_left_is_removed(run: Path, expected: Any) -> None:
    """Lines of steps made after the checkpoint, half a line, temporary files, an old checkpoint."""
    resume(run, limits=Limits(steps=4))
    (run / "step-00000000").mkdir()
    (run / ".step-00000008.12ab.tmp").mkdir()
    (run / ".step-00000008.12ab.tmp" / "model.safetensors").write_bytes(b"half")
    (run / ".model.safetensors.link.tmp").write_bytes(b"")
    (run / "model.safetensors").unlink()
    (run / "model.safetensors").write_bytes(b"an older one")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 1.0}\n{"step": 6, "lo')
    resume(run)
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == list(range(N + 1))
    assert not list(run.glob(".*"))
    assert [path.name for path in run.glob("step-*")] == [f"step-{N:08}"]
    assert result(run) == expected


def test_a_run_can_be_moved(run: Path, expected: Any) -> None:
    resume(run, limits=Limits(steps=5))
    shutil.copytree(run, run.parent / "elsewhere")
    shutil.rmtree(run)
    resume(run.parent / "elsewhere")
    assert result(run.parent / "elsewhere") == expected


def test_one_process_trains_in_a_folder_at_a_time(run: Path) -> None:
    with (
        run_lock(run),
        pytest.raises(InputError, match="run: another process trains here; wait for it"),
    ):
        resume(run)
    assert resume(run).step == N


def test_a_folder_without_a_run_gets_no_lock(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"tmp.*: holds no training run; `minigpt train TEXT…"):
        resume(tmp_path)
    with pytest.raises(SourceError, match="nowhere: holds no training run"):
        resume(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


# ---- damage ----

Damage = Callable[[Path], object]  # of a run's folder


def change(path: str, edit: Callable[[bytes], bytes]) -> Damage:
    """Edit the bytes of a file."""

    def damage(run: Path) -> None:
        (file,) = run.glob(path)
        file.write_bytes(edit(file.read_bytes()))

    return damage


def swap(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    """Replace `old`, which must be there."""

    def swapped(data: bytes) -> bytes:
        assert old in data
        return data.replace(old, new, 1)

    return swapped


def flip_last(data: bytes) -> bytes:
    """Flip the last bit."""
    return data[:-1] + bytes([data[-1] ^ 1])


def set_in_state(section: str, values: dict[str, Any]) -> Damage:
    """Replace values of a section of state.json; its texts as a whole."""

    def edit(data: bytes) -> bytes:
        record = json.loads(data)
        record[section] = values if section == "texts" else record[section] | values
        return json.dumps(record).encode()

    return change("step-*/state.json", edit)


def enlarge_vocabulary(run: Path) -> None:
    """Let text.tokens hold an id that the model does not have, with a digest that is right."""
    path = run / "text.tokens"
    data = bytearray(path.read_bytes())
    data[8:16] = struct.pack("<Q", 60_000)
    data[-2:] = struct.pack("<H", 59_999)
    path.write_bytes(data)
    (state,) = run.glob("step-*/state.json")
    texts = json.loads(state.read_bytes())["texts"]
    set_in_state("texts", texts | {"text.tokens": digest(path)})(run)


def empty_texts(run: Path) -> None:
    """As above, with no digest to compare it with."""
    enlarge_vocabulary(run)
    set_in_state("texts", {})(run)


DAMAGES: dict[str, Damage] = {
    "config.json: has changed": change("config.json", swap(b'"n_head": 2', b'"n_head": 4')),
    "config.json: no such file": lambda run: (run / "config.json").unlink(),
    "text.tokens: has changed": change("text.tokens", flip_last),
    "held-out.tokens: has changed": change("held-out.tokens", flip_last),
    "text.tokens: no such file": lambda run: (run / "text.tokens").unlink(),
    "state.json: is not valid JSON": change("step-*/state.json", lambda data: data[:100]),
    "state.json: is of version 9": change("step-*/state.json", swap(b'ion": 2', b'ion": 9')),
    "state.json: is of version True": change("step-*/state.json", swap(b'ion": 2', b'ion": true')),
    "state.json: settings: lr -1": change("step-*/state.json", swap(b'"lr": 0.02', b'"lr": -1')),
    "state.json: settings: clip -1: must be a number": set_in_state("settings", {"clip": -1}),
    "state.json: settings: must have no": change(
        "step-*/state.json", swap(b'"warmup": 2', b'"warmup": null')
    ),
    "state.json: settings: must have context": change(
        "step-*/state.json", swap(b'"warmup"', b'"warm"')
    ),
    "state.json: state: worse": change("step-*/state.json", swap(b'se": 0', b'se": -1')),
    "state.json: state: must have": change("step-*/state.json", swap(b'"best_step"', b'"step2"')),
    "state.json: state: best cannot be '3'": set_in_state("state", {"best": "3"}),
    "state.json: state: best_step cannot be 1152921504606846976": set_in_state(
        "state", {"best_step": 2**60}
    ),
    "state.json: is of step 5, not of step-00000004": set_in_state("state", {"step": 5}),
    "state.json: settings: context 9: must be an integer from 1 to 8": set_in_state(
        "settings", {"context": 9}
    ),
    "state.json: settings: batch_size 1152921504606846976: must be": set_in_state(
        "settings", {"batch_size": 2**60}
    ),
    "state.json: texts: must have text.tokens": empty_texts,
    "state.json: texts: must have text.tokens, may have": set_in_state(
        "texts", {"text.tokens": "", "../other": ""}
    ),
    "state.json: texts: text.tokens must be a SHA-256": set_in_state("texts", {"text.tokens": 1}),
    "text.tokens: holds ids beyond the model's 258": enlarge_vocabulary,
    "model.safetensors: .*cut short": change("step-*/model.safetensors", lambda data: data[:-9]),
    "moments.safetensors: .*cut short": change(
        "step-*/moments.safetensors", lambda data: data[:-9]
    ),
    "moments.safetensors: must hold first.wte": change(
        "step-*/moments.safetensors", swap(b"first.wte", b"worst.wte")
    ),
    "moments.safetensors: no such file": lambda run: next(run.glob("step-*/mom*")).unlink(),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_damage_is_named_and_changes_nothing_else(run: Path, message: str) -> None:
    resume(run, limits=Limits(steps=4))
    DAMAGES[message](run)
    before = contents(run)
    with pytest.raises(SourceError, match=message) as caught:
        resume(run)
    assert len(str(caught.value).splitlines()) == 1
    assert contents(run) == before


ODD = [
    None, True, -1, 0, 1, 2, 0.5, -0.5, 1e-320, 1e308, 2**31, 2**53, 2**63, 10**400, -(10**400),
    "", "1", "NaN", "\0", [], [1], {}, {"steps": 1}, math.nan, math.inf,
]  # fmt: skip


def keys(record: dict[str, Any]) -> list[list[str]]:
    """The path to each value of nested objects, and to each object."""
    found = []
    for key, value in record.items():
        found.append([key])
        if isinstance(value, dict):
            found += [[key, *path] for path in keys(value)]
    return found


def test_no_value_of_state_json_leads_to_another_error(tmp_path: Path) -> None:
    """Each value in turn is replaced and removed: the run is refused in one line, or goes on."""
    create(tmp_path / "run", steps_in_time=5)
    resume(tmp_path / "run", limits=Limits(steps=1))
    (path,) = (tmp_path / "run").glob("step-*/state.json")
    text = path.read_text()
    removed = object()
    accepted = 0
    for keys_to_value in keys(json.loads(text)):
        for odd in [*ODD, removed]:
            record = json.loads(text)
            parent = record
            for key in keys_to_value[:-1]:
                parent = parent[key]
            if odd is removed:
                del parent[keys_to_value[-1]]
            else:
                parent[keys_to_value[-1]] = odd
            path.write_text(json.dumps(record))
            try:
                opened = open_run(tmp_path / "run")
            except SourceError as error:
                assert len(str(error).splitlines()) == 1
                continue
            accepted += 1
            config, state = opened.run.config, opened.state
            assert 1 <= config.context <= opened.run.model.n_positions == 8
            assert math.isfinite(learning_rate(config, state.plan.position if state.plan else 1))
            assert json.loads(to_json(opened.run, state))["state"]["seconds"] < math.inf
    assert accepted > 50


@pytest.mark.parametrize(
    ("name", "tokens", "message"),
    [
        ("text.tokens", 0, "text.tokens: has 0 tokens, too few for sequences of 9"),
        ("text.tokens", 8, "text.tokens: has 8 tokens, too few"),
        ("held-out.tokens", 0, None),
        ("held-out.tokens", 1, None),
    ],
)
def test_token_files_of_few_tokens(run: Path, name: str, tokens: int, message: str | None) -> None:
    """With a digest that is right."""
    data = bytearray((run / name).read_bytes()[: 32 + 2 * tokens])
    data[16:24] = struct.pack("<Q", tokens)
    (run / name).write_bytes(data)
    (state,) = run.glob("step-*/state.json")
    texts = json.loads(state.read_bytes())["texts"]
    set_in_state("texts", texts | {name: digest(run / name)})(run)
    if message is None:
        assert resume(run).step == N
    else:
        with pytest.raises(CheckpointError, match=message):
            resume(run)


@pytest.mark.parametrize("name", ["text.tokens", "held-out.tokens"])
def test_a_token_file_that_changes_while_it_is_read(run: Path, name: str) -> None:
    """No id beyond the vocabulary reaches compiled code, which does not check."""

    def damage(report: object) -> None:
        with (run / name).open("r+b") as file:
            file.seek(32)
            file.write(b"\xff" * ((run / name).stat().st_size - 32))

    if name == "held-out.tokens":  # of a legacy run: of others it is in memory
        change("step-*/state.json", as_version_1)(run)
    with pytest.raises(CheckpointError, match=f"{name}: has changed while it was read"):
        resume(run, report=damage)


# ---- metrics.jsonl ----

_STEP = b'{"step": 3, "loss": 2.0}\n'
METRICS = {
    "a step that is no float": b'{"step": 1' + b"0" * 400 + b', "loss": 1}\n',
    "a step of more digits than Python reads": b'{"step": 1' + b"0" * 5000 + b"}\n",
    "a step below 0": b'{"step": -5, "loss": 1}\n',
    "a step of another kind": b'{"step": true, "loss": 1}\n{"step": "3", "loss": 1}\n',
    "losses of any kind": b'{"step": 3, "loss": 1e999, "held_out": [1], "seconds": {}}\n'
    b'{"step": 4, "loss": -1' + b"0" * 400 + b"}\n" + b'{"step": 5, "loss": NaN}\n',
    "deep brackets": b"[" * 100_000 + b"\n" + b'{"a":' * 100_000 + b"\n",
    "bytes of any kind": bytes(range(256)) * 20,
    "ends of lines of Windows": _STEP.replace(b"\n", b"\r\n") * 3,
    "other ends of lines": _STEP.replace(b"\n", b"\x85\x0b\xe2\x80\xa8\r"),
    "no end of the last line": _STEP + _STEP[:-1],
    "half a line": _STEP + _STEP[:9],
    "UTF-16": _STEP.decode().encode("utf-16"),
    "nothing": b"",
}


@pytest.mark.parametrize("where", ["before", "in place of"])
@pytest.mark.parametrize("what", METRICS)
def test_a_damaged_metrics_file_keeps_no_run_from_going_on(
    run: Path, expected: Any, what: str, where: str
) -> None:
    resume(run, limits=Limits(steps=4))
    path = run / "metrics.jsonl"
    path.write_bytes(METRICS[what] + (path.read_bytes() if where == "before" else b""))
    state = resume(run)
    assert state.step == N
    assert result(run) | {"lines": []} == expected | {"lines": []}
    lines = read_metrics(path)
    assert [line["step"] for line in lines[-8:]] == list(range(5, N + 1))
    assert lines[-8:] == [
        {**line, "seconds": pytest.approx(lines[-8 + n]["seconds"])}
        for n, line in enumerate(expected["lines"][-8:])
    ]
    assert path.read_bytes().endswith(b"}\n")


def test_a_missing_metrics_file_begins_anew(run: Path, expected: Any) -> None:
    resume(run, limits=Limits(steps=4))
    (run / "metrics.jsonl").unlink()
    assert resume(run).step == N
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == list(range(5, N + 1))


# ---- links: nothing outside of the folder is written ----


def linked(path: Path, target: Path) -> None:
    try:
        path.unlink(missing_ok=True)
        path.symlink_to(target)
    except OSError:
        pytest.skip("no symbolic links here")


@pytest.mark.parametrize("exists", [True, False])
def test_metrics_are_not_written_through_a_link(run: Path, exists: bool) -> None:
    resume(run, limits=Limits(steps=4))
    mine = run.parent / "mine.txt"
    if exists:
        mine.write_bytes(b"x" * 10_000)
    linked(run / "metrics.jsonl", mine)
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: is a link; put the file itself"):
        resume(run)
    assert mine.exists() is exists
    assert not exists or mine.read_bytes() == b"x" * 10_000


def test_a_link_in_place_of_what_is_replaced_is_replaced(run: Path, expected: Any) -> None:
    mine = run.parent / "mine"
    mine.write_text("mine")
    for name in ("loss.svg", "model.safetensors"):
        linked(run / name, mine)
    (run.parent / "folder").mkdir()
    (run.parent / "folder" / "state.json").write_text("mine")
    linked(run / ".step-00000004.12ab.tmp", run.parent / "folder")
    resume(run)
    assert result(run) == expected
    assert (mine.read_text(), (run.parent / "folder" / "state.json").read_text()) == ("mine",) * 2
    assert not (run / "loss.svg").is_symlink()
    assert not list(run.glob(".*"))


def test_a_checkpoint_that_is_a_link_is_read_and_then_replaced(run: Path, expected: Any) -> None:
    resume(run, limits=Limits(steps=4))
    elsewhere = run.parent / "elsewhere"
    (run / "step-00000004").rename(elsewhere)
    linked(run / "step-00000004", elsewhere)
    before = contents(elsewhere)
    resume(run)
    assert result(run) == expected
    assert contents(elsewhere) == before


@pytest.mark.skipif(os.name == "nt", reason="the lock of Windows follows links")
def test_the_lock_is_no_link_out_of_the_folder(run: Path) -> None:
    linked(run / "lock", run.parent / "elsewhere")
    with pytest.raises(CheckpointError, match="lock: cannot be written: "):
        resume(run)
    assert not (run.parent / "elsewhere").exists()


@pytest.mark.skipif(os.name == "nt", reason="needs named pipes")
@pytest.mark.parametrize("name", ["metrics.jsonl", "text.tokens", "step-00000004/state.json"])
def test_a_pipe_is_not_waited_for(run: Path, name: str) -> None:
    resume(run, limits=Limits(steps=4))
    (run / name).unlink()
    os.mkfifo(run / name)
    with pytest.raises(CheckpointError, match=f"{name}: "):
        resume(run)


@pytest.mark.parametrize("held_back", [10**6, 203])
def test_a_validation_split_that_leaves_no_sequence(tmp_path: Path, held_back: int) -> None:
    create(tmp_path / "run", texts=["the cat sat on the mat. " * 10], validation=None)
    set_in_state("settings", {"held_back": held_back})(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"text\.tokens: has 211 tokens, too few"):
        resume(tmp_path / "run")


def test_state_json_keeps_its_keys(run: Path) -> None:
    """Runs of earlier versions have them."""
    (path,) = run.glob("step-*/state.json")
    record = json.loads(path.read_bytes())
    assert list(record) == ["version", "config", "settings", "texts", "state"]
    assert list(record["settings"]) == [
        "context", "batch_size", "lr", "min_lr", "warmup", "warmup_tokens", "decay", "steps",
        "epochs", "most_steps", "beta_1", "beta_2", "eps", "weight_decay", "clip", "eval_every",
        "save_every", "held_back", "seed", "dtype", "recompute", "legacy",
    ]  # fmt: skip
    assert list(record["state"]) == [
        "step", "best", "best_step", "worse", "seconds", "metrics_bytes", "plan",
    ]  # fmt: skip
    opened = open_run(run)
    assert to_json(opened.run, opened.state) == path.read_text()
    assert read_state_json(path, run) == (opened.run, opened.state)


def as_version_1(data: bytes) -> bytes:
    """A state.json as the first version wrote it."""
    record = json.loads(data)
    del record["settings"]["legacy"], record["state"]["plan"]
    return json.dumps(record | {"version": 1}).encode()


def test_a_run_of_the_first_version_keeps_its_learning_rates(run: Path) -> None:
    """Its last step has the minimum, and what it saves remembers where it came from."""
    change("step-*/state.json", as_version_1)(run)
    assert open_run(run).run.config.legacy
    resume(run, limits=Limits(steps=7))
    resume(run)
    rates = [line["lr"] for line in read_metrics(run / "metrics.jsonl") if line["step"]]
    decay = [0.002 + 0.009 * (1 + math.cos(math.pi * n / 10)) for n in range(1, 11)]
    assert rates == pytest.approx([0.01, 0.02, *decay], rel=1e-12)
    (path,) = run.glob("step-*/state.json")
    record = json.loads(path.read_bytes())
    assert (record["version"], record["settings"]["legacy"]) == (2, True)


# ---- a full disk ----


class Disk:
    """A disk with space for so many bytes: the write that exceeds it is written in part."""

    def __init__(self, space: int) -> None:
        self.space = space

    def fdopen(self, descriptor: int, *arguments: Any, **options: Any) -> Any:
        disk, file = self, REAL_FDOPEN(descriptor, *arguments, **options)
        if "r" in file.mode:
            return file
        write = file.write

        class File:
            def __getattr__(self, name: str) -> Any:
                return getattr(file, name)

            def __enter__(self) -> File:
                return self

            def __exit__(self, *error: object) -> None:
                file.close()

            def write(self, data: bytes) -> int:
                size = memoryview(data).nbytes
                if size > disk.space:
                    write(memoryview(data).cast("B")[: disk.space])
                    disk.space = 0
                    raise OSError(28, "No space left on device")
                disk.space -= size
                return write(data)

        return File()


REAL_FDOPEN = os.fdopen
# A save writes 61 kB: 18 kB of weights, 36 kB of moments, state and loss curve.
SPACES = [0, 50, 400, 3_000, 19_000, 30_000, 56_000, 57_500, 59_000]


@pytest.mark.parametrize("space", SPACES)
def test_a_full_disk_leaves_a_complete_checkpoint(
    run: Path, expected: Any, space: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    resume(run, limits=Limits(steps=4))
    disk = Disk(space)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", disk.fdopen)
        with pytest.raises(CheckpointError, match="cannot be written: No space left on device"):
            resume(run)
    steps = {path.name for path in run.glob("step-*")}
    assert steps <= {"step-00000004", "step-00000008"}
    assert not list(run.glob(".step-*")) or steps == {"step-00000008"}
    resume(run)
    assert result(run) == expected


@pytest.mark.parametrize("space", [0, 500, 2_000, 10_000, 20_000])
def test_a_full_disk_leaves_nothing_of_a_new_run(
    tmp_path: Path, space: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fdopen", Disk(space).fdopen)
    with pytest.raises(CheckpointError, match="No space left on device"):
        create(tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]
