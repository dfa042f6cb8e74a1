"""The steering demo: its state, its engine and its page."""

import math
import socket
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("gradio", reason="the demo extra is not installed")

from dictionaries import as_in_production

import hfsae.cli.demo
import hfsae.demo.app
from hfsae.default import FILES
from hfsae.demo import render
from hfsae.demo.cards import Cards
from hfsae.demo.engine import Engine
from hfsae.demo.handlers import Handlers
from hfsae.demo.page import read_presets
from hfsae.demo.pieces import Pieces
from hfsae.demo.state import EditChoice, Request, edits_from_json, edits_to_json
from hfsae.errors import HfsaeError, InvalidType, InvalidValue, MissingPackage

RAISE = EditChoice(kind="steer", feature=3707, value=0.7, unit="max")


@pytest.fixture(scope="module")
def engine() -> Engine:
    from hfsae import attach, load_default

    model, tokenizer = load_default()
    return Engine(attach(model, layer=2), tokenizer, "def f(x):\n    return x\n")


@pytest.fixture(scope="module")
def handlers(engine) -> Handlers:
    return Handlers(engine, Cards(engine.attachment, engine.tokenizer), "model, tok, att = ...")


def last(engine: Engine, request: Request) -> tuple[str, str]:
    *_, final = engine.stream(request)
    return tuple("".join(text.pieces) for text in (final.default, final.steered))


def test_a_stream_equals_generate_without_and_with_the_edit(engine):
    att, tok = engine.attachment, engine.tokenizer
    default, steered = last(engine, Request(prompt="The default value is", edits=(RAISE,), tokens=12))
    ids = tok("The default value is", return_tensors="pt")
    options = {"max_new_tokens": 12, "do_sample": False, "repetition_penalty": 1.1}
    assert default == tok.decode(att.model.generate(**ids, **options)[0], skip_special_tokens=True)
    with att.steer(3707, 0.7, unit="max"):
        assert steered == tok.decode(att.model.generate(**ids, **options)[0], skip_special_tokens=True)
    assert default != steered


def test_sampling_depends_on_the_seed_alone(engine):
    one, again, other = (
        last(engine, Request(prompt="import", tokens=12, temperature=1.0, seed=seed)) for seed in (1, 1, 2)
    )
    assert one == again
    assert one != other
    assert one[0] == one[1]


def test_no_edit_costs_nothing_and_an_edit_something(engine):
    assert engine.cost(()).kl == 0
    assert engine.cost((RAISE,)).kl > 0


def test_a_state_survives_its_url_and_its_json():
    state = Request(prompt="a & b\n<é>", edits=(RAISE, EditChoice(kind="ablate", feature=3)), temperature=0.5, seed=9)
    assert Request.from_query(state.to_query(), Request(prompt="x")) == state
    assert edits_from_json(edits_to_json(state.edits)) == state.edits
    assert Request.from_query("edits=broken", state) == state


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("chat", [False, True])
def test_the_python_of_a_state_writes_the_text_of_the_page(engine, temperature, chat, capsys, monkeypatch):
    template = "{% for turn in messages %}# {{ turn.content }}\n{% endfor %}import"
    monkeypatch.setattr(engine.tokenizer, "chat_template", template if chat else None)
    request = Request(prompt="Paths", edits=(RAISE,), tokens=12, temperature=temperature, seed=3, chat=chat)
    opening = "model, tok, att = engine.attachment.model, engine.tokenizer, engine.attachment"
    exec(compile(request.to_python(opening), "demo", "exec"), {"engine": engine})
    assert capsys.readouterr().out == last(engine, request)[1] + "\n"
    assert Request.from_query(request.to_query(), Request(prompt="x")) == request


@pytest.mark.parametrize(
    ("error", "message", "make"),
    [
        (InvalidValue, "empty", lambda: Request(prompt="  ")),
        (InvalidValue, "1,000,000 characters", lambda: Request(prompt="x" * 1_000_000)),
        (InvalidValue, "null byte", lambda: Request(prompt="a\x00b")),
        (InvalidValue, "out of range", lambda: EditChoice(kind="set", feature=1, value=math.nan, unit="activation")),
        (InvalidType, "is a bool", lambda: Request(prompt="x", tokens=True)),
        (InvalidType, "is a str", lambda: EditChoice(kind="steer", feature=1, value="1", unit="max")),
        (InvalidValue, "Did you mean 'steer'", lambda: edits_from_json('[{"kind":"ster","feature":1}]')),
        (InvalidValue, "cannot be read", lambda: edits_from_json("[" * 9_000)),
    ],
)
def test_hostile_input_gets_a_clear_message(error, message, make):
    with as_in_production(), pytest.raises(error, match=message):
        make()


def test_an_unknown_feature_is_refused_before_anything_runs(engine):
    with pytest.raises(HfsaeError, match="Feature 4096 does not exist"):
        engine.edit((EditChoice(kind="ablate", feature=4096),))


