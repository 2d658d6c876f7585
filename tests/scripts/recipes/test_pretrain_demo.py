"""scripts/recipes/pretrain_demo.py, run with tiny models: killed in the first training, and run again."""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scripts.common.commands import CommandError, Commands, Step
from scripts.common.curves import read_log
from scripts.recipes.watch import Watch
from scripts.study.report_pretrain import title, warning
from tests import command_forks
from tests.helpers import REPO, TOY_SIZES, command_env, resolve_command, run_command, write_toy_corpus

SCRIPT = ["python", str(REPO / "scripts" / "recipes" / "pretrain_demo.py")]
UPDATES = 60
STEPS = [
    *("text-train", "text-valid", "text-test", "prepare", "assign"),
    *("train-softmax", "train-cascade", "test-softmax", "test-cascade", "time"),
]


def flags(folder: Path, **more: str) -> list[str]:
    """Of a tiny demo in ``folder``/demo, its corpus beside it."""
    if not (folder / "corpus").exists():
        write_toy_corpus(folder / "corpus")
    values = {
        "out": str(folder / "demo"),
        "corpus": str(folder / "corpus"),
        "langs": "src,tgt",
        # fairseq's four, and every word.
        "words": "84",
        "updates": str(UPDATES),
        "validate-every": "10",
        "layers": "1",
        "dim": "16",
        "tokens": "512",
        **more,
    }
    return [word for key, value in values.items() for word in (f"--{key}", value)]


