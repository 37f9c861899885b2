"""The pages in Chromium, against ``blemish serve`` as a process of its own: nothing may go wrong in the browser either.

One station beyond loopback, one browser and one tiny model for all tests: tokens, sessions and the check of forms are
at work in each. A test fails on any error in the browser's console and on any request that leaves the station.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra [server] is not installed")
pytest.importorskip("playwright", reason="playwright is not installed")

from playwright.sync_api import expect, sync_playwright

from blemish.server.access import Access
from blemish.server.settings import Settings
from blemish.server.store import Store

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")]

ROOT = Path(__file__).parents[2]
AXE = Path(os.environ.get("BLEMISH_AXE", ROOT / "node_modules" / "axe-core")) / "axe.min.js"
PAGES = (
    "/",
    "/history",
    "/history?view=sheet",
    "/inspections/1",
    "/teach",
    "/threshold?percent=15",
    "/health",
    "/docs",
    "/login",
)
SEEDED = 64  # more than a page of the history has, and than a test of the promise needs
Part = Callable[..., bytes]


class Station:
    """A running ``blemish serve``, and what the tests ask it beside the browser."""

    def __init__(self, address: str, token: str, api: Any, store: Path) -> None:
        self.address, self.token, self.api, self.store = address, token, api, store

    def get(self, path: str) -> Any:
        return self.api.get(self.address + path).json()

    def inspect(self, *images: bytes, part: str = "") -> list[dict[str, Any]]:
        form = {
            f"image{i}": {"name": f"{i}.png", "mimeType": "image/png", "buffer": image}
            for i, image in enumerate(images)
        }
        answer = self.api.post(
            f"{self.address}/v1/models/parts/inspect{f'?part={part}' if part else ''}", multipart=form
        )
        assert answer.ok, answer.text()
        return answer.json()["verdicts"]  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def driver() -> Iterator[Any]:
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="session")
def browser(driver: Any) -> Iterator[Any]:
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    launched = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
    yield launched
    launched.close()


@pytest.fixture(scope="session")
def station(
    driver: Any, model: Path, training: Path, part: Part, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Station]:
    folder = tmp_path_factory.mktemp("served")
    options = {"--store": folder / "station.db", "--images": folder / "images", "--training": training}
    command = [sys.executable, "-m", "blemish", "serve", str(model), "--host", "0.0.0.0", "--port", "0"]
    command += [str(word) for pair in options.items() for word in pair]
    log = folder / "log.txt"
    with log.open("wb") as stream:
        process = subprocess.Popen([*command, "--threads", "1"], stdout=stream, stderr=stream, cwd=folder)
    try:
        said = _wait_for(log, process, r"ready: (http://\S+)[\s\S]*role admin: (\S+)\n")
        address = said[1].replace("0.0.0.0", "127.0.0.1")
        api = driver.request.new_context(extra_http_headers={"Authorization": f"Bearer {said[2]}"})
        served = Station(address, said[2], api, folder / "station.db")
        for start in range(0, SEEDED, 16):
            served.inspect(*(part(1000 + start + i) for i in range(16)))
        yield served
        api.dispose()
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_for(log: Path, process: subprocess.Popen[bytes], pattern: str) -> re.Match[str]:
    while process.poll() is None:
        if found := re.search(pattern, log.read_text(encoding="utf-8", errors="replace")):
            return found
    raise AssertionError(log.read_text(encoding="utf-8", errors="replace"))


@pytest.fixture(scope="session")
def session(browser: Any, station: Station) -> Any:
    """The cookie of somebody who has logged in."""
    context = browser.new_context()
    answer = context.request.post(f"{station.address}/v1/login", data={"token": station.token})
    assert answer.ok, answer.text()
    state = context.storage_state()
    context.close()
    return state


Open = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any, station: Station, session: Any) -> Iterator[Open]:
    """``open_page(path, expected=(), **context)``: a tab; ``expected`` are parts of the console's errors, in order."""
    opened: list[tuple[Any, list[str], tuple[str, ...]]] = []

    def opener(path: str, expected: tuple[str, ...] = (), logged_in: bool = True, **options: Any) -> Any:
        context = browser.new_context(storage_state=session if logged_in else None, **options)
        context.set_default_timeout(60_000)
        page, problems = context.new_page(), list[str]()
        page.on("console", lambda message: message.type == "error" and problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(f"a dialog: {dialog.message}"))
        page.on("request", lambda sent: sent.url.startswith(station.address) or problems.append(f"left for {sent.url}"))
        opened.append((page, problems, expected))
        page.goto(station.address + path)
        return page

    yield opener
    for page, problems, expected in opened:
        page.context.close()
        assert len(problems) == len(expected) and all(map(str.__contains__, problems, expected)), problems


