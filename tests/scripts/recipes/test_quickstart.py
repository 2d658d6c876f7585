"""scripts/recipes/quickstart.sh and scripts/make_venv.sh, run for real with a tiny model."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests import command_forks
from tests.helpers import REPO, TOY_SIZES, command_env, run_command, write_toy_corpus

SCRIPT = REPO / "scripts" / "recipes" / "quickstart.sh"
TINY = {
    "SRC": "src",
    "TGT": "tgt",
    "VOCAB": "60",
    "UPDATES": "4",
    "VALIDATE_EVERY": "2",
    "LOG_INTERVAL": "1",
    "BATCH_FLAGS": "--max-tokens 400",
    "MODEL_FLAGS": "--encoder-layers 1 --decoder-layers 1 --encoder-embed-dim 16 --decoder-embed-dim 16 "
    "--encoder-ffn-embed-dim 16 --decoder-ffn-embed-dim 16 --encoder-attention-heads 2 "
    "--decoder-attention-heads 2 --share-all-embeddings",
}


def settings(work: Path, **more: str) -> dict[str, str]:
    """Variables of a tiny quickstart in ``work``, its corpus beside it."""
    corpus = work.parent / "corpus"
    if not corpus.exists():
        write_toy_corpus(corpus)
    return {**TINY, "QUICKSTART_DIR": str(work), "CORPUS": str(corpus), **more}


def quickstart(work: Path, check: bool = True, **more: str) -> subprocess.CompletedProcess[str]:
    return run_command([str(SCRIPT)], env=settings(work, **more), check=check)


def refused(done: subprocess.CompletedProcess[str], *said: str) -> None:
    assert done.returncode == 1
    last = done.stderr.rstrip("\n").splitlines()[-1]
    assert last.startswith("quickstart.sh: error: ")
    for text in said:
        assert text in last


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished quickstart: its folder and what it printed. Tests that change it copy it first."""
    work = tmp_path_factory.mktemp("quickstart") / "work"
    return work, quickstart(work).stdout


@pytest.fixture
def copied(finished: tuple[Path, str], tmp_path: Path) -> Path:
    work, _ = finished
    shutil.copytree(work.parent, tmp_path / "copy", copy_function=shutil.copy2)
    # The settings name the corpus by its path.
    text = (tmp_path / "copy" / "work" / "settings.txt").read_text()
    corpora = str(work.parent / "corpus"), str(tmp_path / "copy" / "corpus")
    (tmp_path / "copy" / "work" / "settings.txt").write_text(text.replace(*corpora))
    return tmp_path / "copy" / "work"


def commands(printed: str) -> list[str]:
    return [line[2:] for line in printed.splitlines() if line.startswith("$ ")]


@pytest.mark.slow
def test_prints_score_samples_costs_and_commands(finished: tuple[Path, str]) -> None:
    work, printed = finished
    assert re.search(r"BLEU +│ \d+\.\d+ \(brevity penalty \d\.\d+\)", printed)
    assert "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:" in printed
    assert f"{TOY_SIZES['test']} test sentences" in printed
    assert len(re.findall(r"^│ \d+ source +│", printed, re.MULTILINE)) == 5
    assert re.search(r"parameters +│ +[\d,]+ │ +[\d,]+ │", printed)
    listed = (work / "commands.sh").read_text()
    ran = commands(printed)
    assert [line.split()[0] for line in ran] == [
        *("python", "fairseq-preprocess", "mv", "mhe"),
        *("fairseq-train", "fairseq-generate", "mv", "grep", "python"),
    ]
    for line in ran:
        assert f"{line}\n" in listed
        # Once as it ran, once in the report, to be copied from there.
        assert printed.splitlines().count(line) == 1


@pytest.mark.slow
def test_every_test_sentence_is_translated(finished: tuple[Path, str]) -> None:
    work, _ = finished
    assert (work / "hypotheses.tgt").read_bytes().count(b"\n") == TOY_SIZES["test"]
    # In the order of the file, whatever the order of translation.
    generated = (work / "translations" / "generate-test.txt").read_text().splitlines()
    texts = {int(line[2:].split("\t")[0]): line.split("\t")[2] for line in generated if line[:2] == "H-"}
    assert (work / "hypotheses.tgt").read_text().splitlines() == [texts[n] for n in range(len(texts))]


@pytest.mark.slow
def test_writes_tensorboard_logs(finished: tuple[Path, str]) -> None:
    work, _ = finished
    for folder, tag, updates in (("train_inner", "nll_loss", [1, 2, 3, 4]), ("valid", "bleu", [2, 4])):
        events = EventAccumulator(str(work / "tensorboard" / folder))
        events.Reload()
        assert [event.step for event in events.Scalars(tag)] == updates


