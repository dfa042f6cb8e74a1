"""The dashboard of the shipped index, opened from disk in a headless Chromium with the network off."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hfsae.attach import attach
from hfsae.default import load_default, load_index

pytestmark = pytest.mark.browser

RAISE = 3707
TEXT = 'if not path:\n    raise ValueError("<b>&amp;</b>")\n'
WIDE = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}
NARROW_COLUMNS = 3


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, tokenizer = load_default()
    with attach(model, layer=2) as attachment:
        text = attachment.top_features(tokenizer(TEXT, return_tensors="pt"), k=3, tokenizer=tokenizer)
    return load_index().to_html(tmp_path_factory.mktemp("pages") / "dashboard", [text])


@pytest.fixture
def page(browser: Any, dashboard: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page, which fails its test on a console error or a request to anywhere but the disk."""
    context = browser.new_context(offline=True, **getattr(request, "param", WIDE))
    page, trouble = context.new_page(), []
    page.on("console", lambda told: trouble.append(told.text) if told.type == "error" else None)
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith(("file:", "data:")) else trouble.append(asked.url))
    page.set_default_timeout(60_000)
    page.goto(dashboard.as_uri())
    page.wait_for_selector("tbody tr")
    yield page
    context.close()
    assert not trouble


def open_card(page: Any, feature: int) -> Any:
    page.fill("#search", str(feature))
    page.click(f"tbody tr[data-feature='{feature}']")
    page.wait_for_selector(f"#card h2:text-is('Feature {feature}')")
    return page.locator("#card")


def test_it_is_small(dashboard: Path) -> None:
    assert sum(path.stat().st_size for path in dashboard.parent.rglob("*") if path.is_file()) < 3_000_000


def test_a_search_finds_features_by_label_promoted_token_and_number(page: Any) -> None:
    for words, feature in (("an exception comes next", RAISE), ("notimplementederror", RAISE), ("12", 12)):
        page.fill("#search", words)
        assert page.locator(f"tbody tr[data-feature='{feature}']").count() == 1
    page.fill("#search", "no such words")
    assert page.locator("tbody tr").count() == 0
    assert page.inner_text("#count") == "0 found"


def test_the_table_sorts_and_grows(page: Any) -> None:
    page.click("button[data-column='4']")
    page.click("button[data-column='4']")
    shares = [float(cell) for cell in page.locator("tbody tr td:nth-child(5)").all_inner_texts() if cell]
    assert shares == sorted(shares, reverse=True)
    assert page.locator("tbody tr").count() == 200
    page.click("#more")
    assert page.locator("tbody tr").count() == 400


def test_a_card_shows_contexts_and_leads_to_its_neighbours(page: Any) -> None:
    card = open_card(page, RAISE)
    assert "ValueError" in card.inner_text()
    assert " raise" in card.locator("code b").all_inner_texts()
    neighbour = card.locator("a").first.inner_text()
    card.locator("a").first.click()
    page.wait_for_selector(f"#card h2:text-is('Feature {neighbour}')")
    page.go_back()
    page.wait_for_selector(f"#card h2:text-is('Feature {RAISE}')")


def test_a_token_of_a_text_opens_its_strongest_feature_and_text_is_no_markup(page: Any) -> None:
    assert page.locator(".text").inner_text().endswith('raise ValueError("<b>&amp;</b>")↵\n')
    page.locator(".text a", has_text="raise").click()
    page.wait_for_selector(f"#card h2:text-is('Feature {RAISE}')")


@pytest.mark.parametrize("page", [PHONE], indirect=True)
def test_it_is_readable_on_a_phone_and_in_the_dark(page: Any) -> None:
    card = open_card(page, RAISE)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("thead th:visible").count() == NARROW_COLUMNS
    back, front = (page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color"))
    assert brightness(back) < 60 < 200 < brightness(front)
    tinted = card.locator("span[data-f]").first
    assert tinted.evaluate("e => getComputedStyle(e).backgroundColor").startswith("rgba(230, 159, 0, 0.")


def brightness(colour: str) -> float:
    """The mean of red, green and blue of ``rgb(1, 2, 3)``."""
    return sum(map(float, colour[colour.index("(") + 1 : -1].split(",")[:3])) / 3
