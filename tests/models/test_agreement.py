"""Ranks with different heads end before they train, and say why."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.commands import CRITERION, train_line
from tests.helpers import run_command
from tests.ranks import run_lines

pytestmark = pytest.mark.slow


def ranks(data: Path, folder: Path, *different: list[str]) -> list[tuple[int, str]]:
    """Exit status and output of ranks with flags of their own."""
    lines = [
        train_line(data, folder / "saved", *CRITERION, "--max-update", "2", *flags) for flags in different
    ]
    return run_lines(lines, folder / "logs")


def error(said: str) -> str:
    found = re.findall(r"^mhe_fairseq: error: (.*)$", said, re.MULTILINE)
    assert len(found) == 1 and "Traceback" not in said, said[-3000:]
    return str(found[0])


def test_different_codebooks(toy_data: Path, tmp_path: Path) -> None:
    codes = []
    for seed in ("1", "2"):
        codes.append(str(tmp_path / f"codes{seed}"))
        line = ["mhe", "assign", "--data", str(toy_data), "--target-lang", "tgt", "--by", "random"]
        run_command([*line, "--seed", seed, "-o", codes[-1]])
    ended = ranks(toy_data, tmp_path, *(["--mhe-codebook", each] for each in codes))
    for status, said in ended:
        assert status == 1
        assert "the ranks have different codebooks" in error(said)
        assert re.search(r"fingerprint \w{16} on rank 0, .* fingerprint \w{16} on rank 1", said)
    assert not list((tmp_path / "saved").glob("*"))


def test_a_file_that_one_rank_lacks(toy_data: Path, tmp_path: Path) -> None:
    ended = ranks(toy_data, tmp_path, [], ["--mhe-codebook", str(tmp_path / "nowhere")])
    for (status, said), begin in zip(ended, ("rank 1: ", ""), strict=True):
        assert status == 1
        assert error(said).startswith(begin) and str(tmp_path / "nowhere") in error(said)


def test_different_flags(toy_data: Path, tmp_path: Path) -> None:
    flags = ["--mhe-head", "cascade", "--mhe-smoothing"]
    ended = ranks(toy_data, tmp_path, [*flags, "sampled"], [*flags, "per-level"])
    for status, said in ended:
        assert status == 1
        assert "different --mhe-* flags: " in error(said) and "--mhe-smoothing per-level on rank 1" in error(
            said
        )
