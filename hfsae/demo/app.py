"""Opening the demo: model, dictionary and page, served on this machine alone unless asked otherwise."""

import os
import socket
from importlib.resources import files
from pathlib import Path
from typing import Any

from hfsae.attach import attach
from hfsae.default import load_default
from hfsae.demo.cards import Cards
from hfsae.demo.components import head
from hfsae.demo.engine import Engine
from hfsae.demo.guard import Guard
from hfsae.demo.handlers import Handlers
from hfsae.demo.page import Preset, build, read_presets
from hfsae.demo.state import Request
from hfsae.errors import InvalidValue, MissingPackage
from hfsae.features import FeatureIndex

COST_TEXT = '''def load(path, mode="r"):
    """Open a file and return its content.

    If the file does not exist, an OSError is raised.
    """
    try:
        with open(path, mode) as stream:
            return stream.read()
    except FileNotFoundError:
        raise OSError("no such file: %r" % path)
'''
"""Ordinary text of the kind that the shipped model was trained on."""


def demo(
    model: str | None = None,
    *,
    sae: str | None = None,
    layer: int | None = None,
    site: str = "resid_post",
    device: str | None = None,
    index: FeatureIndex | str | Path | None = None,
) -> Any:
    """Build the demo as a `gradio.Blocks` that `launch` serves.

    Args:
        model: Hub id or folder of a causal model; None takes the shipped one.
        sae: Hub id or folder of a dictionary; None takes the one registered for the model.
        layer: Block; 2 in the shipped model.
        site: Where in the block.
        device: Where to run; None leaves the model where it loads.
        index: What its features mean, for search and cards: an index, or the folder of one; None takes the
            one beside the dictionary.

    Raises:
        MissingPackage: when gradio is not installed.
    """
    _need_gradio()
    if model is None and layer is None:
        layer = 2
    opened, tokenizer = _load(model, device)
    attachment = attach(opened, layer, site, sae=sae)
    known = FeatureIndex.load(index) if isinstance(index, (str, Path)) else index
    cards = Cards(attachment, tokenizer, known or FeatureIndex.of(attachment.dictionary))
    handlers = Handlers(Engine(attachment, tokenizer, COST_TEXT), cards, _opening(model, sae, layer, site))
    presets = _presets() if model is None and sae is None and layer == 2 else []
    start = presets[0].request if presets else Request(prompt="The ")
    about = f"{cards.dictionary.id} · {cards.dictionary.config.d_sae:,} features at {attachment.module_path}"
    return build(handlers, start, presets, about)


def launch(page: Any, *, port: int | None = None, share: bool = False, block: bool = True) -> Any:
    """Serve the page on 127.0.0.1, without analytics, monitoring, uploads or file access; return gradio's answer.

    Args:
        page: What `demo` returned.
        port: Port; None takes the first free one from 7860.
        share: Open a public link through gradio's servers. Anyone with the link can use the model.
        block: Serve until interrupted; False returns at once.

    Raises:
        InvalidValue: when the port is taken.
    """
    from starlette.middleware import Middleware

    if port is not None and not _is_free(port):
        raise InvalidValue(f"Port {port} is in use. A free one was expected. Name another, or none to take the first.")
    page.queue(max_size=32, default_concurrency_limit=1, api_open=False)
    return page.launch(
        server_name="127.0.0.1",
        server_port=port,
        share=share,
        prevent_thread_lock=not block,
        head=head(),
        theme=_theme(),
        allowed_paths=[],
        max_file_size="1kb",
        show_error=False,
        enable_monitoring=False,
        run_history=False,
        state_session_capacity=1000,
        ssr_mode=False,
        strict_cors=True,
        footer_links=["api"],
        app_kwargs={"middleware": [Middleware(Guard)]},
        quiet=True,
    )


def _is_free(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) != 0


def _theme() -> Any:
    """Warm and quiet, in the fonts that the reader's machine has."""
    import gradio as gr

    return gr.themes.Default(
        primary_hue="orange",
        neutral_hue="stone",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )


def _need_gradio() -> None:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise MissingPackage(
            "The demo needs gradio, which is not installed. Run: pip install 'hfsae[demo]'."
        ) from error


def _load(model: str | None, device: str | None) -> tuple[Any, Any]:
    """The model and its tokenizer."""
    if model is None:
        return load_default(device=device)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded: Any = AutoModelForCausalLM.from_pretrained(model)
    return loaded.to(device) if device else loaded, AutoTokenizer.from_pretrained(model)


def _opening(model: str | None, sae: str | None, layer: int | None, site: str) -> str:
    """The Python that does what `_load` and `attach` did."""
    given = {"layer": layer, "site": site if site != "resid_post" else None, "sae": sae}
    where = "".join(f", {name}={value!r}" for name, value in given.items() if value is not None)
    attaching = f"att = hfsae.attach(model{where})"
    if model is None:
        return f"model, tok = hfsae.load_default()\n{attaching}"
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"model = AutoModelForCausalLM.from_pretrained({model!r})\n"
        f"tok = AutoTokenizer.from_pretrained({model!r})\n{attaching}"
    )


def _presets() -> list[Preset]:
    file = files("hfsae.default") / "files" / "presets.json"
    return read_presets(file.read_text()) if file.is_file() else []
