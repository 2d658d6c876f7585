"""Beam search with every head on one transformer, against the softmax in fairseq's own search, and against no
output layer at all.

Imports fairseq, unlike the rest of this package.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fairseq.data import Dictionary, LanguagePairDataset
from fairseq.models import ARCH_CONFIG_REGISTRY
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor, nn

from mhe_fairseq.bench.timing import Samples, clock_of, interleave
from mhe_fairseq.coding import Codebook, plan_lengths
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import (
    Candidates,
    CascadeHead,
    HeadLoss,
    OutputHead,
    ProductHead,
    SamplingHead,
    SoftmaxHead,
)
from mhe_fairseq.models import MHETransformerModel
from mhe_fairseq.search.compact import CompactEnsemble
from mhe_fairseq.tasks.mhe_translation import MHETranslationConfig, MHETranslationTask

#: What can be measured, and what it is called in tables.
HEADS = {
    "softmax": "softmax",
    "product": "product",
    "mixture": "mixture of 8",
    "cascade": "cascade",
    "sampling": "sampling",
    "none": "no output layer",
}

#: Entropy of the next token that the weights are scaled to, in nats. An untrained layer is nearly flat, and
#: its best tokens are harder to find than a trained one's.
ENTROPY = 2.0


@dataclass(frozen=True)
class DecodeSettings:
    """Of a run.

    Attributes:
        dim: width of the transformer; the feed-forward layers have four times that.
        layers: of the encoder, and of the decoder.
        sentences: translated in a run.
        length: tokens of each source sentence, and of each translation (without EOS).
        beam: width of the search.
        batch: sentences searched at a time.
        seed: of weights and sentences.
        device: of everything.
        group_prototypes: rows of each of a cascade's groups.
        cpu_time: times are of the processor.
    """

    dim: int
    layers: int
    sentences: int
    length: int
    beam: int
    batch: int
    seed: int
    device: torch.device
    group_prototypes: int = 1
    cpu_time: bool = False


@dataclass(frozen=True)
class DecodeResult:
    """Of one head.

    Attributes:
        head: one of ``HEADS``.
        vocab_size: V.
        samples: seconds of a run.
        tokens: tokens in the best translations of a run, EOS counted.
        ratio: the softmax's time divided by this head's.
        of_limit: this head's tokens per second as a share of those without an output layer.
    """

    head: str
    vocab_size: int
    samples: Samples
    tokens: int
    ratio: float | None
    of_limit: float | None

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.samples.median


class NoHead(OutputHead):
    """No output layer: the same candidates at every step, for nothing."""

    finds_best = True

    def forward(
        self, features: Tensor, target: Tensor, smoothing: bool = True, accuracy: bool = False
    ) -> HeadLoss:
        raise NotImplementedError("only for beam search")

    def log_probs(self, features: Tensor) -> Tensor:
        raise NotImplementedError("only for beam search")

    def candidates(self, features: Tensor, k: int, tokens: Tensor) -> Candidates:
        n, device = features.size(0), features.device
        scores = -1.0 - torch.arange(k, device=device).expand(n, k) / k
        found = torch.arange(self.vocab_size - k, self.vocab_size, device=device).expand(n, k)
        return Candidates(scores, found, torch.full((n, len(tokens)), -20.0, device=device))


class DecodeStep:
    """Translates all sentences with one head."""

    def __init__(self, task: MHETranslationTask, model: Any, head: OutputHead, settings: DecodeSettings):
        self.model, self.head = model, head
        model.decoder.head = head
        # Every translation is as long as every other: heads are compared at the same work of the body.
        options = Namespace(
            beam=settings.beam, min_len=settings.length, max_len_a=0, max_len_b=settings.length
        )
        # A sampling head is a softmax as well, and shows what the compact search makes of one.
        stock = SequenceGenerator if type(head) is SoftmaxHead else None
        self.generator = task.build_generator([model], options, seq_gen_cls=stock)
        self.batches = make_batches(task, settings)
        self.tokens = 0

    def prepare(self) -> None:
        self.model.decoder.head = self.head

    def run(self) -> None:
        self.tokens = sum(
            len(hypotheses[0]["tokens"])
            for batch in self.batches
            for hypotheses in self.generator.generate([self.model], batch)
        )

    def release(self) -> None:
        pass


def measure_decode(
    vocab: int,
    names: Sequence[str],
    rounds: int,
    settings: DecodeSettings,
    progress: Callable[[int], None] = lambda done: None,
) -> list[DecodeResult]:
    """Measure heads in turns, all on the same transformer.

    Raises:
        MHEError: a vocabulary too small for the beam.
    """
    check_vocabulary(vocab, settings)
    torch.manual_seed(settings.seed)
    task, model = make_model(vocab, settings)
    features = sample_features(task, model, settings)
    codebook = Codebook(plan_lengths(vocab), vocab_size=vocab)
    steps = {}
    for name in names:
        head = make_head(name, settings.dim, codebook, settings.group_prototypes)
        head.to(settings.device).eval()
        if name != "none":
            sharpen(head, features)
        steps[name] = DecodeStep(task, model, head, settings)

    def synchronize() -> None:
        if settings.device.type == "cuda":
            torch.cuda.synchronize()

    samples = interleave(steps, rounds, synchronize, clock_of(settings.cpu_time), progress)

    def times(name: str, other: str) -> float | None:
        return samples[other].median / samples[name].median if other in samples else None

    return [
        DecodeResult(
            name, vocab, samples[name], steps[name].tokens, times(name, "softmax"), times(name, "none")
        )
        for name in names
    ]


def check_vocabulary(vocab: int, settings: DecodeSettings) -> None:
    """Refuse one that the compact search would leave to the V-wide one.

    Raises:
        MHEError: there are too few tokens for the beam.
    """
    if not CompactEnsemble.fits(vocab, settings.beam):
        raise MHEError(f"a vocabulary of {vocab} tokens is too small to search with beam {settings.beam}")


def make_model(vocab: int, settings: DecodeSettings) -> tuple[MHETranslationTask, Any]:
    """A translation task over ``vocab`` made-up words, and an untrained transformer for it."""
    dictionary = Dictionary()
    for i in range(vocab - len(dictionary)):
        dictionary.add_symbol(f"w{i}")
    task = MHETranslationTask(MHETranslationConfig(source_lang="a", target_lang="b"), dictionary, dictionary)
    args = Namespace(
        mhe_head="product",
        encoder_layers=settings.layers,
        decoder_layers=settings.layers,
        encoder_embed_dim=settings.dim,
        decoder_embed_dim=settings.dim,
        encoder_ffn_embed_dim=4 * settings.dim,
        decoder_ffn_embed_dim=4 * settings.dim,
        encoder_attention_heads=max(1, settings.dim // 64),
        decoder_attention_heads=max(1, settings.dim // 64),
        max_source_positions=1024,
        max_target_positions=1024,
        share_all_embeddings=True,
    )
    ARCH_CONFIG_REGISTRY["mhe_transformer"](args)
    model = MHETransformerModel.build_model(args, task).to(settings.device).eval()
    return task, model


def make_batches(task: MHETranslationTask, settings: DecodeSettings) -> list[dict[str, Any]]:
    """Random sentences, in batches as fairseq makes them."""
    generator = torch.Generator().manual_seed(settings.seed)
    size, dictionary = len(task.source_dictionary), task.source_dictionary
    shape = (settings.sentences, settings.length)
    words = torch.randint(dictionary.nspecial, size, shape, generator=generator)
    ends = torch.full((settings.sentences, 1), dictionary.eos())
    sources = list(torch.cat([words, ends], dim=1))
    data = LanguagePairDataset(sources, [len(s) for s in sources], dictionary)
    batches = []
    for begin in range(0, settings.sentences, settings.batch):
        rows = range(begin, min(settings.sentences, begin + settings.batch))
        batch = data.collater([data[i] for i in rows])
        batch["net_input"] = {key: value.to(settings.device) for key, value in batch["net_input"].items()}
        batches.append(batch)
    return batches


@torch.no_grad()
def sample_features(task: MHETranslationTask, model: Any, settings: DecodeSettings) -> Tensor:
    """Some features that the decoder gives. Shape: (at most 64, d)."""
    net_input = make_batches(task, settings)[0]["net_input"]
    source = net_input["src_tokens"][:8]
    features, _ = model(source, net_input["src_lengths"][:8], source, features_only=True)
    flat: Tensor = features.reshape(-1, settings.dim)[:64]
    return flat


def make_head(name: str, dim: int, codebook: Codebook, prototypes: int = 1) -> OutputHead:
    """One of ``HEADS``, untied; a cascade's groups have ``prototypes`` rows."""
    if name == "softmax":
        return SoftmaxHead(dim, codebook)
    if name == "product":
        return ProductHead(dim, codebook)
    if name == "mixture":
        return ProductHead(dim, codebook, mixtures=8)
    if name == "cascade":
        return CascadeHead(dim, codebook, group_prototypes=prototypes)
    if name == "sampling":
        return SamplingHead(dim, codebook)
    if name == "none":
        return NoHead(dim, codebook)
    raise MHEError(f"there is no head {name!r} to measure; there are {', '.join(HEADS)}")


@torch.no_grad()
def sharpen(head: nn.Module, features: Tensor, entropy: float = ENTROPY) -> None:
    """Scale all weights of a head by one number, so that its distributions have this entropy on average."""
    weights = [p for p in head.parameters() if p.dim() > 1]
    before = [p.clone() for p in weights]

    def scaled(factor: float) -> float:
        for weight, value in zip(weights, before, strict=True):
            weight.copy_(value).mul_(factor)
        log_probs = head.log_probs(features)  # type: ignore[operator]
        return float(-(log_probs.exp() * log_probs.clamp(min=-1e4)).sum(dim=-1).mean())

    low, high = 1.0, 1.0
    while scaled(high) > entropy:
        low, high = high, 2 * high
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if scaled(middle) > entropy else (low, middle)
