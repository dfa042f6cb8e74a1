"""A small dictionary attached to a tiny model, for the tests of what features mean."""

import torch
from torch import nn

from hfsae.attach import Attachment, attach
from hfsae.dictionary import SAE
from hfsae.hooks import capture
from hfsae.sae.config import SAEConfig

BOS = 1


def make_dictionary(seed: int = 3) -> SAE:
    """A TopK dictionary of 24 features, four to a token."""
    torch.manual_seed(seed)
    dictionary = SAE(SAEConfig(architecture="topk", d_in=32, d_sae=24, k=4)).requires_grad_(False)
    for parameter in dictionary.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return dictionary


def attached(tiny_gpt2: nn.Module) -> Attachment:
    """The fixture of an attached dictionary: ``attachment = pytest.fixture(attached)``."""
    # float64, since in float32 the batch shows in the last bits, and two contexts that tie change places.
    return attach(tiny_gpt2.double(), 1, sae=make_dictionary().double())


def features_of(attachment: Attachment, row: list[int]) -> torch.Tensor:
    """Activations ``[tokens, d_sae]`` of one row, 0 on BOS."""
    (x,) = capture(attachment.model, [attachment.point], input_ids=torch.tensor([row]))
    f = attachment.dictionary.encode(x[0])
    f[torch.tensor(row) == BOS] = 0
    return f.float()
