"""``--mhe-shard``: when a head is split, and what is refused."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest
import torch
from torch import nn

from mhe_fairseq.coding import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import CascadeHead, SamplingHead, Shard, ShardedCascadeHead, ShardedSamplingHead
from mhe_fairseq.heads.sharded.state import names_of_parts
from mhe_fairseq.models import sharding
from mhe_fairseq.models.decoder import HeadDecoderMixin
from mhe_fairseq.models.options import HeadOptions
from mhe_fairseq.models.sharding import check_training

SYMBOLS = [f"w{n}" for n in range(100)]
DIM = 4


def resolve(**flags: object) -> HeadOptions:
    return HeadOptions.resolve(Namespace(**flags), SYMBOLS)


def config(**changed: Any) -> Namespace:
    """Of a training, as far as it is looked at."""
    values: dict[str, Any] = {
        "ddp_backend": "legacy_ddp", "zero_sharding": "none", "use_bmuf": False, "store_ema": False,
        "tpu": False, "fp16": False, "bf16": False, "memory_efficient_fp16": False,
        "memory_efficient_bf16": False, "fp16_no_flatten_grads": False,
    }  # fmt: skip
    assert changed.keys() <= values.keys()
    every = Namespace(**{**values, **changed})
    return Namespace(common=every, distributed_training=every, optimization=every, ema=every)


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this were the second of three; nothing is sent."""
    monkeypatch.setattr(sharding, "shard", lambda: Shard(1, 3))
    monkeypatch.setattr(sharding, "prepare", lambda head: None)


def test_one_rank_has_the_whole_table() -> None:
    for name, kind in (("cascade", CascadeHead), ("sampling", SamplingHead)):
        assert type(resolve(mhe_head=name, mhe_shard=True).build(DIM, None)) is kind


def test_ranks_have_parts(ranks: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="mhe_fairseq"):
        head = resolve(mhe_head="cascade", mhe_shard=True).build(DIM, None)
    assert isinstance(head, ShardedCascadeHead) and head.sharded.table.shape == (3, 10, DIM)
    assert "split over 3 ranks, 3 of 10 groups here" in caplog.text
    other = resolve(mhe_head="sampling", mhe_shard=True).build(DIM, None)
    assert isinstance(other, ShardedSamplingHead)
    # An own table beside shared input embeddings.
    embedding = nn.Embedding(100, DIM)
    head = resolve(mhe_head="cascade", mhe_bottleneck=2, mhe_shard=True).build(DIM, embedding)
    assert isinstance(head, ShardedCascadeHead)
    assert type(resolve(mhe_head="cascade").build(DIM, None)) is CascadeHead


def test_a_checkpoint_is_read_whole(ranks: None) -> None:
    args = Namespace(mhe_head="cascade", mhe_shard=True)
    HeadOptions.resolve(args, SYMBOLS)
    assert type(HeadOptions.resolve(args, SYMBOLS).build(DIM, None)) is CascadeHead


@pytest.mark.parametrize(
    ("flags", "tied", "sentence"),
    [
        ({"mhe_head": "cascade"}, True, "cannot be tied to an embedding, which every rank has whole"),
        ({"mhe_head": "sampling"}, True, "--mhe-shard: a table that is split over ranks cannot be tied"),
        (
            {"mhe_head": "cascade", "mhe_lengths": "2,50"},
            False,
            "--mhe-head cascade --mhe-shard: a table of 2 groups cannot be split over 3 ranks, each of which "
            "has to hold one at least; use at most 2 ranks, or a codebook whose first length is 3 or more",
        ),
    ],
)
def test_what_cannot_be_split(ranks: None, flags: dict[str, object], tied: bool, sentence: str) -> None:
    with pytest.raises(MHEError) as error:
        resolve(**flags, mhe_shard=True).build(DIM, nn.Embedding(100, DIM) if tied else None)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"mhe_head": "product"}, "--mhe-shard is for --mhe-head cascade or sampling; the head is product"),
        ({"mhe_head": "softmax"}, "--mhe-shard is for --mhe-head cascade or sampling; the head is softmax"),
    ],
)
def test_heads_without_groups_of_rows(flags: dict[str, object], sentence: str) -> None:
    with pytest.raises(MHEError, match=sentence):
        resolve(**flags, mhe_shard=True)
    resolve(**flags, mhe_shard=False)


def test_it_is_a_switch() -> None:
    with pytest.raises(MHEError, match="--mhe-shard is true or false, got 'two'"):
        resolve(mhe_head="cascade", mhe_shard="two")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"ddp_backend": "fully_sharded"}, "--ddp-backend fully_sharded"),
        ({"ddp_backend": "slowmo"}, "--ddp-backend slowmo"),
        ({"zero_sharding": "os"}, "--zero-sharding"),
        ({"use_bmuf": True}, "--use-bmuf"),
        ({"store_ema": True, "tpu": True}, "--store-ema and --tpu"),
        ({"fp16": True}, "give --fp16-no-flatten-grads beside --fp16"),
        ({"bf16": True}, "give --fp16-no-flatten-grads beside --fp16 or --bf16"),
    ],
)
def test_trainings_that_would_mix_parts_up(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(MHEError, match="gives every rank other rows") as error:
        check_training(config(**changed))
    assert said in str(error.value)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"ddp_backend": "pytorch_ddp"},
        {"fp16": True, "fp16_no_flatten_grads": True},
        {"fp16": True, "memory_efficient_fp16": True},
    ],
)
def test_trainings_that_do_not(changed: dict[str, Any]) -> None:
    check_training(config(**changed))


def test_a_search_and_other_criterions_are_refused() -> None:
    side = HeadDecoderMixin()
    side.head = ShardedCascadeHead(DIM, Codebook((10, 10)), Shard(0, 2))
    assert not side.head.finds_best
    with pytest.raises(MHEError, match=r"trains with our criterions only.*--eval-bleu"):
        side.get_normalized_probs((torch.zeros(1, 1, DIM), None), log_probs=True)


def test_what_differs_between_ranks_is_named() -> None:
    model = nn.ModuleDict({"decoder": ShardedCascadeHead(DIM, Codebook((4, 5)), Shard(0, 2))})
    parts = set(names_of_parts(model))
    assert "decoder.local.table" in parts
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert parts <= named.keys()
    assert not any(name.startswith("decoder.group") for name in parts)
