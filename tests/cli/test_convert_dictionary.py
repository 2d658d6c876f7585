"""`mhe convert` to another dictionary, and fairseq's own commands on what it writes."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mhe_fairseq  # noqa: F401  (allows what a checkpoint holds)
from mhe_fairseq.cli.analyze_model import LoadedModel
from mhe_fairseq.cli.main import main
from mhe_fairseq.coding import Codebook, symbols_fingerprint
from tests.commands import CRITERION, generate, hypotheses, logged, train
from tests.dictionaries import WHOLE, in_pieces, shuffled
from tests.helpers import REPO, run_command

# Models are trained, or commands run, for nearly all of these.
pytestmark = pytest.mark.slow

CASCADE = ["--mhe-head", "cascade", "--share-all-embeddings", "--task", "mhe_translation"]
QUICK = ["--max-update", "24", "--no-epoch-checkpoints"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cascade(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cascade over the toy corpus, tied, rows of groups in the input."""
    folder = tmp_path_factory.mktemp("cascade")
    train(toy_data, folder, *CRITERION, *CASCADE, *QUICK)
    return folder / "checkpoint_last.pt"


@pytest.fixture(scope="module")
def permuted(toy_data: Path, lm_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    """Data -> the same text, symbols in another order."""
    folder = tmp_path_factory.mktemp("permuted")
    return {data: shuffled(data, folder / data.parent.name) for data in (toy_data, lm_data)}


def convert(source: Path, data: Path, output: Path, *flags: str) -> None:
    """The command, which must not fail."""
    assert main(["convert", str(source), "--data", str(data), "-o", str(output), *flags]) == 0


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What the command says that must fail, in one line, writing nothing."""
    capsys.readouterr()
    assert main(["convert", *map(str, words)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    # fairseq and torch may have warned before.
    last = said.err.rstrip().splitlines()[-1]
    assert last.startswith("mhe: ") and said.err.count("mhe: ") == 1
    return last


@torch.no_grad()
def probabilities(model: LoadedModel, words: str) -> dict[str, Tensor]:
    """symbol -> its log-probability behind each word of a sentence, which is its own source. Shape: (T,)."""
    dictionary = model.task.target_dictionary
    tokens = torch.tensor([[dictionary.eos(), *(dictionary.index(word) for word in words.split())]])
    lengths = torch.tensor([tokens.size(1)])
    both = hasattr(model.model, "encoder") and hasattr(model.model, "decoder")
    net = model.model(tokens, lengths, tokens) if both else model.model(tokens)
    found = model.model.get_normalized_probs(net, log_probs=True)[0]
    return {dictionary[token]: found[:, token] for token in range(len(dictionary))}


@pytest.mark.parametrize(
    "name", ["transformer", "transformer_lm", "roberta", "cascade", "product LM", "cascade LM"]
)
def test_another_order_of_symbols_changes_no_probability(
    name: str, permuted: dict[Path, Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    is_ours, output = name.startswith(("cascade", "product")), tmp_path / "moved.pt"
    if name == "cascade":
        source = request.getfixturevalue("cascade")
    else:
        models = request.getfixturevalue("language_models" if is_ours else "stock_models")
        source = models[name.removesuffix(" LM")]
    old = request.getfixturevalue("toy_data" if name in ("transformer", "cascade") else "lm_data")
    convert(source, permuted[old], output)
    before = probabilities(LoadedModel(source, str(old), CPU), "BA DE NU")
    after = probabilities(LoadedModel(output, str(permuted[old]), CPU), "BA DE NU")
    assert list(before) != list(after)
    assert set(before) == set(after)
    torch.testing.assert_close(
        torch.stack([after[symbol] for symbol in before]), torch.stack(list(before.values()))
    )
    assert (tmp_path / "moved.codes").is_file() == is_ours


def test_a_larger_dictionary_translates_at_once_and_is_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = in_pieces(tmp_path / "old", dropped=30), in_pieces(tmp_path / "new", whole=WHOLE)
    folder = tmp_path / "checkpoints"
    train(old, folder, *CRITERION, *CASCADE, "--max-update", "60", "--no-epoch-checkpoints")
    source, output = folder / "checkpoint_last.pt", tmp_path / "grown.pt"
    capsys.readouterr()
    convert(source, new, output)
    said = capsys.readouterr().out
    assert re.search(
        r"32 symbols, now 48: 29 stay, 19 new \(16 made of known pieces, 0 not, 3 of padding\), "
        r"3 gone: ▁B ▁b ▁old$",
        said,
        re.MULTILINE,
    )
    assert re.search(r"codebook \S+grown.codes: \d+x\d+, grown from \d+x\d+; \d+ holes", said)

    # What stays has its slot, as digits; what is new has its pieces' mean.
    state, was = (torch.load(path, weights_only=True) for path in (output, source))
    symbols, old_symbols = (
        list(probabilities(LoadedModel(path, str(data), CPU), "▁B A"))
        for path, data in ((output, new), (source, old))
    )
    book = Codebook.load(tmp_path / "grown.codes")
    assert book.dictionary == symbols_fingerprint(symbols)
    lengths = tuple(was["model"]["decoder.head.codebook_lengths"].tolist())
    old_book = Codebook(lengths, was["model"]["decoder.head.codebook_slots"])
    kept = [symbol for symbol in symbols if symbol in old_symbols]
    where, was_where = ([known.index(symbol) for symbol in kept] for known in (symbols, old_symbols))
    assert torch.equal(book.digits(torch.tensor(where)), old_book.digits(torch.tensor(was_where)))
    rows, old_rows = (each["model"]["decoder.embed_tokens.weight"] for each in (state, was))
    pieces = [old_symbols.index(piece) for piece in ("▁D", "A")]
    torch.testing.assert_close(rows[symbols.index("▁DA")], old_rows[pieces].mean(dim=0))
    assert "last_optimizer_state" not in state
    assert output.stat().st_size < 0.6 * source.stat().st_size

    flags = ["--task", "mhe_translation", "--beam", "2"]
    assert len(hypotheses(generate(new, output, *flags).stdout)) == 30

    line = shlex.split(said.splitlines()[-1])
    assert line[0] == "fairseq-train" and line[line.index("--max-update") + 1] == "6"
    line[line.index("--user-dir") + 1] = str(REPO / "mhe_fairseq")
    more = ["--cpu", "--num-workers", "0", "--log-format", "json", "--log-interval", "1"]
    done = run_command([*line, *more], cwd=tmp_path)
    losses = logged(done.stdout + done.stderr, "nll_loss")
    # From nothing they begin at about log2 V.
    assert len(losses) == 6 and losses[0] < 0.8 * torch.tensor(float(len(symbols))).log2()
    last = tmp_path / "grown-trained-on" / "checkpoint_last.pt"
    assert len(hypotheses(generate(new, last, *flags).stdout)) == 30
    # As a checkpoint to go on from, too.
    line[line.index("--finetune-from-model") : line.index("--finetune-from-model") + 1] = ["--restore-file"]
    line[line.index("--save-dir") + 1] = str(tmp_path / "restored")
    resets = [f"--reset-{what}" for what in ("optimizer", "dataloader", "meters", "lr-scheduler")]
    done = run_command([*line, *more, *resets], cwd=tmp_path)
    assert logged(done.stdout + done.stderr, "nll_loss") == losses


def test_bad_input_is_told_in_a_sentence(
    cascade: Path,
    language_models: dict[str, Path],
    toy_data: Path,
    lm_data: Path,
    permuted: dict[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other, output = permuted[toy_data], tmp_path / "x.pt"
    rest = ["-o", output]
    assert "is that of checkpoint" in refused(capsys, cascade, "--data", toy_data, *rest)
    assert "there is no data directory" in refused(capsys, cascade, "--data", tmp_path / "no", *rest)
    assert "has no dict.src.txt" in refused(capsys, cascade, "--data", lm_data, *rest)
    said = refused(capsys, cascade, "--data", other, "--old-data", tmp_path / "no", *rest)
    assert f"there is no data directory {tmp_path / 'no'}" in said
    said = refused(capsys, cascade, "--data", other, "--head", "softmax", "--old-data", toy_data, *rest)
    assert "convert twice" in said
    assert "say which with --head" in refused(capsys, cascade, "--data", other, "--codebook", "c", *rest)
    adaptive = language_models["sampling"]
    assert "has adaptive input" in refused(capsys, adaptive, "--data", permuted[lm_data], *rest)

    # The data of the training is gone, or has another dictionary now.
    state = torch.load(cascade, weights_only=True)
    moved = tmp_path / "moved.pt"
    write(moved, state, str(tmp_path / "gone"))
    said = refused(capsys, moved, "--data", other, *rest)
    assert f"{tmp_path / 'gone'}, is not here; say where its dictionary is with --old-data" in said
    smaller = in_pieces(tmp_path / "pieces")
    write(moved, state, str(smaller))
    said = refused(capsys, moved, "--data", other, *rest)
    assert "was trained with another one; say where that is with --old-data" in said
    assert sorted(path.name for path in tmp_path.glob("x*")) == []
    convert(moved, other, output, "--old-data", str(toy_data))
    assert "exists; give another one" in refused(capsys, moved, "--data", other, *rest)

    # Without text there are no neighbours.
    bare = tmp_path / "bare"
    bare.mkdir()
    for side in ("src", "tgt"):
        shutil.copy(smaller / f"dict.{side}.txt", bare)
    said = refused(capsys, cascade, "--data", bare, "-o", tmp_path / "y.pt")
    assert "has no binarised target side" in said
    assert not (tmp_path / "y.pt").exists() and not (tmp_path / "y.codes").exists()


def write(path: Path, state: dict[str, Any], data: str) -> None:
    """A checkpoint that says it was trained on other data."""
    state["cfg"]["task"]["data"] = data
    vars(state["cfg"]["model"])["data"] = data
    torch.save(state, path)


def test_a_codebook_file_tells_which_dictionary_it_was(
    toy_data: Path, permuted: dict[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes, folder = tmp_path / "codes", tmp_path / "checkpoints"
    assert main(["assign", "--data", str(toy_data), "--by", "random", "-o", str(codes)]) == 0
    train(toy_data, folder, *CRITERION, *CASCADE, "--mhe-codebook", str(codes), "--max-update", "1")
    source = folder / "checkpoint_last.pt"
    # The folder it names has the symbols in another order now.
    state = torch.load(source, weights_only=True)
    write(source, state, str(permuted[toy_data]))
    said = refused(capsys, source, "--data", toy_data, "-o", tmp_path / "x.pt")
    assert "its codebook" in said and "--old-data" in said


def test_rows_beyond_the_dictionary_are_explained(
    stock_models: dict[str, Path],
    permuted: dict[Path, Path],
    toy_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As in a checkpoint whose task added symbols, or whose tables were padded."""
    state = torch.load(stock_models["transformer"], weights_only=True)
    longer, output = tmp_path / "longer.pt", tmp_path / "x.pt"
    for name, rows in state["model"].items():
        if name.endswith(("embed_tokens.weight", "output_projection.weight")):
            state["model"][name] = torch.cat([rows, rows[:5]])
    torch.save(state, longer)
    convert(longer, permuted[toy_data], output)
    said = capsys.readouterr().out
    assert "5 rows beyond the dictionary's symbols are left out, no symbol names them" in said
    line = shlex.split(said.splitlines()[-1])
    assert line[0] == "fairseq-train"
    # fairseq alone loads no checkpoint of its own with this torch.
    line[line.index("--user-dir") + 1] = str(REPO / "mhe_fairseq")
    done = run_command([*line, "--cpu", "--num-workers", "0", "--log-format", "json", "--log-interval", "1"])
    losses = logged(done.stdout + done.stderr, "nll_loss")
    assert len(losses) == 4 and losses[0] < 0.8 * torch.tensor(48.0).log2()
    done = generate(permuted[toy_data], output)
    assert len(hypotheses(done.stdout)) == 30
