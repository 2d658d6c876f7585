"""OutputTable: an embedding that is read, not owned."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads.rows.tied import OutputTable


class Model(nn.Module):
    """An embedding and an output layer tied to it, as in a translation model."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 3)
        self.table = OutputTable(7, 3, self.embedding)


def check_tied(model: Model) -> None:
    assert model.table.is_tied
    assert model.table.weight is model.embedding.weight
    assert list(model.state_dict()) == ["embedding.weight"]
    assert [name for name, _ in model.named_parameters()] == ["embedding.weight"]


@pytest.mark.parametrize("shape", [(8, 3), (7, 4), (3, 7)])
def test_another_shape_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(MHEError) as caught:
        OutputTable(7, 3, nn.Embedding(*shape))
    assert str(caught.value) == (
        "an output layer of 7 tokens x 3 dimensions cannot be tied to an embedding "
        f"of {shape}; they must be equal"
    )


@pytest.mark.parametrize("copy_model", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_tied_to_its_own_embedding(copy_model: object) -> None:
    assert callable(copy_model)
    model = Model()
    copied = copy_model(model)
    check_tied(copied)
    assert copied.embedding.weight is not model.embedding.weight
    with torch.no_grad():
        copied.embedding.weight.zero_()
    assert not copied.table.weight.any() and model.table.weight.any()
    check_tied(model)


def test_casting_and_loading_keep_the_tie() -> None:
    model = Model()
    check_tied(model.to(torch.float64))
    assert model.table.weight.dtype == torch.float64
    other = Model().double()
    model.load_state_dict(other.state_dict())
    check_tied(model)
    assert torch.equal(model.table.weight, other.table.weight)
    # A weight that is replaced, as some wrappers do, is followed.
    model.embedding.weight = nn.Parameter(torch.zeros(7, 3))
    check_tied(model)


def test_a_table_of_its_own() -> None:
    table = OutputTable(7, 3)
    assert not table.is_tied and table.weight.shape == (7, 3)
    assert list(table.state_dict()) == ["linear.weight"]
    copied = copy.deepcopy(table)
    assert copied.weight is not table.weight and torch.equal(copied.weight, table.weight)
    torch.manual_seed(0)
    assert abs(float(OutputTable(4000, 16).weight.detach().std()) - 16**-0.5) < 0.01


def test_repr_says_whether_it_is_tied() -> None:
    assert repr(Model().table) == "OutputTable(7x3, tied)"
    assert "7x3, own" in repr(OutputTable(7, 3))
