"""From ``--mhe-*`` flags to a head."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import nn

from mhe_fairseq.coding import Codebook, symbols_fingerprint
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import CascadeHead, OutputHead, ProductHead, SamplingHead, SoftmaxHead
from mhe_fairseq.models.options import HeadOptions

SYMBOLS = [f"w{n}" for n in range(100)]


def resolve(**flags: object) -> HeadOptions:
    return HeadOptions.resolve(Namespace(**flags), SYMBOLS)


def test_defaults_are_planned_and_written_back() -> None:
    args = Namespace()
    options = HeadOptions.resolve(args, SYMBOLS)
    assert (options.head, options.codebook.lengths) == ("product", (10, 10))
    assert (args.mhe_head, args.mhe_lengths) == ("product", "10,10")
    assert args.mhe_fingerprint == options.codebook.fingerprint
    assert not options.restored


@pytest.mark.parametrize(
    ("flags", "kind", "tied"),
    [
        ({"mhe_head": "product", "mhe_mixtures": "2"}, ProductHead, False),
        ({"mhe_head": "softmax"}, SoftmaxHead, True),
        ({"mhe_head": "sampling", "mhe_groups": 3}, SamplingHead, True),
        ({"mhe_head": "cascade"}, CascadeHead, True),
        ({"mhe_head": "cascade", "mhe_bottleneck": "2"}, CascadeHead, False),
    ],
)
def test_heads_are_built_and_tied(
    flags: dict[str, object], kind: type, tied: bool, caplog: pytest.LogCaptureFixture
) -> None:
    embedding = nn.Embedding(100, 4)
    with caplog.at_level("INFO"):
        head = resolve(**flags).build(4, embedding)
    assert type(head) is kind
    assert isinstance(head, OutputHead)
    own = head.output_parameters()
    assert (own < 100 * 4) == (tied or kind is ProductHead or "mhe_bottleneck" in flags)
    assert not any(p is embedding.weight for p in head.parameters())
    assert len(caplog.records) == 1
    assert ("tied to the decoder" in caplog.text) == tied


def test_a_codebook_file_is_used_and_must_agree_with_lengths(tmp_path: Path) -> None:
    book = Codebook((5, 20), torch.randperm(100), dictionary=symbols_fingerprint(SYMBOLS))
    book.save(tmp_path / "codes")
    assert resolve(mhe_codebook=str(tmp_path / "codes")).codebook == book
    with pytest.raises(MHEError, match="--mhe-lengths 10,10 contradicts .*codes, which has 5,20"):
        resolve(mhe_codebook=str(tmp_path / "codes"), mhe_lengths="10,10")


def test_a_checkpoints_options_need_no_file() -> None:
    args = Namespace(mhe_codebook="/gone", mhe_lengths="5,20", mhe_fingerprint="ff")
    options = HeadOptions.resolve(args, SYMBOLS)
    assert options.restored and options.codebook.lengths == (5, 20)
    assert args.mhe_fingerprint == "ff"
    assert options.build(4, None).adopt_codebook


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"mhe_mixtures": 0}, "--mhe-mixtures must be at least 1, got 0"),
        ({"mhe_mixtures": 1.5}, "--mhe-mixtures must be a whole number of at least 1, got 1.5"),
        ({"mhe_groups": 2}, "--mhe-groups is for --mhe-head cascade or sampling; the head is product"),
        (
            {"mhe_head": "cascade", "mhe_chunk": 2},
            "--mhe-chunk is for --mhe-head softmax; the head is cascade",
        ),
        ({"mhe_lengths": "3,3"}, "lengths 3,3 give 9 slots for 100 tokens"),
        ({"mhe_head": "tree"}, "must be one of product, cascade, sampling, softmax; got 'tree'"),
    ],
)
def test_bad_flags(flags: dict[str, object], sentence: str) -> None:
    with pytest.raises(MHEError) as error:
        resolve(**flags)
    assert sentence in str(error.value)
