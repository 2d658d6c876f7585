"""``--mhe-*`` flags that are wrong: one sentence says what, the value seen, and what would be right."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from mhe_fairseq.coding import Codebook, symbols_fingerprint
from mhe_fairseq.errors import MHEError
from mhe_fairseq.models.options import HeadOptions

SYMBOLS = [f"w{n}" for n in range(100)]
DIM = 4


def resolve(**flags: object) -> HeadOptions:
    return HeadOptions.resolve(Namespace(**flags), SYMBOLS)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        *(
            (
                {"mhe_head": "product", "mhe_mixtures": value},
                f"--mhe-mixtures must be a whole number of at least 1, got {shown}",
            )
            for value, shown in ((0, "0"), ("x", "'x'"), (1.5, "1.5"), (True, "True"))
        ),
        (
            {"mhe_head": "cascade", "mhe_bottleneck": "0"},
            "--mhe-bottleneck must be a whole number of at least 1, got '0'",
        ),
        *(
            (
                {"mhe_head": "cascade", "mhe_group_prototypes": value},
                f"--mhe-group-prototypes must be a whole number of at least 1, got {value!r}",
            )
            for value in (0, "-2", "two", 1.5)
        ),
        (
            {"mhe_head": "sampling", "mhe_groups": "-1"},
            "--mhe-groups must be a whole number of at least 1, got '-1'",
        ),
        (
            {"mhe_head": "softmax", "mhe_chunk": "-1"},
            "--mhe-chunk must be a whole number of at least 0, got '-1'",
        ),
        *(
            (
                {"mhe_head": "cascade", "mhe_dropout": value},
                f"--mhe-dropout must be a number of at least 0 and below 1, got {value!r}",
            )
            for value in ("1", "-0.1", "nan", "much", 1.0, True, "")
        ),
        (
            {"mhe_head": "cascade", "mhe_smoothing": "perlevel"},
            "--mhe-smoothing must be one of sampled, per-level; got 'perlevel'",
        ),
        (
            {"mhe_head": "sampling", "mhe_sampling": "all"},
            "--mhe-sampling must be one of shared, predicted, own, batch; got 'all'",
        ),
        # A flag that the head does not read.
        (
            {"mhe_head": "product", "mhe_groups": 2},
            "--mhe-groups is for --mhe-head cascade or sampling; the head is product",
        ),
        (
            {"mhe_head": "cascade", "mhe_mixtures": "4"},
            "--mhe-mixtures is for --mhe-head product; the head is cascade",
        ),
        (
            {"mhe_head": "cascade", "mhe_chunk": 2},
            "--mhe-chunk is for --mhe-head softmax or sampling; the head is cascade",
        ),
        (
            {"mhe_head": "cascade", "mhe_sampling": "own"},
            "--mhe-sampling is for --mhe-head sampling; the head is cascade",
        ),
        (
            {"mhe_head": "sampling", "mhe_smoothing": "sampled"},
            "--mhe-smoothing is for --mhe-head cascade; the head is sampling",
        ),
        (
            {"mhe_head": "product", "mhe_dropout": 0},
            "--mhe-dropout is for --mhe-head cascade; the head is product",
        ),
        (
            {"mhe_head": "product", "mhe_bottleneck": 2},
            "--mhe-bottleneck is for --mhe-head cascade; the head is product",
        ),
        *(
            (
                {"mhe_head": head, "mhe_group_prototypes": 2},
                f"--mhe-group-prototypes is for --mhe-head cascade; the head is {head}",
            )
            for head in ("product", "sampling", "softmax")
        ),
        (
            {"mhe_head": "sampling", "mhe_sampling": "own", "mhe_groups": 2},
            "--mhe-groups 2 is for --mhe-sampling shared; with --mhe-sampling own no groups are drawn",
        ),
        (
            {"mhe_head": "sampling", "mhe_sampling": "batch", "mhe_groups": "2"},
            "--mhe-groups 2 is for --mhe-sampling shared; with --mhe-sampling batch no groups are drawn",
        ),
        (
            {"mhe_head": "cascade", "mhe_smoothing": "per-level", "mhe_groups": 2},
            "--mhe-groups 2 is for --mhe-smoothing sampled; with --mhe-smoothing per-level no groups",
        ),
        ({"mhe_head": "tree"}, "must be one of product, cascade, sampling, softmax; got 'tree'"),
        # Lengths.
        ({"mhe_lengths": "3,3"}, "lengths 3,3 give 9 slots for 100 tokens; their product must be at least"),
        *(
            (
                {"mhe_head": "sampling", "mhe_exact_last": value},
                f"--mhe-exact-last must be a number from 0 to 1, got {value!r}",
            )
            for value in ("1.1", "-0.1", "nan", "all", 2, True, "")
        ),
        *(
            (
                {"mhe_head": "sampling", "mhe_exact_after": value},
                f"--mhe-exact-after must be a whole number of at least 0, got {value!r}",
            )
            for value in ("-1", "0.1", "late", True)
        ),
        *(
            (
                {"mhe_head": head, "mhe_exact_last": "0.1"},
                f"--mhe-exact-last is for --mhe-head sampling; the head is {head}",
            )
            for head in ("product", "cascade", "softmax")
        ),
        ({"mhe_exact_after": 10}, "--mhe-exact-after is for --mhe-head sampling; the head is cascade"),
        (
            {"mhe_head": "sampling", "mhe_exact_last": "0.1", "mhe_exact_after": "90"},
            "--mhe-exact-last 0.1 and --mhe-exact-after 90 both say when the exact loss begins; give one of",
        ),
        ({"mhe_lengths": "8,4,2"}, "lengths 8,4,2 give 64 slots for 100 tokens"),
        ({"mhe_lengths": "0,128"}, "every length must be at least 1, got '0,128'"),
        ({"mhe_lengths": "-4,-128"}, "every length must be at least 1, got '-4,-128'"),
        ({"mhe_lengths": "2.7,50"}, "whole numbers separated by commas, such as 128,256; got '2.7,50'"),
        ({"mhe_lengths": [2.7, 50]}, "whole numbers separated by commas, such as 128,256; got '2.7,50'"),
        ({"mhe_lengths": 2.7}, "whole numbers separated by commas, such as 128,256; got '2.7'"),
        ({"mhe_lengths": True}, "whole numbers separated by commas, such as 128,256; got 'True'"),
        ({"mhe_lengths": "8,many"}, "whole numbers separated by commas, such as 128,256; got '8,many'"),
        ({"mhe_lengths": "99999,99999"}, "more than the 268435456 a codebook may have"),
    ],
)
def test_bad_flags(flags: dict[str, object], sentence: str) -> None:
    with pytest.raises(MHEError) as error:
        resolve(**flags)
    assert sentence in str(error.value)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            {"mhe_head": "sampling", "mhe_groups": "10"},
            "--mhe-head sampling --mhe-groups 10: a sampling head draws some of the 10 groups of its "
            "codebook besides the gold one: groups must be 1..9, got 10",
        ),
        (
            {"mhe_head": "cascade", "mhe_groups": 10},
            "--mhe-head cascade --mhe-groups 10: the smoothing term is estimated on some of the codebook's "
            "10 groups: groups_sampled must be 1..9, got 10",
        ),
        (
            {"mhe_head": "cascade", "mhe_groups": 1, "mhe_lengths": "1,100"},
            "--mhe-head cascade --mhe-groups 1: groups_sampled=1 was given, but the codebook has one group",
        ),
        (
            {"mhe_head": "cascade", "mhe_bottleneck": DIM + 1},
            "--mhe-head cascade --mhe-bottleneck 5: bottleneck must be 1..4 (the width of the features), "
            "got 5",
        ),
        (
            {"mhe_head": "cascade", "mhe_group_prototypes": "65"},
            "--mhe-head cascade --mhe-group-prototypes 65: group_prototypes must be 1..64, got 65",
        ),
        (
            {"mhe_head": "cascade", "mhe_lengths": "100"},
            "--mhe-head cascade: a cascade needs a codebook of two or three lengths such as 128,256; got 1: "
            "100",
        ),
        (
            {"mhe_head": "cascade", "mhe_lengths": "2,4,4,4"},
            "--mhe-head cascade: a cascade needs a codebook of two or three lengths such as 128,256; got 4: "
            "2,4,4,4",
        ),
        (
            {"mhe_head": "sampling", "mhe_lengths": "100"},
            "--mhe-head sampling: sampling needs groups of tokens, a codebook of two lengths such as "
            "128,256; got one length, 100",
        ),
        (
            {"mhe_head": "sampling", "mhe_lengths": "1,100"},
            "--mhe-head sampling: sampling needs at least two groups of tokens, the codebook has 1",
        ),
    ],
)
def test_flags_that_do_not_fit_the_model(flags: dict[str, object], sentence: str, tied: bool) -> None:
    with pytest.raises(MHEError) as error:
        resolve(**flags).build(DIM, nn.Embedding(100, DIM) if tied else None)
    assert sentence in str(error.value)


def saved(lengths: tuple[int, ...], vocab_size: int, dictionary: str = "") -> Callable[[Path], object]:
    return lambda path: Codebook(lengths, vocab_size=vocab_size, dictionary=dictionary).save(path)


def changed(part: str, value: object) -> Callable[[Path], None]:
    """A good codebook file, but for one part."""

    def write(path: Path) -> None:
        saved((10, 10), 100)(path)
        torch.save({**torch.load(path, weights_only=True), part: value}, path)

    return write


def truncated(path: Path) -> None:
    saved((10, 10), 100)(path)
    path.write_bytes(path.read_bytes()[:500])


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda path: None, "there is no codebook file {path}; `mhe assign` writes one"),
        (Path.mkdir, "there is no codebook file {path}; `mhe assign` writes one"),
        (
            lambda path: path.write_text("w1 1\n"),
            "codebook file {path} is damaged or not a codebook (5 bytes",
        ),
        (lambda path: path.write_bytes(b""), "codebook file {path} is damaged or not a codebook (0 bytes"),
        (truncated, "codebook file {path} is damaged or not a codebook (500 bytes"),
        (lambda path: torch.save({"model": {}}, path), "{path} is not a codebook file"),
        (saved((10, 10), 90), "codebook file {path} is for 90 tokens and the dictionary has 100"),
        (saved((10, 11), 101), "codebook file {path} is for 101 tokens and the dictionary has 100"),
        (
            saved((10, 10), 100, "0123456789abcdef"),
            "codebook file {path} was made for another dictionary (fingerprint 0123456789abcdef, this one "
            "has " + symbols_fingerprint(SYMBOLS),
        ),
        (changed("slots", torch.ones(100).int()), "codebook file {path}: slot 1 is given to two tokens, 0"),
        (changed("slots", torch.arange(1, 101)), "codebook file {path}: token 99 has slot 100, but lengths"),
        (
            changed("slots", torch.arange(100).flip(0)),
            "codebook file {path} was changed after it was written",
        ),
        (changed("lengths", [9.5, 11]), "codebook file {path}: lengths must be whole numbers"),
        (changed("version", 2), "codebook file {path} has version 2, this program reads 1"),
    ],
)
def test_bad_codebook_files(write: Callable[[Path], object], sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "codes"
    write(path)
    with pytest.raises(MHEError) as error:
        resolve(mhe_codebook=str(path))
    assert sentence.format(path=path) in str(error.value)
