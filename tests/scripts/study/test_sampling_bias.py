"""scripts/study/sampling_bias.py: on a toy model, and the estimates by themselves."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from mhe_fairseq.heads.sampling.predicted import among, capped, systematic_rows
from scripts.study import sampling_estimates as estimates
from scripts.study.sampling_estimates import Drawn
from tests.commands import CRITERION, train
from tests.helpers import REPO, run_command


def script(*words: str) -> subprocess.CompletedProcess[str]:
    path = REPO / "scripts" / "study" / "sampling_bias.py"
    return run_command(["python", str(path), *words], check=False)


def drawn_often(rows: int = 4000) -> Drawn:
    """One token's groups of unequal masses, drawn many times; the first is its gold group."""
    generator = torch.Generator().manual_seed(1)
    log_mass = torch.randn(1, 12, generator=generator, dtype=torch.float64)
    inclusion = capped(torch.rand(1, 12, generator=generator, dtype=torch.float64) + 0.3, 5)
    many = torch.cat(
        [among(systematic_rows(inclusion.expand(100, -1), 5, generator), 12) for _ in range(rows // 100)]
    )
    gold = torch.zeros_like(many)
    gold[:, 0] = True
    weight = inclusion.masked_fill(gold[:1], 1.0).expand(rows, -1)
    predicted = (log_mass + 0.1 * torch.randn(1, 12, generator=generator)).expand(rows, -1)
    return Drawn(log_mass.expand(rows, -1), many | gold, weight, gold | (weight >= 1), predicted)


def test_estimates_have_less_bias_than_the_plain_one() -> None:
    given = drawn_often()
    exact = given.log_mass[0].logsumexp(0)
    share = given.log_mass[0].softmax(0)

    def bias(method: estimates.Estimator) -> tuple[float, float]:
        log_z, shares = method(given)
        return abs(float(log_z.mean() - exact)), float((shares.mean(0) - share).norm())

    plain = bias(estimates.plain)
    assert plain[0] > 0.02
    for method in (estimates.second_order, estimates.jackknife, estimates.conditional, estimates.ratio):
        assert bias(method)[0] < 0.7 * plain[0], method.__name__
    for method in (estimates.jackknife, estimates.conditional):
        assert bias(method)[1] < 0.8 * plain[1], method.__name__
    # With the masses themselves for a prediction nothing is left of the noise.
    log_z, _ = estimates.difference(given._replace(predicted=given.log_mass))
    torch.testing.assert_close(log_z, exact.expand(len(log_z)))


def test_second_order_is_the_same_where_drawn_groups_are_listed() -> None:
    given = drawn_often(100)
    log_z, shares = estimates.second_order(given)
    rows, groups = given.drawn.nonzero(as_tuple=True)
    log_weight = -given.inclusion.log()[rows, groups]
    share = given.weighted()[rows, groups]
    added, listed = estimates.second_order_by_pairs(share, log_weight, rows, len(log_z))
    torch.testing.assert_close(given.log_weighted().logsumexp(1) + added, log_z)
    torch.testing.assert_close(listed, shares[rows, groups])
    assert added.min() >= 0 and added.max() > 0.01


def test_shares_are_the_gradients_of_the_values() -> None:
    given = drawn_often(100)
    for method in (estimates.plain, estimates.second_order, estimates.jackknife):
        log_z, shares = method(given)
        step = 1e-6
        moved = given.log_mass.clone()
        moved[:, 0] += step
        slope = (method(given._replace(log_mass=moved))[0] - log_z) / step
        torch.testing.assert_close(shares[:, 0], slope, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_toy_model(toy_data: Path, tmp_path: Path) -> None:
    flags = [*CRITERION, "--mhe-head", "softmax", "--max-update", "10", "--no-epoch-checkpoints"]
    train(toy_data, tmp_path / "out", *flags)
    checkpoint = str(tmp_path / "out" / "checkpoint_last.pt")
    done = script(checkpoint, "--data", str(toy_data), "--tokens", "64", "--draws", "8", "--fitted", "512")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(text) for text in done.stdout.splitlines()]
    assert {row["drawn"] for row in rows} == {"parts", "parts by mass", "tokens by mass"}
    for row in rows:
        assert 1 <= row["groups"] <= 8 and row["rows_noise"] >= 0 and abs(row["cosine"]) <= 1.01
    oracle = next(row for row in rows if row["estimate"] == "difference, oracle")
    assert oracle["log_z_noise"] < 1e-3


@pytest.mark.slow
def test_bad_input(toy_data: Path, tmp_path: Path) -> None:
    done = script(str(tmp_path / "gone.pt"), "--data", str(toy_data))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("sampling_bias.py: error: there is no checkpoint")
    done = script(str(tmp_path / "gone.pt"), "--data", str(toy_data), "--draws", "1")
    assert done.stderr.splitlines()[-1] == "sampling_bias.py: error: --draws must be at least 8, got 1"