@pytest.mark.slow
def test_second_run_skips_what_is_done(copied: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in copied.rglob("*") if p.is_file()}
    done = quickstart(copied)
    for step in ("prepare", "preprocess", "assign", "train", "translate"):
        assert f"{step}: done before, skipped" in done.stdout
    assert "BLEU" in done.stdout
    assert commands(done.stdout)[0].startswith("python scripts/recipes/report_quickstart.py")
    # Nothing is forgotten in the list.
    assert "fairseq-train" in (copied / "commands.sh").read_text()
    after = {p: p.stat().st_mtime_ns for p in copied.rglob("*") if p.is_file()}
    assert {p.name for p in after if after[p] != before.get(p)} <= {"commands.sh", ".lock"}


@pytest.mark.slow
def test_more_updates_train_on(copied: Path) -> None:
    done = quickstart(copied, UPDATES="6")
    assert "preprocess: done before, skipped" in done.stdout
    assert "train: continues from" in done.stdout
    assert re.search(r"Loaded checkpoint .*checkpoint_last.pt \(epoch \d+ @ 4 updates\)", done.stdout)
    assert "num_updates: 6 >= max_update: 6" in done.stdout
    assert "BLEU" in done.stdout


@pytest.mark.slow
def test_lost_translations_are_told(copied: Path) -> None:
    hypotheses = copied / "hypotheses.tgt"
    hypotheses.write_text("".join(hypotheses.read_text().splitlines(keepends=True)[:-1]))
    size = TOY_SIZES["test"]
    refused(quickstart(copied, check=False), f"{size} test sentences went in and {size - 1} translations")


@pytest.mark.slow
def test_other_settings_are_refused(copied: Path) -> None:
    refused(quickstart(copied, check=False, VOCAB="70"), "started with other settings")


@pytest.mark.slow
def test_head_flags_of_ones_own(tmp_path: Path) -> None:
    """The stock softmax, as in the README: no codebook unless it is asked for."""
    flags = "--arch transformer --criterion label_smoothed_cross_entropy --label-smoothing 0.1"
    printed = quickstart(tmp_path / "stock", HEAD_FLAGS=flags).stdout
    assert "mhe assign" not in printed and "--mhe-codebook" not in printed
    assert "BLEU" in printed
    flags = "--arch mhe_transformer --mhe-head product --criterion mhe_cross_entropy"
    printed = quickstart(tmp_path / "ours", HEAD_FLAGS=flags, ASSIGN_FLAGS="--by random").stdout
    assert re.search(r"\$ mhe assign .* --by random", printed)
    assert f"--mhe-head product --criterion mhe_cross_entropy --mhe-codebook {tmp_path}/ours/codes" in printed


def wait_for_another(path: Path, process: subprocess.Popen[bytes], seconds: float = 300) -> None:
    until, seen = time.monotonic() + seconds, path.stat().st_mtime_ns
    while not path.exists() or path.stat().st_mtime_ns == seen:
        assert process.poll() is None, f"ended before it wrote {path}"
        assert time.monotonic() < until, f"no {path} after {seconds} seconds"
        time.sleep(0.05)