def demo(folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return run_command([*SCRIPT, *flags(folder, **more)], check=False)


def refused(done: subprocess.CompletedProcess[str], said: str) -> None:
    assert done.returncode == 1 and said in done.stderr, done.stderr
    assert done.stderr.startswith("pretrain_demo.py: error: ") and done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a demo that was killed while the softmax was trained, and what the second run printed."""
    folder = tmp_path_factory.mktemp("demo")
    process = subprocess.Popen(
        resolve_command([*SCRIPT, *flags(folder)], forked=True),
        cwd=REPO,
        env=command_env(),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    last = folder / "demo" / "softmax" / "checkpoints" / "checkpoint_last.pt"
    try:
        until = time.monotonic() + 900
        while not last.exists():
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.02)
    finally:
        # The script and the command it runs, at once.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        command_forks.settle()
    done = demo(folder)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return folder, done.stdout


def results(folder: Path) -> Any:
    return json.loads((folder / "demo" / "results.json").read_text())


@pytest.mark.slow
def test_continues_after_kill(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    for step in STEPS[:5]:
        assert f"{step}: done before, skipped" in printed
    assert f"continues from {folder}/demo/softmax/checkpoints/checkpoint_last.pt" in printed
    log = (folder / "demo" / "softmax" / "train.log").read_text()
    loaded = re.findall(r"Loaded checkpoint .*checkpoint_last.pt \(epoch \d+ @ (\d+) updates\)", log)
    assert len(loaded) == 1 and 0 < int(loaded[0]) < UPDATES
    # Each update counts once, in both.
    for name in ("softmax", "cascade"):
        read = read_log(folder / "demo" / name / "train.log", name)
        assert [point.update for point in read.training] == list(range(2, UPDATES + 1, 2))
        assert [point.update for point in read.validation] == list(range(10, UPDATES + 1, 10))
        seconds = [point.seconds for point in read.training]
        assert seconds == sorted(seconds) and 0 < seconds[-1] < 600


@pytest.mark.slow
def test_results_are_those_of_the_logs(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    found = results(folder)
    assert (found["updates"], found["seed"], found["vocabulary"]) == (UPDATES, 1, 88)
    assert found["command"].startswith(
        f"python scripts/recipes/pretrain_demo.py --updates {UPDATES} --corpus "
    )
    assert "torch 2" in found["machine"] and found["versions"]["ve-fairseq"]
    for name, row in found["models"].items():
        log = (folder / "demo" / name / "train.log").read_text()
        assert f'"valid_ppl": "{row["valid_ppl"]:g}"' in log
        scored = (folder / "demo" / name / "test.log").read_text()
        assert f"Perplexity: {row['test_ppl']:.2f}" in scored
        assert row["update_seconds"] == statistics.median(row["timed_seconds"])
        assert len(row["timed_seconds"]) == 30 and 50e6 < row["peak_bytes"] < 8e9
        # Learned something: 80 words of unequal frequency.
        assert row["test_ppl"] < 80
        printed_row = re.search(rf"^│ {name} .*$", printed, re.MULTILINE)
        assert printed_row and f" {row['test_ppl']:.1f} " in printed_row[0]
        assert f"{row['parameters']:,}" in printed_row[0]
    softmax, cascade = found["models"]["softmax"], found["models"]["cascade"]
    assert softmax["output_parameters"] == 88 * 16 < cascade["output_parameters"]
    # Every token of the test set, line ends too.
    tokens = (folder / "demo" / "prepared" / "tokens" / "test").read_text()
    assert tokens.count("\n") == 2 * TOY_SIZES["test"]
    assert softmax["test_tokens"] == len(tokens.split()) + tokens.count("\n")


@pytest.mark.slow
def test_sentence_stands_before_its_translation(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    lines = (folder / "demo" / "corpus" / "train").read_text().splitlines()
    assert len(lines) == 2 * TOY_SIZES["train"]
    assert all(a.upper().split() == b.split()[::-1] for a, b in zip(lines[::2], lines[1::2], strict=True))


@pytest.mark.slow
def test_picture_and_tensorboard(finished: tuple[Path, str]) -> None:
    work = finished[0] / "demo"
    data = (work / "curves.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    assert width == 1800 and 800 < height < 1400
    for name in ("softmax", "cascade"):
        events = EventAccumulator(str(work / "tensorboard" / name / "valid"))
        events.Reload()
        assert max(event.step for event in events.Scalars("ppl")) == UPDATES


@pytest.mark.slow
def test_second_run_does_nothing_again(finished: tuple[Path, str]) -> None:
    folder, first = finished
    work = folder / "demo"
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}
    contents = {name: (work / name).read_bytes() for name in ("commands.sh", "results.json", "curves.png")}
    done = demo(folder)
    assert done.returncode == 0, done.stderr
    for step in STEPS:
        assert f"{step}: done before, skipped" in done.stdout
    after = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}
    changed = {str(path.relative_to(work)) for path in after if after[path] != before.get(path)}
    assert changed <= {*contents, ".lock", "done/report"}
    assert contents == {name: (work / name).read_bytes() for name in contents}
    # The list has every command, the run only what there was to do; the table comes again.
    listed = contents["commands.sh"].decode().splitlines()
    assert sum(not line.startswith(("#", "set ", "export ")) for line in listed) == len(STEPS) + 1
    assert first[first.index("Cascade: ") :] == done.stdout[done.stdout.index("Cascade: ") :]
    refused(demo(folder, dim="32"), "was started with other dim")


@pytest.mark.slow
@pytest.mark.parametrize(
    "more, said",
    [
        ({"updates": "0"}, "--updates must be at least 1, got 0"),
        ({"validate-every": "-1"}, "--validate-every must be at least 1, got -1"),
        ({"tokens": "100"}, "--tokens must be at least 128, got 100"),
        ({"dim": "30"}, "--dim must be a multiple of 4, the attention heads, got 30"),
        ({"dropout": "1"}, "--dropout must be at least 0 and below 1, got 1.0"),
        ({"langs": "src,fr"}, "there is no train.fr or train.fr.xz in "),
        ({"words": "0"}, "--words must be at least"),
    ],
)
def test_bad_values(tmp_path: Path, more: dict[str, str], said: str) -> None:
    refused(demo(tmp_path, **more), said)
    assert not (tmp_path / "demo").exists()


def test_unknown_flags(tmp_path: Path) -> None:
    done = demo(tmp_path, head="mixture")
    assert done.returncode == 2 and "unrecognized arguments: --head mixture" in done.stderr


def test_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "mine").write_text("precious")
    refused(demo(tmp_path), "demo holds something else; give --out an empty or new folder")
    assert [path.name for path in (tmp_path / "demo").iterdir()] == ["mine"]
    (tmp_path / "file").write_text("precious")
    refused(demo(tmp_path, out=str(tmp_path / "file")), "file is not a folder")


def test_without_matplotlib_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError")
    env = {"PYTHONPATH": f"{tmp_path}:{REPO}"}
    done = run_command([*SCRIPT, *flags(tmp_path)], check=False, env=env)
    refused(done, "matplotlib is not installed; run 'make pretrain-demo'")
    assert not (tmp_path / "demo").exists()


class TestCommands:
    def commands(self, folder: Path) -> tuple[Commands, list[str]]:
        said: list[str] = []
        return Commands(folder, {"dim": 1}, said.append), said

    def test_failed_command_is_told(self, tmp_path: Path) -> None:
        commands, _ = self.commands(tmp_path / "work")
        out = tmp_path / "work" / "log"
        words = ["python", "-c", "import sys; print('first', flush=True); sys.exit('the reason')"]
        for append, written in ((True, out), (False, out.with_name("log.tmp"))):
            with pytest.raises(CommandError, match=rf"^bad: .* status 1; see {written}: the reason$"):
                commands.run(Step("bad", words, out, out, append))
        with pytest.raises(CommandError, match="^bad: .* its message is above$"):
            commands.run(Step("bad", ["false"], out))
        with pytest.raises(CommandError, match="^lazy: the command succeeded, but did not write .*thing$"):
            commands.run(Step("lazy", ["true"], tmp_path / "thing"))

    def test_steps_after_one_that_ran_run_too(self, tmp_path: Path) -> None:
        steps = [Step(name, ["touch", str(tmp_path / name)], tmp_path / name) for name in "ab"]
        for gone, ran in (
            ((), [True, True]),
            ((), [False, False]),
            (("a",), [True, True]),
            (("b",), [False, True]),
        ):
            for name in gone:
                (tmp_path / name).unlink()
            commands, said = self.commands(tmp_path / "work")
            assert [commands.run(step) for step in steps] == ran
            commands.lock.close()
        assert said == ["a: done before, skipped", f"\n$ touch {tmp_path}/b"]

    def test_one_run_at_a_time(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        commands, _ = self.commands(tmp_path / "work")
        monkeypatch.setattr(time, "sleep", lambda _: monkeypatch.setattr(time, "monotonic", lambda: 1e12))
        with pytest.raises(CommandError, match="another run is working in .*work;"):
            self.commands(tmp_path / "work")
        commands.lock.close()


@pytest.mark.parametrize(
    "seconds, said",
    [(2.0, "2.0x slower than"), (0.25, "4.0x faster than"), (1.01, "as fast as")],
)
def test_title_says_which_way_it_went(seconds: float, said: str) -> None:
    models = {
        "softmax": {"update_seconds": 1.0, "test_ppl": 100.0},
        "cascade": {"update_seconds": seconds, "test_ppl": 120.0},
    }
    assert (
        title({"models": models}) == f"Cascade: updates {said} the softmax's, test perplexity 120 against 100"
    )


def test_uneven_load_is_told() -> None:
    """Twice the time of an update while training, or a bit more, for one model; four times for the other."""
    row = {"updates": 10, "update_seconds": 1.0, "training_seconds": 20.0}
    for seconds, told in ((25.0, False), (40.0, True)):
        models = {"softmax": row, "cascade": {**row, "training_seconds": seconds}}
        assert ("slowed the trainings unequally" in warning({"models": models})) is told


def test_watch_tells_of_validations(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    old = '{"valid_ppl": "9", "valid_num_updates": "10"}\n'
    log.write_text(old)
    console = Console(file=open(tmp_path / "printed", "w+"), width=80)
    with Watch(log, "cascade", 20, console) as watch:
        log.write_text(old + '{"valid_ppl": "8", "valid_num_up')
        watch()
        log.write_text(old + '{"valid_ppl": "8", "valid_num_updates": "20"}\n{"cut short\n')
        watch()
    console.file.flush()
    assert (tmp_path / "printed").read_text() == "cascade: 20 updates: validation perplexity 8\n"
