"""Random tiny models, sentences to translate with them, and what a search found in them."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY
from fairseq.models.transformer import TransformerModel
from fairseq.search import BeamSearch
from fairseq.sequence_generator import SequenceGenerator
from hypothesis import strategies as st
from torch import Tensor, nn

from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads import CascadeHead, OutputHead, ProductHead, SamplingHead, SoftmaxHead
from mhe_fairseq.models import MHETransformerModel
from mhe_fairseq.search import CompactGenerator

DIM = 16
PAD, EOS, UNK = 1, 2, 3
#: Heads that are searched compactly, by a name that tells the number of digits, if it matters.
COMPACT = ("product 1", "product 2", "product 3", "mixture 2", "mixture 3", "cascade 2", "cascade 3",
           "tied 2", "tied 3", "bottleneck 2", "bottleneck 3", "prototypes 2", "prototypes 3",
           "softmax", "sampling")  # fmt: skip

Hypotheses = list[list[dict[str, Tensor]]]


@dataclass(frozen=True)
class Toy:
    """What a random model is made from.

    Attributes:
        head: one of ``COMPACT``.
        vocab: V.
        seed: of the weights and of the codebook, which has holes in random places.
        peak: deviation of the logits.
        eos: added to the scores of ``end``'s digits, so that not all hypotheses grow to the longest length.
        end: the token that ends hypotheses.
    """

    head: str = "product 2"
    vocab: int = 60
    seed: int = 0
    peak: float = 2.0
    eos: float = 1.0
    dtype: torch.dtype = torch.float64
    end: int = EOS

    def build(self) -> MHETransformerModel:
        generator = torch.Generator().manual_seed(self.seed)
        model = transformer(self.vocab, self.seed)
        model.decoder.head = _head(self, model.decoder.embed_tokens, generator)
        with torch.no_grad():
            for parameter in model.decoder.head.parameters():
                parameter.normal_(std=self.peak / 4 if parameter.dim() > 1 else 1.0, generator=generator)
            _favour(self.end, model.decoder.head, self.eos)
        return model.to(self.dtype).eval()


def dictionary(vocab: int) -> Dictionary:
    """bos, pad, eos, unk and ``vocab`` - 4 words."""
    words = Dictionary()
    for number in range(vocab - len(words)):
        words.add_symbol(f"w{number}")
    return words


def transformer(vocab: int, seed: int = 0, arch: str = "mhe_transformer", **settings: Any) -> Any:
    """One layer and one layer, d = 16; weights so large that what comes next depends on what was said."""
    torch.manual_seed(seed)
    args = argparse.Namespace(
        encoder_layers=1, decoder_layers=1, encoder_embed_dim=DIM, decoder_embed_dim=DIM,
        encoder_ffn_embed_dim=DIM, decoder_ffn_embed_dim=DIM, encoder_attention_heads=2,
        decoder_attention_heads=2, dropout=0.0, max_source_positions=40, max_target_positions=40,
        **settings,
    )  # fmt: skip
    ARCH_CONFIG_REGISTRY[arch](args)
    words = dictionary(vocab)
    kind = MHETransformerModel if arch.startswith("mhe") else TransformerModel
    task = SimpleNamespace(source_dictionary=words, target_dictionary=words)
    model = kind.build_model(args, task)
    with torch.no_grad():
        for embedding in (model.encoder.embed_tokens, model.decoder.embed_tokens):
            embedding.weight.normal_()
    return model.eval()


def random_codebook(vocab: int, heads: int, generator: torch.Generator) -> Codebook:
    """V tokens in ``heads`` digits, about a tenth of the slots are holes, anywhere."""
    lengths = []
    for _ in range(heads - 1):
        side = round(vocab ** (1 / heads))
        lengths.append(int(torch.randint(max(2, side - 1), side + 3, (), generator=generator)))
    lengths.append(math.ceil(1.1 * vocab / math.prod(lengths)))
    return Codebook(lengths, torch.randperm(math.prod(lengths), generator=generator)[:vocab])


def _head(toy: Toy, embed: nn.Embedding, generator: torch.Generator) -> OutputHead:
    kind, _, digits = toy.head.partition(" ")
    if kind == "mixture":
        # The number is that of components, too.
        book = random_codebook(toy.vocab, int(digits), generator)
        return ProductHead(DIM, book, mixtures=int(digits))
    book = random_codebook(toy.vocab, int(digits or 2), generator)
    if kind == "product":
        return ProductHead(DIM, book)
    if kind == "softmax":
        return SoftmaxHead(DIM, book)
    if kind == "sampling":
        return SamplingHead(DIM, book, groups=2)
    return CascadeHead(
        DIM, book, bottleneck=5 if kind == "bottleneck" else None, tied=embed if kind == "tied" else None,
        group_prototypes=3 if kind == "prototypes" else 1,
    )  # fmt: skip


def _favour(token: int, head: OutputHead, by: float) -> None:
    digits = head.codebook.digits(torch.tensor([token]))[0].tolist()
    if isinstance(head, CascadeHead):
        head.group.bias.view(-1, head.group.prototypes)[digits[0]] += by
    if isinstance(head, ProductHead):
        parts = head.bias.split([head.mixtures * length for length in head.codebook.lengths])
        for part, digit in zip(parts, digits, strict=True):
            part.view(head.mixtures, -1)[:, digit] += by


def sentences(vocab: int, count: int, seed: int) -> dict[str, Any]:
    """A batch of ``count`` sources of 1 to 8 words, as fairseq's loader makes it: padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 10, (count,), generator=generator)
    tokens = torch.randint(4, vocab, (count, int(lengths.max())), generator=generator)
    tokens[:, -1] = EOS
    place = torch.arange(tokens.size(1))
    tokens = tokens.masked_fill(place < tokens.size(1) - lengths.unsqueeze(1), PAD)
    return {"id": torch.arange(count), "net_input": {"src_tokens": tokens, "src_lengths": lengths}}


