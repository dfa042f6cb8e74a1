"""Opening the demo: model, dictionary and page, served on this machine alone unless asked otherwise."""

import os
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from hfsae.attach import Attachment, attach
from hfsae.default import load_default
from hfsae.demo.cards import Cards
from hfsae.demo.engine import Engine
from hfsae.demo.handlers import Handlers
from hfsae.demo.page import Preset, build, read_presets
from hfsae.demo.render import CSS
from hfsae.demo.state import Request
from hfsae.dictionary import SAE
from hfsae.errors import MissingPackage

if TYPE_CHECKING:
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

DEFAULT_OPENING = "model, tok = hfsae.load_default()\natt = hfsae.attach(model, layer={layer})"
HUB_OPENING = (
    "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
    "model = AutoModelForCausalLM.from_pretrained({model!r})\ntok = AutoTokenizer.from_pretrained({model!r})\n"
    "att = hfsae.attach(model, layer={layer}, sae={sae!r})"
)


def demo(
    model: str | None = None,
    *,
    sae: str | None = None,
    layer: int | None = None,
    site: str = "resid_post",
    index: "FeatureIndex | None" = None,
) -> Any:
    """Build the demo as a `gradio.Blocks` that `launch` serves.

    Args:
        model: Hub id or folder of a causal model; None takes the shipped one.
        sae: Hub id or folder of a dictionary; None takes the one registered for the model.
        layer: Block; 2 in the shipped model.
        site: Where in the block.
        index: What its features mean, for search and cards.

    Raises:
        MissingPackage: when gradio is not installed.
    """
    attachment, tokenizer, opening = _open(model, sae, layer, site)
    handlers = Handlers(Engine(attachment, tokenizer), Cards(_public(attachment), index), opening, COST_TEXT)
    presets = _presets() if model is None else []
    start = presets[0].request if presets else Request(prompt="The ")
    title = (
        f"`{_public(attachment).id}` · {attachment.dictionary.config.d_sae:,} features at `{attachment.module_path}`"
    )
    _gradio()
    return build(handlers, start, presets, title)


def launch(page: Any, *, port: int | None = None, share: bool = False, block: bool = True) -> Any:
    """Serve the page on 127.0.0.1, without analytics, monitoring, uploads or file access; return gradio's answer.

    Args:
        page: What `demo` returned.
        port: Port; None takes the first free one from 7860.
        share: Open a public link through gradio's servers. Anyone with the link can use the model.
        block: Serve until interrupted; False returns at once.
    """
    page.queue(max_size=32, default_concurrency_limit=1, api_open=False)
    return page.launch(
        server_name="127.0.0.1",
        server_port=port,
        share=share,
        prevent_thread_lock=not block,
        css=CSS,
        allowed_paths=[],
        max_file_size="1kb",
        show_error=False,
        enable_monitoring=False,
        run_history=False,
        state_session_capacity=1000,
        ssr_mode=False,
        strict_cors=True,
        footer_links=["api"],
        quiet=True,
    )


def _gradio() -> Any:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise MissingPackage(
            "The demo needs gradio, which is not installed. Run: pip install 'hfsae[demo]'."
        ) from error
    return gradio


def _open(model: str | None, sae: str | None, layer: int | None, site: str) -> tuple[Attachment, Any, str]:
    if model is None:
        loaded, tokenizer = load_default()
        layer = 2 if layer is None else layer
        return attach(loaded, layer, site, sae=sae), tokenizer, DEFAULT_OPENING.format(layer=layer)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    opened: Any = AutoModelForCausalLM.from_pretrained(model)
    opening = HUB_OPENING.format(model=model, layer=layer, sae=sae)
    return attach(opened, layer, site, sae=sae), AutoTokenizer.from_pretrained(model), opening


def _public(attachment: Attachment) -> SAE:
    """The dictionary, which the demo opened itself and so is a public one."""
    assert isinstance(attachment.dictionary, SAE)
    return attachment.dictionary


def _presets() -> list[Preset]:
    file = files("hfsae.default") / "files" / "presets.json"
    return read_presets(file.read_text()) if file.is_file() else []
