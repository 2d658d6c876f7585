"""`mhe convert --head softmax|sampling` of cascades and other heads, and what stock fairseq does with it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mhe_fairseq  # noqa: F401  (allows what a checkpoint holds)
from mhe_fairseq.cli.analyze_model import LoadedModel
from mhe_fairseq.cli.main import main
from mhe_fairseq.coding import Codebook
from tests import bart
from tests.cli.test_convert import CPU, convert, log_probs_of, numbers, refused, score
from tests.commands import CRITERION, PAIR, generate, hypotheses, train
from tests.helpers import run_command
from tests.masked_lm import pretrain, run_lines
from tests.pretend_cuda import pretend_cuda

# Models are trained, or commands run, for nearly all of these.
pytestmark = pytest.mark.slow

SHORT = ["--max-update", "40", "--no-epoch-checkpoints"]

#: Of translation models.
HEADS = {
    "tied": ["--share-all-embeddings"],
    "prototypes": ["--share-decoder-input-output-embed", "--mhe-group-prototypes", "2"],
    "three digits": ["--mhe-lengths", "4,4,6"],
    "bottleneck": ["--mhe-bottleneck", "16"],
    "product": ["--mhe-head", "product", "--share-all-embeddings"],
    "mixture": ["--mhe-head", "product", "--mhe-mixtures", "3"],
}


def log_probs(checkpoint: Path, data: Path) -> torch.Tensor:
    """Of all tokens at each position of the validation text. Shape: (N, V)."""
    return log_probs_of(LoadedModel(checkpoint, str(data), CPU), data)[0]


def divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> float:
    return float((log_p.exp() * (log_p - log_q)).sum(dim=1).mean())


def alike(found: dict[int, tuple[float, str]], expected: dict[int, tuple[float, str]]) -> None:
    """The same translations, with the same scores."""
    assert {key: text for key, (_, text) in found.items()} == {
        key: text for key, (_, text) in expected.items()
    }
    for key, (value, _) in expected.items():
        assert found[key][0] == pytest.approx(value, abs=2e-4)


@pytest.fixture(scope="module")
def trained(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Trains a model with one of ``HEADS``, once."""
    folder, made = tmp_path_factory.mktemp("heads"), {}

    def of(name: str) -> Path:
        if name not in made:
            save_dir = folder / name.replace(" ", "-")
            train(toy_data, save_dir, *CRITERION, *SHORT, *HEADS[name])
            made[name] = save_dir / "checkpoint_last.pt"
        return made[name]

    return of


