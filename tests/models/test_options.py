"""From ``--mhe-*`` flags to a head."""

from __future__ import annotations

import argparse
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mhe_fairseq.coding import Codebook, symbols_fingerprint
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import CascadeHead, OutputHead, ProductHead, SamplingHead, SoftmaxHead
from mhe_fairseq.models.digit_embedding import DigitEmbedding
from mhe_fairseq.models.flags import add_head_args
from mhe_fairseq.models.options import PLANNED, HeadOptions

SYMBOLS = [f"w{n}" for n in range(100)]
DIM = 4


def resolve(**flags: object) -> HeadOptions:
    return HeadOptions.resolve(Namespace(**flags), SYMBOLS)


def build(embedding: nn.Embedding | None = None, **flags: object) -> OutputHead:
    return resolve(**flags).build(DIM, embedding)


# ---- good input


def test_defaults_are_planned_and_written_back() -> None:
    args = Namespace()
    options = HeadOptions.resolve(args, SYMBOLS)
    assert (options.head, options.codebook.lengths) == ("cascade", (10, 10))
    assert (args.mhe_head, args.mhe_lengths) == ("cascade", "10,10")
    assert args.mhe_fingerprint == options.codebook.fingerprint
    assert not options.restored


@pytest.mark.parametrize(
    ("flags", "kind", "tied"),
    [
        ({"mhe_head": "product", "mhe_mixtures": "2"}, ProductHead, True),
        ({"mhe_head": "product", "mhe_group_rows": "own"}, ProductHead, False),
        ({"mhe_head": "softmax"}, SoftmaxHead, True),
        ({"mhe_head": "sampling", "mhe_groups": 3}, SamplingHead, True),
        ({"mhe_head": "cascade"}, CascadeHead, True),
        ({"mhe_head": "cascade", "mhe_bottleneck": "2"}, CascadeHead, False),
        ({"mhe_head": "cascade", "mhe_bottleneck": DIM}, CascadeHead, False),
    ],
)
def test_heads_are_built_and_tied(
    flags: dict[str, object], kind: type, tied: bool, caplog: pytest.LogCaptureFixture
) -> None:
    embedding = nn.Embedding(100, DIM)
    # The logger by name: the `mhe` command, where it ran before, has it tell warnings only.
    with caplog.at_level("INFO", logger="mhe_fairseq"):
        head = build(embedding, **flags)
    assert type(head) is kind
    own = head.output_parameters()
    own_table = isinstance(head, CascadeHead) and not tied
    assert (own < 100 * DIM) == (not own_table or flags.get("mhe_bottleneck") == "2")
    assert not any(p is embedding.weight for p in head.parameters())
    assert len(caplog.records) == 1
    # The codebook has no first digit of one token that a product could tie.
    assert ("tied to the input" in caplog.text) == (tied and kind is not ProductHead)
    if isinstance(head, ProductHead):
        assert (head.singles is not None) == tied
        assert build(None, **flags).output_parameters() == own, "nothing to tie to"


@pytest.mark.parametrize(
    ("flags", "in_input"),
    [
        ({}, True),
        ({"mhe_bottleneck": 2}, True),
        ({"mhe_group_prototypes": 3}, True),
        ({"mhe_group_rows": "tied"}, False),
        ({"mhe_group_rows": "own"}, False),
        ({"mhe_head": "product"}, True),
        ({"mhe_head": "product", "mhe_mixtures": 2}, False),
        ({"mhe_head": "sampling"}, False),
    ],
)
def test_rows_of_groups_in_the_input(
    flags: dict[str, object], in_input: bool, caplog: pytest.LogCaptureFixture
) -> None:
    embedding = DigitEmbedding.of(nn.Embedding(100, DIM))
    assert isinstance(embedding, DigitEmbedding)
    with caplog.at_level("INFO", logger="mhe_fairseq"):
        build(embedding, **flags)
    assert ("rows of groups are part of the input embeddings" in caplog.text) == in_input
    tokens = torch.arange(100)
    assert torch.equal(embedding(tokens), embedding.weight) != in_input
    # Not shared: nothing to be part of.
    assert "rows_in_input" not in build(None, **flags).state_dict()


