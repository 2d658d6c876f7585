"""`mhe convert`, and fairseq's own commands on what it writes."""

from __future__ import annotations

import math
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

import mhe_fairseq  # noqa: F401  (allows what a checkpoint holds)
from mhe_fairseq.cli.analyze_data import Subset
from mhe_fairseq.cli.analyze_model import LoadedModel, least_positions
from mhe_fairseq.cli.main import main
from mhe_fairseq.coding import Codebook, symbols_fingerprint
from tests.commands import ALL_SENTENCES, PLUGIN, generate
from tests.helpers import REPO, run_command
from tests.language_model import LM
from tests.pretend_cuda import pretend_cuda

# Models are trained, or commands run, for nearly all of these.
pytestmark = pytest.mark.slow

TOKENS = ["--tokens", "1000"]
CASCADE = ["--head", "cascade"]
CPU = torch.device("cpu")
NUMBER = r"-?\d+\.\d+"


@pytest.fixture(scope="session")
def data_of(toy_data: Path, lm_data: Path) -> dict[str, Path]:
    """What each of ``stock_models`` was trained on."""
    return {"transformer": toy_data, "transformer_lm": lm_data, "roberta": lm_data}


def convert(source: Path, data: Path, output: Path, *flags: str) -> None:
    """The command, which must not fail."""
    assert main(["convert", str(source), "--data", str(data), "-o", str(output), *TOKENS, *flags]) == 0


def score(name: str, data: Path, checkpoint: Path) -> list[str]:
    """What fairseq's command for a kind of model says that depends on the model."""
    if name == "transformer":
        said = generate(data, checkpoint, "--beam", "3").stdout
        return [line for line in said.splitlines() if line.startswith(("H-", "P-"))]
    common = [str(data), *PLUGIN, "--path", str(checkpoint), "--cpu", "--num-workers", "0", *ALL_SENTENCES]
    if name == "transformer_lm":
        line = ["fairseq-eval-lm", *common, *LM, "--gen-subset", "test", "--output-word-probs"]
        done = run_command(line)
        return re.findall(r"\d+ \S+ \[-.*|Loss \(base 2\): .*", done.stdout + done.stderr)
    line = ["fairseq-validate", *common, "--task", "masked_lm", "--max-tokens", "500"]
    done = run_command([*line, "--log-format", "simple"])
    return re.findall(r"\| (loss \S+)", done.stdout + done.stderr)


def numbers(lines: list[str]) -> list[float]:
    """Those of lines of ``score``."""
    return [float(each) for line in lines for each in re.findall(NUMBER, line)]


