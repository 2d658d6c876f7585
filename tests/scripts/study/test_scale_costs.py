"""scripts/study/scale_costs.py: what is calculated for many GPUs, and a page that says just that."""

from __future__ import annotations

import pytest

from scripts.study.scale_costs import (
    Assumptions,
    Cost,
    all_reduced,
    busiest,
    costs,
    exchanged,
    filled,
    group_shares,
    main,
    message_bytes,
    owners,
)
from tests.helpers import REPO

A = Assumptions()


def by_name(vocab: int, a: Assumptions = A) -> dict[str, Cost]:
    return {cost.layer: cost for cost in costs(vocab, a)}


@pytest.mark.slow
def test_the_page_says_what_is_calculated() -> None:
    assert main(["--page", str(REPO / "docs" / "scale.md"), "--check"]) == 0


def test_bytes_by_hand() -> None:
    assert all_reduced(1000, 4) == 2 * 3 / 4 * 1000 * 2
    assert all_reduced(1000, 1) == 0
    assert owners(1, 64) == pytest.approx(1)
    assert owners(2, 2) == pytest.approx(1.5)
    # Ten rows of eight halves there and back, and twenty pairs: 3 numbers asked, 2 answered, 2 gradients.
    assert message_bytes(10, 20, 8, 2, 2) == 2 * 10 * 8 * 2 + 20 * (24 + 8 + 8)
    # One group a token, two ranks: half of them leave.
    assert exchanged(100, 1, 2, 8, 2, 3) == pytest.approx(message_bytes(50, 50, 8, 2, 3))


def test_layers_by_hand() -> None:
    n, d, w, vocab = A.tokens, A.dim, A.gpus, 32_768  # 128 x 256
    found = by_name(vocab)
    dense, split = found["softmax, replicated"], found["softmax, vocabulary split"]
    assert dense.flops == split.flops == 6 * n * vocab * d
    assert dense.state(A) == vocab * d * 20 and split.state(A) == dense.state(A) / w
    assert dense.held == n * vocab * 12
    cascade, shared = found["cascade, replicated"], found["cascade, split"]
    assert cascade.flops == shared.flops == 6 * n * (128 + 3 * 256) * d
    assert shared.parameters == 129 * d + vocab * d / w
    assert shared.sent - shared.reduced == exchanged(n, 3, w, d)
    sampling = found["sampling, replicated"]
    assert sampling.flops == 6 * n * 17 * 256 * d and sampling.sent == dense.sent
    assert dense.compute_time(A) == pytest.approx(dense.flops / (312e12 * 0.4))
    # An all-reduce uses all links of a node, 160e9 bytes/s; of an all-to-all 56/63 leaves the node.
    assert dense.wire_time(A) == pytest.approx(dense.sent / 160e9)
    wire = shared.reduced / 160e9 + (shared.sent - shared.reduced) * shared.busiest * 56 / 63 / 20e9
    assert shared.wire_time(A) == pytest.approx(wire)


def test_one_gpu_sends_nothing() -> None:
    one = Assumptions(nodes=1, per_node=1)
    for cost in costs(32_768, one):
        assert cost.sent == 0 and cost.wire_time(one) == 0
        assert cost.busiest == pytest.approx(1)


def test_how_work_is_spread() -> None:
    shares = group_shares((128, 256), 32_768, shuffled=False)
    assert float(shares.sum()) == pytest.approx(1) and bool((shares.diff() <= 0).all())
    even, ordered = (busiest((128, 256), 64, 2, "cascade", shuffled, 32_768) for shuffled in (True, False))
    assert 1 < even < ordered


def test_a_page_keeps_what_is_not_calculated() -> None:
    page = "Before\n<!-- assumptions -->\nold\n<!-- end -->\nafter\n"
    text = filled(page, A)
    assert text.startswith("Before\n<!-- assumptions -->\n\n| assumed") and text.endswith(
        "<!-- end -->\nafter\n"
    )
    assert "old" not in text and "| 4,096 |" in text
    assert filled(text, A) == text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--peak", "0"], "--peak must be above 0, got 0"),
        (["--nodes", "100"], "800 GPUs are more than the 128 groups of 32,768 tokens"),
        (["--page", "nowhere.md"], "there is no page nowhere.md"),
    ],
)
def test_bad_input(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags) == 1
    assert message in capsys.readouterr().err


def test_a_page_of_other_assumptions_is_refused(tmp_path, capsys) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- assumptions -->\n<!-- end -->\n")
    assert main(["--page", str(page)]) == 0
    assert main(["--page", str(page), "--check"]) == 0
    assert main(["--page", str(page), "--check", "--peak", "1e15"]) == 1
    assert "is not what this calculates" in capsys.readouterr().err
