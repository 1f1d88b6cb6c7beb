"""The explorer in Chromium: what one waits for the first view, and for each page, on a real run.

    MLFLOW_TRACKING_URI=… python -m benchmarks.explore --run_id <run of a pipeline with a step `extract`, or of extract>

Each round starts the command with an empty cache and a fresh browser: seconds from opening the address to the first
heading, the first figure and the page as a whole; then every page from the click until nothing is computed any more, at
the first visit and at the second. `--output` has a table for each size of store. Needs Chromium
(`apt-get install chromium`).
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pandas as pd
import requests
from playwright.sync_api import Page, sync_playwright

from benchmarks.tables import Row, conditions, show, write_table
from bertdyn.features.store import FeatureStore
from bertdyn.tracking.locations import run_folder

FIRST = "What moved, by layer and epoch"
"""Heading of the first view."""
QUIET = "!document.querySelector('[data-test-script-state=running], [data-testid=stSpinner]')"
SECONDS_OF_QUIET = 0.3
PACKAGES = ("streamlit", "mlflow", "playwright", "pandas")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_id", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port", type=int, default=8599)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/explore.json"))
    options = parser.parse_args()
    table = conditions(options, PACKAGES, ("run_id", "port", "output")) | size_of(options.run_id)
    rows = [row for _ in range(options.rounds) for row in measure(options.run_id, options.port)]
    seconds = pd.DataFrame(rows).groupby(["what", "visit"], sort=False)["seconds"]
    table["rows"] = seconds.agg(["median", "min", "max"]).round(2).reset_index().to_dict("records")
    name = f"{table['texts']} texts"
    write_table(options.output, name, table)
    show(name, table["rows"])


def size_of(run_id: str) -> Row:
    """What is shown: of a pipeline, the store of its extraction."""
    tags = mlflow.MlflowClient().get_run(run_id).data.tags
    store = FeatureStore.open(run_folder(tags.get("bertdyn.step.extract", run_id), "features"))
    size = sum(path.stat().st_size for path in store.folder.rglob("*") if path.is_file())
    return {"texts": len(store.examples()), "states": len(store.states), "store_gigabytes": round(size / 1e9, 2)}


def measure(run_id: str, port: int) -> Iterator[Row]:
    """One round: what was waited for, and how long."""
    with served(run_id, port) as address, sync_playwright() as driver:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1500, "height": 1200})
        page.set_default_timeout(120_000)
        start = time.perf_counter()
        page.goto(address)
        page.get_by_text(FIRST).wait_for()
        yield {"what": "first heading", "visit": 1, "seconds": time.perf_counter() - start}
        page.locator("[data-testid=stMain] img").first.wait_for()
        yield {"what": "first figure", "visit": 1, "seconds": time.perf_counter() - start}
        yield {"what": "first view", "visit": 1, "seconds": settled(page) - start}
        links = page.get_by_test_id("stSidebarNav").get_by_role("link")
        first, *others = links.all_inner_texts()
        for visit in (1, 2):
            for title in (*others, first):
                start = time.perf_counter()
                links.filter(has_text=title).click()
                page.get_by_role("heading", name=title, level=1).wait_for()
                yield {"what": title, "visit": visit, "seconds": settled(page) - start}
        browser.close()


def settled(page: Page) -> float:
    """When nothing was computed any more, and then for a while."""
    while True:
        page.wait_for_function(QUIET)
        at = time.perf_counter()
        page.wait_for_timeout(1000 * SECONDS_OF_QUIET)
        if page.evaluate(QUIET):
            return at


def answers(address: str) -> bool:
    """Whether the page is up."""
    try:
        return requests.get(f"{address}/_stcore/health", timeout=2).ok
    except requests.RequestException:
        return False


@contextmanager
def served(run_id: str, port: int) -> Iterator[str]:
    """The command, with an empty cache, once it answers."""
    with tempfile.TemporaryDirectory() as cache:
        process = subprocess.Popen(
            [sys.executable, "-m", "entrypoints.explore", "--run_id", run_id, "--port", str(port)],
            env=os.environ | {"BERTDYN_CACHE": cache},
        )
        try:
            address = f"http://127.0.0.1:{port}"
            while not answers(address):
                if process.poll() is not None:
                    raise SystemExit(f"the explorer ended with status {process.returncode}")
                time.sleep(0.1)
            yield address
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