def test_a_dropped_picture_is_judged_marked_and_taken_back(open_page: Open, station: Station, bad: bytes) -> None:
    page = open_page("/")
    expect(page.locator("#link")).to_have_text("connected")
    page.evaluate("window.loaded = 'once'")
    content = base64.b64encode(bad).decode()
    transfer = page.evaluate_handle(
        """content => {
            const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
            const dropped = new DataTransfer();
            dropped.items.add(new File([bytes], "<b>bolt</b>.png", { type: "image/png" }));
            return dropped;
        }""",
        content,
    )
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    verdict = page.get_by_role("region", name="Last verdict")
    expect(verdict).to_contain_text("<b>bolt</b>.png")
    (stored,) = station.get("/v1/inspections?limit=1")["inspections"]
    assert stored["decision"] == "reject" and stored["regions"]
    expect(verdict.locator(".word")).to_have_text("Reject")
    expect(page).to_have_title(re.compile("REJECT"))
    expect(page.locator(".stage polygon")).to_have_count(sum(len(region["outline"]) for region in stored["regions"]))
    own = f"/v1/inspections/{stored['id']}"
    facts = page.locator(".facts")
    expect(facts.locator("form:not([data-fresh])")).to_have_count(1)  # keys are for a verdict that has stood a moment
    for key, words in (
        ("g", "A person said: good"),
        ("1", "A person said: bad, scratch"),
        ("u", "A person said: good"),
    ):
        page.keyboard.press(key)
        expect(facts).to_contain_text(words)
    assert station.get(own)["said"] == "good"
    facts.get_by_role("button", name="Undo").click()
    expect(facts).to_contain_text("Is this verdict right?")
    assert station.get(own)["said"] is None
    facts.get_by_label("Other").fill("dent")
    page.keyboard.press("Enter")  # a kind is of a defect: never good
    expect(facts).to_contain_text("A person said: bad, dent")
    assert page.evaluate("window.loaded") == "once"  # nothing of this loaded the page anew


def test_what_is_judged_elsewhere_appears_and_the_view_stays(open_page: Open, station: Station, part: Part) -> None:
    station.inspect(part(200, is_bad=True), part="P-7")
    page = open_page("/")
    page.locator("#fade").fill("30")
    expect(page.locator(".fades")).to_have_attribute("opacity", "0.3")
    (judged,) = station.inspect(part(201), part="P-7")
    verdict = page.get_by_role("region", name="Last verdict")
    expect(verdict).to_have_attribute("data-id", str(judged["id"]))
    expect(verdict).to_contain_text("The part so far: Reject, of 2 photographs")
    expect(page.locator(".fades")).to_have_attribute("opacity", "0.3")


def test_a_picture_zooms_by_buttons_and_keys(open_page: Open, station: Station, bad: bytes) -> None:
    (judged,) = station.inspect(bad)
    page = open_page(f"/inspections/{judged['id']}")
    stage, whole = page.locator(".stage"), f"0 0 {judged['width']} {judged['height']}"
    page.get_by_role("button", name="Zoom in").click()
    width, height = judged["width"] / 1.5, judged["height"] / 1.5
    middle = [(judged["width"] - width) / 2, (judged["height"] - height) / 2, width, height]
    shown = [float(number) for number in (stage.get_attribute("viewBox") or "").split()]
    assert shown == pytest.approx(middle)
    stage.focus()
    page.keyboard.press("ArrowRight")
    assert float((stage.get_attribute("viewBox") or "").split()[0]) == pytest.approx(middle[0] + width / 8)
    page.keyboard.press("0")
    expect(stage).to_have_attribute("viewBox", whole)
    page.locator("li[data-region='1']").hover()
    expect(page.locator("g[data-region='1']")).to_have_class(re.compile("marked"))
    page.get_by_role("button", name="Judge it again").click()
    expect(page.locator("form.replay")).to_contain_text("the same to the last bit")