def log_probs_of(model: LoadedModel, data: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Of all tokens at each position of the validation text, and the targets. Shape: (N, V), (N,)."""
    valid = Subset(model.task, str(data), "valid")
    rows, targets = [], []
    with torch.no_grad():
        indices = valid.indices(least_positions([model]), drawn=False)
        for sample in valid.samples(valid.batches(indices, 4000)):
            features, target = model.features(sample)
            rows += [part for part, _ in model.log_probs(features, target, len(model.symbols()))]
            targets.append(target)
    return torch.cat(rows), torch.cat(targets)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("transformer", "sampling"),
        ("transformer", "softmax"),
        ("transformer_lm", "sampling"),
        ("transformer_lm", "softmax"),
        ("roberta", "sampling"),
        ("roberta", "softmax"),
    ],
)
def test_sampling_and_softmax_score_as_before(
    name: str, head: str, stock_models: dict[str, Path], data_of: dict[str, Path], tmp_path: Path
) -> None:
    output = tmp_path / "ours.pt"
    convert(stock_models[name], data_of[name], output, "--head", head)
    expected, found = (score(name, data_of[name], path) for path in (stock_models[name], output))
    assert len(expected) == {"transformer": 60, "transformer_lm": 31, "roberta": 1}[name]
    assert [re.sub(NUMBER, "", line) for line in found] == [re.sub(NUMBER, "", line) for line in expected]
    before, after = map(numbers, (expected, found))
    # The last of the digits that are printed may be rounded otherwise.
    assert after == pytest.approx(before, abs=2e-6 if name == "transformer_lm" else 1.1e-4)


class Converted:
    """What `mhe convert` to a cascade wrote and said, and the models before and after.

    Attributes:
        source, data: what was converted.
        path: of the checkpoint.
        said: on stdout.
        before, after: the models.
    """

    def __init__(self, source: Path, data: Path, path: Path, said: str) -> None:
        self.source, self.data, self.path, self.said = source, data, path, said
        self.before = LoadedModel(source, str(data), CPU)
        self.after = LoadedModel(path, str(data), CPU)

    def log_probs(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Before and after, of all tokens, and the targets. Shape: (N, V), (N, V), (N,)."""
        before, target = log_probs_of(self.before, self.data)
        return before, log_probs_of(self.after, self.data)[0], target

    @property
    def command(self) -> list[str]:
        """The last line: how to train it on."""
        return shlex.split(self.said.splitlines()[-1])


@pytest.fixture(scope="module")
def cascades(
    stock_models: dict[str, Path],
    data_of: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Converted]:
    """``stock_models`` as cascades."""
    folder = tmp_path_factory.mktemp("cascades")
    made = {}
    for name, source in stock_models.items():
        path = folder / f"{name}.pt"
        line = ["convert", str(source), "--data", str(data_of[name]), "-o", str(path), *TOKENS, *CASCADE]
        # In a process of its own: a fixture of a module cannot read what this one prints.
        done = run_command(["mhe", *line])
        made[name] = Converted(source, data_of[name], path, done.stdout)
    return made


def test_on_a_pretended_gpu(cascades: dict[str, Converted], tmp_path: Path) -> None:
    """The same checkpoint as on the CPU."""
    done, output = cascades["transformer"], tmp_path / "o.pt"
    line = ["convert", str(done.source), "--data", str(done.data), "-o", str(output), *TOKENS, *CASCADE]
    with pretend_cuda():
        assert main([*line, "--device", "cuda"]) == 0
    here, there = (torch.load(path, weights_only=False)["model"] for path in (done.path, output))
    assert here.keys() == there.keys()
    for name in here:
        torch.testing.assert_close(there[name], here[name], msg=name)
    books = [Codebook.load(path.with_suffix(".codes")) for path in (done.path, output)]
    assert books[0].fingerprint == books[1].fingerprint


@pytest.mark.parametrize("name", ["transformer", "transformer_lm", "roberta"])
def test_inside_a_group_a_cascade_is_the_softmax(name: str, cascades: dict[str, Converted]) -> None:
    made = cascades[name]
    before, after, _ = made.log_probs()
    book = made.after.codebook
    assert book is not None and made.after.head == "cascade" and book.heads == 2
    group = book.slots.div(book.lengths[1], rounding_mode="floor")
    is_of = torch.nn.functional.one_hot(group, book.lengths[0]).float()
    conditional = [(each - ((each.exp() @ is_of).log() @ is_of.T)) for each in (before, after)]
    torch.testing.assert_close(*conditional, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(after.exp().sum(dim=1), torch.ones(len(after)))


@pytest.mark.parametrize("name", ["transformer", "transformer_lm", "roberta"])
def test_losses_before_and_after(name: str, cascades: dict[str, Converted]) -> None:
    made = cascades[name]
    before, after, target = made.log_probs()
    losses = [float(-each.gather(1, target[:, None]).mean()) for each in (before, after)]
    found = re.search(
        r"loss on (\S+) tokens of valid: (\S+) nats before, (\S+) after \((\S+)\); "
        r"perplexity (\S+) and (\S+)",
        made.said,
    )
    assert found is not None
    assert int(found[1].replace(",", "")) == len(target)
    assert [float(found[2]), float(found[3])] == [pytest.approx(loss, abs=6e-4) for loss in losses]
    assert [float(found[5]), float(found[6])] == [pytest.approx(math.exp(x), abs=2e-2) for x in losses]
    # The group head has learned: as the mean of the groups' masses it would be much worse.
    assert losses[1] - losses[0] < 0.3


def test_the_rows_of_tokens_stay_where_they_were(
    cascades: dict[str, Converted], stock_models: dict[str, Path]
) -> None:
    weights = {name: torch.load(made.path, weights_only=True)["model"] for name, made in cascades.items()}
    stock = {name: torch.load(path, weights_only=True)["model"] for name, path in stock_models.items()}
    tied = weights["transformer"]
    assert "decoder.head.local.table" not in tied and "decoder.head.rows_in_input" not in tied
    added = {name for name in tied if name.startswith("decoder.head.")}
    assert added == {
        f"decoder.head.{part}"
        for part in ("codebook_slots", "codebook_lengths", "group.weight", "group.bias")
    }
    for name, tensor in stock["transformer"].items():
        if name != "decoder.output_projection.weight":
            assert torch.equal(tied[name], tensor), name
    # Once, though it has several names.
    assert len({tied[f"{side}.embed_tokens.weight"].data_ptr() for side in ("encoder", "decoder")}) == 1
    own = weights["transformer_lm"]["decoder.head.local.table"].flatten(0, 1)
    slots = weights["transformer_lm"]["decoder.head.codebook_slots"]
    assert torch.equal(own[slots], stock["transformer_lm"]["decoder.output_projection.weight"])


@pytest.mark.parametrize("name", ["transformer", "transformer_lm", "roberta"])
def test_the_command_that_trains_it_on(name: str, cascades: dict[str, Converted], tmp_path: Path) -> None:
    made = cascades[name]
    command = made.command
    assert command[0] == "fairseq-train" and "--finetune-from-model" in command
    # As it is printed; the tests' machine has no GPU, and no time for data loaders.
    done = run_command([*command, "--cpu", "--num-workers", "0", "--log-format", "json"], cwd=REPO)
    said = done.stdout + done.stderr
    assert "loading pretrained model from" in said and "done training" in said
    saved = Path(command[command.index("--save-dir") + 1]) / "checkpoint_last.pt"
    state = torch.load(saved, weights_only=True)
    assert state["optimizer_history"][-1]["num_updates"] == 4
    before, after = torch.load(made.path, weights_only=True)["model"], state["model"]
    assert sorted(before) == sorted(after)
    # It went on from there, by a few small steps, and everything learns.
    for key, tensor in before.items():
        if key.endswith("codebook_slots"):
            assert torch.equal(after[key], tensor)
        elif ".group." in key or key.endswith("fc1.weight"):
            assert 0 < float((after[key] - tensor).abs().max()) < 0.05, key


def test_a_cascade_is_searched_without_wide_work(
    cascades: dict[str, Converted], data_of: dict[str, Path]
) -> None:
    made = cascades["transformer"]
    said = [
        generate(data_of["transformer"], made.path, "--beam", "3", "--task", task).stdout
        for task in ("translation", "mhe_translation")
    ]
    wide, compact = ([line for line in each.splitlines() if line.startswith(("H-", "P-"))] for each in said)
    assert len(wide) == 60
    assert [line.split("\t")[2] for line in wide[::2]] == [line.split("\t")[2] for line in compact[::2]]
    # A hub reads the task from the checkpoint.
    assert torch.load(made.path, weights_only=True)["cfg"]["task"]["_name"] == "mhe_translation"


def test_the_signature_says_what_it_was(
    cascades: dict[str, Converted], capsys: pytest.CaptureFixture[str]
) -> None:
    made = cascades["transformer"]
    assert main(["signature", str(made.path)]) == 0
    line = capsys.readouterr().out.strip()
    assert made.after.codebook is not None
    assert "|head:cascade|" in line and f"|codebook:{made.after.codebook.fingerprint}|" in line
    symbols = made.after.symbols()
    kept = torch.load(made.path, weights_only=True)["cfg"]["model"]
    assert kept.mhe_dictionary == f"{symbols_fingerprint(symbols)}:{len(symbols)}"
    assert "|arch:mhe_transformer_tiny|" in line and line.endswith("|converted:transformer_tiny")


def test_prototypes_and_the_seed(
    stock_models: dict[str, Path],
    data_of: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    left = {}
    for name, flags in {
        "one": [*CASCADE, "--group-prototypes", "1"],
        "four": [*CASCADE, "--group-prototypes", "4"],
        "again": [*CASCADE, "--group-prototypes", "4"],
        "other": [*CASCADE, "--group-prototypes", "4", "--seed", "2"],
    }.items():
        codes = [] if name == "one" else ["--codebook", str(tmp_path / "one.codes")]
        convert(stock_models["transformer"], data_of["transformer"], tmp_path / f"{name}.pt", *flags, *codes)
        found = re.search(r"divergence (\S+) nats", capsys.readouterr().out)
        assert found is not None
        left[name] = float(found[1])
    assert left["four"] < left["one"]
    rows = {
        name: torch.load(tmp_path / f"{name}.pt", weights_only=True)["model"]["decoder.head.group.weight"]
        for name in left
    }
    assert len(rows["four"]) == 4 * len(rows["one"])
    assert torch.equal(rows["four"], rows["again"]) and not torch.equal(rows["four"], rows["other"])
    assert sorted(path.name for path in tmp_path.glob("*.codes")) == ["one.codes"]


def test_from_one_of_ours_to_another(
    stock_models: dict[str, Path],
    data_of: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Softmax -> sampling -> cascade; a sampling head's codebook is kept."""
    data = data_of["roberta"]
    names = ["softmax", "sampling", "cascade"]
    source = stock_models["roberta"]
    for head in names:
        convert(source, data, tmp_path / f"{head}.pt", "--head", head)
        source = tmp_path / f"{head}.pt"
    states = {name: torch.load(tmp_path / f"{name}.pt", weights_only=True)["model"] for name in names}
    slots = {name: state["encoder.head.codebook_slots"] for name, state in states.items()}
    assert torch.equal(slots["cascade"], slots["sampling"])
    assert not torch.equal(slots["softmax"], slots["sampling"])
    assert Codebook.load(tmp_path / "cascade.codes") == Codebook.load(tmp_path / "sampling.codes")
    table = "encoder.head.table.linear.weight"
    assert torch.equal(states["softmax"][table], states["sampling"][table])
    own = states["cascade"]["encoder.head.local.table"].flatten(0, 1)
    assert torch.equal(own[slots["cascade"]], states["softmax"][table])


def refused(arguments: list[Any], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence that ``mhe convert`` ends with."""
    assert main(["convert", *map(str, arguments)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    last = printed.err.rstrip().splitlines()[-1]
    assert last.startswith("mhe: ") and printed.err.count("mhe: ") == 1
    return last
