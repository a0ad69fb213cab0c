"""The pages of the UI that docs/mlflow.md shows, and how they are reached."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import mlflow

from tests.browser.workbench import BANKS, BUNDLES, CHROMIUM, Workbench

# The page has to come from a server that shares two processors with others.
PATIENCE = 120_000
# Without it the UI speaks the language of agents.
WORDS = "workflowType=machine_learning"
RENAME = """([from, to]) => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) walker.currentNode.data = walker.currentNode.data.replaceAll(from, to);
}"""
# As wide as a laptop's screen, and the assistant that a fresh browser opens beside it, which pictures leave out.
WIDTH, MARGIN = 1600, 50
# What moves when a page opens, in milliseconds.
SETTLE = 2_000


@dataclass(frozen=True)
class Shot:
    """A page: where it is, and what it has to show before it is there."""

    name: str
    path: str
    expects: tuple[str, ...]
    height: int = 900


def shots(workbench: Workbench) -> list[Shot]:
    """Every page that is shown."""
    client = mlflow.MlflowClient(tracking_uri=workbench.uri)
    ids = {name: client.get_experiment_by_name(name).experiment_id for name in (BUNDLES, "comparisons", BANKS)}
    compared, lineage = workbench.said["compare"], workbench.said["lineage"]
    versions = {str(version.version): version.run_id for version in client.search_model_versions(f"name = '{BANKS}'")}
    first, last = (label.rpartition("/")[2] for label in (compared["a"], compared["b"]))
    pair = quote(json.dumps({number: versions[number] for number in (first, last)}))
    gain = compared["overall"][0]["gain"]
    return [
        Shot(
            "pipeline-run",
            f"/#/experiments/{ids[BUNDLES]}/runs/{workbench.said['run']['run_id']}?{WORDS}",
            ("Parameters", "source", "Finished"),
        ),
        Shot(
            "comparison",
            f"/#/experiments/{ids['comparisons']}/runs/{compared['run_id']}/artifacts/comparison.html?{WORDS}",
            (f"{gain['mean']:+.4f}", "For which users"),
        ),
        Shot(
            "compare-versions",
            f"/#/compare-model-versions?name={quote(json.dumps(BANKS))}&runs={pair}&{WORDS}",
            ("Comparing 2 Versions", "bank/members"),
            1200,
        ),
        Shot(
            "tables",
            f"/#/experiments/{ids[BUNDLES]}/runs?compareRunsMode=ARTIFACT&{WORDS}",
            ("segment",),
        ),
        Shot("versions", f"/#/models/{BANKS}?{WORDS}", ("champion", "candidate")),
        Shot(
            "lineage",
            f"/#/experiments/{ids[BANKS]}/runs/{lineage['run_id']}/artifacts/lineage.html?{WORDS}",
            (f"Version {first}", "champion since"),
        ),
    ]


@contextmanager
def browser() -> Iterator[Any]:
    """A page of a headless Chromium of the system."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        try:
            yield chromium.new_page(viewport={"width": WIDTH, "height": 900})
        finally:
            chromium.close()


def visit(page: Any, address: str, shot: Shot) -> str:
    """Open a page, wait for what it has to show, in frames, too, and return all its text."""
    page.set_viewport_size({"width": WIDTH, "height": shot.height})
    page.goto(f"{address}{shot.path}", timeout=PATIENCE)
    for text in shot.expects:
        _find(page, text)
    page.wait_for_timeout(SETTLE)
    return _text(page)


def _text(page: Any) -> str:
    """What the page says, in its frames, too, without those that are just being exchanged."""
    from playwright.sync_api import Error

    texts = []
    for frame in page.frames:
        with suppress(Error):
            texts.append(frame.locator("body").inner_text(timeout=5_000))
    return "\n".join(texts)


def _find(page: Any, text: str) -> None:
    waited = 0
    while waited < PATIENCE:
        if text in _text(page):
            return
        page.wait_for_timeout(250)
        waited += 250
    raise AssertionError(f"{page.url} does not show {text!r}")


def save(page: Any, shot: Shot, folder: Path, workbench: Workbench) -> Path:
    """Take a picture of the page as it is, but for the name of the working directory, which is nobody's business."""
    path = folder / f"{shot.name}.png"
    page.evaluate(RENAME, [str(workbench.folder), "/films"])
    assistant = page.get_by_text("MLflow Assistant")
    box = assistant.last.bounding_box() if assistant.count() else None
    width = WIDTH if box is None else box["x"] - MARGIN
    page.screenshot(path=path, clip={"x": 0, "y": 0, "width": width, "height": shot.height})
    return path
