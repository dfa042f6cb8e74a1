"""The text that the default model is made from and judged by: files, split, cleaning.

The split is by file and by name alone, so that it can be redone anywhere: a ``.py`` file of the standard library whose
``sha1(relative posix path) % 20`` is 0 is never trained on. Those outside the test suite are ``validation``, those of
the test suite are ``heldout``; everything else is training text. Encodings tables and pydoc topics are in neither.

1. `library_files` lists the standard library; `split_of` says where each file belongs.
2. `clean` drops licence headers, which a small model would otherwise learn by heart.
3. `Seen` finds passages of the held-back files inside other files (vendored copies, the tests of a module), which are
   then left out of training.
"""

import hashlib
import re
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator
from importlib.machinery import PathFinder
from itertools import accumulate
from pathlib import Path

from hfsae.errors import CheckpointNotFound

TEST_FOLDERS = {"test", "tests", "idle_test"}
LEFT_OUT = ("encodings/", "pydoc_data/", "site-packages/", "config-", "_sysconfigdata")
PACKAGES = {
    "torch": "BSD-3-Clause",
    "torchgen": "BSD-3-Clause",
    "transformers": "Apache-2.0",
    "huggingface_hub": "Apache-2.0",
    "numpy": "BSD-3-Clause",
    "networkx": "BSD-3-Clause",
    "fsspec": "BSD-3-Clause",
    "jinja2": "BSD-3-Clause",
    "pip": "MIT",
    "setuptools": "MIT",
    "sympy": "BSD-3-Clause",
}
"""Packages that every installation of hfsae or its dependencies brings, with their licences; all permissive."""

_LICENCE = re.compile(r"copyright|licen[cs]e|all rights reserved|warrant|spdx", re.IGNORECASE)
_VENDORED = {"_vendor", "vendor", "extern", "externals"}
_LARGEST_FILE = 300_000
"""Bytes; above it a Python file is nearly always a table made by a machine."""


def library_root() -> Path:
    """Return the folder of the running Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def library_files(root: Path) -> list[str]:
    """Return the relative posix paths of the standard library's own ``.py`` files, sorted."""
    found = (path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    return sorted(path for path in found if not path.startswith(LEFT_OUT))


def split_of(path: str) -> str:
    """Return ``"validation"``, ``"heldout"``, ``"tests"`` or ``"train"`` for a relative posix path of the library.

    Example:
        >>> split_of("difflib.py"), split_of("dataclasses.py"), split_of("test/test_ast.py")
        ('validation', 'train', 'tests')
    """
    of_the_tests = bool(TEST_FOLDERS.intersection(path.split("/")[:-1]))
    if int(hashlib.sha1(path.encode()).hexdigest(), 16) % 20 == 0:
        return "heldout" if of_the_tests else "validation"
    return "tests" if of_the_tests else "train"


def read_source(path: Path) -> str | None:
    """Return the text of a Python file in the encoding it declares, or None when it cannot be read as text."""
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (SyntaxError, UnicodeError, OSError):
        return None


def library_texts(split: str) -> dict[str, str]:
    """Return the files of one split of the running Python's library, by relative path, as they are on disk.

    Raises: CheckpointNotFound: when this Python came without its sources.
    """
    root = library_root()
    paths = [path for path in library_files(root) if split_of(path) == split]
    texts = {path: text for path in paths if (text := read_source(root / path)) is not None}
    if not texts:
        raise CheckpointNotFound(
            f"No standard-library sources under {str(root)!r}. The {split!r} split is read from the running Python. "
            "Use a Python that was installed with its sources."
        )
    return texts


def package_texts(name: str, most: int = 4_000_000) -> list[str]:
    """Return Python sources of an installed package without vendored code, drawn by hash up to ``most`` characters.

    Nothing when the package is not installed.
    """
    # Not importlib.util.find_spec: setuptools hangs a finder of its own there that changes distutils for good.
    spec = PathFinder.find_spec(name)
    folders = spec.submodule_search_locations or () if spec else ()
    paths = [path for folder in folders for path in Path(folder).rglob("*.py") if _VENDORED.isdisjoint(path.parts)]
    texts = {text for path in paths if (text := read_source(path)) and 200 < len(text) < _LARGEST_FILE}
    ranked = sorted(texts, key=lambda text: hashlib.sha1(text.encode()).digest())
    sizes = accumulate(map(len, ranked))
    return [text for text, size in zip(ranked, sizes, strict=True) if size <= most]


def clean(text: str) -> str:
    """Return the text without its licence header: comment blocks at the top, and single lines, that speak of rights."""
    lines = text.splitlines(keepends=True)
    start = 0
    while start < len(lines) and (lines[start].startswith("#") or not lines[start].strip()):
        start += 1
    kept = [] if _LICENCE.search("".join(lines[:start])) else lines[:start]
    kept += [line for line in lines[start:] if not re.search(r"copyright|all rights reserved", line, re.IGNORECASE)]
    return "".join(kept).lstrip("\n")


def prose(text: str) -> str:
    """Return the docstrings and comment blocks of a source file, in order, as running text."""
    found = re.findall(r'"""(.+?)"""|((?:^[ \t]*#[^\n]*\n)+)', text, re.DOTALL | re.MULTILINE)
    parts = (doc or re.sub(r"^[ \t]*#+ ?", "", comment, flags=re.MULTILINE) for doc, comment in found)
    return "\n\n".join(part.strip() for part in parts if len(part) > 60)


class Seen:
    """The passages of some texts: runs of five written lines, by hash.

    Args:
        texts: What must not appear elsewhere.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._hashes = {passage for text in texts for passage in self._passages(text)}

    @staticmethod
    def _passages(text: str) -> Iterator[int]:
        # Very short lines (brackets, else:) are everywhere and would make every file look like a copy.
        lines = [line for line in (raw.strip() for raw in text.splitlines()) if len(line) > 7]
        for start in range(len(lines) - 4):
            yield hash(tuple(lines[start : start + 5]))

    def count(self, text: str) -> int:
        """Return how many passages of ``text`` are among the ones seen."""
        return sum(passage in self._hashes for passage in self._passages(text))


def training_sources() -> dict[str, list[str]]:
    """Return the training text by source: ``library``, ``tests``, ``packages`` and ``prose``, cleaned.

    Nothing that shares a passage with a held-back file is in it, nor the tests of a held-back module.
    """
    held_back = library_texts("validation")
    modules = {Path(path).stem for path in held_back}
    seen = Seen(clean(text) for text in [*held_back.values(), *library_texts("heldout").values()])
    tests = {path: text for path, text in library_texts("tests").items() if len(text) < _LARGEST_FILE}
    found = {
        "library": list(library_texts("train").values()),
        "tests": [text for path, text in tests.items() if Path(path).stem.removeprefix("test_") not in modules],
        "packages": [text for name in PACKAGES for text in package_texts(name)],
    }
    sources = {
        name: [text for text in dict.fromkeys(map(clean, texts)) if len(text) > 100 and not seen.count(text)]
        for name, texts in found.items()
    }
    sources["prose"] = [*map(prose, sources["library"]), *_topics()]
    return sources


def _topics() -> list[str]:
    """Return the pages of Python's own help, which are English about the language."""
    from pydoc_data.topics import topics

    return list(topics.values())
