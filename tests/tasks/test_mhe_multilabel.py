"""Documents with labels under fairseq's own commands and `mhe label`, with every head and both bodies."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from mhe_fairseq.cli.main import main
from mhe_fairseq.criterions.label_ranking import PLACES
from tests.commands import ALL_SENTENCES, PLUGIN, logged
from tests.helpers import run_command
from tests.labelled import LABELS, SIZES, prepare, train_line, write_documents
from tests.masked_lm import CPU, from_pretrained
from tests.ranks import run_trainings, weights

# Models are trained, or commands run, for nearly all of these.
pytestmark = pytest.mark.slow

HEADS = ("cascade", "softmax", "sampling")
ROBERTA = [
    "--encoder-layers", "1", "--encoder-embed-dim", "32", "--encoder-ffn-embed-dim", "32",
    "--encoder-attention-heads", "2", "--max-positions", "40",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy documents, prepared in ``out``."""
    folder = tmp_path_factory.mktemp("multilabel")
    write_documents(folder / "source")
    prepare(folder / "source", folder / "out")
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> dict[str, str]:
    """What trainings said, by the head; their checkpoints lie in ``folder``/HEAD."""
    flags = {
        "cascade": ["--mhe-codebook", str(folder / "out" / "labels.codes")],
        "softmax": ["--mhe-chunk", "20"],
        "sampling": ["--mhe-groups", "2", "--mhe-lengths", "4,3"],
    }
    best = ["--best-checkpoint-metric", "P@1", "--maximize-best-checkpoint-metric", "--max-epoch", "8"]
    return {
        head: run_command(
            train_line(folder / "out", folder / head, "--mhe-head", head, *flags[head], *best)
        ).stdout
        for head in HEADS
    }


def validated(said: str) -> dict[str, float]:
    """The measures of a log's last validation."""
    names = [f"{kind}@{k}" for kind in ("P", "nDCG", "PSP") for k in PLACES]
    return {name: logged(said, f"valid_{name}", "valid")[-1] for name in names}


@pytest.mark.parametrize("head", HEADS)
def test_every_head_learns(trained: dict[str, str], head: str) -> None:
    found = validated(trained[head])
    # At random it would be a sixth; a document has two labels on average.
    assert found["P@1"] > 80 and found["nDCG@5"] > 70 and found["PSP@5"] > 70
    assert found["P@1"] >= found["P@3"] >= found["P@5"] > 25
    losses = logged(trained[head], "loss")
    assert losses[-1] < losses[0] / 1.5


def labelled(folder: Path, head: str, *flags: str, data: Path | None = None) -> list[str]:
    return [
        "label", str(folder / head / "checkpoint_best.pt"), "--data",
        str(data or folder / "out" / "data-bin"), *flags,
    ]  # fmt: skip


