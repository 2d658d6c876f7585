"""Weights that do not fit a model, said in one sentence. Commands are in tests/test_bad_input.py."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import nn

from mhe_fairseq.fairseq_fixes.misfit import differences, other_flags

FLAGS = "give the --arch and the flags it was trained with"


def model(tokens: int = 5, width: int = 4, **more: nn.Module) -> nn.Module:
    parts = {"embed_tokens": nn.Embedding(tokens, width), "norm": nn.LayerNorm(3)}
    return nn.ModuleDict({**parts, **more})


def said_of(checkpoint: nn.Module, here: nn.Module) -> str | None:
    with pytest.raises(RuntimeError) as caught:
        here.load_state_dict(checkpoint.state_dict())
    return differences(str(caught.value))


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 1)
        self.head.register_buffer("codebook_slots", self.head.weight.detach())


@pytest.mark.parametrize(
    ("checkpoint", "here", "said"),
    [
        (
            model(norm=nn.LayerNorm(8)),
            model(),
            "norm.weight is 8 there and 3 here (and 1 more); " + FLAGS,
        ),
        (
            model(fc=nn.Linear(2, 2, bias=False)),
            model(),
            "it has fc.weight; " + FLAGS,
        ),
        (
            model(),
            model(fc=nn.Linear(2, 2)),
            "it lacks fc.weight (and 1 more); " + FLAGS,
        ),
        (
            model(tokens=7),
            model(),
            "embed_tokens.weight is 7x4 there and 5x4 here; its dictionary has 7 tokens and this one 5; "
            "`mhe convert` gives a model another dictionary",
        ),
        (
            model(width=6),
            model(),
            "embed_tokens.weight is 5x6 there and 5x4 here; " + FLAGS,
        ),
        (
            model(decoder=Head()),
            model(),
            "it has decoder.head.weight (and 2 more); it has an mhe head, so give --arch mhe_..., or make "
            "fairseq's own of it first with `mhe export`",
        ),
        (
            model(),
            model(decoder=Head()),
            "it lacks decoder.head.weight (and 2 more); it has no mhe head; `mhe convert` gives it one",
        ),
    ],
)
def test_what_differs(checkpoint: nn.Module, here: nn.Module, said: str) -> None:
    assert said_of(checkpoint, here) == said


def test_flags_that_are_others_are_named(tmp_path: Path) -> None:
    path = str(tmp_path / "checkpoint.pt")
    theirs = Namespace(mhe_head="cascade", mhe_tie="linear", share_all_embeddings=True, dropout=0.1)
    torch.save({"cfg": {"model": theirs}, "model": {}}, path)
    ours = Namespace(mhe_head="product", mhe_mixtures="2", share_all_embeddings=False, dropout=0.3)
    flags = other_flags(path, ours)
    assert flags == ["--mhe-head cascade", "--mhe-tie linear", "no --mhe-mixtures", "--share-all-embeddings"]
    assert other_flags(path, theirs) == other_flags(str(tmp_path / "no.pt"), ours) == []
    with pytest.raises(RuntimeError) as caught:
        model().load_state_dict(model(width=6).state_dict())
    said = differences(str(caught.value), flags)
    assert said is not None and said.endswith(f"; {FLAGS}: {', '.join(flags)}")


def test_what_is_about_something_else() -> None:
    assert differences("CUDA out of memory") is None
    assert differences("None") is None
