"""The page in a real browser, by keyboard."""

import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium"),
]
PATIENCE_MS = 60_000


@pytest.fixture(scope="module")
def page(process):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make setup")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.problems = []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("requestfailed", lambda request: page.problems.append(request.url))
        page.goto(process.url)
        page.get_by_role("button", name="Example 5").wait_for()
        yield page
        browser.close()


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


def test_everything_has_a_name_and_nothing_fails(page):
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, input, table, section')].filter(e => !(e.textContent.trim()"
        " || e.labels?.length || e.getAttribute('aria-label') || e.getAttribute('aria-labelledby'))).length"
    )
    assert unnamed == 0
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.locator("#status").get_attribute("aria-live") == "polite"
    assert page.problems == []


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_is_cut_off(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
