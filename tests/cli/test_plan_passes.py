"""What passes move, against what operators and kernels of real steps are given; and by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from mhe_fairseq.bench.memory import measure_peak
from mhe_fairseq.bench.steps import Batch, TrainStep, make_step
from mhe_fairseq.cli.plan_heads import MIXTURES, smoothing_groups
from mhe_fairseq.cli.plan_passes import Pass, Sizes, bytes_moved, peak_bytes, search_passes, training_passes
from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads.kernels import dispatch, launch
from mhe_fairseq.heads.sampling.head import default_groups
from tests.cli.traffic import Traffic

VOCAB, DIM, TOKENS = 4096, 128, 1024
HEADS = [
    "softmax", "product", "mixture", "cascade", "cascade-tied", "cascade-prototypes", "sampling", "predicted",
]  # fmt: skip
PROTOTYPES = 5


@pytest.fixture(autouse=True)
def kernels_that_do_not_run(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Set before any module with kernels is imported: Triton decides when it decorates them."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with dispatch.pretend(), launch.watched(lambda _: False):
        yield


def step_and_sizes(name: str, lengths: tuple[int, ...], dtype: torch.dtype) -> tuple[TrainStep, str, Sizes]:
    """Every group has gold tokens, and frequent and rare tokens are as likely."""
    torch.manual_seed(1)
    book = Codebook(lengths, vocab_size=VOCAB)
    features = torch.randn(TOKENS, DIM, dtype=dtype).requires_grad_()
    prototypes = PROTOTYPES if name.endswith("prototypes") else 1
    batch = Batch(features, torch.arange(TOKENS) * 4)
    called = "sampling-predicted" if name == "predicted" else name.removesuffix("-prototypes")
    step = make_step(called, book, batch, True, prototypes)
    for parameter in step.parameters:
        parameter.data = parameter.data.to(dtype)
    step.prepare()
    step.run()  # makes the codebook's tables
    step.prepare()
    kind = name.split("-")[0]
    groups = lengths[0] if kind in ("sampling", "predicted") else VOCAB // lengths[-1]
    sampled = default_groups(book) or 0
    drawn = {"cascade": smoothing_groups(groups), "sampling": sampled, "predicted": sampled}.get(kind, 0)
    mixtures = MIXTURES if kind == "mixture" else 1
    sizes = Sizes(VOCAB, DIM, lengths, TOKENS, 10, 10, mixtures, groups, groups, drawn, prototypes)
    return step, kind, sizes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lengths", [(64, 64), (8, 16, 32)], ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_bytes_of_a_training_step(name: str, lengths: tuple[int, ...], dtype: torch.dtype) -> None:
    step, kind, sizes = step_and_sizes(name, lengths, dtype)
    traffic = Traffic()
    with traffic, launch.watched(traffic.saw):
        step.run()
    expected = bytes_moved(training_passes(kind, sizes, dtype.itemsize))
    # Numbers that a row has a few of are left out: of 56 columns of a product in half precision a fifth.
    least = 0.8 if kind == "product" else 0.9
    assert least * traffic.total <= expected <= traffic.total, traffic.by


@pytest.mark.parametrize("name", HEADS)
def test_peak_of_a_training_step(name: str) -> None:
    """In fp32: products of half precision take memory of their own on a CPU."""
    step, kind, sizes = step_and_sizes(name, (64, 64), torch.float32)
    found = measure_peak(step.loss, step.parameters).extra
    assert 0.95 * found <= peak_bytes(kind, sizes, 4) <= found


def test_a_softmax_by_hand() -> None:
    """3 tokens, V = 5, d = 2, bf16."""
    sizes = Sizes(vocab=5, dim=2, lengths=(), tokens=3, hypotheses=7, best=4)
    assert training_passes("softmax", sizes, 2) == [
        Pass(2 * (6 + 10), 2 * 15, 30),  # logits
        Pass(2 * 15, 4 * 15),
        Pass(4 * 15, 4 * 15),
        Pass(4 * 15, 0),
        Pass(0, 4 * 15),
        Pass(4 * 15, 4 * 15),
        Pass(8 * 15, 4 * 15),
        Pass(4 * 15, 2 * 15),
        Pass(2 * (15 + 10), 2 * 6, 30),  # features' gradient
        Pass(2 * (15 + 6), 2 * 10, 30),  # table's gradient
    ]
    assert peak_bytes("softmax", sizes, 2) == 12 * 15
    assert len(training_passes("softmax", sizes, 4)) == 8
    # Nothing is copied in fp32; each of the other passes is as wide or wider.
    assert bytes_moved(search_passes("softmax", sizes, 2)) == 2 * (14 + 10) + 35 * (
        2 + 4 + 6 + 8 + 5 + 9 + 8 + 4
    )
    assert bytes_moved(search_passes("softmax", sizes, 4)) == 4 * (14 + 10) + 35 * (4 + 8 + 8 + 5 + 9 + 8 + 4)
    assert search_passes("sampling", sizes, 2) == search_passes("softmax", sizes, 2)


def test_a_cascade_by_hand() -> None:
    """3 tokens, 2 groups of 16, both met, 1 drawn a part; d = 2, fp32."""
    sizes = Sizes(
        vocab=32, dim=2, lengths=(2, 16), tokens=3, hypotheses=7, best=4, groups=2, touched=1.5, drawn=1
    )
    x, group, zg, z, table = 4 * 6, 4 * 4, 4 * 6, 4 * 3 * 32, 4 * 64
    assert bytes_moved(training_passes("cascade", sizes, 4)) == (
        (x + group + zg) + zg  # first digit, its soft-max
        + (zg + group + x) + (zg + x + group) + zg  # gradients of features, rows, bias
        + 2 * zg  # of its logits
        + (x + table + z) + 2 * z  # logits of groups, and their gradients
        + (z / 2 + 0.75 * table + 2 * x) + (z / 2 + table + 2 * x)  # features', by own and drawn groups
        + (x + z + table)  # table's
    )  # fmt: skip
    assert sum(each.macs for each in training_passes("cascade", sizes, 4)) == 3 * 3 * 2 * (2 + 32)
    assert peak_bytes("cascade", sizes, 4) == 2 * (zg + z) + x
    # In search both groups are opened by every hypothesis, and their rows read once.
    scores = 7 * (2 + 2 * 16)
    search = 4 * (14 + 4 + 14) + 4 * (14 + 64 + 7 * 32) + scores * (4 + 4 + 4)
    assert bytes_moved(search_passes("cascade", sizes, 4)) == search
    # Three rows a group: their logits are added up in pairs, two pairs for each of 7 x 2.
    rich = replace(sizes, prototypes=3)
    assert bytes_moved(search_passes("cascade", rich, 4)) == search + 4 * (8 + 28) + 14 * 2 * 3 * 4
    assert peak_bytes("cascade", rich, 4) - peak_bytes("cascade", sizes, 4) == 2 * 2 * zg


def test_products_in_search_by_hand() -> None:
    sizes = Sizes(vocab=12, dim=2, lengths=(3, 4), tokens=3, hypotheses=7, best=4)
    pairs = 4 + 2 + 1 + 1
    assert bytes_moved(search_passes("product", sizes, 4)) == (
        4 * (14 + 14 + 49) + 49 * 12 + 7 * pairs * 8
    )  # fmt: skip
    mixture = Sizes(vocab=12, dim=2, lengths=(3, 4), tokens=3, hypotheses=7, best=4, mixtures=2)
    columns = 2 * (7 + 1)
    assert bytes_moved(search_passes("mixture", mixture, 4)) == (
        4 * (14 + 2 * columns + 7 * columns) + 7 * columns * 12 + 7 * (4 * columns + 4 * 12) + 7 * 4 * 12
    )


def test_few_tokens_meet_few_groups() -> None:
    """The table is read where it is met, its gradient written whole."""
    few, all_ = (
        Sizes(VOCAB, DIM, (64, 64), 32, 10, 10, groups=64, touched=met, drawn=2) for met in (20.0, 64.0)
    )
    read, written = (
        [sum(getattr(each, side) for each in training_passes("cascade", sizes, 2)) for sizes in (few, all_)]
        for side in ("read", "written")
    )
    assert written[0] == written[1]
    # 16 groups are drawn beside: 36 are scored in place of 64, and 20 in the features' gradient.
    assert math.isclose(read[1] - read[0], (64 - 36 + 64 - 20) * 64 * DIM * 2)
