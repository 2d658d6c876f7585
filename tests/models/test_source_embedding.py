"""What an encoder reads that has a linear map of the decoder's embeddings."""

from __future__ import annotations

from argparse import Namespace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.models import build_model
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import mhe_fairseq  # noqa: F401  (registers the architectures)
from mhe_fairseq.coding import Codebook
from mhe_fairseq.coding.regrow import regrow
from mhe_fairseq.coding.symbols import trace
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import CascadeHead
from mhe_fairseq.heads.rows.input_rows import with_rows_of_state
from mhe_fairseq.models.digit_embedding import DigitEmbedding
from mhe_fairseq.models.regrow import Dictionaries, regrow_weights
from mhe_fairseq.models.source_embedding import MAP, TABLE, SourceEmbedding, apart, encoder_embedding, tie_of
from tests.heads_of_models import words

V, D, PAD = 10, 5, 1
BOOK = Codebook((3, 4), vocab_size=V)
DECODER = "decoder.embed_tokens.weight"


def make(seed: int = 1) -> tuple[SourceEmbedding, DigitEmbedding]:
    """With rows of groups in what the decoder reads."""
    torch.manual_seed(seed)
    shared = DigitEmbedding.of(nn.Embedding(V, D, padding_idx=PAD))
    assert isinstance(shared, DigitEmbedding)
    head = CascadeHead(D, BOOK, tied=shared, tied_groups=shared, rows_in_input=True)
    nn.init.normal_(head.group.weight)
    shared.follow(head)
    return SourceEmbedding(shared), shared


def test_it_begins_as_the_decoders() -> None:
    state = torch.get_rng_state()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    source = SourceEmbedding(nn.Embedding.from_pretrained(torch.ones(V, D), padding_idx=PAD))
    assert torch.equal(torch.get_rng_state(), before), "the models' initial weights must not depend on it"
    assert source.padding_idx == PAD and source.embedding_dim == D
    torch.set_rng_state(state)
    source, shared = make()
    tokens = torch.randint(V, (2, 3))
    assert torch.equal(source(tokens), shared(tokens))
    assert source.weight is shared.weight
    assert sorted(source.state_dict()) == ["map", "weight"] and len(list(source.parameters())) == 2


@given(seed=st.integers(0, 99), shape=st.sampled_from([(0,), (1,), (2, 3)]))
def test_it_is_a_linear_map_of_it(seed: int, shape: tuple[int, ...]) -> None:
    source, shared = make(seed)
    nn.init.normal_(source.map)
    tokens = torch.randint(V, shape)
    torch.testing.assert_close(source(tokens), shared(tokens) @ (torch.eye(D) + source.map))
    read = with_rows_of_state(shared.weight.detach(), shared._head[0].state_dict(), "")  # type: ignore[index]
    two = apart({TABLE: read, DECODER: read, MAP: source.map.detach()})
    assert sorted(two) == [DECODER, TABLE] and two[DECODER] is read
    torch.testing.assert_close(two[TABLE][tokens], source(tokens).detach())


def test_gradients() -> None:
    source, shared = make()
    source, shared = source.double(), shared.double()
    nn.init.normal_(source.map)
    tokens = torch.tensor([[0, 4, 9], [3, 3, 2]])

    def read(weight: Tensor, change: Tensor) -> Tensor:
        rows = torch.nn.functional.embedding(tokens, weight)
        return rows + rows @ change

    values = (shared.weight.detach().requires_grad_(), source.map.detach().requires_grad_())
    assert torch.autograd.gradcheck(read, values)
    shared._head = None
    wanted = torch.autograd.grad(read(*values).square().sum(), values)
    source(tokens).square().sum().backward()
    for value, grad in zip((source.weight, source.map), wanted, strict=True):
        torch.testing.assert_close(value.grad, grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    source, shared = make()
    nn.init.normal_(source.map)
    source.to(dtype)
    shared._head[0].to(dtype)  # type: ignore[index]
    read = source(torch.arange(V))
    assert read.dtype == dtype
    two = apart({TABLE: shared(torch.arange(V)).detach(), MAP: source.map.detach()})[TABLE]
    assert two.dtype == dtype
    torch.testing.assert_close(two, read.detach(), atol=0.1, rtol=0.1)


def test_without_a_map_there_is_nothing_to_take_apart() -> None:
    weights = {TABLE: torch.randn(V, D)}
    assert apart(weights) is weights


@pytest.mark.parametrize(
    ("flags", "head", "restored", "tie"),
    [
        ({}, "cascade", False, None),
        ({"share_all_embeddings": True}, "cascade", False, "linear"),
        # Its rows are not the embeddings.
        ({"share_all_embeddings": True, "mhe_bottleneck": 2}, "cascade", False, None),
        # Of a checkpoint from before there was a choice.
        ({"share_all_embeddings": True}, "cascade", True, None),
        ({"share_all_embeddings": True, "mhe_tie": "linear"}, "cascade", True, "linear"),
        ({"share_all_embeddings": True, "mhe_tie": "exact"}, "cascade", False, "exact"),
        ({"share_all_embeddings": True}, "product", False, None),
        ({"share_all_embeddings": True}, "sampling", False, "linear"),
        ({"share_all_embeddings": True}, "softmax", False, None),
        ({"share_all_embeddings": True, "mhe_tie": "linear"}, "softmax", False, "linear"),
        ({"share_decoder_input_output_embed": True, "mhe_tie": "exact"}, "cascade", False, "exact"),
    ],
)
def test_which_tie(flags: dict[str, Any], head: str, restored: bool, tie: str | None) -> None:
    assert tie_of(Namespace(**flags), head, restored) == tie
    shared = nn.Embedding(V, D)
    # What was planned is written back into the options that a model is built from.
    planned = Namespace(**{**flags, "mhe_tie": tie})
    assert isinstance(encoder_embedding(planned, shared), SourceEmbedding) == (tie == "linear")
    assert tie == "linear" or encoder_embedding(planned, shared) is shared


def test_what_is_not_shared_is_not_mapped() -> None:
    flags = Namespace(share_decoder_input_output_embed=True, mhe_tie="linear")
    with pytest.raises(MHEError, match="--mhe-tie linear is for --share-all-embeddings, where .* one table"):
        tie_of(flags, "cascade", False)
    with pytest.raises(MHEError, match="--mhe-tie linear is for --share-all-embeddings"):
        encoder_embedding(flags, nn.Embedding(V, D))


# ---- in models


def build(arch: str = "mhe_transformer", /, **options: Any) -> Any:
    dictionary = words(V, ["<mask>"])
    sizes = {"encoder_embed_dim": 8, "encoder_ffn_embed_dim": 8, "encoder_layers": 1, "decoder_layers": 1}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "dropout": 0.0, "task": "denoising"}
    heads |= {"max_source_positions": 9, "max_target_positions": 9, "attention_dropout": 0.0}
    args = Namespace(arch=arch, **{"share_all_embeddings": True, **sizes, **heads, **options})
    torch.manual_seed(0)
    return build_model(args, SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary))


