"""Trainings by fairseq-train with the output layer in kernels, in the interpreter: plain torch's losses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import CRITERION, logged, train_line
from tests.ranks import run_trainings

HEADS: dict[str, list[str]] = {
    "cascade, activations computed again": ["--mhe-head", "cascade", "--checkpoint-activations"],
    "mixture": ["--mhe-head", "product", "--mhe-mixtures", "3", "--update-freq", "2"],
}
#: By two ranks with fairseq's default --ddp-backend, where each parameter has to get a gradient.
RANKS: dict[str, list[str]] = {
    "cascade": ["--mhe-head", "cascade", "--share-all-embeddings"],
    "sampling": ["--mhe-head", "sampling", "--mhe-groups", "3", "--mhe-exact-last", "0"],
}


@pytest.mark.slow
def test_the_losses_of_plain_torch(toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The interpreter's environment is another than that of the commands without it, which are forked.
    monkeypatch.delenv("TRITON_INTERPRET")
    found: dict[str, list[list[float]]] = {}
    for switch in ("1", "0"):
        lines: list[list[list[str]]] = []
        for name, flags in [*HEADS.items(), *RANKS.items()]:
            short = ["--max-update", "1", "--no-save", "--max-tokens", "40", "--disable-validation"]
            line = train_line(toy_data, tmp_path / name, *CRITERION, *flags, *short)
            lines.append([line] * (1 if len(lines) < len(HEADS) else 2))
        monkeypatch.setenv("MHE_KERNELS", switch)
        ended = run_trainings(lines, tmp_path / switch, {"TRITON_INTERPRET": "1"} if switch == "1" else None)
        for ranks in ended:
            for code, said in ranks:
                assert code == 0, said[-3000:]
            where = "kernels, triton" if switch == "1" else "plain torch (MHE_KERNELS=0)"
            # Other ranks log nothing.
            assert ranks[0][1].count(f"mhe: the output layer runs in {where}") == 1
        found[switch] = [logged(ranks[0][1], key) for ranks in ended for key in ("loss", "nll_loss", "gnorm")]
    assert len(found["1"]) == 3 * (len(HEADS) + len(RANKS)) and all(len(each) == 1 for each in found["1"])
    for ours, plain in zip(found["1"], found["0"], strict=True):
        assert ours == pytest.approx(plain, abs=2e-3)  # the log has three digits
