"""Every snippet of the README runs: Python as it stands, commands through the command line itself."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory) -> Path:
    """A folder with a tiny GPT-2, its tokenizer and a dictionary, in place of what a snippet takes from the Hub."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from hfsae import SAE, SAEConfig, load_default

    folder = tmp_path_factory.mktemp("hub")
    _, tokenizer = load_default()
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=10, n_head=2, n_positions=64,
                                       bos_token_id=0, eos_token_id=0, pad_token_id=0))  # fmt: skip
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    config = SAEConfig(architecture="topk", d_in=32, d_sae=4096, k=8, site="resid_post", layer=8)
    SAE(config).save_pretrained(folder / "dictionary")
    return folder


@pytest.mark.parametrize("number", range(len(snippets("python"))))
@pytest.mark.filterwarnings("ignore::hfsae.HfsaeWarning")  # random weights: edits may meet no token where they fire
def test_python_snippet_runs(number, stand_in, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = snippets("python")[number]
    code = code.replace("openai-community/gpt2", str(stand_in / "model"))
    code = code.replace("owner/repo", str(stand_in / "dictionary"))
    script = tmp_path / f"snippet_{number}.py"
    script.write_text(code)
    runpy.run_path(str(script))  # from a file: nnsight reads the source of what it traces


COMMANDS = [line for block in snippets("console") for line in block.splitlines() if line.startswith("$ hfsae ")]


@pytest.mark.parametrize("command", COMMANDS)
def test_command_runs(command, tmp_path):
    words = shlex.split(command.removeprefix("$ hfsae "), comments=True)
    done = subprocess.run([sys.executable, "-m", "hfsae", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
