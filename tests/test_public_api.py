"""The public names, their docstrings, and what importing costs."""

import inspect
import subprocess
import sys

import pytest

import hfsae

HEAVY = (
    "transformers",
    "nnsight",
    "gradio",
    "datasets",
    "matplotlib",
    "scipy",
    "huggingface_hub",
    "pandas",
    "accelerate",
)


def test_all_is_exactly_the_public_names():
    assert set(hfsae.__all__) == {*hfsae._HOME, "toy"}
    assert set(hfsae.__all__) <= set(dir(hfsae))


@pytest.mark.parametrize("name", hfsae.__all__)
def test_every_public_name_has_a_docstring(name):
    assert inspect.getdoc(getattr(hfsae, name))


@pytest.mark.parametrize("name", [n for n in hfsae.__all__ if inspect.isclass(getattr(hfsae, n))])
def test_every_public_method_has_a_docstring(name):
    cls = getattr(hfsae, name)
    bare = [
        n for n, m in vars(cls).items() if not n.startswith("_") and inspect.isfunction(m) and not inspect.getdoc(m)
    ]
    assert not bare


def test_functions_win_over_the_modules_of_the_same_name():
    import hfsae.attach
    import hfsae.evaluate
    import hfsae.train

    assert all(callable(f) for f in (hfsae.attach, hfsae.evaluate, hfsae.train))


def test_import_loads_torch_and_nothing_else_heavy():
    script = f"import sys, hfsae; print([m for m in {HEAVY} if m in sys.modules], 'torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    assert told == "[] True"