@pytest.mark.parametrize("name", HEADS)
def test_scores_are_near_those_of_the_head(
    name: str, trained: Callable[[str], Path], toy_data: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source, output = trained(name), tmp_path / "softmax.pt"
    convert(source, toy_data, output, "--head", "softmax")
    said = capsys.readouterr().out
    found = re.search(r"fitted to a (\S+) head on (\d+) tokens in \S+ seconds, divergence (\S+) nats", said)
    assert found is not None and "rows of tokens not tied" in said
    assert found[1] == ("product" if name in ("product", "mixture") else "cascade")
    assert 800 < int(found[2]) < 1000
    before, after = log_probs(source, toy_data), log_probs(output, toy_data)
    left = divergence(before, after)
    # A product head without a mixture is a softmax.
    assert left < (1e-4 if name == "product" else 0.06) and float(found[3]) < 0.06
    # What knows no more than frequencies is much farther.
    assert left < divergence(before, before.exp().mean(dim=0).log()) / 10


def test_stock_fairseq_translates_with_it(
    trained: Callable[[str], Path], toy_data: Path, tmp_path: Path
) -> None:
    """convert, export, and no plugin: the translations of what was converted."""
    ours, stock = tmp_path / "softmax.pt", tmp_path / "stock.pt"
    convert(trained("tied"), toy_data, ours, "--head", "softmax")
    assert main(["export", str(ours), "-o", str(stock)]) == 0
    weights = torch.load(stock, weights_only=True)["model"]
    # What the encoder reads is a map of what the decoder reads, and the fitted table is another.
    names = ("encoder.embed_tokens", "decoder.embed_tokens", "decoder.output_projection")
    for one, other in itertools.combinations(names, 2):
        assert not torch.equal(weights[f"{one}.weight"], weights[f"{other}.weight"])
    expected = hypotheses(generate(toy_data, ours, "--beam", "3").stdout)
    line = ["fairseq-generate", str(toy_data), "--path", str(stock), "--beam", "3", "--cpu"]
    line += ["--required-batch-size-multiple", "1", "--max-len-a", "1.5", "--max-len-b", "5"]
    found = hypotheses(run_command(line).stdout)
    assert len(expected) == 30
    alike(found, expected)


def test_on_a_pretended_gpu(trained: Callable[[str], Path], toy_data: Path, tmp_path: Path) -> None:
    """The same rows as on the CPU."""
    made = []
    for device in ("cpu", "cuda"):
        path = tmp_path / f"{device}.pt"
        with pretend_cuda():
            convert(trained("tied"), toy_data, path, "--head", "softmax", "--device", device)
        made.append(torch.load(path, weights_only=True)["model"]["decoder.head.table.linear.weight"])
    torch.testing.assert_close(made[1], made[0], atol=1e-3, rtol=1e-3)


def test_sampling_has_the_groups_of_the_cascade(
    trained: Callable[[str], Path], toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = trained("tied"), tmp_path / "sampling.pt"
    convert(source, toy_data, output, "--head", "sampling")
    line = capsys.readouterr().out.splitlines()[-1].split()
    model = LoadedModel(source, str(toy_data), CPU)
    assert model.codebook is not None
    assert Codebook.load(output.with_suffix(".codes")).fingerprint == model.codebook.fingerprint
    # The command that it ends with trains it on.
    assert "--share-all-embeddings" not in line and line[line.index("--mhe-head") + 1] == "sampling"
    done = run_command([*line, "--cpu", "--num-workers", "0", "--save-dir", str(tmp_path / "on")])
    assert (tmp_path / "on" / "checkpoint_last.pt").is_file()
    assert "SamplingHead" in done.stdout + done.stderr


def test_a_language_model(language_models: dict[str, Path], lm_data: Path, tmp_path: Path) -> None:
    source, ours, stock = language_models["cascade"], tmp_path / "softmax.pt", tmp_path / "stock.pt"
    convert(source, lm_data, ours, "--head", "softmax")
    assert main(["export", str(ours), "-o", str(stock)]) == 0
    assert divergence(log_probs(source, lm_data), log_probs(ours, lm_data)) < 0.02
    expected, found = (score("transformer_lm", lm_data, path) for path in (ours, stock))
    assert len(expected) == 31 and numbers(found) == pytest.approx(numbers(expected), abs=2e-4)


@pytest.mark.parametrize("bias", [[], ["--mhe-bias"]], ids=["tied", "bias"])
def test_a_masked_language_model(bias: list[str], lm_data: Path, tmp_path: Path) -> None:
    flags = ["--mhe-head", "cascade", *bias, "--max-update", "40"]
    run_lines(tmp_path, {"train": pretrain(lm_data, tmp_path / "saved", *flags)})
    source, ours, stock = tmp_path / "saved" / "checkpoint_last.pt", tmp_path / "o.pt", tmp_path / "stock.pt"
    convert(source, lm_data, ours, "--head", "softmax")
    assert main(["export", str(ours), "-o", str(stock)]) == 0
    expected, found = (score("roberta", lm_data, path) for path in (ours, stock))
    assert expected == found
    before = score("roberta", lm_data, source)
    losses = [float(lines[0].split()[1]) for lines in (before, expected)]
    assert losses[1] == pytest.approx(losses[0], abs=0.03)


def test_a_bart(toy_data: Path, tmp_path: Path) -> None:
    """One that translates, with what stock fairseq says of it."""
    tuning = ["--task", "mhe_translation", *PAIR, "--truncate-source", "--share-all-embeddings"]
    tuning += ["--mhe-head", "cascade"]
    run_lines(tmp_path, {"train": bart.train(toy_data, tmp_path / "saved", *tuning, updates=40)})
    source, ours, stock = tmp_path / "saved" / "checkpoint_last.pt", tmp_path / "o.pt", tmp_path / "stock.pt"
    convert(source, toy_data, ours, "--head", "softmax")
    assert divergence(log_probs(source, toy_data), log_probs(ours, toy_data)) < 0.02
    assert main(["export", str(ours), "-o", str(stock)]) == 0
    said = run_lines(
        tmp_path,
        {path.stem: bart.generate(toy_data, path, "--task", "translation") for path in (ours, stock)},
    )
    expected, found = (hypotheses(said[path.stem].said) for path in (ours, stock))
    assert len(expected) == 30
    alike(found, expected)


def test_to_a_cascade_goes_through_a_softmax(
    trained: Callable[[str], Path], toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "cascade.pt"
    flags = ["--data", toy_data, "--head", "cascade", "-o", output]
    said = refused([trained("product"), *flags], capsys)
    assert (
        "has a product head, and a cascade is made of a softmax; convert it to --head softmax first" in said
    )
    convert(trained("product"), toy_data, tmp_path / "softmax.pt", "--head", "softmax")
    convert(tmp_path / "softmax.pt", toy_data, output, "--head", "cascade")
    before, after = (log_probs(path, toy_data) for path in (trained("product"), output))
    assert divergence(before, after) < 0.1


def test_text_that_is_too_short(
    trained: Callable[[str], Path], toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from mhe_fairseq.cli import convert_run

    monkeypatch.setattr(convert_run, "_train_features", lambda *given, **named: iter([torch.zeros(1, 64)]))
    said = refused(
        [trained("tied"), "--data", toy_data, "--head", "softmax", "-o", tmp_path / "o.pt"], capsys
    )
    assert f"the training text of {toy_data} is too short: rows are fitted to two tokens at least" in said
    assert not (tmp_path / "o.pt").exists()
