"""`hfsae features`: which features fire on a text, what one feature is, or which features match a word."""

from pathlib import Path
from typing import Annotated

import typer

from hfsae.cli.options import Device, Layer, Model, Sae, Site, open_attachment
from hfsae.dictionary import SAE
from hfsae.errors import InvalidValue, OutOfRange
from hfsae.features import FeatureIndex
from hfsae.sae.base import SparseCoder

_WHOLE_CARDS = 3


def features(
    text: Annotated[str | None, typer.Argument(help="The text to read, or the number of one feature.")] = None,
    model: Model = None,
    sae: Sae = None,
    layer: Layer = None,
    site: Site = "resid_post",
    device: Device = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many features to show per token.")] = 4,
    index: Annotated[
        Path | None, typer.Option(help="Folder of a feature index. Without it: the one beside the dictionary.")
    ] = None,
    search: Annotated[str | None, typer.Option(help="Show the features whose label or contexts hold this.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a dashboard of all features, and of the text.")] = None,
) -> None:
    """Show the strongest features of each token of a text, one feature's card, or the features that match a word.

    \b
    Examples:
      hfsae features "import os, sys"
      hfsae features 3707
      hfsae features --search raise
      hfsae features --index runs/index --search import
      hfsae features "import os, sys" --html dashboard
    """
    wishes = [wish for wish in (text, html, search) if wish is not None]
    if not wishes or (search is not None and len(wishes) > 1):
        raise InvalidValue(
            "Nothing to look at, or two things. Give a text, a feature's number, --search WORD or --html FOLDER."
        )
    known = FeatureIndex.load(index) if index is not None else None
    reads = text is not None and not text.isdecimal()
    if known is not None and not reads and html is None:
        typer.echo(_indexed(known, text, search))
        return
    attachment, tokenizer = open_attachment(model, sae, layer, site, device)
    read = [attachment.top_features(tokenizer(text, return_tensors="pt"), k=k, tokenizer=tokenizer)] if reads else []
    if read and html is None:
        typer.echo(str(read[0]))
        return
    known = known or FeatureIndex.of(attachment.dictionary)
    if html is not None:
        typer.echo(f"page: {_needed(known).to_html(html, read)}")
    elif known is not None:
        typer.echo(_indexed(known, text, search))
    else:
        dictionary = attachment.dictionary
        typer.echo(_labelled(dictionary, search) if search is not None else _card(dictionary, int(text or 0)))


def _needed(index: FeatureIndex | None) -> FeatureIndex:
    if index is None:
        raise InvalidValue("A dashboard is made from an index, and none lies beside this dictionary. Give --index.")
    return index


def _indexed(index: FeatureIndex, feature: str | None, search: str | None) -> str:
    """The card of one feature, or of those that an index finds; many of them a line each."""
    if search is None:
        return str(index[int(feature or 0)])
    cards = index.search(search)
    if len(cards) <= _WHOLE_CARDS:
        return "\n\n".join(map(str, cards)) or f"Nothing in the index holds {search!r}."
    return "\n".join(card.summary for card in cards)


def _card(dictionary: SparseCoder, feature: int) -> str:
    """What the dictionary itself knows of a feature."""
    if feature >= dictionary.config.d_sae:
        raise OutOfRange(
            f"Feature {feature} does not exist. Expected 0 to {dictionary.config.d_sae - 1}. Choose another."
        )
    lines = [f"feature {feature}: {_labels(dictionary).get(feature, 'no label')}"]
    statistics = dictionary.statistics if isinstance(dictionary, SAE) else None
    if statistics is not None:
        lines.append(f"fires on {float(statistics.density[feature]):.3%} of {statistics.tokens:,} tokens")
        lines.append(f"largest activation {float(statistics.max[feature]):.3g}")
    return "\n".join(lines)


def _labelled(dictionary: SparseCoder, word: str) -> str:
    """The features whose label holds a word, one a line."""
    labels = _labels(dictionary)
    found = [f"{feature}  {text}" for feature, text in labels.items() if word.casefold() in text.casefold()]
    return "\n".join(found) or f"No label of this dictionary holds {word!r}. It has {len(labels)} labels."


def _labels(dictionary: SparseCoder) -> dict[int, str]:
    labels = dictionary.labels if isinstance(dictionary, SAE) else {}
    return {feature: label.text for feature, label in labels.items()}