def test_every_flag_reaches_the_cascade() -> None:
    plain = build(mhe_head="cascade")
    assert isinstance(plain, CascadeHead)
    assert (plain.smoothing_form, plain.dropout, plain.groups_sampled) == ("sampled", 0.0, 2)
    head = build(mhe_head="cascade", mhe_smoothing="per-level", mhe_dropout="0.3", mhe_bottleneck="3")
    assert isinstance(head, CascadeHead) and head.project is not None
    assert (head.smoothing_form, head.dropout, head.project.out_features) == ("per-level", 0.3, 3)
    rich = build(mhe_head="cascade", mhe_group_prototypes="4")
    assert isinstance(rich, CascadeHead) and (rich.group.prototypes, plain.group.prototypes) == (4, 1)
    drawn = build(mhe_head="cascade", mhe_smoothing="sampled", mhe_groups="5", mhe_dropout=0)
    assert isinstance(drawn, CascadeHead) and (drawn.groups_sampled, drawn.dropout) == (5, 0.0)


@pytest.mark.parametrize(
    ("flags", "variant", "groups", "saved"),
    [
        ({}, "shared", 9, 9),
        ({"mhe_groups": "3"}, "shared", 3, 3),
        ({"mhe_sampling": "shared", "mhe_groups": 9}, "shared", 9, 9),
        # Fewer tokens than are drawn by default: all groups but one.
        ({"mhe_lengths": "5,20"}, "shared", 4, 4),
        ({"mhe_lengths": "5,5,4"}, "shared", 4, 4),
        ({"mhe_sampling": "own"}, "own", None, None),
        ({"mhe_sampling": "batch", "mhe_lengths": "1,100"}, "batch", None, None),
    ],
)
def test_every_flag_reaches_the_sampling_head(
    flags: dict[str, object], variant: str, groups: int | None, saved: int | None
) -> None:
    args = Namespace(mhe_head="sampling", **flags)
    head = HeadOptions.resolve(args, SYMBOLS).build(DIM, None)
    assert isinstance(head, SamplingHead) and head.variant == variant
    assert groups is None or head.groups == groups
    assert args.mhe_groups == saved
    assert args.mhe_sampling == variant, "written back, so that the checkpoint tells"


@pytest.mark.parametrize(
    ("flags", "variant"),
    [({}, "predicted"), ({"mhe_shard": True}, "shared"), ({"mhe_sampling": "shared"}, "shared")],
)
def test_groups_of_a_codebook_are_drawn_as_predicted(
    tmp_path: Path, flags: dict[str, object], variant: str
) -> None:
    path = str(tmp_path / "codes")
    Codebook((5, 20), torch.randperm(100), dictionary=symbols_fingerprint(SYMBOLS)).save(path)
    args = Namespace(mhe_head="sampling", mhe_codebook=path, **flags)
    head = HeadOptions.resolve(args, SYMBOLS).build(DIM, None)
    assert isinstance(head, SamplingHead) and (head.variant, args.mhe_sampling) == (variant, variant)
    # From before it was so nothing is written, and the codebook's file is still named.
    before = Namespace(
        mhe_head="sampling", mhe_codebook=path, mhe_lengths="5,20", mhe_fingerprint=args.mhe_fingerprint
    )
    assert HeadOptions.resolve(before, SYMBOLS).sampling == "shared"


@pytest.mark.parametrize("head", ["softmax", "product", "cascade", "sampling"])
def test_all_that_was_planned_is_kept(head: str, tmp_path: Path) -> None:
    """In a config, which keeps what is named alone."""
    path = str(tmp_path / "codes")
    Codebook((5, 20), torch.randperm(100), dictionary=symbols_fingerprint(SYMBOLS)).save(path)
    given = Namespace(mhe_head=head, mhe_codebook=path)
    args = Namespace(**vars(given))
    HeadOptions.resolve(args, SYMBOLS)
    written = {name for name, value in vars(args).items() if value != getattr(given, name, None)}
    assert written - set(PLANNED) == set()


