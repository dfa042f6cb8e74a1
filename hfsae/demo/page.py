"""The page: its controls, and which function each of them calls.

Events of the page are private; programs call the endpoints of `api`. Whatever runs the model shares one concurrency
group, so that the queue bounds the load on the model and not on each event.
"""

import json
from dataclasses import dataclass
from typing import Any

from hfsae.demo import api, render
from hfsae.demo.handlers import ROWS, Handlers, guarded, written_rows
from hfsae.demo.state import KINDS, MAX_PROMPT, MAX_TOKENS, UNIT_WORDS, EditChoice, Request

MODEL_QUEUE = "model"
WORKERS = 2
"""Generations that run at the same time; each is exact whatever the others do."""

PUT_IN_URL = "(query) => { if (query) history.replaceState(null, '', '?' + query); }"
DOWNLOAD = """(text) => {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: 'application/json'}));
  link.download = 'edits.json';
  link.click();
}"""


@dataclass(frozen=True)
class Preset:
    """A state that shows something, by name."""

    name: str
    request: Request


@dataclass
class _Controls:
    """The components of the page that events read."""

    prompt: Any = None
    tokens: Any = None
    temperature: Any = None
    seed: Any = None
    watch: Any = None
    rows: list[Any] | None = None

    @property
    def state(self) -> list[Any]:
        """The inputs of `Handlers.request`."""
        return [self.prompt, self.tokens, self.temperature, self.seed, *(self.rows or [])]


def build(handlers: Handlers, start: Request, presets: list[Preset], title: str) -> Any:
    """Return the page as a `gradio.Blocks`, not yet launched.

    Args:
        handlers: What the controls call.
        start: What the page shows when its URL says nothing.
        presets: States to choose from.
        title: Model and dictionary, in words.
    """
    import gradio as gr

    controls = _Controls()
    with gr.Blocks(title="hfsae: steer a model", analytics_enabled=False) as page:
        gr.Markdown(f"### Steer single features\n{title}")
        with gr.Row():
            with gr.Column(scale=5, min_width=320):
                _prompt(gr, controls, start)
                _edits(gr, controls, start)
                finder = _finder(gr)
            with gr.Column(scale=6, min_width=320):
                results = _results(gr, controls)
        _wire(gr, page, handlers, controls, results)
        _wire_finder(gr, handlers, controls, finder, results["card"])
        _wire_presets(gr, page, controls, start, presets)
        api.add(handlers, concurrency_id=MODEL_QUEUE)
    return page


def _prompt(gr: Any, controls: _Controls, start: Request) -> None:
    controls.prompt = gr.Textbox(start.prompt, label="Prompt", lines=3, max_length=MAX_PROMPT, elem_id="prompt")
    with gr.Accordion("Sampling", open=False):
        controls.tokens = gr.Slider(1, MAX_TOKENS, start.tokens, step=1, label="Tokens")
        controls.temperature = gr.Slider(0, 2, start.temperature, step=0.05, label="Temperature (0 is greedy)")
        controls.seed = gr.Number(start.seed, precision=0, label="Seed")


def _edits(gr: Any, controls: _Controls, start: Request) -> None:
    gr.Markdown("**Edits**: one line each; a line without a feature does nothing")
    values = written_rows(start.edits)
    units = [(f"{unit} {UNIT_WORDS[unit]}".strip(), unit) for unit in UNIT_WORDS]
    rows: list[Any] = []
    for row in range(ROWS):
        on, kind, feature, value, unit = values[5 * row : 5 * row + 5]
        with gr.Row(elem_classes="hfsae-edit", visible=True):
            rows += [
                gr.Checkbox(on, label="on", min_width=50, scale=1, elem_id=f"on-{row}"),
                gr.Dropdown(list(KINDS), value=kind, label="edit", min_width=90, scale=2, elem_id=f"kind-{row}"),
                gr.Number(feature, precision=0, label="feature", min_width=90, scale=2, elem_id=f"feature-{row}"),
                gr.Slider(-10, 30, value, step=0.1, label="value", min_width=140, scale=4, elem_id=f"value-{row}"),
                gr.Dropdown(units, value=unit, label="unit", min_width=110, scale=3, elem_id=f"unit-{row}"),
            ]
    controls.rows = rows