@pytest.mark.parametrize("head", HEADS)
def test_labels_of_documents(
    folder: Path, trained: dict[str, str], head: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Best first, in the order of the documents; the measures are those of fairseq-validate."""
    assert main(labelled(folder, head, "--subset", "valid", "-k", "3", "--batch-size", "7")) == 0
    printed, told = capsys.readouterr()
    lines = printed.splitlines()
    assert len(lines) == SIZES["valid"]
    right = []
    texts = (folder / "source" / "valid.tsv").read_text().splitlines()
    for line, text in zip(lines, texts, strict=True):
        names, scores = zip(*(each.rsplit(":", 1) for each in line.split()), strict=True)
        assert list(map(float, scores)) == sorted(map(float, scores), reverse=True) and len(names) == 3
        right.append(names[0].replace("\u2581", " ") in text.partition("\t")[0])
    share = 100 * sum(right) / len(right)
    assert f"40 documents with labels: P@1 {share:.2f}" in told
    best = max(logged(trained[head], "valid_P@1", "valid"))
    assert share == pytest.approx(best, abs=0.01)


def test_fairseq_validate_and_unknown_labels(folder: Path, trained: dict[str, str]) -> None:
    """The test set has a document without labels, and one with a label that nobody knows."""
    done = run_command(
        ["fairseq-validate", str(folder / "out" / "data-bin"), *PLUGIN, "--task", "mhe_multilabel", "--path"]
        + [str(folder / "cascade" / "checkpoint_best.pt"), "--valid-subset", "test", *ALL_SENTENCES, *CPU]
        + ["--batch-size", "16", "--log-format", "json"],
        merged=True,
    ).stdout
    path = folder / "labelled.txt"
    said = run_command(["mhe", *labelled(folder, "cascade", "-o", str(path))]).stderr
    assert len(path.read_text().splitlines()) == SIZES["test"]
    assert "39 documents with labels" in said
    for name in ("P@1", "nDCG@3", "PSP@5"):
        (value,) = re.findall(rf" {name} ([\d.]+)", said)
        (of_fairseq,) = re.findall(rf'"(?:\w*_)?{name}": "?([\d.]+)', done)
        assert float(of_fairseq) == pytest.approx(float(value), abs=0.006)


def test_two_ranks_train_what_one_does(folder: Path, tmp_path: Path) -> None:
    flags = ["--mhe-codebook", str(folder / "out" / "labels.codes"), "--dropout", "0", "--batch-size", "16"]
    flags += ["--update-epoch-batch-itr", "True", "--max-update", "6"]
    one = train_line(folder / "out", tmp_path / "one", *flags, "--update-freq", "2")
    two = train_line(folder / "out", tmp_path / "two", *flags)
    ended = run_trainings([[one], [two, two]], tmp_path / "logs")
    for status, said in (rank for training in ended for rank in training):
        assert status == 0, said[-4000:]
    (alone,), both = ended
    for key, kind in (("loss", "train_inner"), ("gnorm", "train_inner"), ("valid_nDCG@5", "valid")):
        expected = logged(alone[1], key, kind)
        assert expected and logged(both[0][1], key, kind) == pytest.approx(expected, abs=2e-3)
    mine, theirs = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, value in mine.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=2e-5, msg=name)


def test_a_transformer_begins_as_a_masked_language_model(folder: Path) -> None:
    data, pretrained = folder / "out" / "data-bin" / "input0", folder / "pretrained"
    run_command(
        [
            "fairseq-train",
            str(data),
            *PLUGIN,
            "--task",
            "masked_lm",
            "--arch",
            "mhe_roberta_base",
            *ROBERTA[:-2],
        ]
        + ["--tokens-per-sample", "40", "--max-positions", "40", "--sample-break-mode", "eos", *ALL_SENTENCES]
        + ["--criterion", "mhe_masked_lm", "--optimizer", "adam", "--lr", "0.001", "--max-update", "2", *CPU]
        + ["--batch-size", "16", "--save-dir", str(pretrained), "--no-epoch-checkpoints"]
    )
    line = train_line(
        folder / "out", folder / "roberta", *ROBERTA, "--max-update", "3", arch="mhe_label_roberta_base"
    )
    done = run_command([*line, *from_pretrained(pretrained / "checkpoint_last.pt")])
    assert "the encoder begins as the checkpoint's, the labels' head anew" in done.stdout
    assert len(logged(done.stdout, "loss")) == 3
    before = torch.load(pretrained / "checkpoint_last.pt", weights_only=False)["model"]
    after = torch.load(folder / "roberta" / "checkpoint_last.pt", weights_only=False)["model"]
    name = "encoder.sentence_encoder.layers.0.fc1.weight"
    # Three steps of Adam at most 0.01 each.
    assert 0 < (after[name] - before[name]).abs().max() < 0.04
    assert main(["label", str(folder / "roberta" / "checkpoint_last.pt"), "--data", str(data.parent)]) == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--mhe-head", "product"],
            "for labels --mhe-head is one of cascade, softmax, sampling; got 'product'",
        ),
        (["--mhe-smoothing", "sampled"], "--mhe-smoothing is not for models that give documents labels"),
        (["--mhe-groups", "2"], "for labels --mhe-groups is for --mhe-head sampling"),
        (["--dropout", "1"], "--dropout must be at least 0 and below 1, got 1"),
        (["--mhe-bag-dim", "0"], "--mhe-bag-dim must be a whole number of at least 1, got 0"),
        (["--max-positions", "1"], "--max-positions must be at least 2, got 1"),
        (["--criterion", "mhe_cross_entropy"], "give --criterion mhe_multilabel"),
    ],
)
def test_bad_flags(folder: Path, flags: list[str], said: str) -> None:
    done = run_command(train_line(folder / "out", folder / "none", *flags), check=False)
    assert done.returncode != 0 and said in done.stderr
    assert not (folder / "none" / "checkpoint_last.pt").exists()


def test_bad_input_of_label(
    folder: Path, trained: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*line: str) -> str:
        assert main(list(line)) == 1
        return capsys.readouterr().err

    assert "there is no checkpoint" in told("label", str(tmp_path / "x.pt"), "--data", str(tmp_path))
    assert "-k must be at least 1, got 0" in told(*labelled(folder, "cascade", "-k", "0"))
    assert "has no there set" in told(*labelled(folder, "cascade", "--subset", "there"))
    assert "has no input0/dict.txt" in told(*labelled(folder, "cascade", data=tmp_path))
    # The same labels, and another dictionary of documents.
    write_documents(tmp_path / "source")
    for split in SIZES:
        path = tmp_path / "source" / f"{split}.tsv"
        path.write_text(path.read_text().replace(" w2", " v2"))
    prepare(tmp_path / "source", tmp_path / "out")
    said = told(*labelled(folder, "cascade", data=tmp_path / "out" / "data-bin"))
    assert "the checkpoint is for documents of another dictionary" in said
    assert len(LABELS) == 12
