"""Look at runs in the browser: training dynamics, similarity, features, sentences, probes, pruned models.

mlflow run . -e explore --env-manager local -P run_id=<any run>
python -m entrypoints.explore --run_id <any run> --port 8501
"""

import os
import socket
import subprocess
import sys

from bertdyn.errors import InputError
from entrypoints.command import parse, run
from explorer.config import ASKED, ExploreConfig

DESCRIPTION = (
    "Serve a web page on the runs of the tracking server (MLFLOW_TRACKING_URI): what training moved, layer by epoch, "
    "what layers keep, which features a text has before and after fine-tuning, what probes read off, what pruning "
    "leaves. One chosen run fills all pages with the runs that belong to it. Ctrl-C ends it; nothing is recorded."
)
STREAMLIT = {
    "server.headless": "true",
    "server.fileWatcherType": "none",
    "browser.gatherUsageStats": "false",
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": "type",
}
"""Options of Streamlit, besides the address."""
SECONDS_TO_END = 10


def main() -> None:
    config, _ = parse(ExploreConfig, DESCRIPTION)
    launch(config)


def launch(config: ExploreConfig) -> None:
    """Check what is asked for, and serve the page until a signal comes."""
    from bertdyn.tracking.runs import launcher_ends
    from bertdyn.tracking.store import connect, find_run

    with launcher_ends("explore"):
        client = connect()
        if config.run_id:
            find_run(client, config.run_id)
        check_free(config.host, config.port)
        serve(config)


def check_free(host: str, port: int) -> None:
    """Raise `InputError` unless one can listen there."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what was closed a moment ago is free
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"--host {host!r} --port {port}: nothing can be served there ({error}); give another port, or 127.0.0.1"
        ) from error


def serve(config: ExploreConfig) -> None:
    """Run the page's process until it ends or a signal comes, which ends it, too; its exit status is ours."""
    options = STREAMLIT | {"server.address": config.host, "server.port": str(config.port)}
    command = [sys.executable, "-m", "explorer", *(f"--{name}={value}" for name, value in options.items())]
    # A session of its own: Ctrl-C is ours to answer, and the page's end is not taken for a failure of its own.
    page = subprocess.Popen(command, env=os.environ | {ASKED: config.run_id or ""}, start_new_session=True)
    try:
        status = page.wait()
    finally:
        if page.poll() is None:
            _end(page)
    if status:
        sys.exit(1)


def _end(page: subprocess.Popen) -> None:
    page.terminate()
    try:
        page.wait(SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        page.kill()
        page.wait()


if __name__ == "__main__":
    run(main)
