"""The model card of a repository of dictionaries, written from measured numbers alone.

The card has a generated part, between two markers, that is made anew at every push, and whatever people wrote around
it, which stays. Every number in it comes from the dictionaries' `eval.json`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from hfsae.errors import InvalidValue
from hfsae.registry import SHIPPED

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

BEGIN = "<!-- hfsae: generated from here on; write above it or below its end, the rest is made anew at each push -->"
END = "<!-- hfsae: end of the generated part -->"

TAGS = ("hfsae", "sparse-autoencoder", "interpretability", "steering")
# key in eval.json, name and type in the card's metadata
_METRICS = (
    ("recovered_zero", "CE loss recovered (zero ablation)"),
    ("recovered_mean", "CE loss recovered (mean ablation)"),
    ("explained_variance", "explained variance"),
    ("fvu", "fraction of variance unexplained"),
    ("l0", "L0"),
    ("ce_clean", "cross-entropy, clean"),
    ("ce_spliced", "cross-entropy, spliced"),
    ("ce_zero", "cross-entropy, zero-ablated"),
    ("ce_mean", "cross-entropy, mean-ablated"),
    ("kl", "KL divergence, clean to spliced"),
    ("dead_fraction", "dead features"),
)
_CONDITIONS = (
    "data",
    "tokens_valid",
    "tokens_spliced",
    "tokens_scored",
    "context",
    "batch_size",
    "dtype",
    "seed",
    "date",
)
_EXAMPLES = 50


@dataclass(frozen=True, kw_only=True)
class CardEntry:
    """What the card says of one dictionary."""

    place: str
    """Its folder in the repository."""
    config: Mapping[str, Any]
    """Its config.json."""
    measured: Mapping[str, Any] = field(default_factory=dict)
    """Its eval.json; empty when it was not measured."""
    labels: Mapping[str, Any] = field(default_factory=dict)
    """Its labels.json."""
    files: Sequence[tuple[str, int, str]] = ()
    """Name, size in bytes and sha256 of its files."""

    @property
    def conditions(self) -> list[tuple[str, Any]]:
        """Under which conditions it was measured."""
        return [(name.replace("_", " "), self.measured[name]) for name in _CONDITIONS if _said(self.measured.get(name))]

    @property
    def training(self) -> list[tuple[str, Any]]:
        """How it was trained, as far as its config says."""
        recorded = self.config.get("training")
        return _plain_items(recorded if isinstance(recorded, Mapping) else {})

    @property
    def steering(self) -> list[tuple[str, Any]]:
        """What steering with it was measured to cost."""
        measured = self.measured.get("steering")
        return _plain_items(measured if isinstance(measured, Mapping) else {})

    @property
    def automatic(self) -> Mapping[str, Any]:
        """How many of its automatic labels predict firing on held-out text, and by what measure."""
        recorded = self.measured.get("automatic_labels")
        return recorded if isinstance(recorded, Mapping) else {}

    @property
    def examples(self) -> list[Mapping[str, Any]]:
        """Some of its features: those that eval.json shows, else those that have a label."""
        recorded = self.measured.get("examples")
        found = recorded if isinstance(recorded, list) else [self._labelled(feature) for feature in self.labels]
        return [example for example in found if isinstance(example, Mapping)][:_EXAMPLES]

    def _labelled(self, feature: str) -> Mapping[str, Any] | None:
        label, density = self.labels[feature], self.measured.get("density")
        if not feature.isdecimal() or len(feature) > 9 or not isinstance(label, Mapping):
            return None
        known = isinstance(density, list) and int(feature) < len(density)
        said = {"feature": int(feature), "label": label.get("text"), "source": label.get("source")}
        return said | ({"density": density[int(feature)]} if known and isinstance(density, list) else {})


def render(
    repo_id: str,
    entries: Sequence[CardEntry],
    *,
    license: str | None = None,
    base_licenses: Mapping[str, str] | None = None,
    existing: str | None = None,
) -> str:
    """Return the card of a repository that holds those dictionaries.

    Args:
        license: Licence of the dictionaries; None keeps what the existing card says.
        base_licenses: Licences of the base models, by their ids, where they are known.
        existing: The card there now: its metadata that we do not generate and its hand-written text stay.

    Raises: InvalidValue: when there is no dictionary to write about, or the existing card cannot be parsed.
    """
    if not entries:
        raise InvalidValue("There is no dictionary to write a card about. Give at least one.")
    old, before, after = _hand_written(existing)
    if license is not None:
        old["license"] = license
    bases = _bases(entries, base_licenses or {})
    body = _body(repo_id, entries, bases, old.get("license"))
    parts = [f"---\n{_metadata(repo_id, entries, bases, old)}\n---", before, body, after]
    return "\n\n".join(part for part in parts if part) + "\n"


def _body(repo_id: str, entries: Sequence[CardEntry], bases: list[dict[str, str]], license: object) -> str:
    from jinja2 import Environment

    environment = Environment(autoescape=False)  # Markdown: what comes from files is escaped by the filters
    environment.filters |= {"cell": _cell, "number": _number}
    template = environment.from_string(files("hfsae").joinpath("card_template.md").read_text(encoding="utf-8"))
    name = repo_id.rsplit("/", 1)[-1]
    return template.render(
        begin=BEGIN,
        end=END,
        title=_cell(name),
        key=re.sub(r"\W", "_", name),
        repo_id=repo_id,
        entries=entries,
        bases=bases,
        usage=_usage(repo_id, entries[0]),
        shipped=SHIPPED,
        license=license,
    ).strip()


def _usage(repo_id: str, entry: CardEntry) -> str:
    """Three lines that load the model and the first dictionary, at the revision it was trained on."""
    config = entry.config
    layer, site, base = config.get("layer"), config.get("site"), config.get("base_model")
    by_layer = isinstance(layer, int) and isinstance(site, str)
    where = f"layer={layer}, site={_code(site)}" if by_layer else f"module={_code(config.get('module'))}"
    revision = config.get("base_revision")
    pinned = _code(base) + (f", revision={_code(revision)}" if isinstance(revision, str) else "")
    model = f"model = transformers.AutoModelForCausalLM.from_pretrained({pinned})"
    if repo_id == SHIPPED:  # its dictionaries are in the package, and attach finds them
        return f"import hfsae\nmodel, tokenizer = hfsae.load_default()\natt = hfsae.attach(model, {where})"
    return "\n".join(
        (
            "import hfsae, transformers",
            "model, tokenizer = hfsae.load_default()" if base == SHIPPED else model,
            f"sae = hfsae.SAE.from_pretrained({_code(repo_id)}, subfolder={_code(entry.place)})",
            f"att = hfsae.attach(model, {where}, sae=sae)",
        )
    )


def _bases(entries: Iterable[CardEntry], licenses: Mapping[str, str]) -> list[dict[str, str]]:
    """The base models, each once and in order."""
    found: dict[str, dict[str, str]] = {}
    for entry in entries:
        base, revision = entry.config.get("base_model"), entry.config.get("base_revision")
        if isinstance(base, str):
            said = {"id": _cell(base), "revision": _cell(revision) if isinstance(revision, str) else ""}
            found.setdefault(base, said | {"license": licenses.get(base, "")})
    return list(found.values())


def _metadata(repo_id: str, entries: Sequence[CardEntry], bases: list[dict[str, str]], old: dict[str, Any]) -> str:
    """The card's YAML: what we generate, over what was there."""
    from huggingface_hub import ModelCardData

    kept_tags = [tag for tag in old.pop("tags", None) or [] if tag not in TAGS]
    for generated in ("model-index", "model_name", "eval_results"):
        old.pop(generated, None)
    ids = [base["id"] for base in bases if base["id"] != repo_id]
    data = old | {
        "library_name": "hfsae",
        "tags": [*TAGS, *kept_tags],
        "base_model": ids[0] if len(ids) == 1 else ids or None,
        "base_model_relation": "adapter" if ids else None,
        "model_name": repo_id.rsplit("/", 1)[-1],
        "eval_results": [result for entry in entries for result in _results(entry)] or None,
    }
    return str(ModelCardData(**{name: value for name, value in data.items() if value is not None}).to_yaml()).strip()


