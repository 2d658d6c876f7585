"""What tests of mhe_bart and mhe_roberta share: heads by name, a dictionary, and checks that are the same."""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_INV_REGISTRY
from torch import nn

from mhe_fairseq.models.flags import FLAGS, SWITCHES

VOCAB, DIM, PAD = 50, 16, 1


def heads(untied: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Options by name. A codebook of 50 tokens in 8 x 8 or 4 x 4 x 4 slots has holes.

    Args:
        untied: the model's options to have a table of the output layer's own.
    """
    return {
        "softmax": {"mhe_head": "softmax"},
        "untied softmax": {"mhe_head": "softmax", **untied},
        "product": {"mhe_head": "product", "mhe_lengths": "8,8"},
        "mixture": {"mhe_head": "product", "mhe_mixtures": 3, "mhe_lengths": "8,8"},
        "cascade": {"mhe_head": "cascade", "mhe_lengths": "8,8"},
        "untied cascade": {"mhe_head": "cascade", "mhe_lengths": "4,4,4", **untied},
        "bottleneck": {"mhe_head": "cascade", "mhe_bottleneck": 4, "mhe_lengths": "8,8"},
        "sampling": {"mhe_head": "sampling", "mhe_groups": 3, "mhe_lengths": "8,8"},
        "sampling predicted": {"mhe_head": "sampling", "mhe_sampling": "predicted", "mhe_lengths": "8,8"},
        "sampling batch": {"mhe_head": "sampling", "mhe_sampling": "batch", **untied},
    }


#: Of these names, heads with tables of their own that are large enough to tell how they were initialised.
INITIALISED = ("mixture", "cascade", "untied cascade", "bottleneck", "untied softmax")


def words(count: int = VOCAB, added: Sequence[str] = (), prefix: str = "w") -> Dictionary:
    """``count`` symbols, the last of them ``added``."""
    dictionary = Dictionary()
    for number in range(count - len(dictionary) - len(added)):
        dictionary.add_symbol(f"{prefix}{number}")
    for symbol in added:
        dictionary.add_symbol(symbol)
    return dictionary


def check_architectures(family: str, some: set[str]) -> None:
    """There is one for each of fairseq's, ``some`` among them, and it has the same settings."""
    stock = ARCH_MODEL_INV_REGISTRY[family]
    assert ARCH_MODEL_INV_REGISTRY[f"mhe_{family}"] == [f"mhe_{name}" for name in stock]
    assert some <= set(stock)
    for name in stock:
        mine, theirs = Namespace(), Namespace()
        ARCH_CONFIG_REGISTRY[f"mhe_{name}"](mine)
        ARCH_CONFIG_REGISTRY[name](theirs)
        assert vars(mine) == vars(theirs), name


def check_flags(ours: Any, fairseqs: Any) -> None:
    """Two classes of models: the flags of one are the other's and the heads'."""
    mine, theirs = argparse.ArgumentParser(), argparse.ArgumentParser()
    ours.add_args(mine)
    fairseqs.add_args(theirs)
    own = {**dict.fromkeys(FLAGS), **dict.fromkeys(SWITCHES, False)}
    assert vars(mine.parse_args([])) == {**vars(theirs.parse_args([])), **own}


def check_initialisation(head: nn.Module, others: Sequence[Any]) -> None:
    """The head's own tables have the deviation that it was measured with, ``others`` fairseq's of BERT."""
    own = {n: p for n, p in head.named_parameters() if p.dim() > 1 and len(p) > 7}
    assert own
    for key, value in own.items():
        assert float(value.detach().std()) == pytest.approx(value.size(-1) ** -0.5, rel=0.35), key
    for other in others:
        assert float(other.weight.detach().std()) == pytest.approx(0.02, rel=0.2)
