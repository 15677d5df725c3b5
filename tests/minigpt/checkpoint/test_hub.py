"""Sources: folders, and hub ids downloaded from a small hub on this machine.

huggingface_hub reads HF_ENDPOINT when it is imported, so each download runs in its own process.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import minigpt
from minigpt.bundled import BUNDLED_MODEL
from minigpt.checkpoint import resolve
from minigpt.errors import SourceError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    "source",
    [
        "",
        ".hidden/x",
        "absent.gguf",
        "model.safetensors",
        "-m",
        "absent/",
        "a..b",
        "a/b/c",
        "../x",
        "a/..",
        "owner/na me",
        "owner/x\n",
        "owner/x/../y.gguf",
        "owner/x/y/z.gguf",
        "a\0b",
        7,
        None,
    ],
)
def test_neither_a_folder_nor_a_hub_id(source: object, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError) as caught:
        resolve(source)  # type: ignore[arg-type]
    assert "hub id" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_very_long_source(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such folder"):
        resolve("x" * 100_000)


def test_a_file_of_weights_is_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "x.bin").touch()
    with pytest.raises(SourceError, match="is a file; name its folder"):
        resolve(tmp_path / "x.bin")
    assert resolve(tmp_path / "x.bin", tokenizer_only=True) == tmp_path / "x.bin"


def test_without_huggingface_hub_it_says_how_to_get_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SourceError, match=r"pip install huggingface_hub$"):
        resolve("cerebras/Cerebras-GPT-111M")


class Hub(http.server.ThreadingHTTPServer):
    """Models by id, each a dict of its files; `requests` are the requested paths."""

    models: dict[str, dict[str, bytes]]
    requests: list[str]
    cut_after: int | None  # break the next download off after so many bytes


class Answer(http.server.BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append(f"{self.command} {path}")
        for model, files in self.server.models.items():
            if path in (f"/api/models/{model}", f"/api/models/{model}/revision/main"):
                siblings = [{"rfilename": name} for name in files]
                return self.send({"id": model, "sha": COMMIT, "siblings": siblings})
            if path.startswith(f"/api/models/{model}/tree/"):
                return self.send([self.described(name, data) for name, data in files.items()])
            for revision in ("main", COMMIT):
                name = path.removeprefix(f"/{model}/resolve/{revision}/")
                if name in files and model.endswith("gated"):
                    return self.send({"error": "log in"}, 403, {"X-Error-Code": "GatedRepo"})
                if name in files:
                    return self.send_file(files[name])
        self.send({"error": "no such model"}, 404, {"X-Error-Code": "RepoNotFound"})
        return None

    def described(self, name: str, data: bytes) -> dict[str, object]:
        oid = hashlib.sha1(data).hexdigest()
        return {"type": "file", "path": name, "size": len(data), "oid": oid}

    def send(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_bytes(json.dumps(value).encode(), status, headers or {})

    def send_file(self, data: bytes) -> None:
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        headers["Accept-Ranges"] = "bytes"
        status, start = 200, 0
        if self.headers.get("Range", "").startswith("bytes=") and self.command == "GET":
            start = int(self.headers["Range"][6:].partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            status = 206
        self.server.requests[-1] += f" from {start}"
        self.send_bytes(data[start:], status, headers)

    def send_bytes(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server.cut_after is not None and len(data) > self.server.cut_after:
            data, self.server.cut_after = data[: self.server.cut_after], None
            self.close_connection = True
        self.wfile.write(data)


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub(("127.0.0.1", 0), Answer)
    server.models, server.requests, server.cut_after = {}, [], None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


FETCH = """
import sys
from minigpt.checkpoint import resolve
from minigpt.errors import SourceError
try:
    print(resolve(sys.argv[1], len(sys.argv) > 2))
except SourceError as error:
    print("SourceError", error)
