"""What fairseq's data sets ask of numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fairseq.data import TokenBlockDataset, language_pair_dataset, token_block_dataset

import mhe_fairseq  # noqa: F401  (installs the names)
from mhe_fairseq.fairseq_fixes import numpy_names


def test_sentences_can_be_samples() -> None:
    sentences = [torch.arange(3), torch.arange(2)]
    data = TokenBlockDataset(sentences, [3, 2], None, pad=1, eos=2, break_mode="eos")
    assert [len(sample) for sample in data] == [3, 2]


def test_numpy_itself_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (token_block_dataset, language_pair_dataset):
        names = vars(module)["np"]
        assert names.compat.long is int
        assert names.arange is np.arange
    assert not hasattr(np, "compat")
    # Where numpy has the names, nothing is done.
    monkeypatch.setattr(np, "compat", numpy_names._NumpyWithCompat.compat, raising=False)
    before = vars(token_block_dataset)["np"]
    numpy_names.install()
    assert vars(token_block_dataset)["np"] is before