def test_the_history_is_filtered_and_every_state_has_an_address(open_page: Open, station: Station, bad: bytes) -> None:
    station.inspect(bad)
    page = open_page("/history")
    page.get_by_label("Decision").select_option("reject")
    page.get_by_role("button", name="Filter").click()
    expect(page).to_have_url(re.compile("decision=reject"))
    count = station.get("/v1/counts?decision=reject")["total"]
    expect(page.locator("tbody tr")).to_have_count(count)
    expect(page.locator("tbody .chip.reject")).to_have_count(count)
    page.get_by_role("link", name="Contact sheet").click()
    expect(page.locator(".tile")).to_have_count(count)
    page.get_by_role("link", name="Clear").click()
    page.get_by_role("link", name="Table").click()
    expect(page.locator("tbody tr")).to_have_count(50)
    first = page.locator("tbody tr").first.inner_text()
    page.get_by_role("link", name="Older").click()
    expect(page.locator("tbody tr").first).not_to_have_text(first)
    assert "1" in page.locator("tbody tr").last.inner_text().split()[:1]  # the first verdict of all ends it
    page.goto(f"{station.address}/history?min_score=1e9&part=none")
    expect(page.locator(".empty")).to_have_text("Nothing fits this filter.")


def test_a_threshold_is_tried_on_past_parts_and_set(open_page: Open, station: Station) -> None:
    page = open_page("/threshold")
    page.locator("#percent").fill("18")
    tried = station.get("/v1/models/parts/threshold?rate=0.18")
    past = page.locator("[data-swap='past']")
    expect(past).to_contain_text(f"Of {tried['past']['parts']} images {tried['past']['rejected']} reject")
    expect(page.locator("[data-swap='promise']")).to_contain_text(tried["promise"].split(". ")[0])
    expect(page).to_have_url(re.compile("percent=18"))
    assert station.get("/v1/models/parts")["threshold"] == tried["now"]["threshold"]  # only tried
    page.get_by_role("button", name="Set 18 %").click()
    expect(page.get_by_role("heading", name="Expected errors")).to_be_visible()
    expect(page.get_by_role("button", name="Is set: 18 %")).to_be_disabled()
    assert station.get("/v1/models/parts")["threshold"] == tried["threshold"]
    page.locator("#percent").fill("0.5")
    expect(page.get_by_role("alert")).to_contain_text("needs at least")


def test_a_model_learns_again_is_compared_and_swapped(open_page: Open, station: Station, part: Part) -> None:
    page = open_page("/teach")
    before = station.get("/v1/models/parts")["digest"]
    judged = [*station.inspect(*(part(300 + i) for i in range(8))), *station.inspect(part(400, is_bad=True))]
    for one in judged:
        said = {"said": "bad", "kind": "square"} if one["decision"] == "reject" else {"said": "good"}
        station.api.put(f"{station.address}/v1/inspections/{one['id']}/said", data=said)
    counts = station.get("/v1/counts?model=parts")
    expect(page.locator("[data-swap='labels'] dd").first).to_have_text(str(counts["said_good"]))
    page.get_by_role("button", name="Learn again").click()
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    page.get_by_role("button", name="Swap it in").wait_for(timeout=200_000)  # seven seconds where nothing else works
    compared = station.get("/v1/models/parts/relearn")["comparison"]
    words = f"{compared['judged']['changed']} of {compared['judged']['compared']} photographs would get another verdict"
    expect(page.locator("[data-swap='candidate'] h3")).to_have_text(words)
    expect(page.locator(".changes li")).to_have_count(min(60, compared["judged"]["changed"]))
    assert station.get("/v1/models/parts")["digest"] == before  # nothing is learned unasked
    page.get_by_role("button", name="Swap it in").click()
    expect(page.locator("[data-swap='at-work']")).to_contain_text("learned again")
    assert station.get("/v1/models/parts")["digest"] != before


def test_who_is_not_logged_in_is_asked_for_a_token(open_page: Open, station: Station) -> None:
    page = open_page("/history?decision=reject", expected=("401",), logged_in=False)
    expect(page).to_have_title(re.compile("Log in"))
    for token, wrong in (("guess", True), (station.token, False)):
        page.get_by_label("Token").fill(token)
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_have_count(int(wrong))
    expect(page).to_have_url(re.compile("/history.decision=reject$"))
    (cookie,) = page.context.cookies()
    assert cookie["httpOnly"] and cookie["sameSite"] == "Strict"
    kept = page.context.request.post(f"{station.address}/teach", form={"model": "parts", "do": "start"})
    assert kept.status == 403  # a form without this session's mark
    page.get_by_role("button", name="Log out").click()
    expect(page).to_have_title(re.compile("Log in"))
    page.goto(f"{station.address}/")
    expect(page).to_have_title(re.compile("Log in"))


