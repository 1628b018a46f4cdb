"""`export.push`, against a small server of our own that speaks as much of the hub's protocol as a commit needs."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dumbo.errors import RunFailed, UserError
from dumbo.export.push import Push


@dataclass
class Hub:
    """What the server was asked for, and what it was given.

    Attributes:
        status: of the answer to a commit.
    """

    made: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    status: int = 200
    address: str = ""

    def answer(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if path == "/api/repos/create":
            self.made.append(json.loads(body))
            return 200, {"url": f"{self.address}/me/mine", "id": "me/mine"}
        if "/preupload/" in path:
            names = [one["path"] for one in json.loads(body)["files"]]
            return 200, {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
        if "/commit/" in path:
            for line in body.decode().splitlines():
                one = json.loads(line)
                if one["key"] == "file":
                    self.files[one["value"]["path"]] = base64.b64decode(one["value"]["content"])
            done = {
                "commitUrl": f"{self.address}/me/mine/commit/{'0' * 40}",
                "commitOid": "0" * 40,
                "pullRequestUrl": None,
            }
            return self.status, done if self.status == 200 else {"error": "no room"}
        return 200, {"errors": [], "warnings": []}  # validate-yaml


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The server, in reach, and a token for it."""
    from huggingface_hub import constants

    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(size) if size else b"".join(_chunks(self.rfile))
            hub.tokens.add(str(self.headers.get("Authorization")))
            status, said = hub.answer(self.path.split("?")[0], body)
            data = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_test")
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()


def _chunks(stream: Any) -> Iterator[bytes]:
    """A body that is sent in pieces."""
    while size := int(stream.readline().strip() or b"0", 16):
        yield stream.read(size)
        stream.readline()


@pytest.fixture
def folder() -> Path:
    path = Path("plain")
    path.mkdir()
    (path / "README.md").write_text("---\nlibrary_name: transformers\n---\n")
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(bytes(range(256)))
    return path


@pytest.mark.parametrize("private", [True, False])
def test_the_folder_arrives(private: bool, hub: Hub, folder: Path) -> None:
    push = Push.planned("me/mine", private=private)
    assert hub.made == [], "planning asks for nothing"
    assert push.upload(folder) == f"{hub.address}/me/mine"
    [made] = hub.made
    assert (made["name"], made["organization"]) == ("mine", "me")
    assert private == (
        made.get("visibility") == "private" or made.get("private", False)
    )  # newer, older huggingface_hub
    assert hub.files == {file.name: file.read_bytes() for file in folder.iterdir()}
    assert hub.tokens == {"Bearer hf_of_this_test"}


def test_a_refusal_keeps_the_folder(hub: Hub, folder: Path) -> None:
    hub.status = 413
    with pytest.raises(
        RunFailed, match=r"the hub did not take me/mine \(.*413.*\)\.\n  The folder is written all the same: plain"
    ):
        Push.planned("me/mine", private=True).upload(folder)
    assert len(list(folder.iterdir())) == 3


def test_without_a_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="needs a token that may write: set HF_TOKEN"):
        Push.planned("me/mine", private=True)