def test_html_in_texts_is_shown_and_never_run():
    bad = "<img src=x onerror=alert(1)>"
    html = render.found(bad, [(1, bad, bad)]) + render.error(bad) + render.note(bad) + render.presets([bad])
    assert html.count("&lt;img") == 6
    assert "<img" not in html


def test_the_tint_of_a_text_is_what_its_stream_showed(engine):
    request = Request(prompt="if x is None:\n    raise", edits=(RAISE,), tokens=12)
    *_, final = engine.stream(request, watch=3707)
    for text in (final.default, final.steered):
        assert engine.tint(text.ids[:-1], 3707) == pytest.approx(text.values[:-1], abs=1e-4)
        assert Pieces(engine.tokenizer, text.ids).finish().texts == text.pieces
    assert max(final.steered.values) > 0


def test_pieces_show_a_character_of_many_tokens_once_it_is_whole(engine):
    text = "a 🙂 שלום é\n"
    pieces = Pieces(engine.tokenizer, engine.encode(text))
    assert "".join(pieces.finish().texts) == text
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces.texts)


@pytest.mark.parametrize(
    ("value", "warning"),
    [(0.9, ""), (1.5, "1.5 × the largest activation"), (-1.2, "1.2 × the largest activation")],
)
def test_a_strength_outside_the_measured_range_is_warned_of(handlers, value, warning):
    told = handlers.cards.warning(EditChoice(kind="steer", feature=3707, value=value, unit="max"))
    assert warning in told
    assert bool(warning) == bool(told)


def test_each_unit_of_strength_is_the_same_edit(engine, handlers):
    sizes = handlers.cards.unit_sizes(3707)
    costs = [
        engine.cost((EditChoice(kind="steer", feature=3707, value=5 / sizes[unit], unit=unit),)).kl for unit in sizes
    ]
    assert set(sizes) == {"max", "norm", "activation"}
    assert costs == pytest.approx([costs[0]] * 3, rel=1e-4)


def test_every_preset_changes_the_text(engine):
    presets = read_presets((FILES / "presets.json").read_text())
    assert 4 <= len(presets) <= 6
    for preset in presets:
        default, steered = last(engine, preset.request)
        assert default != steered, preset.name
        assert all(edit.feature in engine.attachment.dictionary.labels for edit in preset.request.edits)


def test_search_finds_by_label_and_by_number(handlers):
    assert 3707 in [feature for feature, _ in handlers.cards.search("raise")]
    assert handlers.cards.search("17") == [(17, "")]
    assert "Nothing found" in handlers.search("no such words anywhere")


def test_a_card_without_an_index_tells_what_weights_and_statistics_tell(handlers):
    card = handlers.cards.card(3707)
    assert " ValueError" in [token for token, _ in card.promoted]
    assert len(card.neighbours) == 8
    assert "nan" not in handlers.card("3707")
    assert "3707" in handlers.card("3707")


def test_what_a_browser_sends_is_checked(handlers):
    with as_in_production(), pytest.raises(InvalidValue, match="There are no texts"):
        handlers.token({"texts": [{"ids": [1]}]}, 0, 0)
    with as_in_production(), pytest.raises(InvalidValue, match="unknown token"):
        handlers.token({"texts": [{"ids": [10**9]}, {"ids": [1]}]}, 0, 0)
    with as_in_production(), pytest.raises(InvalidValue, match="no number"):
        handlers.card("<script>")
    with as_in_production(), pytest.raises(HfsaeError, match="position"):
        handlers.token({"texts": [{"ids": [1, 2]}, {"ids": [1]}]}, 0, 5)
    assert handlers.facts([{"kind": "ablate", "feature": 10**6}]) == {}
    *_, told = handlers.stream("", "x", [{"kind": "ablate", "feature": 10**6}], 4, 0.0, 0)
    assert "does not exist" in told["error"]


def test_the_demo_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingPackage, match=r"pip install 'hfsae\[demo\]'"):
        hfsae.demo.app.demo()


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken, as_in_production():
        port = taken.getsockname()[1]
        with pytest.raises(InvalidValue, match=f"Port {port} is in use"):
            hfsae.demo.app.launch(None, port=port)


@pytest.mark.parametrize("share", [False, True])
def test_a_public_link_is_opened_on_request_alone_and_with_a_warning(share, monkeypatch, capsys):
    asked = []
    page = SimpleNamespace(block_thread=lambda: None)
    monkeypatch.setattr("hfsae.cli.demo.build", lambda *_, **__: page)
    monkeypatch.setattr("hfsae.cli.demo.launch", lambda _, **options: asked.append(options) or (None, "http://", None))
    hfsae.cli.demo.demo(share=share)
    assert asked == [{"port": None, "share": share, "block": False}]
    assert ("Anyone with the link" in capsys.readouterr().out) == share