def _finder(gr: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with gr.Tabs():
        with gr.Tab("Find by words"):
            found["words"] = gr.Textbox(label="Words in a label, context or promoted token", elem_id="words")
            found["by_words"] = gr.HTML(js_on_load=render.CLICKS, elem_id="found-by-words")
        with gr.Tab("By token"):
            found["inspect"] = gr.Button("Read the prompt", size="sm", elem_id="inspect")
            found["tokens"] = gr.HTML(js_on_load=render.CLICKS, elem_id="tokens")
            found["by_token"] = gr.HTML(js_on_load=render.CLICKS, elem_id="found-by-token")
        with gr.Tab("By contrast"):
            found["one"] = gr.Textbox(label="Stronger in this text", max_length=MAX_PROMPT)
            found["other"] = gr.Textbox(label="than in this one", max_length=MAX_PROMPT)
            found["contrast"] = gr.Button("Compare", size="sm")
            found["by_contrast"] = gr.HTML(js_on_load=render.CLICKS, elem_id="found-by-contrast")
    return found


def _results(gr: Any, controls: _Controls) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    with gr.Row():
        shown["go"] = gr.Button("Generate", variant="primary", elem_id="generate")
        shown["stop"] = gr.Button("Stop", elem_id="stop")
    shown["default"] = gr.HTML(render.panel("default", ""), elem_id="default")
    shown["steered"] = gr.HTML(render.panel("with the edits", ""), elem_id="steered")
    shown["cost"] = gr.HTML(label="Cost", elem_id="cost")
    controls.watch = gr.Number(None, precision=0, label="Feature: its card, and the tint of the text", elem_id="watch")
    shown["card"] = gr.HTML(elem_id="card")
    with gr.Accordion("The same in Python", open=False):
        shown["python"] = gr.Code(language="python", interactive=False, show_label=False, elem_id="python")
        shown["json"] = gr.Textbox(label="Edits as JSON", interactive=False, elem_id="edits-json")
        shown["download"] = gr.Button("Download edits.json", size="sm")
    shown["query"] = gr.Textbox(visible=False)
    return shown


def _wire(gr: Any, page: Any, handlers: Handlers, controls: _Controls, shown: dict[str, Any]) -> None:
    """Generation, cost, link and code."""
    private = {"api_visibility": "private"}
    model = {**private, "concurrency_id": MODEL_QUEUE, "concurrency_limit": WORKERS}
    outputs = [shown["default"], shown["steered"]]
    running = shown["go"].click(
        handlers.stream, [controls.watch, *controls.state], outputs, show_progress="minimal", **model
    )
    submitted = controls.prompt.submit(
        handlers.stream, [controls.watch, *controls.state], outputs, show_progress="minimal", **model
    )
    shown["stop"].click(None, cancels=[running, submitted])
    links = [shown["query"], shown["python"], shown["json"]]
    changes = [page.load, *(component.change for component in controls.state)]
    linked = gr.on(
        changes, handlers.link, controls.state, links, show_progress="hidden", trigger_mode="always_last", **private
    )
    linked.then(None, shown["query"], None, js=PUT_IN_URL)
    rows = controls.rows or []
    gr.on(
        [page.load, *(component.change for component in rows)],
        guarded(handlers.cost),
        rows,
        shown["cost"],
        show_progress="hidden",
        trigger_mode="always_last",
        **model,
    )
    controls.watch.change(guarded(handlers.card), controls.watch, shown["card"], show_progress="hidden", **private)
    shown["download"].click(None, shown["json"], None, js=DOWNLOAD)


def _wire_finder(gr: Any, handlers: Handlers, controls: _Controls, finder: dict[str, Any], card: Any) -> None:
    """Finding features, and taking a found one into the edits."""
    private = {"api_visibility": "private", "show_progress": "hidden"}
    model = {**private, "concurrency_id": MODEL_QUEUE, "concurrency_limit": WORKERS}
    finder["words"].submit(guarded(handlers.search), finder["words"], finder["by_words"], **private)
    finder["inspect"].click(guarded(handlers.inspect), controls.prompt, finder["tokens"], **model)
    finder["contrast"].click(
        guarded(handlers.contrast), [finder["one"], finder["other"]], finder["by_contrast"], **model
    )

    def picked_token(prompt: str, event: gr.EventData) -> str:
        return guarded(handlers.token)(prompt, str(event.pick))

    finder["tokens"].click(picked_token, controls.prompt, finder["by_token"], **model)
    rows = controls.rows or []

    def pick(event: gr.EventData) -> int | None:
        name, _, number = str(event.pick).partition(":")
        return int(number) if name == "feature" and number.isdigit() else None

    for place in ("by_words", "by_token", "by_contrast"):
        chosen = finder[place].click(pick, None, controls.watch, **private)
        chosen.then(_with_feature, [controls.watch, *rows], rows, **private)


def _with_feature(feature: float | None, *values: Any) -> list[Any]:
    """The rows with the feature in the first empty one, unless it stands in one already."""
    rows = list(values)
    features = rows[2::5]
    if feature is None or feature in features or None not in features:
        return rows
    rows[5 * features.index(None) + 2] = feature
    return rows


def _wire_presets(gr: Any, page: Any, controls: _Controls, start: Request, presets: list[Preset]) -> None:
    """What the URL says on arrival, and the buttons of the presets."""

    def shown(request: Request) -> list[Any]:
        return [request.prompt, request.tokens, request.temperature, request.seed, *written_rows(request.edits)]

    def arrive(request: gr.Request) -> list[Any]:
        return shown(Request.from_query(dict(request.query_params), start))

    page.load(arrive, None, controls.state, show_progress="hidden", api_visibility="private")
    # A number without a value shows 0, and 0 is a feature.
    page.load(lambda: None, None, controls.watch, show_progress="hidden", api_visibility="private")
    with gr.Row():
        for preset in presets:
            gr.Button(preset.name, size="sm").click(
                lambda chosen=preset: shown(chosen.request), None, controls.state, api_visibility="private"
            )


def read_presets(text: str) -> list[Preset]:
    """Read the presets that ship beside a dictionary: a JSON list of a name, a prompt and edits."""
    rows = json.loads(text)
    return [
        Preset(row["name"], Request(prompt=row["prompt"], edits=tuple(EditChoice(**edit) for edit in row["edits"])))
        for row in rows
    ]
