"""The demo as a person uses it, in a headless Chromium: every control, no console error, no request beyond loopback."""

import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from demo_server import demo_server

pytest.importorskip("gradio", reason="the demo extra is not installed")

pytestmark = pytest.mark.browser

STEERED = "?prompt=The+default+value+is&edits=steer:3707:0.7&tokens=16"


@pytest.fixture(scope="module")
def address() -> str:
    return demo_server()[0]


@pytest.fixture
def page(browser: Any, address: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A page that fails its test on a console error or a request to anywhere but this machine."""
    context = browser.new_context(**getattr(request, "param", {"viewport": {"width": 1280, "height": 900}}))
    page, trouble = context.new_page(), []
    context.on("console", lambda told: trouble.append(told.text) if told.type == "error" else None)
    context.on("weberror", lambda error: trouble.append(str(error.error)))
    context.on("request", lambda asked: trouble.append(asked.url) if leaves(asked.url) else None)
    context.set_default_timeout(60_000)
    yield page
    context.close()
    assert not trouble


def leaves(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme not in ("data", "blob") and parts.hostname != "127.0.0.1"


def visit(page: Any, url: str) -> None:
    page.goto(url)
    written(page)


def written(page: Any) -> None:
    page.wait_for_selector("#texts [data-done=yes]")


def texts(page: Any) -> list[str]:
    return page.locator("#texts .hfsae-text").all_inner_texts()


def code(page: Any) -> str:
    return page.locator("#python .cm-content").inner_text()


def kl(page: Any) -> float:
    return float(page.locator("#cost .hfsae-cost b").first.inner_text())


def until(page: Any, holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    for _ in range(600):
        if holds():
            return
        page.wait_for_timeout(100)
    raise AssertionError(inspect.getsource(holds))


def drag(slider: Any, value: float) -> None:
    """Move a slider as a hand does: many inputs, then one change."""
    slider.evaluate(
        """(slider, value) => {
          for (const share of [0.3, 0.7, 1]) {
            slider.value = slider.valueAsNumber + share * (value - slider.valueAsNumber);
            slider.dispatchEvent(new Event('input', {bubbles: true}));
          }
          slider.dispatchEvent(new Event('change', {bubbles: true}));
        }""",
        value,
    )


def test_a_person_types_picks_adds_steers_and_finds_all_again(page, address):
    visit(page, address + "?prompt=import&tokens=4")
    page.locator("#prompt textarea").fill("if x is None:\n    raise")
    page.locator("#generate").click()
    until(page, lambda: "raise" in texts(page)[0])
    written(page)
    assert texts(page)[0] == texts(page)[1]

    page.locator("#texts .hfsae-steered .hfsae-prompt", has_text="raise").click()
    page.locator("#found .hfsae-pick", has_text="an exception comes next").click()
    page.locator("#card h3", has_text="Feature 3707").wait_for()
    until(page, lambda: "an exception comes next" in page.locator(".hfsae-legend").inner_text())
    raising = page.locator("#texts .hfsae-prompt", has_text="raise").first
    raising.hover()
    shown = raising.evaluate("span => getComputedStyle(span, '::after').content")
    assert float(shown.strip('"')) > 1
    assert float(raising.evaluate("span => span.style.getPropertyValue('--a')")) > 0.1
    assert "att.steer" not in code(page)
    assert kl(page) == 0
    page.locator("#card .hfsae-add").click()
    until(page, lambda: "att.steer(3707, 1, unit='max')" in code(page))
    until(page, lambda: kl(page) > 0)
    cost = kl(page)

    drag(page.locator("#edits input[type=range]"), 1.5)
    until(page, lambda: texts(page)[0] != texts(page)[1])
    until(page, lambda: "att.steer(3707, 1.5, unit='max')" in code(page))
    until(page, lambda: kl(page) > cost)
    page.locator(".hfsae-warning", has_text="1.5 × the largest activation").wait_for()
    written(page)
    until(page, lambda: "steer:3707:1.5" in page.url)

    again = page.context.new_page()
    visit(again, page.url)
    assert again.locator("#prompt textarea").input_value() == "if x is None:\n    raise"
    assert again.locator("#edits input[type=number]").input_value() == "1.5"
    assert texts(again) == texts(page)


def test_edits_are_switched_changed_and_removed(page, address):
    visit(page, address + STEERED)
    steered = texts(page)[1]
    page.get_by_label("feature 3707 on").uncheck()
    until(page, lambda: texts(page)[0] == texts(page)[1])
    until(page, lambda: "att.steer" not in code(page))
    page.get_by_label("feature 3707 on").check()
    until(page, lambda: texts(page)[1] == steered)
    page.get_by_label("unit of feature 3707").select_option("activation")
    number = page.locator("#edits input[type=number]")
    assert float(number.input_value()) == pytest.approx(0.7 * 17.7, rel=0.01)
    for kind in ("set", "scale", "clamp", "ablate"):
        page.get_by_label("kind of edit of feature 3707").select_option(kind)
        until(page, lambda kind=kind: f"att.{kind}(3707" in code(page))
    page.get_by_label("remove feature 3707").click()
    page.get_by_text("None yet.").wait_for()


def test_features_are_found_by_words_number_contrast_and_preset(page, address):
    visit(page, address)
    page.locator("#words input, #words textarea").fill("socket")
    page.keyboard.press("Enter")
    page.locator("#found .hfsae-pick[data-pick='269']").wait_for()
    page.locator("#words input, #words textarea").fill("17")
    page.keyboard.press("Enter")
    page.locator("#found .hfsae-pick[data-pick='17']").wait_for()
    page.get_by_text("Tell two texts apart").click()
    page.locator("#one textarea").fill("raise ValueError")
    page.locator("#other textarea").fill("import os")
    page.locator("#contrast").click()
    page.locator("#found h3", has_text="Stronger in the second").wait_for()
    assert page.locator("#found .hfsae-pick").count() == 12
    page.locator(".hfsae-chip", has_text="Raise nothing").click()
    until(page, lambda: "ablate:3707" in page.url)
    assert page.locator("#prompt textarea").input_value().endswith("raise")


def test_a_generation_is_stopped(page, address):
    visit(page, f"{address}?prompt=import&tokens=2")
    page.get_by_text("Length, temperature, seed").click()
    page.get_by_label("number input for New tokens").fill("200")
    page.keyboard.press("Tab")
    page.locator("#generate").click()
    first = "document.querySelector('#texts [data-done=no]')"  # stopped from within: generating takes but a second
    page.wait_for_function(f"{first} && (document.querySelector('#stop').click(), true)")
    written(page)
    tokens = page.locator("#texts .hfsae-steered .hfsae-token").count()
    page.wait_for_timeout(1000)
    assert page.locator("#texts .hfsae-steered .hfsae-token").count() == tokens < 200


def test_edits_are_downloaded_as_json(page, address):
    visit(page, address + STEERED)
    until(page, lambda: "att.steer" in code(page))
    with page.expect_download() as download:
        page.locator("#download").click()
    edits = json.loads(Path(download.value.path()).read_text())
    assert edits == [{"kind": "steer", "feature": 3707, "value": 0.7, "unit": "max", "on": True}]


def test_the_keyboard_is_enough(page, address):
    visit(page, address + STEERED)
    first = page.locator("#texts .hfsae-token:not([hidden])").first
    first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.textContent") == " default"
    page.keyboard.press("Enter")
    page.locator("#found h3", has_text="default").wait_for()
    page.locator("#edits input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    assert float(page.locator("#edits input[type=number]").input_value()) > 0.7
    page.locator("#prompt textarea").focus()
    before = texts(page)
    page.keyboard.press("End")
    page.keyboard.type(" not")
    page.keyboard.press("Shift+Enter")
    until(page, lambda: texts(page) != before)


def test_markup_in_prompts_labels_and_links_is_never_run(page, address):
    bad = "<img src=x onerror=alert(1)><script>alert(2)</script>${alert(3)}{{this}}`"
    dialogs = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    visit(page, f"{address}?prompt={quote(bad)}&tokens=4")
    assert texts(page)[0].startswith(bad)
    page.locator("#words input, #words textarea").fill(bad)
    page.keyboard.press("Enter")
    page.get_by_text("Nothing found").wait_for()
    page.locator("#texts .hfsae-token", has_text="script").first.click()
    page.locator("#found li").first.wait_for()
    other = page.context.new_page()
    visit(other, f"{address}?prompt=x&edits={quote('steer:<b>:1e999,ablate:99999999')}")
    assert not dialogs
    assert page.locator("img[src=x]").count() == 0


def test_what_cannot_be_run_is_said_where_the_text_would_stand(page, address):
    page.goto(f"{address}?prompt=x&edits=ablate:99999")
    page.locator("#texts .hfsae-error", has_text="Feature 99999 does not exist").wait_for()
    page.locator("#prompt textarea").fill("")
    page.locator("#generate").click()
    page.locator("#texts .hfsae-error", has_text="The prompt is empty").wait_for()


@pytest.mark.parametrize("page", [{"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}], indirect=True)
def test_a_phone_scrolls_in_one_direction_only(page, address):
    visit(page, address + STEERED)
    page.locator("#card h3").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    left, right = (panel.bounding_box() for panel in page.locator("#texts .hfsae-panel").all())
    assert right["y"] > left["y"] + left["height"]
    assert page.evaluate("document.body.classList.contains('dark')")
