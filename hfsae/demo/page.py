"""The page: its controls, and which function each of them calls.

Events of the page are private; programs call the endpoints of `api`. Whatever runs the model shares one concurrency
group, so that the queue bounds the load on the model and not on each event.
"""

import json
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from hfsae.demo import api, components, render
from hfsae.demo.handlers import Handlers, guarded
from hfsae.demo.state import MAX_PROMPT, MAX_SEED, MAX_TOKENS, Request, edits_from_rows

MODEL_QUEUE = "model"
WORKERS = 4
"""Generations that run at the same time, token by token in turn; each is exact whatever the others do."""

PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}
MODEL = {**PRIVATE, "concurrency_id": MODEL_QUEUE, "concurrency_limit": WORKERS}

PUT_IN_URL = "(query) => { if (query) history.replaceState(null, '', '?' + query); }"
COPY_LINK = "() => navigator.clipboard.writeText(location.href)"
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
class _Parts:
    """The components of the page that events read or write."""

    prompt: Any = None
    edits: Any = None
    sampling: list[Any] = field(default_factory=list)
    """Tokens, temperature, seed and chat."""
    watch: Any = None
    """The number of the feature whose card is open, as text; empty where there is none."""
    texts: Any = None
    found: Any = None
    card: Any = None

    @property
    def state(self) -> list[Any]:
        """The inputs of `Handlers.request`."""
        return [self.prompt, self.edits, *self.sampling]


def build(handlers: Handlers, start: Request, presets: list[Preset], about: str) -> Any:
    """Return the page as a `gradio.Blocks`, not yet launched.

    Args:
        handlers: What the controls call.
        start: What the page shows when its URL says nothing.
        presets: States to choose from.
        about: Model and dictionary, in words.
    """
    import gradio as gr

    parts = _Parts()
    with gr.Blocks(title="hfsae: steer single features", analytics_enabled=False) as page:
        components.header(gr, about)
        chosen = components.picks(gr, render.presets([preset.name for preset in presets]), visible=bool(presets))
        parts.watch = gr.Textbox("", visible=False)
        buttons = _prompt(gr, parts, handlers, start)
        parts.texts = components.texts(gr)
        with gr.Row(elem_classes="hfsae-work"):
            with gr.Column(min_width=320):
                unit, scale = handlers.cards.usual_unit, handlers.engine.typical
                parts.edits = components.edits(gr, unit=unit, scale=scale)
                cost = gr.HTML(elem_id="cost", apply_default_css=False)
                _code(gr, parts, handlers)
            with gr.Column(min_width=320):
                _features(gr, parts, handlers)
        _generating(gr, parts, handlers, buttons)
        _following(gr, parts, handlers, cost)
        _arriving(gr, page, parts, start, presets, chosen)
        api.add(handlers, concurrency_id=MODEL_QUEUE, concurrency_limit=WORKERS)
    return page


def _prompt(gr: Any, parts: _Parts, handlers: Handlers, start: Request) -> tuple[Any, Any]:
    """The prompt, how it is continued, and the buttons that start and stop."""
    with gr.Row():
        parts.prompt = gr.Textbox(
            start.prompt,
            label="Prompt (Shift+Enter generates)",
            lines=2,
            max_length=MAX_PROMPT,
            scale=6,
            min_width=320,
            elem_id="prompt",
        )
        with gr.Column(scale=1, min_width=130, elem_classes="hfsae-buttons"):
            go = gr.Button("Generate", variant="primary", elem_id="generate")
            stop = gr.Button("Stop", elem_id="stop")
    with gr.Accordion("Length, temperature, seed", open=False), gr.Row():
        tokens = gr.Slider(1, MAX_TOKENS, start.tokens, step=1, label="New tokens")
        temperature = gr.Slider(0, 2, start.temperature, step=0.05, label="Temperature (0 is greedy)")
        seed = gr.Number(start.seed, precision=0, minimum=0, maximum=MAX_SEED, label="Seed")
    chat = gr.Checkbox(False, label="Chat: the prompt is a turn of a conversation", visible=handlers.engine.chats)
    parts.sampling = [tokens, temperature, seed, chat]
    return go, stop


def _generating(gr: Any, parts: _Parts, handlers: Handlers, buttons: tuple[Any, Any]) -> None:
    go, stop = buttons
    running = gr.on(
        [go.click, parts.prompt.submit, parts.edits.release],
        handlers.stream,
        [parts.watch, *parts.state],
        parts.texts,
        trigger_mode="always_last",
        **MODEL,
    )
    stop.click(None, cancels=[running], **PRIVATE)

    def tint(watch: str, shown: Any) -> Any:
        return handlers.tint(watch, shown) or gr.skip()

    for event in (parts.watch.change, running.then):
        event(tint, [parts.watch, parts.texts], parts.texts, **MODEL)


