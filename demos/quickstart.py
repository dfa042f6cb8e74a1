"""See what a dictionary sees: features of a text, one steered, one ablated, and what splicing costs.

python demos/quickstart.py                                     the shipped model, no network
python demos/quickstart.py --model openai-community/gpt2 --sae owner/repo --layer 8 --steer 3012 --ablate 77
"""

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hfsae
from hfsae import plots

TEXT = (
    'def read(path):\n    """Return the text of a file."""\n    if not path:\n        raise ValueError("empty path")\n'
)
PROMPT = "The default value is"
RAISING = "    if not callable(func):\n        raise"
RAISE = 3707
"""A labelled feature of the shipped dictionary: `raise`."""


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Hub id or folder of a causal model (default: the shipped one)")
    parser.add_argument("--sae", help="Hub id or folder of a dictionary (default: the one registered for the model)")
    parser.add_argument("--layer", type=int, default=None)
    parser.add_argument(
        "--steer", type=int, default=None, help="feature to steer (default: one that raises exceptions)"
    )
    parser.add_argument("--strength", type=float, default=0.7, help="in multiples of the feature's maximum")
    parser.add_argument(
        "--ablate", type=int, default=None, help="feature to switch off (default: the text's strongest)"
    )
    parser.add_argument("--text", default=TEXT, help="the text to look at")
    parser.add_argument("--prompt", default=PROMPT, help="the prompt to continue")
    parser.add_argument("--max-tokens", type=int, default=20_000, help="tokens of the evaluation")
    parser.add_argument("--picture", type=Path, default=Path("quickstart.png"))
    return parser.parse_args()


def load(args: argparse.Namespace) -> tuple[hfsae.Attachment, object, list[str]]:
    """Load model, tokenizer and evaluation texts, and attach the dictionary."""
    if args.model is None:
        model, tokenizer = hfsae.load_default()
        texts = hfsae.default_texts("validation")
        layer = 2 if args.layer is None else args.layer
    else:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model, tokenizer = AutoModelForCausalLM.from_pretrained(args.model), AutoTokenizer.from_pretrained(args.model)
        texts, layer = [args.text], args.layer
    return hfsae.attach(model, layer=layer, sae=args.sae), tokenizer, texts


def strongest(top: Sequence[Any]) -> int:
    """Return the feature with the largest activation on any token but the first."""
    return max((value, feature) for entry in top[1:] for feature, value, _ in entry.features)[1]


def label(dictionary: hfsae.SAE, feature: int) -> str:
    """Return the words for a feature."""
    return dictionary.labels[feature].text if feature in dictionary.labels else "no label"


def main() -> None:
    """Print the four parts and save the picture."""
    args = parse()
    attachment, tokenizer, texts = load(args)
    dictionary = attachment.dictionary
    print(f"{dictionary.id} attached to {attachment.module_path}: {dictionary.config.d_sae:,} features\n")

    print("1. What fires: each token with its strongest features")
    top = attachment.top_features(tokenizer(args.text, return_tensors="pt"), k=3, tokenizer=tokenizer)
    print(top)

    steered = (RAISE if args.model is None else strongest(top)) if args.steer is None else args.steer
    ablated = strongest(top) if args.ablate is None else args.ablate

    def continued(prompt: str) -> str:
        ids = tokenizer(prompt, return_tensors="pt")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", hfsae.HfsaeWarning)
            written = attachment.model.generate(**ids, max_new_tokens=30, do_sample=False, repetition_penalty=1.1)
        return tokenizer.decode(written[0], skip_special_tokens=True)

    print("\n2. A feature steered, a feature ablated")
    print(f"--- as the model is\n{continued(args.prompt)}")
    with attachment.steer(steered, args.strength, unit="max"):
        print(f"--- feature {steered} ({label(dictionary, steered)}) steered by {args.strength:g} x its maximum")
        print(continued(args.prompt))
    prompt = RAISING if args.model is None else args.prompt
    print(f"--- as the model is\n{continued(prompt)}")
    with attachment.ablate(ablated):
        print(f"--- feature {ablated} ({label(dictionary, ablated)}) ablated\n{continued(prompt)}")

    print("\n3. What splicing the reconstruction costs")
    evaluation = hfsae.evaluate(attachment, texts, tokenizer=tokenizer, max_tokens=args.max_tokens)
    print(evaluation)

    told = attachment.top_features(tokenizer(args.text, return_tensors="pt"), k=12, tokenizer=tokenizer)
    ordinary = [entry for entry in told if entry.token not in tokenizer.all_special_tokens]
    plots.overview(ordinary, evaluation).savefig(args.picture, dpi=120)
    print(f"\npicture: {args.picture}")
    attachment.detach()


if __name__ == "__main__":
    main()
