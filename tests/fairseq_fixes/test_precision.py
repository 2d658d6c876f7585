"""Half precision: what the command line makes of it, and what is refused. The commands themselves are in
test_half_precision_commands.py."""

from __future__ import annotations

import argparse
import importlib.machinery
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq import options
from fairseq.trainer import Trainer

import mhe_fairseq  # noqa: F401  (takes the place of fairseq's functions)
from mhe_fairseq.errors import MHEError
from mhe_fairseq.fairseq_fixes.precision import check_precision

LINE = ["data", "--arch", "transformer_tiny", "--optimizer", "adam"]


def parsed(*flags: str, **settings: Any) -> Any:
    return options.parse_args_and_arch(options.get_training_parser(), [*LINE, *flags], **settings)


@pytest.mark.parametrize("flag", ["--bf16", "--memory-efficient-bf16"])
def test_bf16_is_no_tpu(flag: str) -> None:
    args = parsed(flag)
    assert args.bf16 and not args.tpu and not args.fp16
    assert args.memory_efficient_bf16 == (flag != "--bf16")
    known, extra = parsed(flag, "--unheard-of", parse_known=True)
    assert known.bf16 and not known.tpu and extra == ["--unheard-of"]


def test_a_tpu_that_is_asked_for_stays_one() -> None:
    assert parsed("--tpu").tpu and parsed("--tpu", "--bf16").tpu
    assert not parsed().tpu and not parsed("--fp16").tpu
    with pytest.raises(ValueError, match="Cannot combine --fp16 and --tpu"):
        parsed("--tpu", "--fp16")


def test_only_given_flags_are_overridden() -> None:
    """As fairseq-validate asks for them."""
    given = parsed("--bf16", suppress_defaults=True)
    assert given.bf16 and not hasattr(given, "fp16") and not getattr(given, "tpu", False)


@pytest.mark.parametrize("flags", [["--fp16", "--bf16"], ["--memory-efficient-fp16", "--bf16"]])
def test_two_precisions(flags: list[str]) -> None:
    with pytest.raises(MHEError, match="--fp16 and --bf16 are two precisions; give one of them"):
        parsed(*flags)


# ---- what cannot be computed in


def common(**given: bool) -> SimpleNamespace:
    return SimpleNamespace(**{"fp16": False, "bf16": False, "cpu": False, "tpu": False, **given})


def card(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    """A machine with such a GPU, as torch tells of it."""

    def is_bf16_supported(including_emulation: bool = True) -> bool:
        return including_emulation or capability >= (8, 0)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *of: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *of: "Tesla V100")


def test_a_card_without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    card(monkeypatch, (7, 0))
    said = r"--bf16: Tesla V100 \(compute capability 7\.0\) has no bf16 .*; give --fp16, or neither for fp32"
    with pytest.raises(MHEError, match=said):
        check_precision(common(bf16=True))
    check_precision(common(fp16=True))
    check_precision(common(bf16=True, cpu=True))


def test_a_card_with_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    card(monkeypatch, (8, 0))
    check_precision(common(bf16=True))


def test_a_tpu_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MHEError, match="--tpu needs torch_xla, which is not installed; without --tpu"):
        check_precision(common(tpu=True, bf16=True))
    found = importlib.machinery.ModuleSpec("torch_xla", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found)
    check_precision(common(tpu=True, bf16=True))


def test_the_trainer_asks_first() -> None:
    """Before it halves the model, which a hydra config with both would have it do."""
    with pytest.raises(MHEError, match="two precisions"):
        Trainer(SimpleNamespace(common=common(fp16=True, bf16=True)), None, None, None)
    # fairseq's own way for old configs stays.
    with pytest.raises(Exception) as other:
        Trainer(argparse.Namespace(fp16=True, bf16=True), None, None, None)
    assert not isinstance(other.value, MHEError)