def test_a_viewer_reads_and_changes_nothing(open_page: Open, station: Station) -> None:
    token = Access(Store(str(station.store)), Settings(models={})).new_token("visitor", "viewer")
    page = open_page("/teach", logged_in=False)
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="Learn again")).to_be_visible()
    for path in ("/", "/inspections/1", "/teach", "/threshold?percent=15", "/health"):
        page.goto(station.address + path)
        buttons = [text.strip() for text in page.locator("form button:visible").all_inner_texts()]
        assert set(buttons) <= {"Log out", "Judge it again"}, path
    csrf = page.context.request.get(f"{station.address}/v1/me").json()["csrf"]
    for path, form in (
        ("/teach", {"do": "start"}),
        ("/threshold", {"percent": "10"}),
        ("/inspections/1/said", {"said": "bad"}),
    ):
        answer = page.context.request.post(station.address + path, form={"csrf": csrf, "model": "parts", **form})
        assert answer.status == 403 and "needs the role" in answer.json()["detail"]


def test_reading_and_saying_work_without_scripts(open_page: Open, station: Station, bad: bytes) -> None:
    (judged,) = station.inspect(bad)
    page = open_page("/", java_script_enabled=False)
    expect(page.get_by_role("region", name="Last verdict")).to_contain_text("Reject")
    page.get_by_role("link", name=f"No. {judged['id']}").click()
    page.get_by_label("Other").fill("<i>odd</i>")
    page.get_by_role("button", name="Bad", exact=True).click()
    expect(page.locator(".facts")).to_contain_text("A person said: bad, <i>odd</i>")
    for path in PAGES[:-1]:
        page.goto(station.address + path)
        expect(page.locator("h1")).to_have_count(1)
    page.goto(f"{station.address}/threshold")
    page.get_by_role("button", name="Show").click()
    expect(page).to_have_url(re.compile("percent="))


def test_a_report_stands_alone(open_page: Open, station: Station, bad: bytes) -> None:
    (judged,) = station.inspect(bad)
    page = open_page("/report")
    expect(page.locator("body")).to_contain_text(f"no. {judged['id']}")
    expect(page.locator("body")).to_contain_text("Whole:")
    assert (
        page.evaluate("performance.getEntriesByType('resource').filter((one) => !one.name.startsWith('data:')).length")
        == 0
    )


def test_errors_are_said_in_words(open_page: Open) -> None:
    page = open_page("/inspections/999999", expected=("404",))
    expect(page.get_by_role("heading", level=1)).to_have_text("Not Found 404")
    expect(page.locator("main")).to_contain_text("there is no inspection 999999")
    page = open_page("/history?decision=perhaps", expected=("422",))
    expect(page.locator("main")).to_contain_text("decision: Input should be 'ok', 'review' or 'reject'")
    page = open_page("/", expected=("422",))
    page.locator("#files").set_input_files({"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no picture"})
    expect(page.locator("#note")).to_contain_text("notes.txt: ")


def test_a_keyboard_alone_suffices(open_page: Open) -> None:
    page = open_page("/health")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="To the content")).to_be_focused()
    outline = page.get_by_role("link", name="To the content").evaluate("link => getComputedStyle(link).outlineStyle")
    assert outline == "solid"
    for _ in range(3):
        page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="History")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page).to_have_title(re.compile("History"))


@pytest.mark.skipif(
    not AXE.exists(), reason="axe-core is not installed: npm install axe-core, or name it by BLEMISH_AXE"
)
@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
def test_no_page_has_a_serious_fault_of_accessibility(
    open_page: Open, station: Station, bad: bytes, width: int, scheme: str
) -> None:
    station.inspect(bad)
    page = open_page("/", viewport={"width": width, "height": 850}, color_scheme=scheme, reduced_motion="reduce")
    source, faults = AXE.read_text(encoding="utf-8"), []
    for path in PAGES:
        page.goto(station.address + path)
        page.evaluate(source)
        found = page.evaluate("axe.run().then((result) => result.violations)")
        grave = [fault for fault in found if fault["impact"] in ("serious", "critical")]
        faults += [f"{path}: {fault['help']}: {fault['nodes'][0]['html'][:200]}" for fault in grave]
        too_wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        faults += [f"{path} is {too_wide} pixels too wide"] * (too_wide > 0)
    assert faults == []
