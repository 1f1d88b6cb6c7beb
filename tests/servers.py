"""Real services for tests: an MLflow server that can be killed and started again, and PostgreSQL.

Everything listens on the loopback address only and ends with the `with` block.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import requests

_POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
POSTGRES_BIN: Path | None = (
    _POSTGRES[-1].parent if _POSTGRES else Path(found).parent if (found := shutil.which("initdb")) else None
)
"""Where PostgreSQL's programs are; None when it is not installed."""


class MlflowServer:
    """An MLflow server on a folder of its own; `uri` stays the same when it is started again."""

    def __init__(self, folder: Path, database: str):
        self.folder, self.database = folder, database
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen | None = None

    def start(self, wait: float = 90) -> None:
        """Starts the server; waits until it answers unless `wait` is 0."""
        folder = self.folder
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self.database]
        command += ["--artifacts-destination", str(folder / "server_artifacts")]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        environment |= {"MLFLOW_DISABLE_TELEMETRY": "true"}
        with (folder / "server.log").open("a") as log:
            # A session of its own, so that its workers can be killed with it.
            self._process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline:
            assert self._process.poll() is None, (folder / "server.log").read_text()[-3000:]
            if self.answers():
                return
            time.sleep(0.3)
        assert not wait, f"no answer in {wait} s: " + (folder / "server.log").read_text()[-3000:]

    def answers(self) -> bool:
        """Whether the server is up."""
        try:
            return requests.get(self.uri + "/health", timeout=2).ok
        except requests.RequestException:
            return False

    def kill(self) -> None:
        """SIGKILL to the server and its workers."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(timeout=20)
            self._process = None


@contextmanager
def mlflow_server(folder: Path, backend: str) -> Iterator[MlflowServer]:
    """A running server.

    Args:
        folder: an empty folder for its database, artifacts and log.
        backend: `sqlite` or `postgresql`.
    """
    if backend == "sqlite":
        server = MlflowServer(folder, f"sqlite:///{folder}/server.db")
        with _killed_at_the_end(server):
            yield server
    else:
        with postgresql(folder / "postgresql") as uri:
            server = MlflowServer(folder, uri)
            with _killed_at_the_end(server):
                yield server


@contextmanager
def _killed_at_the_end(server: MlflowServer) -> Iterator[None]:
    try:
        server.start()
        yield
    finally:
        server.kill()


@contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """A new PostgreSQL cluster with an empty database; yields its SQLAlchemy URI."""
    assert POSTGRES_BIN is not None
    folder.mkdir(parents=True)
    data, port = folder / "data", free_port()
    as_user: list[str] = []
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
        as_user = ["runuser", "-u", "postgres", "--"]
        shutil.chown(folder, "postgres")
        for parent in folder.parents:  # pytest's folders are closed to others
            if parent.stat().st_uid == 0 and str(parent).startswith("/tmp/"):
                parent.chmod(parent.stat().st_mode | 0o011)
    initdb = [
        *as_user,
        str(POSTGRES_BIN / "initdb"),
        "-D",
        str(data),
        "-U",
        "mlflow",
        "-A",
        "trust",
        "--no-sync",
    ]
    subprocess.run(initdb, check=True, capture_output=True, timeout=60, cwd=folder)
    # No socket file: pytest's folder names are longer than a socket's path may be.
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
    control = [*as_user, str(POSTGRES_BIN / "pg_ctl"), "-D", str(data), "-w", "-t", "30"]
    log = folder / "log"
    subprocess.run(
        [*control, "-l", str(log), "-o", options, "start"],
        check=True,
        timeout=60,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    server = psutil.Process(int((data / "postmaster.pid").read_text().split()[0]))
    try:
        yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
    finally:
        # By signal: pg_ctl cannot read the folder any more once another pytest has closed /tmp/pytest-of-root again.
        server.send_signal(signal.SIGQUIT)
        server.wait(timeout=60)


def free_port() -> int:
    """A port of the loopback address that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
