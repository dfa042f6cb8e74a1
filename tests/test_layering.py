"""The house keeps its order: imports go down only, hooks stand in one place, files and functions stay small."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hfsae"

LAYERS = (
    "errors shapes",
    "metrics",
    "sae",
    "formats",
    "card hub registry",
    "dictionary controls",
    "siting sites",
    "hooks",
    "tracing forwards selectors interventions attaching",
    "baking layer",
    "data",
    "measuring evaluate check",
    "attach bundles",
    "train",
    "features",
    "default",
    "toy",
    "plots",
    "demo",
    "cli",
)
"""Bottom up: a room imports from its own line and the lines above it."""

RANK = {room: rank for rank, line in enumerate(LAYERS) for room in line.split()}
FILES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.name not in ("__main__.py",) and path.parent != PACKAGE / "files"
)


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> set[str]:
    """Modules of hfsae that a file imports, also inside functions, not counting TYPE_CHECKING blocks."""
    known = {module_name(other) for other in FILES}
    found: set[str] = set()
    stack: list[ast.AST] = [ast.parse(path.read_text())]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {
                f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in known else node.module for a in node.names
            }
        stack.extend(ast.iter_child_nodes(node))
    return {name for name in found if name in known and name != module_name(path)}


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_room_has_a_place_in_the_order():
    rooms = {room(module_name(path)) for path in FILES if module_name(path) != "hfsae"}
    assert rooms <= set(RANK), f"Give these rooms a line in LAYERS: {sorted(rooms - set(RANK))}"


@pytest.mark.parametrize("path", [p for p in FILES if p != PACKAGE / "__init__.py"], ids=module_name)
def test_imports_go_down_only(path):
    own = RANK[room(module_name(path))]
    upward = {name for name in imported(path) if name == "hfsae" or RANK[room(name)] > own}
    assert not upward, f"{module_name(path)} imports {sorted(upward)}, which stand above it"


def test_there_are_no_import_cycles():
    graph = {module_name(path): imported(path) for path in FILES if path != PACKAGE / "__init__.py"}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"cycle: {' -> '.join([*trail[trail.index(name) :], name])}"
        if name not in done:
            for nxt in sorted(graph.get(name, ())):
                visit(nxt, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_hooks_are_registered_in_hooks_alone():
    offenders = [
        module_name(path)
        for path in FILES
        if path.name != "hooks.py"
        and any(word in path.read_text() for word in (".register_forward_", "register_full_backward"))
    ]
    assert not offenders


HEAVY = {"transformers", "nnsight", "gradio", "datasets", "matplotlib", "scipy", "huggingface_hub", "typer", "pandas"}


@pytest.mark.parametrize(
    "path", [p for p in FILES if room(module_name(p) + ".x") not in ("cli", "demo")], ids=module_name
)
def test_heavy_packages_are_imported_inside_functions(path):
    heavy = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            heavy |= {alias.name.split(".")[0] for alias in node.names} & HEAVY
        elif isinstance(node, ast.ImportFrom) and node.module:
            heavy |= {node.module.split(".")[0]} & HEAVY
    assert not heavy


def code_lines(source: str) -> set[int]:
    quiet = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in quiet:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_files_classes_and_functions_stay_small(path):
    source = path.read_text()
    assert source.count("\n") <= 400, "split the file"
    code = code_lines(source)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            size = sum(line in code for line in range(node.lineno, node.end_lineno + 1))
            assert size <= 50, f"{node.name} has {size} code lines"
        if isinstance(node, ast.ClassDef):
            methods = [f for f in node.body if isinstance(f, ast.FunctionDef) and not f.name.startswith("_")]
            assert node.end_lineno - node.lineno < 200, f"{node.name} is too long"
            assert len(methods) <= 20, f"{node.name} has {len(methods)} public methods"
