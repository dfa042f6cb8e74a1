"""How the demo holds up: first paint, twenty users with edits of their own, ten that vanish; and its pictures.

``python tests/benchmarks/demo.py [--seconds 60] [--pictures demos/pictures]``: serves the shipped model on this machine
and uses it as its users do, by a headless Chromium and by gradio_client. Every answer of the soak is compared with the
one that its user got alone; a difference ends the run. Seconds are of the clock: on a busy machine, upper bounds.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1]))
from demo_server import demo_server, seconds_until_served_after_ten_vanish, soak
from headless import chromium

SHOWN = "?prompt=The+default+value+is&edits=steer:3707:0.7,-scale:3983:1.5"
PICTURES = {
    "demo-light": {"viewport": {"width": 1240, "height": 980}},
    "demo-dark": {"viewport": {"width": 1240, "height": 980}, "color_scheme": "dark"},
    "demo-phone": {"viewport": {"width": 390, "height": 844}},
}


@contextmanager
def opened(**options: Any) -> Iterator[Any]:
    """A page of a browser that has cached nothing."""
    with sync_playwright() as playwright:
        path = chromium(Path(playwright.chromium.executable_path))
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser.new_page(**options)
        browser.close()


def first_paint(address: str) -> float:
    """Seconds from asking for the page to the first text or picture on it, as the browser itself measures."""
    with opened() as page:
        page.goto(address)
        page.wait_for_selector("#texts [data-done=yes]")
        return page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1000


def take_pictures(address: str, folder: Path) -> None:
    """Write what the page looks like in light, dark and on a phone."""
    for name, options in PICTURES.items():
        with opened(**options) as page:
            page.goto(address + SHOWN)
            page.wait_for_selector("#texts [data-done=yes]")
            page.locator("#card h3").wait_for()
            if name == "demo-phone":
                page.evaluate("document.querySelector('#texts').scrollIntoView()")
            page.wait_for_timeout(1500)
            picture = folder / f"{name}.png"
            page.screenshot(path=picture)
            Image.open(picture).quantize(128).save(picture, optimize=True)
            print(f"{picture.name}: {picture.stat().st_size / 1000:.0f} kB")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--pictures", type=Path, help="folder to write the pictures of the page to")
    chosen = parser.parse_args()
    server = demo_server()
    if chosen.pictures:
        take_pictures(server[0], chosen.pictures)
    paints = sorted(first_paint(server[0]) for _ in range(5))
    print(f"first paint: {paints[2]:.2f} s, the middle of 5 ({paints[0]:.2f} to {paints[-1]:.2f})")
    answers, memory = soak(server, users=chosen.users, seconds=chosen.seconds, tokens=16)
    third = len(memory) // 3
    print(
        f"{chosen.users} users for {chosen.seconds:g} s: {min(answers)} to {max(answers)} answers each, {sum(answers)}"
    )
    print("each equal to the answer that its user gets alone; none lost")
    print(f"memory, second third: {max(memory[third : 2 * third]):.0f} MB, last third: {max(memory[-third:]):.0f} MB")
    print(f"served {seconds_until_served_after_ten_vanish(server[0]):.2f} s after ten clients vanished")


if __name__ == "__main__":
    main()
