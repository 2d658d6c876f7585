"""``mhe_transformer_lm``: its settings, what it is built of, what its training makes."""

from __future__ import annotations

import argparse
from argparse import Namespace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.data import Dictionary, TruncatedDictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_INV_REGISTRY, build_model
from fairseq.models.transformer_lm import TransformerLanguageModel, TransformerLanguageModelConfig
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mhe_fairseq.errors import MHEError
from mhe_fairseq.models.flags import FLAGS, SWITCHES
from mhe_fairseq.models.transformer_lm import MHETransformerLanguageModel, MHETransformerLanguageModelConfig

STOCK = [name for name in ARCH_MODEL_INV_REGISTRY["transformer_lm"] if name != "transformer_lm"]
#: Of fairseq's output layer, which the head is.
OUTPUT = {"adaptive_softmax_cutoff": None, "tie_adaptive_weights": False, "tie_adaptive_proj": False}
VOCAB, DIM = 50, 16
SMALL = {
    "decoder_layers": 1, "decoder_embed_dim": DIM, "decoder_input_dim": DIM, "decoder_output_dim": DIM,
    "decoder_ffn_embed_dim": DIM, "decoder_attention_heads": 2, "dropout": 0.0, "attention_dropout": 0.0,
    "activation_dropout": 0.0, "tokens_per_sample": 12, "max_target_positions": None, "add_bos_token": False,
    "tpu": False,
}  # fmt: skip


def words(count: int = VOCAB) -> Dictionary:
    dictionary = Dictionary()
    for number in range(count - len(dictionary)):
        dictionary.add_symbol(f"w{number}")
    return dictionary


def task_of(dictionary: Any = None) -> Any:
    dictionary = dictionary or words()
    return SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)


def build(arch: str = "mhe_transformer_lm", task: Any = None, **options: Any) -> Any:
    """As fairseq-train does, without its task: a config with the dataclass's fields, with parents."""
    dataclass = (
        MHETransformerLanguageModelConfig if arch.startswith("mhe") else TransformerLanguageModelConfig
    )
    settings = {**vars(dataclass()), **SMALL, **options, "_name": arch}
    if arch.endswith("wiki103"):
        # Not given on a command line.
        settings |= {name: None for name in (*OUTPUT, "adaptive_input") if name not in options}
    root = OmegaConf.create({"model": settings})
    OmegaConf.set_struct(root, True)
    torch.manual_seed(0)
    model = build_model(root.model, task or task_of())
    model.saved = root.model
    return model


def batch(rows: int = 3, length: int = 7, vocab: int = VOCAB) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(4, vocab, (rows, length + 1), generator=generator)
    tokens[0, -2:] = 1
    return tokens[:, :-1], tokens[:, 1:]


# ---- settings


@pytest.mark.parametrize("stock", STOCK)
def test_architectures_mirror_fairseqs(stock: str) -> None:
    mine, theirs = Namespace(), Namespace()
    ARCH_CONFIG_REGISTRY[f"mhe_{stock}"](mine)
    ARCH_CONFIG_REGISTRY[stock](theirs)
    assert vars(mine) == {**vars(theirs), **OUTPUT}


def test_there_is_one_for_each() -> None:
    mirrors = ARCH_MODEL_INV_REGISTRY["mhe_transformer_lm"]
    assert mirrors == ["mhe_transformer_lm", *(f"mhe_{stock}" for stock in STOCK)]
    assert len(STOCK) == 20


def test_what_a_user_chose_is_kept_by_an_architecture() -> None:
    args = Namespace(adaptive_softmax_cutoff="10,20", decoder_layers=3, adaptive_input_cutoff="5,9")
    ARCH_CONFIG_REGISTRY["mhe_transformer_lm_wiki103"](args)
    assert (args.adaptive_softmax_cutoff, args.decoder_layers) == ("10,20", 3)
    assert (args.adaptive_input, args.adaptive_input_cutoff) == (True, "5,9")


def test_flags_are_fairseqs_and_the_heads() -> None:
    mine, theirs = MHETransformerLanguageModelConfig(), TransformerLanguageModelConfig()
    heads = {name: None for name in (*FLAGS, "mhe_fingerprint", "mhe_dictionary", "mhe_signature")}
    assert vars(mine) == {**vars(theirs), **heads, **dict.fromkeys(SWITCHES, False)}
    parser = argparse.ArgumentParser()
    MHETransformerLanguageModel.add_args(parser)
    text = " ".join(parser.format_help().split())
    assert not any(f"--mhe-{name}" in text for name in ("fingerprint", "dictionary", "signature"))
    assert all("--" + name.replace("_", "-") in text for name in (*FLAGS, *SWITCHES))
    assert parser.parse_args(["--mhe-shard"]).mhe_shard is True
    # Text, as in translation: checked later, and told in the same words.
    assert parser.parse_args(["--mhe-mixtures", "many"]).mhe_mixtures == "many"


# ---- what is built


@pytest.mark.parametrize("arch", ["transformer_lm", "transformer_lm_gpt2_tiny", "transformer_lm_gpt3_small"])
def test_a_softmax_head_is_fairseqs_model(arch: str) -> None:
    tied = arch.endswith("gpt3_small")
    mine, stock = build(f"mhe_{arch}", mhe_head="softmax"), build(arch)
    mine.eval()
    stock.eval()
    weights = {name: value for name, value in mine.state_dict().items() if "codebook" not in name}
    if not tied:
        weights["decoder.output_projection.weight"] = weights.pop("decoder.head.table.linear.weight")
    expected = stock.state_dict()
    if tied:
        del expected["decoder.output_projection.weight"]
    assert set(weights) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value)
    tokens, _ = batch()
    values = [model.get_normalized_probs(model(tokens), log_probs=True) for model in (mine, stock)]
    torch.testing.assert_close(*values)