@pytest.fixture
def running(copied: Path) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """A finished quickstart at work on more updates than it will be given time for."""
    with open(copied.parent / "printed", "wb") as printed:
        process = subprocess.Popen(
            [str(SCRIPT)],
            cwd=REPO,
            env=command_env(settings(copied, UPDATES="100000")),
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield copied, process
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """The script and every command it started, at once, with no time to tidy up."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
    command_forks.settle()


@pytest.mark.slow
def test_continues_after_kill(running: tuple[Path, subprocess.Popen[bytes]]) -> None:
    work, process = running
    last = work / "checkpoints" / "checkpoint_last.pt"
    wait_for_another(last, process)
    refused(quickstart(work, check=False), "another run is working in")
    # A save later than the first, so that there is a checkpoint to fall back on.
    wait_for_another(last, process)
    kill(process)
    printed = (work.parent / "printed").read_text()
    updates = max(map(int, re.findall(r"save checkpoint for epoch \d+ @ (\d+) updates", printed)))
    # And as if the kill had come while fairseq copied the checkpoint.
    last.write_bytes(last.read_bytes()[:5000])
    done = quickstart(work, UPDATES=str(updates + 3))
    assert "preprocess: done before, skipped" in done.stdout
    assert "checkpoint_last.pt is incomplete" in done.stdout
    assert "train: continues from" in done.stdout
    loaded = re.findall(r"Loaded checkpoint .*checkpoint_last.pt \(epoch \d+ @ (\d+) updates\)", done.stdout)
    assert len(loaded) == 1 and 0 < int(loaded[0]) <= updates
    assert "since the last interruption" in done.stdout and "BLEU" in done.stdout


@pytest.mark.slow
def test_commands_can_be_repeated_by_hand(copied: Path) -> None:
    wanted = (copied / "hypotheses.tgt").read_text()
    by_hand = copied.parent / "by hand.sh"
    # The folder is named in the commands: the copy's own list, with everything else gone.
    quickstart(copied)
    by_hand.write_text((copied / "commands.sh").read_text())
    shutil.rmtree(copied)
    done = run_command(["bash", str(by_hand)])
    assert (copied / "hypotheses.tgt").read_text() == wanted
    assert "BLEU" in done.stdout


@pytest.mark.slow
def test_unequal_lengths_end_it(tmp_path: Path) -> None:
    env = settings(tmp_path / "work")
    path = tmp_path / "corpus" / "train.tgt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    done = run_command([str(SCRIPT)], env=env, check=False)
    assert done.returncode == 1
    size = TOY_SIZES["train"]
    assert f"has {size} lines and" in done.stderr and f"has {size - 1};" in done.stderr
    assert not (tmp_path / "work" / "data").exists()


def test_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "data-bin").mkdir(parents=True)
    (work / "data-bin" / "mine").write_text("precious")
    refused(quickstart(work, check=False), "holds something other than a quickstart")
    assert [p.name for p in work.rglob("*")] == ["data-bin", "mine"]


def estimated(*flags: str, **env: str) -> str:
    """What the estimate says, without fairseq: it comes before the installation."""
    line = [str(SCRIPT), "--estimate", *flags]
    return run_command(line, env={"PATH": "/usr/bin:/bin", "VENV": "/nowhere", **env}).stdout


def test_the_estimate_is_of_the_settings(tmp_path: Path) -> None:
    here = {"QUICKSTART_DIR": str(tmp_path / "work")}

    def minutes(*flags: str, **env: str) -> int:
        found = re.fullmatch(r"quickstart: about (\d+) minutes on two .*\n", estimated(*flags, **here, **env))
        assert found is not None
        return int(found[1])

    assert minutes() <= 8 < minutes("--long")
    assert minutes(UPDATES="8000") > minutes()
    (tmp_path / ".installed").touch()
    assert minutes(VENV=str(tmp_path)) < minutes()
    assert "is not known" in estimated(**here, BATCH_FLAGS="--max-tokens 8192")
    assert not (tmp_path / "work").exists()
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "settings.txt").touch()
    assert "is skipped" in estimated(**here)


def test_make_says_the_estimate_first() -> None:
    line = ["make", "-n", "--no-print-directory", "quickstart", "QUICKSTART_FLAGS=--long"]
    lines = run_command(line).stdout.splitlines()
    assert lines[0] == "scripts/recipes/quickstart.sh --estimate --long"
    assert lines[-1].endswith("scripts/recipes/quickstart.sh --long")


def test_other_flags_are_refused(tmp_path: Path) -> None:
    done = run_command([str(SCRIPT), "--short"], env=settings(tmp_path / "work"), check=False)
    refused(done, "there is no flag --short; there are --long and --estimate")


def test_without_fairseq_says_what_to_do(tmp_path: Path) -> None:
    env = settings(tmp_path / "work", PATH="/usr/bin:/bin")
    refused(run_command([str(SCRIPT)], env=env, check=False), "make quickstart")
    assert not (tmp_path / "work").exists()


def stub(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    "pythons, said",
    [
        ({}, "Python 3.11 or 3.12 is needed and there is none"),
        # A launcher for a version that is not installed, and a version too new.
        ({"python3.11": "exit 127", "python3": "exit 1"}, "Python 3.11 or 3.12 is needed"),
        # Debian's Python without python3-venv: right version, no ensurepip.
        (
            {"python3.12": 'case "$2" in *ensurepip*) exit 1;; *print*) echo python3.12-venv;; esac'},
            "sudo apt-get install python3.12-venv",
        ),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, pythons: dict[str, str], said: str) -> None:
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    for name in ("bash", "env", "dirname"):
        (bin_dir / name).symlink_to(shutil.which(name) or f"/bin/{name}")
    for name, script in pythons.items():
        stub(bin_dir, name, script)
    env = {"PATH": str(bin_dir), "VENV": str(tmp_path / "venv"), "PYTHON": ""}
    done = run_command([str(REPO / "scripts" / "make_venv.sh")], env=env, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("make_venv.sh: error: ") and done.stderr.count("\n") == 1
    assert said in done.stderr and "sudo apt-get install" in done.stderr
    assert not (tmp_path / "venv").exists()
