"""Every test here has its own SQLite store and its own cache."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> bytes:
    """An initialised SQLite store: making its tables takes seconds, copying it does not."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    script = (
        "import mlflow; mlflow.MlflowClient().search_experiments(); mlflow.MlflowClient().search_registered_models()"
    )
    environment = dict(os.environ) | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{path}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, cwd=path.parent, timeout=120)
    return path.read_bytes()


@pytest.fixture
def store(tmp_path, monkeypatch, empty_store):
    """The URI of a new SQLite store that the environment names; artifacts go to the test's folder."""
    import mlflow

    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    (tmp_path / "mlflow.db").write_bytes(empty_store)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BERTDYN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    yield uri
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


@pytest.fixture
def client(store):
    from mlflow import MlflowClient

    return MlflowClient(store)


@pytest.fixture
def elsewhere(store, tmp_path, client, monkeypatch):
    """Makes the artifacts of new runs look as if they were not in this machine's file system."""
    from bertdyn.tracking import artifacts

    monkeypatch.setattr(artifacts, "artifact_folder", lambda run: None)
    return tmp_path / "cache"


class ArtifactServer:
    """An artifact store behind HTTP, as MLflow's proxy speaks it: the database can be up while it is not."""

    PREFIX = "/api/2.0/mlflow-artifacts/artifacts"

    def __init__(self, folder: Path):
        self.folder = folder
        self.uploads: list[str] = []
        self.status: Callable[[str, str], int] = lambda method, path: 200
        """The answer to a method and a path; from 400 on nothing is done."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self):
                server.put(self)

            def do_GET(self):
                server.get(self)

            def log_message(self, *arguments):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}{self.PREFIX}/root"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def put(self, request: BaseHTTPRequestHandler) -> None:
        content = request.rfile.read(int(request.headers["Content-Length"]))
        path = request.path.removeprefix(self.PREFIX).strip("/")
        status = self.status("PUT", path)
        if status < 400:
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path).write_bytes(content)
            self.uploads.append(path.partition("/artifacts/")[2])
        self._answer(request, status, b"{}")

    def get(self, request: BaseHTTPRequestHandler) -> None:
        url = urlsplit(request.path)
        if listed := parse_qs(url.query).get("path"):
            status, folder = self.status("LIST", listed[0]), self.folder / listed[0]
            files = [
                {"path": file.name, "is_dir": file.is_dir(), "file_size": file.stat().st_size}
                for file in (folder.iterdir() if folder.is_dir() else ())
            ]
            self._answer(request, status, json.dumps({"files": files}).encode())
        else:
            path = url.path.removeprefix(self.PREFIX).strip("/")
            status, file = self.status("GET", path), self.folder / path
            self._answer(request, status if file.is_file() else 404, file.read_bytes() if file.is_file() else b"")

    def _answer(self, request: BaseHTTPRequestHandler, status: int, content: bytes) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)


@pytest.fixture
def artifact_server(store, client, tmp_path, monkeypatch):
    """Where the artifacts of new runs go: a real HTTP server in a thread."""
    server = ArtifactServer(tmp_path / "remote")
    client.create_experiment("remote", artifact_location=server.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "remote")
    yield server
    server.close()


@pytest.fixture
def process(tmp_path):
    """Starts `python -c script` in the environment of the test; the process is killed at the end."""
    started = []

    def start(script: str, *arguments: str, **environment: str) -> subprocess.Popen:
        begun = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), *arguments],
            cwd=tmp_path,
            env=dict(os.environ) | {"PYTHONPATH": str(ROOT)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Ctrl-C may be ignored in a test runner's background job, and would be inherited.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        started.append(begun)
        return begun

    yield start
    for begun in started:
        begun.kill()
        begun.wait(timeout=20)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A random two-layer BERT classifier and a tokenizer with a dozen words."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    folder = tmp_path_factory.mktemp("tiny")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "bad", "film", "is", "this"]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizer(vocab=str(folder / "vocab.txt"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    return BertForSequenceClassification(config).eval(), tokenizer
