"""Bad input on the command line: one clear sentence, a non-zero exit, nothing damaged."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from mhe_fairseq.coding import Codebook
from tests.commands import CRITERION, generate, train
from tests.helpers import run_command

#: A start of fairseq-train each: one flag for every place where it can be refused. The others are in
#: tests/models/test_bad_options.py.
BAD_FLAGS: dict[str, tuple[list[str], str]] = {
    "product of lengths under V": (
        ["--mhe-lengths", "4,5"],
        "lengths 4,5 give 20 slots for 88 tokens; their product must be at least 88, such as 8,11",
    ),
    "flag of another head": (
        ["--mhe-head", "cascade", "--mhe-mixtures", "4"],
        "--mhe-mixtures is for --mhe-head product; the head is cascade",
    ),
    "too many groups": (
        ["--mhe-head", "sampling", "--mhe-groups", "8"],
        "--mhe-head sampling --mhe-groups 8: a sampling head draws some of the 8 groups of its codebook "
        "besides the gold one: groups must be 1..7, got 8",
    ),
    "too wide a bottleneck, tied": (
        ["--mhe-head", "cascade", "--mhe-bottleneck", "500", "--share-decoder-input-output-embed"],
        "--mhe-head cascade --mhe-bottleneck 500: bottleneck must be 1..64 (the width of the features), "
        "got 500",
    ),
    "two output layers": (["--adaptive-softmax-cutoff", "10,20"], "two output layers; give one of them"),
}


def refused(toy_data: Path, folder: Path, *flags: str) -> str:
    """The last line on stderr of a training that must not start; nothing of ours above it is a traceback."""
    done = train(toy_data, folder / "checkpoints", *flags, "--max-update", "1", check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert not list((folder / "checkpoints").glob("*.pt"))
    return done.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD_FLAGS)
def test_bad_flags(name: str, toy_data: Path, tmp_path: Path) -> None:
    flags, sentence = BAD_FLAGS[name]
    said = refused(toy_data, tmp_path, *CRITERION, *flags)
    assert said.startswith("mhe_fairseq: error: ")
    assert sentence in said


@pytest.mark.slow
def test_a_codebook_of_another_dictionary(toy_data: Path, tmp_path: Path) -> None:
    codes = tmp_path / "codes"
    Codebook((8, 11), vocab_size=88, dictionary="0123456789abcdef").save(codes)
    before = codes.read_bytes()
    said = refused(toy_data, tmp_path, *CRITERION, "--mhe-codebook", str(codes))
    assert f"codebook file {codes} was made for another dictionary (fingerprint 0123456789abcdef" in said
    assert codes.read_bytes() == before


@pytest.mark.slow
def test_our_criterion_with_a_stock_model(toy_data: Path, tmp_path: Path) -> None:
    done = train(toy_data, tmp_path, *CRITERION, "--max-update", "1", arch="transformer_tiny", check=False)
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert (
        "needs a model with an mhe head, such as --arch mhe_transformer; this one is TransformerModel" in said
    )
    assert not list(tmp_path.glob("*.pt"))


class Exploit:
    """What a hostile checkpoint would do on loading."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.slow
def test_checkpoints_truncated_hostile_or_of_another_dictionary(toy_data: Path, tmp_path: Path) -> None:
    train(toy_data, tmp_path, *CRITERION, "--max-update", "2", "--no-epoch-checkpoints")
    good = tmp_path / "checkpoint_last.pt"
    content = good.read_bytes()

    cut = tmp_path / "cut.pt"
    cut.write_bytes(content[: len(content) // 2])
    done = generate(toy_data, cut, check=False)
    assert done.returncode == 1
    assert f"checkpoint {cut} is damaged or cut short" in done.stderr.splitlines()[-1]
    # Resuming from it: said, and the file is left as it was.
    done = train(toy_data, tmp_path, *CRITERION, "--max-update", "3", "--restore-file", str(cut), check=False)
    assert done.returncode == 1
    assert f"checkpoint {cut} is damaged or cut short" in done.stderr.splitlines()[-1]
    assert cut.read_bytes() == content[: len(content) // 2] and good.read_bytes() == content

    # Of another model: another head over the same codebook, and fairseq's model.
    flags = ["--finetune-from-model", str(good)]
    lengths = ",".join(map(str, torch.load(good)["model"]["decoder.head.codebook_lengths"].tolist()))
    product = ["--mhe-head", "product", "--mhe-lengths", lengths]
    said = refused(toy_data, tmp_path / "product", *CRITERION, *product, *flags)
    assert f"checkpoint {good} is of another model than --arch mhe_transformer_tiny: " in said
    assert said.endswith("give the --arch and the flags it was trained with: --mhe-head cascade")
    stock = ["--criterion", "cross_entropy", "--max-update", "1", *flags]
    done = train(toy_data, tmp_path / "stock", *stock, arch="transformer_tiny", check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "it has decoder.head." in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].endswith("make fairseq's own of it first with `mhe export`")

    marker = tmp_path / "was_run"
    state = torch.load(good, weights_only=True)
    for name, hostile in (("extra", {**state, "x": Exploit(marker)}), ("bare", Exploit(marker))):
        path = tmp_path / f"{name}.pt"
        torch.save(hostile, path)
        done = generate(toy_data, path, check=False)
        assert done.returncode == 1
        assert "system, which is no part of a fairseq checkpoint" in done.stderr.splitlines()[-1]
    raw = tmp_path / "raw.pt"
    raw.write_bytes(pickle.dumps(Exploit(marker), protocol=2))
    assert generate(toy_data, raw, check=False).returncode == 1
    assert not marker.exists()

    other = tmp_path / "other-data"
    run_command(
        ["fairseq-preprocess", "-s", "src", "-t", "tgt", "--joined-dictionary", "--nwordssrc", "40"]
        + [f"--{split}pref={toy_data.parent / 'text' / split}" for split in ("train", "valid", "test")]
        + ["--destdir", str(other), "--workers", "1"]
    )
    done = generate(other, good, check=False)
    assert done.returncode == 1
    assert "the dictionary" in done.stderr.splitlines()[-1] and "88" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_another_tie_than_the_trainings(toy_data: Path, tmp_path: Path) -> None:
    """Both ways; a training that begins with such weights goes on."""
    head = [*CRITERION, "--mhe-head", "cascade", "--share-all-embeddings"]
    ties = {"exact": ["--mhe-tie", "exact"], "linear": []}
    told = {
        "exact": "has the optimizer's state of other parameters than this model's; give the flags it was "
        "trained with (--mhe-tie exact and --mhe-sampling shared, if it was begun before others were the "
        "default), or --reset-optimizer",
        "linear": "in the checkpoint the encoder's embeddings are a linear map of the decoder's, and in this "
        "model they are not; give --share-all-embeddings and --mhe-tie linear",
    }
    for tie, other in (("exact", "linear"), ("linear", "exact")):
        folder = tmp_path / tie
        train(toy_data, folder, *head, *ties[tie], "--max-update", "2", "--no-epoch-checkpoints")
        done = train(toy_data, folder, *head, *ties[other], "--max-update", "4", check=False)
        assert done.returncode == 1
        said = done.stderr.splitlines()[-1]
        assert said.startswith("mhe_fairseq: error: ") and told[tie] in said
    begun = ["--finetune-from-model", str(tmp_path / "exact" / "checkpoint_last.pt"), "--max-update", "2"]
    done = train(toy_data, tmp_path / "new", *head, *begun)
    assert "tied exactly, and --mhe-tie linear goes on from there" in done.stdout + done.stderr