def _results(entry: CardEntry) -> "list[EvalResult]":
    from huggingface_hub import EvalResult

    data = entry.measured.get("data")
    return [
        EvalResult(
            task_type="feature-extraction",
            task_name=f"sparse reconstruction at {entry.place}",
            dataset_type="text",
            dataset_config=entry.place,  # results that agree in task and dataset would be merged into one
            dataset_name=data if isinstance(data, str) else "not recorded",
            metric_type=key,
            metric_name=name,
            metric_value=entry.measured[key],
        )
        for key, name in _METRICS
        if _is_number(entry.measured.get(key))
    ]


def _hand_written(existing: str | None) -> tuple[dict[str, Any], str, str]:
    """The metadata of a card, and what people wrote above and below its generated part."""
    if existing is None:
        return {}, "", ""
    from huggingface_hub import ModelCard

    try:
        card = ModelCard(existing, ignore_metadata_errors=True)
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidValue(
            "The card there now has metadata that cannot be read. Its YAML must parse. Mend it."
        ) from error
    text = str(card.text).strip()
    data: dict[str, Any] = card.data.to_dict()  # type: ignore[no-untyped-call]
    if BEGIN not in text:
        return data, "", text
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return data, before.strip(), after.strip()


def _code(value: object) -> str:
    """A name from a file as code may hold it; what is no name of a model, place or commit is left out."""
    return repr(value) if isinstance(value, str) and re.fullmatch(r"[\w./-]+", value) else repr("...")


def _said(value: object) -> bool:
    return value is not None and not isinstance(value, (Mapping, list, tuple))


def _plain_items(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(str(name).replace("_", " "), value) for name, value in values.items() if _said(value)]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: object) -> str:
    """A measured number to four digits, or a dash where it was not measured."""
    return f"{value:.4g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else "–"


def _cell(value: object) -> str:
    """A value as the cell of a table may hold it: on one line, with no markup of its own."""
    if not isinstance(value, (str, int, float)):
        return ", ".join(map(_cell, value)) if isinstance(value, (list, tuple)) else "–"
    text = " ".join(str(value).split())[:300]
    return (
        text.replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
        .replace("|", "&#124;")
        .replace("`", "&#96;")
    )