@pytest.mark.parametrize("head", ["product", "cascade", "sampling", "softmax"])
def test_adaptive_input(head: str) -> None:
    mine = build("mhe_transformer_lm_wiki103", mhe_head=head, adaptive_input_cutoff="10,30")
    stock = build("transformer_lm_wiki103", adaptive_input_cutoff="10,30", adaptive_softmax_cutoff="10,30")
    own = {name: p.shape for name, p in mine.named_parameters() if ".head." not in name}
    others = {name: p.shape for name, p in stock.named_parameters() if "adaptive_softmax" not in name}
    assert own == others
    assert mine.decoder.adaptive_softmax is None
    tokens, target = batch()
    mine.train()
    loss = mine(tokens, target=target)
    loss.nll.sum().backward()
    assert loss.nll.shape == target.shape
    assert all(p.grad is not None for name, p in mine.named_parameters())
    mine.eval()
    exact = mine.get_normalized_probs(mine(tokens), log_probs=True)
    torch.testing.assert_close(exact.exp().sum(-1), torch.ones(target.shape))
    torch.testing.assert_close(
        mine(tokens, target=target).nll,
        -exact.gather(-1, target.unsqueeze(-1)).squeeze(-1).masked_fill(target == 1, 0.0),
    )


def test_character_inputs() -> None:
    model = build(character_embeddings=True, character_filters="[(1, 4), (2, 4)]", mhe_head="cascade")
    tokens, target = batch()
    assert model(tokens, target=target).nll.shape == target.shape


def test_a_dictionary_cut_short() -> None:
    """``--output-dictionary-size``: other words are unknown ones in the output."""
    task = SimpleNamespace(source_dictionary=words(), target_dictionary=TruncatedDictionary(words(), 20))
    model = build(task=task, mhe_head="cascade").eval()
    tokens, _ = batch()
    assert model.get_normalized_probs(model(tokens), log_probs=True).shape == (3, 7, 20)


@pytest.mark.parametrize("arch", ["mhe_transformer_lm", "mhe_transformer_lm_gpt"])
def test_what_a_checkpoint_keeps_restores_it_without_the_codebook_file(arch: str) -> None:
    """fairseq builds the first from a copy of the options that it saves, the second from these."""
    model = build(arch, mhe_head="cascade")
    saved = OmegaConf.to_container(model.saved)
    assert (saved["mhe_head"], saved["mhe_lengths"]) == ("cascade", "5,10")
    assert saved["mhe_fingerprint"] == model.decoder.head.codebook.fingerprint
    assert "mhe_options" not in saved
    again = build(**{**saved, "arch": saved["_name"], "mhe_codebook": "/gone"})
    assert again.decoder.head.adopt_codebook
    again.load_state_dict(model.state_dict())


# ---- flags that a head leaves nothing to do for


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"adaptive_softmax_cutoff": "10,20"},
            "--adaptive-softmax-cutoff 10,20 and --mhe-head are two output layers; give one of them",
        ),
        (
            {"tie_adaptive_weights": True},
            "--tie-adaptive-weights ties an adaptive softmax to the adaptive input, and with --mhe-head "
            "there is no adaptive softmax; leave it out",
        ),
        (
            {"tie_adaptive_proj": True},
            "--tie-adaptive-proj ties an adaptive softmax to the adaptive input, and with --mhe-head "
            "there is no adaptive softmax; leave it out",
        ),
        (
            {"share_decoder_input_output_embed": True},
            "--share-decoder-input-output-embed shares a table of one row a token, and --adaptive-input has "
            "none; leave one of them out",
        ),
        ({"mhe_chunk": 4}, "--mhe-chunk is for --mhe-head softmax or sampling; the head is cascade"),
        (
            {"mhe_bias": True},
            "--mhe-bias is for --arch mhe_roberta; fairseq's decoders have no bias, leave it out",
        ),
    ],
)
def test_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(MHEError) as error:
        build("mhe_transformer_lm_wiki103", adaptive_input_cutoff="10,30", **options)
    assert str(error.value) == sentence


# ---- training


class Widest(TorchDispatchMode):
    """The most elements of any tensor made."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else (out,):
            if isinstance(each, Tensor):
                self.numel = max(self.numel, each.numel())
        return out


@pytest.mark.parametrize("head", ["product", "cascade"])
def test_training_makes_nothing_tokens_x_vocabulary(head: str) -> None:
    vocab, rows, length = 3000, 20, 12
    model = build(task=task_of(words(vocab)), mhe_head=head)
    tokens, target = batch(rows, length, vocab)
    for made, wide in ((False, False), (True, True)):
        model.zero_grad()
        with Widest() as widest:
            if wide:
                model.eval()
                model.get_normalized_probs(model(tokens), log_probs=True)
            else:
                loss = model(tokens, target=target, smoothing=True)
                (loss.nll.sum() + loss.smooth.sum()).backward()
        assert (widest.numel >= rows * length * vocab // 2) == made


def test_stock_names_are_stock() -> None:
    assert type(build("transformer_lm")) is TransformerLanguageModel