def both(
    models: Sequence[Any],
    sample: dict[str, Any],
    prefix_tokens: Tensor | None = None,
    constraints: Tensor | None = None,
    wide: str | None = None,
    bos_token: int | None = None,
    **options: Any,
) -> tuple[Hypotheses, Hypotheses]:
    """Hypotheses of the compact generator and of fairseq's own.

    Args:
        models: of one dictionary.
        sample: a batch.
        prefix_tokens: (B, P).
        constraints: packed.
        bos_token: what hypotheses begin after; None: what they end with.
        wide: the reason that the compact generator gives for a V-wide search; None: it must be compact.
        options: of ``SequenceGenerator``; ``search_strategy`` is a function of the dictionary.
    """
    words = dictionary(models[0].decoder.embed_tokens.num_embeddings)
    strategy = options.pop("search_strategy", BeamSearch)
    options = {"max_len_a": 1, "max_len_b": 6, **options}
    found = []
    for kind in (CompactGenerator, SequenceGenerator):
        torch.manual_seed(0)
        generator = kind(list(models), words, search_strategy=strategy(words), **options)
        if kind is CompactGenerator:
            assert generator.why_wide() == wide
        found.append(
            generator.generate(
                models, sample, prefix_tokens=prefix_tokens, constraints=constraints, bos_token=bos_token
            )
        )
    return found[0], found[1]


def check_equal(ours: Hypotheses, stock: Hypotheses, tolerance: float = 1e-9, attention: bool = True) -> None:
    """The same hypotheses in the same order, their scores apart by no more than ``tolerance``."""
    assert len(ours) == len(stock)
    for number, (mine, theirs) in enumerate(zip(ours, stock, strict=True)):
        texts = [[h["tokens"].tolist() for h in side] for side in (mine, theirs)]
        assert texts[0] == texts[1] and texts[0], number
        for a, b in zip(mine, theirs, strict=True):
            assert a["tokens"].dtype == b["tokens"].dtype
            for key in ("score", "positional_scores", *(["attention"] if attention else [])):
                torch.testing.assert_close(a[key], b[key], atol=tolerance, rtol=tolerance)


seeds = st.integers(0, 2**16)
toys = st.builds(
    Toy,
    head=st.sampled_from(COMPACT),
    vocab=st.integers(40, 120),
    seed=seeds,
    peak=st.sampled_from([0.5, 1.0, 2.0, 4.0]),
    eos=st.sampled_from([0.0, 1.0, 2.0, 4.0]),
)
