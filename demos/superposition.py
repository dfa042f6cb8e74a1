"""Superposition, from the antipodal pair to the neuron that means nothing: every claim with its number, in a minute.

python demos/superposition.py                      prints the claims, writes seven pictures into superposition/
python demos/superposition.py --pictures folder    into another folder
"""

import argparse
import warnings
from pathlib import Path

import torch

import hfsae
from hfsae import toy
from hfsae.toy import pictures

SHAPES = ("digon", "triangle", "pentagon", "square", "tetrahedron", "square antiprism")
SITES = ("resid_pre.layer_0", "resid_post.layer_0", "resid_post.layer_1", "resid_post.layer_2", "resid_post.layer_3")


def say(claim: str, number: str) -> None:
    """Print one claim with its number."""
    print(f"  {claim}: {number}", flush=True)


def chapter(title: str) -> None:
    """Print a heading."""
    print(f"\n{title}", flush=True)


def loss(*weights: float, relu: bool = True) -> float:
    """Return the loss of features at these places on a line, no bias, one active at 1."""
    W = torch.tensor(weights, dtype=torch.float32)[:, None]
    return float(toy.ToyModel(W=W, b=torch.zeros(len(weights)), relu=relu).loss(toy.one_active(len(weights))))


def trained_loss(config: toy.ToyConfig) -> float:
    """Return the loss of a toy trained on one active feature at a time."""
    inputs = toy.one_active(config.n)
    return float(toy.train_toys(config, lambda _: inputs[None]).loss(inputs))


def exact(folder: Path) -> None:
    """Two features in one dimension, polygons, and what a linear model can do."""
    chapter("1. Exact results, one feature active at 1")
    say("linear, two features in one dimension: keep one, lose one", f"loss {loss(1, 0, relu=False):.1f}")
    say("the same with a minus sign does not help without a ReLU", f"loss {loss(1, -1, relu=False):.1f}")
    say("with a ReLU the antipodal pair (1, -1) holds both", f"loss {loss(1, -1):.1f}")
    say("often misprinted: the sign is all. (1, 1) does not", f"loss {loss(1, 1):.1f}")
    biased = toy.ToyConfig(n=2, d=1, relu=False, steps=500, learning_rate=0.03)
    say("with a bias even the linear model gets this example right", f"loss {trained_loss(biased):.1e}")
    unequal = toy.linear_loss(2, 0.7 ** torch.arange(5))
    say("a linear model in 2 dimensions keeps the 2 features that matter most, if they differ", f"loss {unequal:.3f}")
    say(
        "at equal importance any turned plane is as good: no feature is kept",
        f"loss {toy.linear_loss(2, torch.ones(5)):.1f}",
    )
    crowd = toy.polygon(16)
    say("16 features on a circle, one active, lose nothing", f"loss {float(crowd.loss(toy.one_active(16))):.0e}")
    say("so one-active inputs set no limit; and biases are not near 0 there", f"b = {float(crowd.b[0]):.1f}")
    shapes = {name: toy.settle(name, steps=600).W for name in SHAPES}
    pictures.geometry(shapes).savefig(folder / "geometry.png", dpi=80)
    share = float(toy.dimensionality(shapes["pentagon"]).mean())
    say("trained on sparse inputs, five features in a plane make a pentagon", f"share of a dimension {share:.3f}")


def sparsity(folder: Path) -> None:
    """What sparse inputs change."""
    chapter("2. Independent sparse inputs: how many features are held, and when")
    held = toy.holding(20, 5, torch.logspace(0, -2, 13), steps=1000)
    pictures.holding(held, d=5).savefig(folder / "holding.png", dpi=80)
    say(
        "5 dimensions, dense inputs to one in a hundred: features held",
        f"{int(held.count[0])} to {int(held.count[-1])}",
    )
    total = float(held.dimensionality.sum(dim=1).max())
    say("their shares never add up to more than the dimensions", f"at most {total:.2f} of 5")
    grid = toy.phase_grid(torch.linspace(0.1, 1, 10), torch.logspace(-1.5, 0, 12), restarts=8, steps=400)
    pictures.phases(grid).savefig(folder / "phases.png", dpi=80)
    cells = grid.trained.numel()
    say("trained toys share one dimension where the closed form says so", f"{grid.agreement} of {cells} cells")
    beyond = int((grid.trained & ~grid.predicted).sum())
    say("of the others, shared beyond the line, thanks to biases the formula lacks", f"{beyond} cells")


def interfering(folder: Path) -> None:
    """The price of sharing."""
    chapter("3. Interference: the price when both are active")
    pair = toy.antipodal_pair()
    inputs = {"(1, 0)": [1.0, 0.0], "(0, 1)": [0.0, 1.0], "(1, 1)": [1.0, 1.0]}
    both = {name: pair(torch.tensor([x]))[0].tolist() for name, x in inputs.items()}
    say(
        "the antipodal pair answers (1, 1) with", f"({both['(1, 1)'][0]:.0f}, {both['(1, 1)'][1]:.0f}), squared error 2"
    )
    active = (1, 2, 5, 10, 20)
    measured = {d: [(k, toy.measured_interference(d, k)) for k in active] for d in (64, 256)}
    say("5 random features in 64 dimensions add to a reading", f"{measured[64][2][1]:.3f}, √(k/d) is 0.280")
    say("10 in 256 dimensions", f"{measured[256][3][1]:.3f}, √(k/d) is 0.198")
    pictures.crosstalk(both, measured).savefig(folder / "interference.png", dpi=80)


