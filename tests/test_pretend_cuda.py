"""The pretended GPU refuses what a GPU refuses and computes what the CPU does; who takes ``--device``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mhe_fairseq.cli.main import main, make_parser
from tests.helpers import run_command
from tests.pretend_cuda import OnGpu, pretend_cuda

#: Every command with the flag. Those that measure have a test on a pretended GPU: tests/cli/test_analyze.py
#: and test_bench_*.py, "nothing ... is left on the cpu".
COMMANDS = {
    "analyze": ["x.pt", "data"],
    "bench decode": [],
    "bench train": [],
    "convert": ["{checkpoint}", "--data", "data", "--head", "cascade", "-o", "{output}"],
    "label": ["{checkpoint}", "--data", "data"],
}


def parsers(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, each in action.choices.items():
                yield from parsers(each, f"{name} {word}".strip())


def test_commands_that_take_a_device() -> None:
    found = [name for name, each in parsers(make_parser()) if "--device" in each._option_string_actions]
    # A plan is calculated, for either.
    assert sorted(found) == sorted([*COMMANDS, "plan"])


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    "device, said",
    [
        ("nonsense", "argument --device: invalid choice: 'nonsense' (choose from 'cpu', 'cuda')"),
        ("cuda", f"there is no CUDA device that torch {torch.__version__} can use here; --device cpu"),
    ],
)
def test_a_device_that_there_is_not(
    name: str,
    device: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    checkpoint = tmp_path / "x.pt"
    checkpoint.write_text("is not read")
    words = [word.format(checkpoint=checkpoint, output=tmp_path / "o.pt") for word in COMMANDS[name]]
    assert main([*name.split(), *words, "--device", device]) == 1
    error = capsys.readouterr().err
    assert said in error and error.startswith("mhe: ") and error.count("\n") == 1


@pytest.mark.slow
def test_as_a_process() -> None:
    line = ["python", "-m", "mhe_fairseq.cli.main", "bench", "train", "--quick", "--device", "cuda"]
    done = run_command(line, check=False, env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith("mhe: there is no CUDA device") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "mix",
    [
        lambda gpu, cpu: gpu + cpu,
        lambda gpu, cpu: cpu + gpu.sum(),
        lambda gpu, cpu: torch.where(gpu > 0, gpu, cpu),
        lambda gpu, cpu: cpu[gpu.long()],
        lambda gpu, cpu: gpu.gather(0, cpu.long()),
        lambda gpu, cpu: torch.cat([gpu, cpu]),
        lambda gpu, cpu: gpu.new_zeros(3) + torch.zeros_like(cpu),
        lambda gpu, cpu: torch.arange(3, device=gpu.device) + torch.arange(3),
        lambda gpu, cpu: gpu.cpu() + gpu,
    ],
)
def test_mixed_devices_are_refused(mix: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pretend_cuda():
        cpu = torch.zeros(3)
        with pytest.raises(RuntimeError, match="on the same device, but found cuda:0 and cpu"):
            mix(cpu.to("cuda"), cpu)


def test_numbers_are_those_of_the_cpu() -> None:
    torch.manual_seed(1)
    here, x = nn.Linear(3, 5), torch.randn(4, 3)
    (here(x) ** 2).sum().backward()
    expected = here.weight.grad
    with pretend_cuda():
        there = nn.Linear(3, 5).to("cuda")
        with torch.no_grad():
            for ours, theirs in zip(there.parameters(), here.parameters(), strict=True):
                ours.copy_(theirs)
        assert all(isinstance(each, OnGpu) and each.is_cuda for each in there.parameters())
        given = x.to("cuda").double().to(torch.float32)
        # An index on the CPU, a number, and a copy to the other side are as welcome as on a GPU.
        loss = (there(given[torch.arange(4)]) ** 2 * torch.tensor(1.0)).sum()
        loss.backward()
        assert isinstance(there.weight.grad, OnGpu)
        for moved in (x.type_as(loss), x.to(loss), x.to(device=0), x.cuda(), x.to("cuda", torch.float64)):
            assert isinstance(moved, OnGpu) and isinstance(moved.type_as(x).cpu(), torch.Tensor)
        assert not isinstance(given.type_as(x), OnGpu) and f"{loss.detach():.3f}" == f"{loss.item():.3f}"
        assert expected is not None and torch.equal(there.weight.grad.cpu(), expected)
        assert not loss.cpu().is_cuda
        assert loss.detach().item() == pytest.approx((here(x) ** 2).sum().item())
        with pytest.raises(TypeError, match="can't convert cuda:0"):
            loss.detach().numpy()
    assert not torch.zeros(1).is_cuda