def test_lengths_are_those_of_a_model_that_a_fine_tuning_begins_with(tmp_path: Path) -> None:
    """Where its dictionary had a symbol more, other ones would be planned."""
    larger = [*SYMBOLS, "<mask>", "more"]
    book = HeadOptions.resolve(Namespace(mhe_head="softmax", mhe_lengths="8,13"), larger).codebook
    model = {"decoder.head.codebook_lengths": torch.tensor(book.lengths)}
    path = tmp_path / "pretrained.pt"
    torch.save({"model": model}, path)
    begun = Namespace(mhe_head="product", finetune_from_model=str(path))
    assert HeadOptions.resolve(begun, SYMBOLS).codebook.lengths == (8, 13)
    asked = Namespace(mhe_head="product", finetune_from_model=str(path), mhe_lengths="10,10")
    assert HeadOptions.resolve(asked, SYMBOLS).codebook.lengths == (10, 10)
    planned = HeadOptions.resolve(Namespace(mhe_head="product"), SYMBOLS).codebook.lengths
    too_short = {"head.codebook_lengths": torch.tensor([3, 4])}
    for no_lengths in ({"model": dict[str, Tensor]()}, {"model": too_short}, ["no model"]):
        torch.save(no_lengths, path)
        fresh = Namespace(mhe_head="product", finetune_from_model=str(path))
        assert HeadOptions.resolve(fresh, SYMBOLS).codebook.lengths == planned


def test_other_heads_have_no_draws() -> None:
    args = Namespace(mhe_head="cascade")
    assert HeadOptions.resolve(args, SYMBOLS).sampling is None and args.mhe_sampling is None


@pytest.mark.parametrize(
    ("head", "lengths"),
    [
        ("product", "100"),
        ("product", 100),  # YAML's --mhe-lengths 100
        ("product", [10, 10]),
        ("product", "4,5,5"),
        ("product", "2,4,4,4"),
        ("cascade", "4,5,5"),
        ("sampling", "4,5,5"),
        ("sampling", "2,4,4,4"),
        ("softmax", "4,5,5"),
    ],
)
def test_numbers_of_digits_that_a_head_takes(head: str, lengths: object) -> None:
    for mixtures in (None, 3) if head == "product" else (None,):
        built = build(mhe_head=head, mhe_lengths=lengths, mhe_mixtures=mixtures)
        log_probs = built.log_probs(torch.randn(3, DIM))
        torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(3))


def test_the_command_line_reads_text_and_leaves_out_what_is_not_given() -> None:
    parser = argparse.ArgumentParser()
    add_head_args(parser)
    assert {key: value for key, value in vars(parser.parse_args([])).items() if value is not None} == {
        "mhe_bias": False,
        "mhe_shard": False,
    }
    line = "--mhe-head cascade --mhe-smoothing per-level --mhe-dropout 0.1 --mhe-bottleneck 2"
    head = HeadOptions.resolve(parser.parse_args(line.split()), SYMBOLS).build(DIM, None)
    assert isinstance(head, CascadeHead) and (head.smoothing_form, head.dropout) == ("per-level", 0.1)
    line = "--mhe-head sampling --mhe-sampling batch"
    head = HeadOptions.resolve(parser.parse_args(line.split()), SYMBOLS).build(DIM, None)
    assert isinstance(head, SamplingHead) and head.variant == "batch"
    assert resolve(**vars(parser.parse_args(["--mhe-head", "sampling", "--mhe-shard"]))).shard


def test_a_codebook_file_is_used_and_must_agree_with_lengths(tmp_path: Path) -> None:
    book = Codebook((5, 20), torch.randperm(100), dictionary=symbols_fingerprint(SYMBOLS))
    book.save(tmp_path / "codes")
    assert resolve(mhe_codebook=str(tmp_path / "codes")).codebook == book
    assert resolve(mhe_codebook=str(tmp_path / "codes"), mhe_lengths=[5, 20]).codebook == book
    with pytest.raises(MHEError, match="--mhe-lengths 10,10 contradicts .*codes, which has 5,20"):
        resolve(mhe_codebook=str(tmp_path / "codes"), mhe_lengths="10,10")


# ---- checkpoints