"""


def fetch(hub: Hub, *arguments: str, cache: Path, **environment: str) -> str:
    """The result of resolve(…) in a process whose hub is `hub`; its stderr must be empty.

    arguments  the source, and a second one to resolve the source of a tokenizer
    """
    others = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    ours = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(cache),
        "PYTHONPATH": str(Path(minigpt.__file__).parent.parent),
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-c", FETCH, *arguments],
        env={**others, **ours, **environment},
        cwd=cache,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.removesuffix("\n")


BIN_MODEL = {
    "config.json": b"{}",
    "vocab.json": b"{}",
    "merges.txt": b"#version: 0.2\n",
    "generation_config.json": b'{"eos_token_id": [1, 2]}',
    "chat_template.jinja": b"{{ messages }}",
    "pytorch_model.bin": bytes(range(256)) * 4000,
    "README.md": b"# not needed",
    "flax_model.msgpack": b"not needed",
}


def test_a_model_is_downloaded_once_and_then_found_offline(hub: Hub, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    hub.models["owner/name"] = BIN_MODEL
    folder = Path(fetch(hub, "owner/name", cache=tmp_path))
    wanted = sorted(BIN_MODEL.keys() - {"README.md", "flax_model.msgpack"})
    assert sorted(path.name for path in folder.iterdir()) == wanted
    assert all((folder / name).read_bytes() == BIN_MODEL[name] for name in wanted)
    hub.requests.clear()
    assert fetch(hub, "owner/name", cache=tmp_path) == str(folder)
    assert not any(line.startswith("GET /owner/") for line in hub.requests)
    hub.requests.clear()
    assert fetch(hub, "owner/name", cache=tmp_path, HF_HUB_OFFLINE="1") == str(folder)
    assert hub.requests == []
    gone = fetch(hub, "owner/name", cache=tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert gone == str(folder)


@pytest.mark.parametrize("name", ["gpt2", "gpt2-xl", "my_model-1.5b"])
def test_a_name_without_an_owner(hub: Hub, tmp_path: Path, name: str) -> None:
    """The hub has models of its early days under such names; a folder comes first."""
    pytest.importorskip("huggingface_hub")
    hub.models[name] = BIN_MODEL
    folder = fetch(hub, name, cache=tmp_path)
    assert f"models--{name}" in folder
    hub.requests.clear()
    assert fetch(hub, name, cache=tmp_path, HF_HUB_OFFLINE="1") == folder
    assert hub.requests == []
    (tmp_path / name).mkdir()
    assert fetch(hub, name, cache=tmp_path) == name
    answer = fetch(hub, "absent", cache=tmp_path, HF_HUB_OFFLINE="1")
    assert answer.startswith("SourceError absent: no such folder, not in the cache, and the hub")


def test_the_files_of_a_tokenizer_alone_are_downloaded(hub: Hub, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    hub.models["owner/name"] = BIN_MODEL
    folder = Path(fetch(hub, "owner/name", "tokenizer", cache=tmp_path))
    names = {path.name for path in folder.iterdir()}
    assert names == BIN_MODEL.keys() - {"pytorch_model.bin", "README.md", "flax_model.msgpack"}
    assert fetch(hub, "owner/name", "tokenizer", cache=tmp_path, HF_HUB_OFFLINE="1") == str(folder)
    assert fetch(hub, "owner/name", cache=tmp_path) == str(folder)
    assert (folder / "pytorch_model.bin").exists()
    hub.models["owner/vocabulary"] = {"tokenizer.json": b"{}"}
    folder = Path(fetch(hub, "owner/vocabulary", "tokenizer", cache=tmp_path))
    assert [path.name for path in folder.iterdir()] == ["tokenizer.json"]
    hub.models["owner/gguf"] = {"a.gguf": b"GGUF", "README.md": b"#"}
    assert Path(fetch(hub, "owner/gguf", "tokenizer", cache=tmp_path)).name == "a.gguf"
    hub.models["owner/none"] = {"config.json": b"{}", "model.safetensors": b"1"}
    answer = fetch(hub, "owner/none", "tokenizer", cache=tmp_path)
    assert "owner/none: is on the hub, but without a tokenizer that can be read" in answer


def test_the_bundled_model_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve("tales-6m") == BUNDLED_MODEL
    (tmp_path / "tales-6m").mkdir()
    assert resolve("tales-6m") == Path("tales-6m")


def test_one_of_several_formats_is_downloaded(hub: Hub, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    hub.models["owner/name"] = {
        **BIN_MODEL,
        "model.safetensors.index.json": b"{}",
        "model-00001-of-00002.safetensors": b"1",
        "model-00002-of-00002.safetensors": b"2",
        "other.safetensors": b"not needed",
        "onnx/model.safetensors": b"not needed",
    }
    names = {path.name for path in Path(fetch(hub, "owner/name", cache=tmp_path)).iterdir()}
    assert {name for name in names if "model" in name} == {
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }


def test_a_repository_of_one_gguf_model(hub: Hub, tmp_path: Path) -> None:
    """Its file is the source, or the first of its parts; without a connection, too."""
    pytest.importorskip("huggingface_hub")
    parts = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    for hub_id, names in (("owner/one", ["m.gguf"]), ("owner/parts", parts)):
        hub.models[hub_id] = {"README.md": b"#", **{name: name.encode() for name in names}}
        path = Path(fetch(hub, hub_id, cache=tmp_path))
        assert path.name == names[0]
        assert sorted(other.name for other in path.parent.iterdir()) == names
        assert fetch(hub, hub_id, cache=tmp_path, HF_HUB_OFFLINE="1") == str(path)


def test_a_repository_of_several_gguf_models(hub: Hub, tmp_path: Path) -> None:
    """One is named after the repository; only its parts are downloaded."""
    pytest.importorskip("huggingface_hub")
    names = ["a.Q4_K_M.gguf", "b-00001-of-00002.gguf", "b-00002-of-00002.gguf"]
    hub.models["owner/name"] = dict.fromkeys(names, b"GGUF")
    answer = fetch(hub, "owner/name", cache=tmp_path)
    assert answer == (
        "SourceError owner/name: holds several GGUF files; name one of a.Q4_K_M.gguf, "
        "b-00001-of-00002.gguf, as in owner/name/a.Q4_K_M.gguf"
    )
    path = Path(fetch(hub, "owner/name/b-00002-of-00002.gguf", cache=tmp_path))
    assert path.name == names[2]
    assert sorted(other.name for other in path.parent.iterdir()) == names[1:]
    again = fetch(hub, "owner/name/b-00002-of-00002.gguf", cache=tmp_path, HF_HUB_OFFLINE="1")
    assert again == str(path)
    answer = fetch(hub, "owner/name/c.gguf", cache=tmp_path)
    assert "holds no file 'c.gguf'; name one of a.Q4_K_M.gguf" in answer


def test_other_weights_of_a_repository_take_precedence_over_gguf(hub: Hub, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    hub.models["owner/name"] = {**BIN_MODEL, "m.gguf": b"GGUF"}
    assert not (Path(fetch(hub, "owner/name", cache=tmp_path)) / "m.gguf").exists()
    assert Path(fetch(hub, "owner/name/m.gguf", cache=tmp_path)).name == "m.gguf"


@pytest.mark.slow
def test_an_interrupted_download_continues(hub: Hub, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    weights = bytes(range(256)) * 100_000  # huggingface_hub keeps pieces of 10 MB
    hub.models["owner/name"] = {"config.json": b"{}", "pytorch_model.bin": weights}
    hub.cut_after = 20_000_000
    first = fetch(hub, "owner/name", cache=tmp_path)  # it may try again by itself
    folder = Path(fetch(hub, "owner/name", cache=tmp_path) if "SourceError" in first else first)
    assert (folder / "pytorch_model.bin").read_bytes() == weights
    starts = [line.split()[-1] for line in hub.requests if line.startswith("GET /owner/name/res")]
    assert any(int(start) >= 10_000_000 for start in starts)


@pytest.mark.slow
def test_a_model_that_the_hub_does_not_have(hub: Hub, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    answer = fetch(hub, "owner/absent", cache=tmp_path)
    assert answer.startswith("SourceError owner/absent: no such folder, and the hub has no such")
    assert answer.count("\n") == 0
    hub.models["owner/gated"] = BIN_MODEL
    answer = fetch(hub, "owner/gated", cache=tmp_path)
    assert "requires a login" in answer
    assert answer.count("\n") == 0
    hub.models["owner/empty"] = {"README.md": b"# nothing here"}
    assert "without weights that can be read" in fetch(hub, "owner/empty", cache=tmp_path)
    answer = fetch(hub, "owner/name", cache=tmp_path, HF_HUB_OFFLINE="1")
    assert answer.startswith("SourceError owner/name: no such folder, not in the cache")
    assert answer.count("\n") == 0


def test_names_that_point_outside_the_cache_are_not_downloaded(hub: Hub, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    cache = tmp_path / "a" / "cache"
    cache.mkdir(parents=True)
    evil = ["../../../../../../model-x.safetensors", "model/../../../../../../x.safetensors"]
    evil += ["model*.safetensors", "model..\\..\\x.safetensors"]
    files = {
        "config.json": b"{}",
        "model.safetensors.index.json": b"{}",
        "model-1.safetensors": b"1",
    }
    hub.models["owner/name"] = {**files, **dict.fromkeys(evil, b"evil")}
    fetch(hub, "owner/name", cache=cache)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in written if path.read_bytes() == b"evil"]
    assert all(cache in path.parents for path in written)
