"""The picture of a run shows its losses, its sparsity and, where there was one, its evaluation."""

from hfsae import plots
from hfsae.train.callbacks import Figures


def figures(step, **extra):
    losses = {"fvu": 1 / step, **({"aux": 0.01} if step > 2 else {})}
    return Figures(step=step, tokens=100 * step, losses=losses, l0=4.0, dead=0.1, learning_rate=1e-3, extra=extra)


def test_training_draws_what_there_is(tmp_path):
    plain = [figures(step) for step in range(1, 5)]
    assert len(plots.training(plain).axes) == 3
    probed = [*plain, figures(5, ce_clean=2.0, ce_spliced=2.5)]
    picture = plots.training(probed)
    titles = {axes.get_title(loc="left").split(" ")[0] for axes in picture.axes}
    assert titles >= {"losses", "features", "cross-entropy"}
    picture.savefig(tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 1000