def recovering(folder: Path) -> None:
    """Find the features again."""
    chapter("4. Recovery: 128 features in 32 dimensions, found by a trained dictionary")
    sweep = toy.recovery_sweep(samples=200_000)
    pictures.recovery(sweep).savefig(folder / "recovery.png", dpi=80)
    rows = zip(sweep.coherences, sweep.bound, sweep.reach(), sweep.mutual_coherence, strict=True)
    for coherence, bound, reach, mu in rows:
        claim = f"coherence {coherence:g} (largest cosine {mu:.2f}): theory is sure below {bound:.2f} active features"
        say(claim, f"80 % of directions are found up to {reach:g}")
    drop = sweep.f1[0, 1] - sweep.f1[-1, 1]
    say("coherence costs more in telling who fired than in finding directions: F1 lost at 2 active", f"{drop:.2f}")
    print(
        "  What theory is sure of is the code, found by pursuit in a dictionary that is known, in the worst case."
        "\n  One that is trained meets typical samples and reads codes with one matrix: it finds directions far beyond"
        "\n  the bound, and tells who fired less well even within it."
    )
    bias(toy.World(n=128, d=32, l0=4.0))


def bias(world: toy.World) -> None:
    """Say what the encoder bias is for."""
    x, codes = world.sample(8192, torch.Generator().manual_seed(0))
    sae = hfsae.SAE(hfsae.SAEConfig(architecture="standard", d_in=world.d, d_sae=world.n)).requires_grad_(False)
    for weights in (sae.W_enc, sae.W_dec):
        weights.copy_(world.directions)
    scores = []
    for value in (0.0, -0.5):
        sae.b_enc.fill_(value)
        scores.append(toy.recovery(sae, world, x, codes))
    without, with_bias = scores
    claim = "true directions, ReLU, but no encoder bias (as the equation is often printed): features that fire, of 4"
    say(claim, f"{without.l0:.0f}, F1 {without.f1:.2f}; with b_enc = -0.5: {with_bias.l0:.1f}, F1 {with_bias.f1:.2f}")


def neurons_of_a_world() -> None:
    """Hold features beside the coordinates of a world of known truth."""
    chapter("5. Neurons and features, scored alike on samples that did not pick what they stand for")
    world = toy.World(n=128, d=32, l0=2.0)
    x, _ = world.sample(200_000, torch.Generator().manual_seed(0))
    config = hfsae.TrainConfig(d_sae=128, k=2, tokens=len(x), batch_size=512)
    dictionary = hfsae.train(activations=x, config=config, progress=False)
    for row in toy.compare_with_controls(dictionary, toy.world_samples(world, 20_000, seed=1)):
        say(f"128 features in 32 dimensions: {row.name}", f"purity {row.purity}, F1 {row.f1}")


def neurons(folder: Path) -> None:
    """Hold features beside neurons."""
    neurons_of_a_world()
    model, tokenizer = hfsae.load_default()
    attachment = hfsae.attach(model, layer=2)
    samples = toy.text_samples(attachment, hfsae.default_texts("validation"), tokenizer=tokenizer, tokens_per_text=4000)
    standings = toy.compare_with_controls(attachment.dictionary, samples)
    title = f"block 2 of the shipped model, {len(samples.x):,} tokens, k = {attachment.dictionary.config.k}"
    pictures.meanings(standings, title).savefig(folder / "neurons.png", dpi=80)
    for row in standings:
        say(f"shipped model: {row.name}, {row.live:,.0f} live", f"purity {row.purity}, F1 {row.f1}")
    print(
        "  A coordinate of the residual stream, the 'neuron basis', is no purer than a random direction; features are."
        "\n  The MLP's own neurons are another matter: their non-linearity makes them sparse, and in so small a model"
        "\n  they stand for tokens about as well as the mean feature. That mean is pulled down by thousands of rare"
        "\n  features: as many of the busiest as there are neurons are well ahead. The intervals cover cuts of the"
        "\n  text and draws of directions; there is one trained dictionary."
    )
    attachment.detach()


def basis(folder: Path) -> None:
    """Ask whether coordinates are special."""
    model, tokenizer = hfsae.load_default()
    chapter("6. A privileged basis: axes that the network treats apart, not the directions of its features")
    sites = [hfsae.Site.parse(site) for site in (*SITES, "mlp_act.layer_2")]
    rows = toy.site_privileges(model, hfsae.default_texts("validation"), sites, tokenizer=tokenizer)
    pictures.privileges(rows).savefig(folder / "basis.png", dpi=80)
    for row in rows:
        say(f"{row.name}: mean kurtosis of coordinates, and of turned ones", f"{row.own:.2f}, {row.turned:.2f}")
    for optimizer, toys in toy.optimizer_privileges().items():
        own, turned = (sum(getattr(row, name) for row in toys) / len(toys) for name in ("own", "turned"))
        say(f"toys trained with {optimizer}, the same start: kurtosis, and turned", f"{own:.2f}, {turned:.2f}")
    print("  Adam steps coordinate by coordinate, so its toys know the axes (they shun them); SGD's do not.")


def main() -> None:
    """Print the chapters and write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, default=Path("superposition"), help="folder for the pictures")
    folder = parser.parse_args().pictures
    folder.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore", hfsae.HfsaeWarning)
    torch.set_num_threads(1)  # matrices this small are done before threads have met
    for part in (exact, sparsity, interfering, recovering, neurons, basis):
        part(folder)
    print(f"\npictures: {folder}/")


if __name__ == "__main__":
    main()
