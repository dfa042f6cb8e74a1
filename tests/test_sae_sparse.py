"""Views of sparse codes agree with the dense tensor they stand for."""

import pytest
import torch
from dictionaries import D_IN, D_SAE, activations, random_sae

from hfsae.errors import InvalidValue, OutOfRange
from hfsae.sae.architectures import ARCHITECTURES
from hfsae.sae.sparse import SparseFeatures

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


@every_architecture
def test_each_token_shows_what_fired_strongest_first(architecture):
    sae, x = random_sae(architecture), activations(2, 5, D_IN)
    sparse = sae.encode_sparse(x)
    dense = sparse.to_dense()
    for row, token in [(0, 0), (1, 3)]:
        features, values = sparse[row, token]
        assert torch.equal(values, values.sort(descending=True).values)
        assert torch.equal(dense[row, token, features], values)
        assert len(values) == dense[row, token].count_nonzero()
        for same in (sparse[row * 5 + token], sparse[row - 2, token - 5]):
            assert torch.equal(same[0], features)


@every_architecture
def test_fired_triplets_rebuild_the_dense_tensor(architecture):
    sparse = random_sae(architecture).encode_sparse(activations(4, D_IN))
    token, feature, value = sparse.fired()
    assert (value != 0).all()
    assert torch.equal(token, token.sort().values)
    rebuilt = torch.zeros(4, D_SAE).index_put((token, feature), value)
    assert torch.equal(rebuilt, sparse.to_dense())


def test_an_empty_slot_hides_no_other():
    sparse = SparseFeatures(torch.tensor([[2.0, 0.0]]), torch.tensor([[3, 3]]), 5)
    assert sparse.to_dense().tolist() == [[0, 0, 0, 2, 0]]
    assert sparse.at([3, 0, 3]).tolist() == [[2, 0, 2]]
    assert sparse.l0().tolist() == [1]


def test_memory_of_the_sparse_route_follows_k_and_not_the_width():
    sae, x = random_sae("topk", d_sae=3000), activations(64, D_IN)
    sparse = sae.encode_sparse(x)
    assert sparse.values.shape == sparse.indices.shape == (64, 5)


def test_tokens_and_shapes_that_do_not_exist_are_refused():
    sparse = random_sae().encode_sparse(activations(2, 5, D_IN))
    with pytest.raises(OutOfRange, match=r"Token \(2, 0\) is out of range. The tokens are \[2, 5\]"):
        sparse[2, 0]
    with pytest.raises(OutOfRange, match="Token 10 is out of range"):
        sparse[10]
    with pytest.raises(InvalidValue, match=r"values \[2\] and indices \[3\] differ"):
        SparseFeatures(torch.zeros(2), torch.zeros(3, dtype=torch.int64), 5)