def run(model: Any) -> Tensor:
    tokens = torch.randint(4, V - 1, (2, 5), generator=torch.Generator().manual_seed(1))
    features, _ = model.eval()(tokens, torch.tensor([5, 5]), tokens)
    return features.detach()


def mapped(model: Any, std: float = 0.3) -> Any:
    with torch.no_grad():
        model.encoder.embed_tokens.map.normal_(std=std)
    return model


@pytest.mark.parametrize("arch", ["mhe_transformer", "mhe_bart_base"])
def test_only_the_encoder_reads_the_map(arch: str) -> None:
    model, exact = build(arch, mhe_tie="linear"), build(arch, mhe_tie="exact")
    assert not isinstance(model.decoder.embed_tokens, SourceEmbedding)
    assert {*model.state_dict()} - {*exact.state_dict()} == {MAP}
    assert model.decoder.embed_tokens.weight is model.encoder.embed_tokens.weight
    exact.load_state_dict({key: value for key, value in model.state_dict().items() if key != MAP})
    assert torch.equal(run(model), run(exact))
    assert not torch.allclose(run(mapped(model, 30.0)), run(exact), atol=1e-3)
    tokens = torch.arange(V)
    for side in (exact.decoder, exact.encoder, model.decoder):
        torch.testing.assert_close(side.embed_tokens(tokens), model.decoder.embed_tokens(tokens))
    loss = model(tokens.view(2, 5), None, tokens.view(2, 5), target=tokens.view(2, 5)).nll.sum()
    loss.backward()
    assert model.encoder.embed_tokens.map.grad.any()


def test_a_bart_has_one_table_by_default() -> None:
    """As fairseq's, which no flag gives two."""
    assert isinstance(build("mhe_transformer").encoder.embed_tokens, SourceEmbedding)
    assert not isinstance(build("mhe_bart_base").encoder.embed_tokens, SourceEmbedding)


@pytest.mark.parametrize("arch", ["mhe_transformer", "mhe_bart_base"])
def test_checkpoints_with_and_without_a_map(arch: str, caplog: pytest.LogCaptureFixture) -> None:
    model, exact = mapped(build(arch, mhe_tie="linear")), build(arch, mhe_tie="exact")
    with pytest.raises(MHEError, match="the encoder's embeddings are a linear map .* and --mhe-tie linear"):
        exact.load_state_dict(model.state_dict())
    again = build(arch, mhe_tie="linear")
    again.load_state_dict(model.state_dict())
    assert torch.equal(run(again), run(model)) and "tied exactly" not in caplog.text
    with caplog.at_level("INFO", logger="mhe_fairseq"):
        model.load_state_dict(exact.state_dict())
    assert "tied exactly, and --mhe-tie linear goes on from there" in caplog.text
    assert torch.equal(run(model), run(exact)) and not model.encoder.embed_tokens.map.any()


def test_another_dictionary_leaves_what_is_read_as_it_was() -> None:
    model = mapped(build(mhe_lengths="3,4"))
    with torch.no_grad():
        model.decoder.head.group.weight.normal_()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    old = words(V, ["<mask>"]).symbols
    new = [*old[:5], "x", "y", *old[:6:-1]]
    side = Dictionaries(old, new, trace(old, new))
    args = Namespace(share_all_embeddings=True, mhe_group_rows="input", mhe_tie="linear")
    grown = regrow_weights(weights, args, side, side, lambda book: regrow(book, side.origins), "it").weights

    def read(state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        whole = with_rows_of_state(state[DECODER], state, "decoder.head.")
        return whole, apart({**state, TABLE: whole})[TABLE]

    stay = [token for token, symbol in enumerate(old) if symbol in new]
    kept = [new.index(old[token]) for token in stay]
    assert len(stay) == len(old) - 2
    for before, after in zip(read(weights), read(grown), strict=True):
        torch.testing.assert_close(after[kept], before[stay])
