"""What ``--store-ema`` averages. Trainings with it are in tests/test_ema_commands.py."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.models.ema import build_ema
from torch import Tensor, nn

import mhe_fairseq  # noqa: F401  (takes the place of fairseq's methods)
from mhe_fairseq.errors import MHEError
from tests.search.toys import COMPACT, DIM, Toy, transformer

VOCAB = 60
DECAY = 0.75


def settings(**given: Any) -> SimpleNamespace:
    """fairseq's, as far as they are read."""
    return SimpleNamespace(
        **{
            "ema_decay": DECAY, "ema_start_update": 0, "ema_update_freq": 1, "ema_fp32": False,
            "ema_seed_model": None, **given,
        }
    )  # fmt: skip


class Shared(nn.Module):
    """A tensor with two names, and what is no weight."""

    codes: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(3, 3)
        self.other = nn.Linear(3, 3)
        self.other.weight = self.one.weight
        self.conversion = nn.Linear(3, 1)
        self.register_buffer("codes", torch.tensor([2**62 + 1, 5]))
        self.register_buffer("mark", torch.tensor(True))
        self.register_buffer("version", torch.tensor([3.0]))
        self.register_buffer("mean", torch.zeros(2))


@pytest.mark.parametrize("fp32", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_once_and_nothing_else(dtype: torch.dtype, fp32: bool) -> None:
    model = Shared().to(dtype)
    ema = build_ema(model, settings(ema_fp32=fp32), None)
    expected = {
        name: value.float().clone() for name, value in model.state_dict().items() if value.is_floating_point()
    }
    for update in range(1, 4):
        with torch.no_grad():
            for value in (*model.parameters(), model.mean):
                value.add_(torch.randn_like(value))
        model.codes.add_(1)
        ema.step(model, update)
        for name, value in model.state_dict().items():
            if name in expected and name != "version":
                mean = DECAY * expected[name] + (1 - DECAY) * value.float()
                expected[name] = mean if fp32 else mean.to(dtype).float()
    found = ema.get_model().state_dict()
    assert {value.dtype for value in found.values()} == {dtype, torch.int64, torch.bool}
    for name, value in expected.items():
        tolerance = 1e-6 if dtype == torch.float32 else 2e-3
        torch.testing.assert_close(found[name].float(), value, rtol=tolerance, atol=tolerance, msg=name)
        if fp32:
            torch.testing.assert_close(ema.fp32_params[name], value, rtol=1e-6, atol=1e-6, msg=name)
    assert found["codes"].tolist() == [2**62 + 4, 8] and found["mark"] and found["version"] == 3
    assert not any(value.requires_grad for value in ema.get_model().parameters())


def test_before_the_first_update_and_every_so_many() -> None:
    model = Shared()
    ema = build_ema(model, settings(ema_start_update=3, ema_update_freq=2), None)
    seen = []
    for update in range(1, 7):
        with torch.no_grad():
            model.one.weight.fill_(update)
        ema.step(model, update)
        seen.append(ema.get_model().one.weight[0, 0].item())
    # Copied at the second, averaged at the fourth and the sixth.
    assert seen[1:] == [
        2,
        2,
        (fourth := 2 * DECAY + 4 * (1 - DECAY)),
        fourth,
        fourth * DECAY + 6 * (1 - DECAY),
    ]


def test_another_shape_is_refused() -> None:
    model = Shared()
    ema = build_ema(model, settings(), None)
    model.conversion = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"conversion\.weight has shape \(2, 3\), its average \(1, 3\)"):
        ema.step(model, 1)


@pytest.mark.parametrize("name", [*COMPACT, "softmax", "sampling"])
def test_every_head(name: str) -> None:
    """The average of two models' weights is read as a model of these weights is; codes stay."""
    model, other = (Toy(name, VOCAB, seed=4, peak=peak).build() for peak in (1.0, 2.0))
    features = torch.randn(5, DIM, dtype=torch.float64)
    # The average is made after a step, of a model that has been differentiated.
    model.train().decoder.head(features, torch.arange(5)).nll.sum().backward()
    ema = build_ema(model, settings(), None)
    model.decoder.head.eval().log_probs(features)
    ema.step(other, 1)
    averaged = ema.get_model().eval()
    codes = {key for key in other.state_dict() if "codebook" in key}
    assert len(codes) == 2
    states = [each.state_dict() for each in (model, other, averaged)]
    mean = {
        key: DECAY * value + (1 - DECAY) * states[1][key] if value.is_floating_point() else value
        for key, value in states[0].items()
    }
    for key in codes:
        assert torch.equal(states[2][key], states[1][key])
    other.load_state_dict(mean)
    torch.testing.assert_close(
        averaged.decoder.head.log_probs(features), other.decoder.head.log_probs(features)
    )
    assert not torch.equal(averaged.decoder.head.log_probs(features), model.decoder.head.log_probs(features))


@pytest.mark.parametrize("arch", ["transformer", "mhe_transformer"])
def test_a_last_layer_norm_stays(arch: str) -> None:
    """Stock fairseq drops it, and the checkpoint of its average cannot be used."""
    model = transformer(VOCAB, 0, arch, encoder_normalize_before=True, decoder_normalize_before=True)
    ema = build_ema(model, settings(), None)
    for update in (1, 2):
        with torch.no_grad():
            model.decoder.layer_norm.weight.add_(1.0)
        ema.step(model, update)
    averaged = ema.get_model()
    assert averaged.decoder.layer_norm is not None and averaged.decoder.version == 3
    expected = torch.full((DIM,), 1 * DECAY**2 + 2 * (1 - DECAY) * DECAY + 3 * (1 - DECAY))
    torch.testing.assert_close(averaged.decoder.layer_norm.weight, expected)
    state: dict[str, Tensor] = averaged.state_dict()
    fresh = transformer(VOCAB, 1, arch, encoder_normalize_before=True, decoder_normalize_before=True)
    fresh.load_state_dict({name: value.clone() for name, value in state.items()}, strict=True)
    assert fresh.decoder.layer_norm is not None and fresh.encoder.layer_norm is not None


def test_files_without_an_average(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(MHEError, match=r"there is no checkpoint .*checkpoint\.pt to read averaged weights"):
        checkpoint_utils.load_ema_from_checkpoint(str(path))
    torch.save({"model": {}, "extra_state": {"epoch": 1}}, path)
    with pytest.raises(MHEError, match=r"checkpoint\.pt has no averaged weights; only a training with"):
        checkpoint_utils.load_ema_from_checkpoint(str(path))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(MHEError, match=r"checkpoint\.pt is damaged or cut short"):
        checkpoint_utils.load_ema_from_checkpoint(str(path))


def test_a_seed_of_another_model(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"extra_state": {"ema": nn.Linear(3, 4).state_dict()}}, path)
    assert torch.equal(
        build_ema(nn.Linear(3, 4), settings(ema_seed_model=str(path)), None).get_model().weight,
        torch.load(path)["extra_state"]["ema"]["weight"],
    )
    with pytest.raises(MHEError, match=r"--ema-seed-model .* is not of this model \(size mismatch"):
        build_ema(nn.Linear(3, 5), settings(ema_seed_model=str(path)), None)
