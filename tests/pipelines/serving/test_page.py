"""The pages in a real browser, by keyboard."""

import json
import shutil

import pytest
from PIL import Image

from tests.pipelines.serving.conftest import listening

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium"),
]
PATIENCE_MS = 60_000


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make setup")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(browser, url):
    """A page that notes what goes wrong in it, and what it wants from elsewhere."""
    page = browser.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("requestfailed", lambda request: page.problems.append(request.url))
    page.on("request", lambda request: page.problems.append(request.url) if elsewhere(request.url, url) else None)
    page.goto(url)
    return page


def elsewhere(address, url):
    return not address.startswith(("data:", "/".join(url.split("/")[:3])))


@pytest.fixture(scope="module")
def page(browser, process):
    page = opened(browser, process.url)
    page.get_by_role("button", name="Example 5").wait_for()
    return page


@pytest.fixture(scope="module")
def images(browser, classifier_bundle):
    with listening(classifier_bundle, deadline_ms=60_000) as url:
        page = opened(browser, url)
        page.get_by_role("button", name="Noisy").wait_for()
        yield page


@pytest.fixture(scope="module")
def docs(browser, process):
    page = opened(browser, f"{process.url}/docs")
    page.locator("summary").nth(5).wait_for()
    return page


def shown(page, level):
    return [
        line.split(" up ")[0].split(" down ")[0].removesuffix(" new")
        for line in page.locator(f"article[data-level={level}] li").all_inner_texts()
    ]


def test_a_history_typed_and_asked_by_keyboard_alone(page, process):
    page.locator("#item").focus()
    page.keyboard.type("film 12")
    page.keyboard.press("Enter")
    page.locator("#costs tbody tr").nth(2).wait_for()
    assert page.locator("#history button").all_inner_texts() == ["Film 12"]
    for level in ("host", "prototype", "edit"):
        answer = process.post("/v1/recommendations", {"history": ["112"], "level": level})
        assert shown(page, level) == [item["title"] for item in answer["items"]]
    edit = process.post("/v1/edits", {"history": ["112"], "level": "basis"})
    chosen = page.locator("#distances tr[aria-current]").inner_text()
    assert chosen.startswith(f"{edit['prototype']} (chosen)")
    assert f"{edit['distances'][edit['prototype']]:.3f}" in chosen
    costs = page.locator("#costs tbody tr").all_inner_texts()
    assert "1 byte" in costs[0]
    assert f"{edit['bytes']} bytes" in costs[1]
    page.locator("#history button").focus()
    page.keyboard.press("Delete")
    page.get_by_text("No prototype: the history has no known item.").wait_for()
    assert page.locator("#history button").count() == 0
    assert page.evaluate("document.activeElement.id") == "item"


def test_an_example_is_one_press_away(page):
    page.get_by_role("button", name="Example 2").focus()
    page.keyboard.press("Enter")
    page.get_by_text("6 in the history.").wait_for()
    assert len(shown(page, "edit")) == 10


def test_images_are_classified_by_keyboard_alone(images, tmp_path):
    images.get_by_role("button", name="Noisy").focus()
    images.keyboard.press("Enter")
    images.get_by_text("3 images.").wait_for()
    assert images.locator("#answers tbody tr").count() == 3
    cells = images.locator("#answers tbody td").all_inner_texts()
    assert len(cells) == 9
    assert all("%" in cell for cell in cells)
    assert "Prototype " in images.locator("#why").inner_text()
    assert "1 byte" in images.locator("#costs tbody tr").first.inner_text()
    images.locator("#images button").first.focus()
    images.keyboard.press("Delete")
    images.get_by_text("2 images.").wait_for()
    assert images.evaluate("document.activeElement.getAttribute('aria-label')") == "image 2, remove"
    Image.new("L", (20, 20), 90).save(tmp_path / "mine.png")
    images.locator("#files").set_input_files(tmp_path / "mine.png")
    images.get_by_text("3 images.").wait_for()
    (tmp_path / "none.png").write_bytes(b"no image")
    images.locator("#files").set_input_files(tmp_path / "none.png")
    images.get_by_text("images.3: no image file").wait_for()


def test_the_documentation_lists_and_asks_everything(docs, process):
    paths = json.loads(process.get("/openapi.json"))["paths"]
    titles = docs.locator("summary").all_inner_texts()
    assert sum(len(methods) for methods in paths.values()) == len(titles)
    one = docs.locator("details", has_text="POST /v1/recommendations")
    one.locator("summary").focus()
    docs.keyboard.press("Enter")
    assert "history" in one.locator("table").nth(1).inner_text()
    one.get_by_role("button", name="Ask").focus()
    docs.keyboard.press("Enter")
    one.get_by_text("200 in").wait_for()
    assert '"items"' in one.locator("pre").inner_text()


@pytest.mark.parametrize("name", ["page", "images", "docs"])
def test_everything_has_a_name_and_nothing_fails(request, name):
    page = request.getfixturevalue(name)
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, input, textarea, table, section')].filter(e => !(e.textContent.trim()"
        " || e.labels?.length || e.getAttribute('aria-label') || e.getAttribute('aria-labelledby'))).length"
    )
    assert unnamed == 0
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.locator("#status").get_attribute("aria-live") == "polite"
    assert page.problems == []


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("name", ["page", "images", "docs"])
def test_nothing_is_cut_off(request, name, width):
    page = request.getfixturevalue(name)
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
