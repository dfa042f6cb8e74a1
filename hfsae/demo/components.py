"""The page's own components: `gradio.HTML` with the scripts that lie beside this file.

A template is constant and never takes a value: gradio evaluates templates as JavaScript. Values reach the scripts as
JSON, which set them as text.
"""

from dataclasses import asdict
from importlib.resources import files
from typing import Any

from hfsae.demo import render
from hfsae.demo.state import KINDS, MAX_EDITS, MAX_STRENGTH

_TEXTS = """<div class="hfsae-texts">
  <section class="hfsae-panel"><h2>As the model is</h2><div class="hfsae-text"></div></section>
  <section class="hfsae-panel hfsae-steered"><h2>With the edits</h2><div class="hfsae-text"></div></section>
  <div class="hfsae-legend"></div><div class="hfsae-error" role="alert"></div>
</div>"""
_EDITS = """<div class="hfsae-head"><h2>Edits</h2>
  <label class="hfsae-live"><input type="checkbox" checked> write anew at every change</label></div>
<p class="hfsae-note hfsae-none">None yet. Click a token of the texts or search for a feature, then add it.</p>
<ul class="hfsae-edits"></ul>"""


def head() -> str:
    """What goes into the head of the page. Gradio's own ``css`` would write each rule twice, with prefixes."""
    return f"<style>{_beside('page.css')}</style>"


def texts(gr: Any) -> Any:
    """Both texts, token by token; its value is what `Handlers.stream` yields. A picked token is a ``select``."""
    return _html(gr, _TEXTS, "texts.js", elem_id="texts")


def edits(gr: Any, *, unit: str, scale: float) -> Any:
    """The list of edits; its value is a list of the fields of `state.EditChoice`.

    ``input`` is any change, ``release`` one that the texts should follow, ``select`` a feature to be shown.

    Args:
        unit: The unit that a new edit has.
        scale: How strong an activation is where no maximum is known.
    """
    kinds = {kind: {name: asdict(unit) for name, unit in units.items()} for kind, units in KINDS.items()}
    usual = {"kind": "steer", "unit": unit, "scale": scale, "most": MAX_STRENGTH, "edits": MAX_EDITS}
    return _html(gr, _EDITS, "edits.js", elem_id="edits", kinds=kinds, usual=usual, facts={}, arrived=0)


def picks(gr: Any, value: str = "", **options: Any) -> Any:
    """HTML of `render`, whose buttons work; a picked number is a ``select``."""
    return gr.HTML(value, js_on_load=_beside("picks.js"), apply_default_css=False, **options)


def header(gr: Any, about: str) -> Any:
    """The title of the page and what it is about."""
    words = "A dictionary splits what the model holds at one layer into features. Change a few and read what it writes."
    title = f"<h1>Steer single features</h1><p>{words}</p>{render.note(about)}"
    return gr.HTML(f'<header class="hfsae-title">{title}</header>', apply_default_css=False)


def _html(gr: Any, template: str, script: str, **options: Any) -> Any:
    return gr.HTML(None, html_template=template, js_on_load=_beside(script), apply_default_css=False, **options)


def _beside(name: str) -> str:
    return (files("hfsae.demo") / name).read_text(encoding="utf-8")