def _features(gr: Any, parts: _Parts, handlers: Handlers) -> None:
    """Finding features by words, number, token or contrast, and the card of the one chosen."""
    gr.HTML("<h2>Features</h2>", apply_default_css=False)
    words = gr.Textbox(
        label="Search",
        lines=1,
        max_lines=1,
        placeholder="words of a label, context or promoted token, or a number",
        max_length=200,
        elem_id="words",
    )
    with gr.Accordion("Tell two texts apart", open=False):
        one = gr.Textbox(label="Stronger in this text", max_length=MAX_PROMPT, elem_id="one")
        other = gr.Textbox(label="than in this one", max_length=MAX_PROMPT, elem_id="other")
        contrast = gr.Button("Compare", size="sm", elem_id="contrast")
    parts.found = components.picks(gr, elem_id="found")
    parts.card = components.picks(gr, elem_id="card")
    words.submit(guarded(handlers.search), words, parts.found, **PRIVATE)
    contrast.click(guarded(handlers.contrast), [one, other], parts.found, **MODEL)

    def token(shown: Any, event: gr.EventData) -> str:
        return guarded(handlers.token)(shown, event.row, event.position)

    parts.texts.select(token, parts.texts, parts.found, **MODEL)

    def pick(event: gr.EventData) -> str:
        return str(event.pick)

    for place in (parts.found, parts.card):
        place.select(pick, None, parts.watch, **PRIVATE)


def _code(gr: Any, parts: _Parts, handlers: Handlers) -> None:
    """The same as Python, as a link and as JSON."""
    with gr.Accordion("The same in Python", elem_classes="hfsae-last"):
        python = gr.Code(language="python", interactive=False, show_label=False, wrap_lines=True, elem_id="python")
        with gr.Row():
            copy = gr.Button("Copy the link to this state", size="sm", elem_id="copy")
            download = gr.Button("Download the edits as JSON", size="sm", elem_id="download")
    query, told = gr.Textbox(visible=False), gr.Textbox(visible=False)

    def link(*values: Any) -> Any:
        return gr.skip() if values[1] is None else handlers.link(*values)  # the edits have not arrived yet

    changes = [parts.edits.input, *(part.change for part in (parts.prompt, *parts.sampling))]
    linked = gr.on(changes, link, parts.state, [query, python, told], trigger_mode="always_last", **PRIVATE)
    linked.then(None, query, None, js=PUT_IN_URL, **PRIVATE)
    copy.click(None, None, None, js=COPY_LINK, **PRIVATE)
    download.click(None, told, None, js=DOWNLOAD, **PRIVATE)


def _following(gr: Any, parts: _Parts, handlers: Handlers, cost: Any) -> None:
    """What follows the edits and the chosen feature."""
    edits, watch = parts.edits, parts.watch
    edits.input(guarded(handlers.cost), edits, cost, trigger_mode="always_last", **PRIVATE)
    edits.input(lambda rows: gr.HTML(facts=handlers.facts(rows)), edits, edits, trigger_mode="always_last", **PRIVATE)

    def feature(event: gr.EventData) -> str:
        return str(event.feature)

    edits.select(feature, None, watch, **PRIVATE)
    watch.change(guarded(handlers.card), watch, parts.card, **PRIVATE)


def _arriving(gr: Any, page: Any, parts: _Parts, start: Request, presets: list[Preset], chosen: Any) -> None:
    """What the URL says on arrival, and the presets."""
    outputs = [*parts.state, parts.watch]

    def shown(request: Request) -> list[Any]:
        edits = gr.HTML([asdict(edit) for edit in request.edits], arrived=time.time())
        values = [request.prompt, edits, request.tokens, request.temperature, request.seed, request.chat]
        return [*values, str(request.edits[0].feature) if request.edits else ""]

    def arrive(request: gr.Request) -> list[Any]:
        return shown(Request.from_query(dict(request.query_params), start))

    def pick(event: gr.EventData) -> list[Any]:
        number = event.pick
        return shown(presets[number].request) if number in range(len(presets)) else gr.skip()

    page.load(arrive, None, outputs, **PRIVATE)
    chosen.select(pick, None, outputs, **PRIVATE)


def read_presets(text: str) -> list[Preset]:
    """Read the presets that ship beside a dictionary: a JSON list of a name, a prompt and edits."""
    return [
        Preset(row["name"], Request(prompt=row["prompt"], edits=edits_from_rows(row["edits"])))
        for row in json.loads(text)
    ]
