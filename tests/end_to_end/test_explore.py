"""The explorer by command, in Chromium: every page on real runs; how the command ends; bad input.

With BERTDYN_SCREENSHOTS=<folder> each page is photographed.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import requests
from playwright.sync_api import Page, expect, sync_playwright

from entrypoints import explore
from tests.end_to_end.conftest import ROOT, Workplace, artifacts, make_workplace
from tests.explorer.story import Story
from tests.servers import free_port

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SCREENSHOTS = os.environ.get("BERTDYN_SCREENSHOTS")
SECONDS = 60
"""For whatever a page shows."""

in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


def wait_for(port: int, process: subprocess.Popen) -> str:
    """The address of the page, once it answers."""
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        try:
            if requests.get(f"{address}/_stcore/health", timeout=2).ok:
                return address
        except requests.RequestException:
            time.sleep(0.1)
    raise AssertionError("the page does not answer")


@pytest.fixture(scope="module")
def address(story) -> Iterator[str]:
    port = free_port()
    process = story.workplace.start(
        "--run_id", story.pipeline.info.run_id, "--port", str(port), module="entrypoints.explore"
    )
    try:
        yield wait_for(port, process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=SECONDS)
        assert process.returncode == 128 + signal.SIGTERM


@pytest.fixture(scope="module")
def chromium():
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-quic"]
        )
        yield browser
        browser.close()


@pytest.fixture
def page(address, chromium, request) -> Iterator[Page]:
    """The explorer on the pipeline. Nothing that it shows is an exception, nothing of a text ran as a script, and
    nothing was asked of any other host."""
    page = chromium.new_page(viewport={"width": 1500, "height": 1200})
    page.set_default_timeout(SECONDS * 1000)
    expect.set_options(timeout=SECONDS * 1000)
    asked: list[str] = []
    page.on("request", lambda sent: asked.append(sent.url))
    page.goto(address)
    yield page
    expect(page.get_by_test_id("stException")).to_have_count(0)
    assert "Traceback" not in page.inner_text("body")
    assert page.evaluate("window.harmed") is None
    hosts = {re.sub(r"^(\w+://[^/]*).*", r"\1", url) for url in asked if not url.startswith(("data:", "blob:"))}
    assert {host.replace("ws://", "http://") for host in hosts} == {address}
    page.close()


def visit(page: Page, title: str) -> None:
    """Click through to a page, and wait until it is there."""
    page.get_by_test_id("stSidebarNav").get_by_role("link", name=title).click()
    expect(page.get_by_role("heading", name=title, level=1)).to_be_visible()
    settled(page)


def settled(page: Page) -> None:
    """Wait until nothing is computed any more."""
    page.wait_for_timeout(300)
    expect(page.locator("[data-test-script-state='running']")).to_have_count(0)
    expect(page.get_by_test_id("stSpinner")).to_have_count(0)


def photograph(page: Page, name: str) -> None:
    if SCREENSHOTS:
        settled(page)
        page.wait_for_timeout(500)
        height = page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
        page.set_viewport_size({"width": 1500, "height": max(1200, height)})
        page.wait_for_timeout(500)
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png")
        page.set_viewport_size({"width": 1500, "height": 1200})


def drawn(page: Page) -> None:
    """All pictures of the page have been loaded."""
    for image in page.get_by_test_id("stMain").locator("img").all():
        expect(image).to_have_js_property("complete", True)
        assert image.evaluate("image => image.naturalWidth") > 200


@in_chromium
def test_training_dynamics(page, story):
    expect(page.get_by_role("heading", name="What moved, by layer and epoch")).to_be_visible()
    expect(page.get_by_test_id("stSidebar")).to_contain_text(story.pipeline.info.run_id)
    expect(page.get_by_text("Layer 2, first token, epoch 2:")).to_be_visible()
    drawn(page)
    slider = page.get_by_role("slider")
    slider.focus()
    slider.press("ArrowLeft")
    expect(page.get_by_text("Layer 2, first token, epoch 1:")).to_be_visible()
    expect(page.get_by_test_id("stVegaLiteChart").locator("svg")).to_be_visible()
    photograph(page, "dynamics")


@in_chromium
def test_similarity(page):
    visit(page, "Similarity")
    expect(page.get_by_role("heading", name="What each layer keeps, beside its controls")).to_be_visible()
    expect(page.get_by_alt_text("Cosines by layer with controls; CKA, neighbours, Procrustes")).to_be_visible()
    drawn(page)
    photograph(page, "similarity")


@in_chromium
def test_features(page):
    visit(page, "Features")
    expect(page.get_by_text(re.compile(r"latent \d+ of seed 0: on in"))).to_have_count(2)
    expect(page.get_by_text("Strongest", exact=True).first).to_be_visible()
    colored = page.get_by_test_id("stHtml").locator("span[style*=background]")
    assert colored.count() > 10
    photograph(page, "features")
    expect(page.get_by_test_id("stMain")).to_contain_text("<script>window.harmed")
    expect(page.get_by_test_id("stMain").locator("script")).to_have_count(0)
    heading = page.get_by_text(re.compile(r"latent \d+ of seed 0: on in")).first
    number = re.search(r"latent (\d+)", heading.inner_text()).group(1)
    search = page.get_by_role("textbox", name="Search")
    search.fill(number)
    search.press("Enter")
    settled(page)
    expect(page.get_by_text(re.compile(rf"latent {number} of seed 0: on in"))).to_have_count(2)
    search.fill("no such word")
    search.press("Enter")
    expect(page.get_by_text("Nothing is found for")).to_be_visible()


@in_chromium
def test_a_sentence(page):
    visit(page, "Type a sentence")
    expect(page.get_by_role("heading", name="What the classifier says")).to_be_visible()
    box = page.get_by_role("textbox", name="Text")
    box.fill("<script>window.harmed = 1</script> a wonderful, wonderful film")
    box.press("Control+Enter")
    shown = page.get_by_test_id("stHtml").filter(has_text="wonderful")
    expect(shown.first).to_be_visible()
    expect(shown.first).to_contain_text("<script>window.harmed = 1</script> a wonderful, wonderful film")
    expect(page.get_by_text("Layer 1", exact=True)).to_be_visible()
    expect(page.get_by_text("Layer 2", exact=True)).to_be_visible()
    expect(page.get_by_text(re.compile(r"pretrained: [\d.]+% .* best: [\d.]+%"))).to_be_visible()
    photograph(page, "sentence")


@in_chromium
def test_probes(page):
    visit(page, "Probes")
    expect(page.get_by_alt_text("Scores of label by layer and state, with baselines")).to_be_visible()
    drawn(page)
    photograph(page, "probes")


@in_chromium
def test_a_click_on_the_front_leads_to_the_run_of_the_trial(page, story):
    visit(page, "Pruning")
    expect(page.get_by_role("heading", name="What stays of each layer")).to_be_visible()
    drawn(page)
    photograph(page, "pruning")
    page.get_by_role("button", name="Sweeps: what can be had at which cost").or_(
        page.get_by_role("radio", name="Sweeps: what can be had at which cost")
    ).click()
    expect(page.get_by_text("No trial is chosen.")).to_be_visible()
    settled(page)
    chart = page.get_by_test_id("stVegaLiteChart").locator("svg")
    shape = chart.bounding_box()
    chart.click(position={"x": shape["width"] * 0.3, "y": shape["height"] * 0.6})
    heading = page.get_by_role("heading", name=re.compile(r"Trial \d+"))
    expect(heading).to_be_visible()
    number = int(heading.inner_text().split()[-1])
    trials = pd.read_parquet(artifacts(story.run("sweep-pruning")) / "trials.parquet").set_index("number")
    expect(page.get_by_text(trials.at[number, "run_id"])).to_be_visible()
    expect(page.get_by_alt_text("Heads and neurons that stay, layer by layer")).to_be_visible()
    photograph(page, "sweep")


@in_chromium
def test_another_run_is_picked(page, story):
    page.get_by_test_id("stSidebar").get_by_label("Run", exact=True).click()
    page.get_by_role("option", name=re.compile("^sae: ")).click()
    expect(page.get_by_test_id("stSidebar")).to_contain_text(story.step("sae"))
    page.wait_for_url(re.compile(story.step("sae")))
    visit(page, "Probes")
    expect(page.get_by_test_id("stSidebar")).to_contain_text(story.step("sae"))
    expect(page.get_by_test_id("stMain")).to_contain_text(story.step("probe"))


def test_ctrl_c_ends_it_and_frees_the_port(story):
    port = free_port()
    process = story.workplace.start("--port", str(port), module="entrypoints.explore")
    wait_for(port, process)
    before = len(story.workplace.runs())
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 130, err
    assert "Traceback" not in out + err
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
    assert len(story.workplace.runs()) == before, "looking makes no run"


def test_the_run_of_mlflow_run_ends_truthfully(tmp_path):
    workplace, port = make_workplace(tmp_path), free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "run", ".", "-e", "explore", "--env-manager", "local", "-P", f"port={port}"],
        cwd=ROOT, env=workplace.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    wait_for(port, process)
    [launched] = workplace.runs()
    assert (launched.info.status, launched.data.tags["bertdyn.stage"]) == ("RUNNING", "explore")
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=SECONDS)
    [launched] = workplace.runs()
    assert launched.info.status in ("KILLED", "FAILED"), "MLflow's own word for it is FAILED; the later one stands"


@pytest.fixture(scope="module")
def nowhere(tmp_path_factory) -> Workplace:
    return make_workplace(tmp_path_factory.mktemp("nowhere"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--run_id", "0" * 32), f"run '{'0' * 32}' does not exist in the MLflow store"),
        (("--port", "0"), "--port 0: accepted are 1 to 65535"),
        (("--port", "65536"), "--port 65536: accepted are 1 to 65535"),
        (("--host", "no.such.host.invalid"), "--host 'no.such.host.invalid' --port 8501: nothing can be served there"),
        (("--prot", "1"), "unknown option --prot: did you mean --port"),
    ],
)
def test_bad_input_is_one_line(nowhere, run_here, argv, message):
    status, err = run_here(nowhere, explore, *argv)
    assert (status, err.count("\n")) == (2, 1), err
    assert message in err


def test_a_port_in_use_is_one_line(nowhere, run_here):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, err = run_here(nowhere, explore, "--port", str(port))
    assert (status, err.count("\n")) == (2, 1), err
    assert f"--port {port}: nothing can be served there" in err


def test_a_story_is_whole(story: Story):
    """What the tests above look at."""
    assert story.pipeline.info.status == "FINISHED"