def test_a_checkpoints_options_need_no_file() -> None:
    args = Namespace(mhe_codebook="/gone", mhe_lengths="5,20", mhe_fingerprint="ff")
    options = HeadOptions.resolve(args, SYMBOLS)
    assert options.restored and options.codebook.lengths == (5, 20)
    assert args.mhe_fingerprint == "ff"
    assert options.build(DIM, None).adopt_codebook


def test_a_linear_tie_is_planned_and_told(caplog: pytest.LogCaptureFixture) -> None:
    args = Namespace(mhe_head="cascade", share_all_embeddings=True)
    with caplog.at_level("INFO", logger="mhe_fairseq"):
        HeadOptions.resolve(args, SYMBOLS).build(DIM, nn.Embedding(100, DIM))
    assert args.mhe_tie == "linear", "written back, so that the checkpoint tells"
    assert "tied to the input embeddings; the encoder reads a linear map of the decoder's" in caplog.text
    assert HeadOptions.resolve(args, SYMBOLS).tie == "linear", "as a checkpoint has it"
    old = Namespace(mhe_head="cascade", share_all_embeddings=True, mhe_lengths="10,10", mhe_fingerprint="ff")
    assert HeadOptions.resolve(old, SYMBOLS).tie is None


@pytest.mark.parametrize("head", ["product", "cascade", "sampling", "softmax"])
def test_a_checkpoint_from_before_a_flag_has_its_default(head: str) -> None:
    args = Namespace(mhe_head=head, mhe_lengths="10,10", mhe_fingerprint="ff")
    restored = HeadOptions.resolve(args, SYMBOLS).build(DIM, None)
    trained = build(mhe_head=head)
    restored.load_state_dict(trained.state_dict())
    assert repr(restored) == repr(trained)


def test_a_product_from_before_group_rows_has_its_own() -> None:
    embedding = nn.Embedding(100, DIM)
    old = Namespace(mhe_head="product", mhe_lengths="10,10", mhe_fingerprint="ff")
    restored = HeadOptions.resolve(old, SYMBOLS).build(DIM, embedding)
    assert isinstance(restored, ProductHead) and restored.singles is None
    args = Namespace(mhe_head="product")
    HeadOptions.resolve(args, SYMBOLS)
    assert args.mhe_group_rows == "input", "written back, so that the checkpoint tells"
    again = HeadOptions.resolve(args, SYMBOLS).build(DIM, embedding)
    assert isinstance(again, ProductHead) and again.singles is not None


@pytest.mark.parametrize("head", ["cascade", "sampling"])
@pytest.mark.parametrize(
    ("slots", "groups"),
    [
        # Ten groups of tokens where dictionary order has eight; two where it has eight.
        (torch.arange(75) * 100 // 75, 9),
        (torch.cat([torch.arange(10), torch.arange(90, 100)]), 1),
    ],
)
def test_groups_of_a_learned_codebook_fit_when_it_is_restored(
    head: str, slots: torch.Tensor, groups: int, tmp_path: Path
) -> None:
    Codebook((10, 10), slots).save(tmp_path / "codes")
    symbols = SYMBOLS[: len(slots)]
    for given in (groups, None):
        args = Namespace(mhe_head=head, mhe_groups=given, mhe_codebook=str(tmp_path / "codes"))
        trained = HeadOptions.resolve(args, symbols).build(DIM, None)
        (tmp_path / "codes").rename(tmp_path / "elsewhere")
        restored = HeadOptions.resolve(args, symbols).build(DIM, None)
        (tmp_path / "elsewhere").rename(tmp_path / "codes")
        restored.load_state_dict(trained.state_dict())
        features = torch.randn(3, DIM)
        torch.testing.assert_close(restored.log_probs(features), trained.log_probs(features))


def test_a_checkpoint_of_a_smaller_dictionary_is_told_as_such() -> None:
    args = Namespace(mhe_lengths="8,11", mhe_fingerprint="ff")
    with pytest.raises(MHEError) as error:
        HeadOptions.resolve(args, SYMBOLS)
    assert str(error.value) == (
        "the checkpoint's codebook has 88 slots and the dictionary 100 tokens; use the dictionary the model "
        "was trained with, and the flags of its task that add to it or cut it (--langs, --lang-tok-style, "
        "--output-dictionary-size)"
    )
