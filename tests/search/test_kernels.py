"""Whole searches by kernels, in Triton's interpreter, find what fairseq's own search finds."""

from __future__ import annotations

import pytest
import torch

from mhe_fairseq.heads.kernels import launch
from tests.heads.kernels.conftest import interpreter  # noqa: F401
from tests.search.toys import PAD, Toy, both, check_equal, sentences


def searched(toys: list[Toy], prefix: torch.Tensor | None = None) -> set[str]:
    """Compare; returns the names of the kernels that were launched."""
    names: set[str] = set()

    def saw(seen: launch.Launch) -> bool:
        names.add(seen.kernel.__name__)
        return True

    models = [toy.build() for toy in toys]
    with launch.watched(saw):
        ours, stock = both(models, sentences(50, 2, 1), prefix, beam_size=3, max_len_a=0, max_len_b=3)
    check_equal(ours, stock, tolerance=1e-4)
    return names


@pytest.mark.slow
@pytest.mark.parametrize("head", ["product 2", "mixture 2", "mixture 3", "cascade 2", "cascade 3", "tied 2",
                                  "bottleneck 3"])  # fmt: skip
def test_one_model(head: str) -> None:
    names = searched([Toy(head, 50, seed=3, dtype=torch.float32)])
    kernel = {"best_tokens_kernel"} if head.startswith(("product", "mixture")) else {"best_first_kernel"}
    assert kernel <= names


@pytest.mark.slow
def test_an_ensemble_with_prefixes() -> None:
    toys = [Toy("cascade 2", 50, seed=3, dtype=torch.float32), Toy("mixture 2", 50, dtype=torch.float32)]
    names = searched(toys, torch.tensor([[7, 9], [8, PAD]]))
    assert {"best_tokens_kernel", "best_first_kernel", "given_kernel"} <= names
