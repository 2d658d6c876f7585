"""examples/classification: trainings on a few letters, alone and by two processes, their resuming and their
comparison, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch

from scripts.data import glyphs
from tests.helpers import REPO, command_env, resolve_command, run_command
from tests.ranks import free_port

# Models are trained, or commands run, for nearly all of these.
pytestmark = pytest.mark.slow

HERE = REPO / "examples" / "classification"
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
SMALL = ["--epochs", "2", "--batch", "24", "--size", "16", "--widths", "4,8", "--dim", "8", "--workers", "0"]
SMALL += ["--device", "cpu"]
#: Without anything that hangs on how a batch is divided.
DIVIDED = ["--norm", "group", "--augment", "0"]

Run = subprocess.CompletedProcess[str]


def make_images(out: Path, *more: str) -> Path:
    """16 letters in training, validation and test, 6 others for verification."""
    fonts = [f"DejaVu{each}.ttf" for each in ("Sans", "Sans-Bold", "Serif", "Serif-Bold", "SansMono")]
    tests = [f"DejaVu{each}.ttf" for each in ("Sans-Oblique", "SansMono-Oblique", "Serif-Italic")]
    args = ["--fonts", *(str(FONTS / each) for each in fonts[:4]), "--valid-fonts", str(FONTS / fonts[4])]
    args += ["--test-fonts", *(str(FONTS / each) for each in tests), "--from", "0430-044F"]
    assert (
        glyphs.main([*args, "--count", "16", "--unseen", "6", "--size", "16", "--out", str(out), *more]) == 0
    )
    return out


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("letters") / "images")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("folders") / "images", "--png")


def train(data: Path, out: Path, *more: str, check: bool = True) -> Run:
    line = ["python", str(HERE / "train.py"), "--data", str(data), "--out", str(out), *SMALL, *more]
    return run_command(line, check=check)


def train_on_two(data: Path, out: Path, *more: str) -> None:
    """As torchrun starts them."""
    line = ["python", str(HERE / "train.py"), "--data", str(data), "--out", str(out), *SMALL, *more]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    running = [
        subprocess.Popen(
            resolve_command(line, forked=True),
            cwd=REPO,
            env=command_env({**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [each.communicate(timeout=600)[0] for each in running]
    assert not any(each.returncode for each in running), "\n".join(text[-4000:] for text in said)


def result(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "result.json").read_text())
    return found


def state(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(out / "checkpoint.pt", weights_only=True)
    return found


def assert_same(one: Path, two: Path) -> None:
    """Weights, and what the optimisers keep."""
    a, b = state(one), state(two)
    for part in ("network", "head"):
        assert a[part].keys() == b[part].keys()
        for name, value in a[part].items():
            torch.testing.assert_close(value, b[part][name], rtol=2e-3, atol=2e-4, msg=name)
    for part in ("network", "head"):
        kept = [each["optimisers"][part]["state"] for each in (a, b)]
        assert kept[0].keys() == kept[1].keys() and kept[0]
        for number, values in kept[0].items():
            torch.testing.assert_close(values["exp_avg"], kept[1][number]["exp_avg"], rtol=2e-3, atol=2e-4)


# ---- one process


def test_a_training_its_verification_and_a_comparison(letters: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    done = train(letters, one)
    assert "64 images of 16 classes; valid 16, test 48" in done.stdout
    arc = train(
        letters,
        two,
        "--head",
        "sampling",
        "--margin",
        "arcface",
        "--scale",
        "16",
        "--lr",
        "0.03",
        "--epochs",
        "8",
    )
    log = [json.loads(line) for line in (two / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in log] == list(range(1, 9)) and "sampling" in arc.stdout
    assert log[-1]["loss"] < log[0]["loss"]
    assert list(two.glob("events.out.tfevents.*"))
    found = result(two)
    assert found["parameters"] == 16 * 8 and 0 <= found["test_1"] <= found["test_5"] <= 100
    # 1 of 16 is 6%.
    assert found["valid_5"] > 40
    done = run_command(["python", str(HERE / "verify.py"), "--data", str(letters), "--run", str(two)])
    assert "18 images of 6 classes, 18 and 135 pairs" in done.stdout and "too few" in done.stdout
    picture = tmp_path / "picture.png"
    line = ["python", str(HERE / "compare.py"), f"a={one}", f"b={two}", "--out", str(picture)]
    record = tmp_path / "record.json"
    record.write_text('{"about": "kept"}')
    line += ["--record", str(record)]
    said = run_command(line).stdout
    assert picture.stat().st_size > 10_000
    rows = [each.split(" | ") for each in said.splitlines() if each.startswith("|")]
    assert [row[0] for row in rows] == ["| training", "| ---", "| a", "| b"]
    written = json.loads(record.read_text())
    assert written["about"] == "kept" and written["rows"][1]["test_1"] == found["test_1"]
    assert rows[3][1] == "128" and rows[3][2] == f"{found['test_1']:.2f}"
    # Two folders of a name are two seeds.
    said = run_command([*line[:2], f"both={one},{two}", "--record", str(record)]).stdout
    (row,) = json.loads(record.read_text())["rows"]
    other = result(one)["test_1"]
    assert row["test_1"] == pytest.approx([(found["test_1"] + other) / 2, abs(found["test_1"] - other) / 2])
    assert row["parameters"] == 128 and "tar_0.01" not in row
    assert f" | {row['test_1'][0]:.2f} +-{row['test_1'][1]:.2f} | " in said


@pytest.mark.parametrize("head", ["product", "mixture", "cascade"])
def test_other_heads(letters: Path, tmp_path: Path, head: str) -> None:
    train(letters, tmp_path, "--head", head, "--order", "random", "--label-smoothing", "0.1")
    assert result(tmp_path)["head"] == head


def test_classes_whose_images_are_alike_share_their_first_digits(
    letters: Path, folders: Path, tmp_path: Path
) -> None:
    """Of folders, one with a file that is no image, too; and a cascade with rows of its groups."""
    shutil.copytree(folders, tmp_path / "data")
    broken = sorted((tmp_path / "data" / "train").rglob("*.png"))[0]
    broken.write_bytes(b"no image")
    code = """
import json, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import torch, images, layers
split = images.Archive(Path(sys.argv[2]) / "train.npz")
order = torch.randperm(len(split), generator=torch.Generator().manual_seed(1))
split.images, split.labels = split.images[order], split.labels[order]
few = images.class_means(split, 0, most=2, size=4)
bar = torch.arange(8).view(1, 8, 1) // 2 == split.labels.view(-1, 1, 1).fmod(4)
split.images = bar.expand(-1, 8, 8).byte() * 255
args = layers.argparse.Namespace(order="clusters", lengths="4,4", seed=1, workers=0)
book = layers.codebook_for(args, 16, split)
print(json.dumps([few.shape, few.sum(0).abs().max().item(), (book.slots // 4).tolist()]))
"""
    done = run_command(["python", "-c", code, str(HERE), str(letters)])
    shape, most, groups = json.loads(done.stdout)
    assert shape == [16, 16] and most < 1e-2
    assert all(groups[place] == groups[place % 4] for place in range(16)) and len(set(groups)) == 4
    train(letters, tmp_path / "out", "--head", "cascade", "--order", "clusters", "--prototypes", "2")
    assert result(tmp_path / "out")["parameters"] == 16 * 8 + 4 * 2 * (8 + 1)
    said = train(tmp_path / "data", tmp_path / "two", "--head", "cascade", "--order", "clusters").stdout
    assert f"images that could not be read, left out: 1: {broken}" in said


def test_an_interrupted_training_goes_on(letters: Path, tmp_path: Path) -> None:
    """The same weights and the same log, times apart, as without the interruption."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    more = ("--head", "sampling", "--exact-epochs", "1")
    train(letters, whole, *more)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import train; run = train.Training.run_epoch\n"
        "def stopping(self):\n    if self.epoch == 1: sys.exit(9)\n    return run(self)\n"
        "train.Training.run_epoch = stopping; train.main(sys.argv[2:])"
    )
    line = ["python", "-c", code, str(HERE), "--data", str(letters), "--out", str(parts), *SMALL, *more]
    assert run_command(line, check=False).returncode == 9
    assert state(parts)["progress"]["epoch"] == 1
    train(letters, parts, *more)
    assert_same(whole, parts)
    logs = [
        [json.loads(line) for line in (each / "log.jsonl").read_text().splitlines()]
        for each in (whole, parts)
    ]
    assert [line["loss"] for line in logs[0]] == pytest.approx([line["loss"] for line in logs[1]])
    # Other arguments would be another training.
    done = train(letters, parts, *more, "--lr", "0.5", check=False)
    assert done.returncode == 1 and "other arguments (lr 0.002 -> 0.5)" in done.stderr


# ---- two processes


def test_two_processes_are_one(letters: Path, tmp_path: Path) -> None:
    train(letters, tmp_path / "one", *DIVIDED)
    train_on_two(letters, tmp_path / "two", *DIVIDED)
    assert_same(tmp_path / "one", tmp_path / "two")
    assert result(tmp_path / "one")["test_1"] == pytest.approx(result(tmp_path / "two")["test_1"], abs=4.2)


def test_a_split_table_with_a_margin_is_a_whole_one(letters: Path, tmp_path: Path) -> None:
    """Two processes with half of the table each; what they wrote is read by two, and by one."""
    one, two = tmp_path / "one", tmp_path / "two"
    more = [*DIVIDED, "--head", "sampling", "--margin", "arcface", "--scale", "8", "--exact-epochs", "2"]
    train(letters, one, *more)
    train_on_two(letters, two, *more, "--shard")
    assert_same(one, two)
    before = result(two)
    train_on_two(letters, two, *more, "--shard")
    assert {**result(two), "args": 0} == {**before, "args": 0}
    train(letters, two, *more)
    assert result(two)["test_1"] == pytest.approx(before["test_1"])


# ---- folders, bad input


def test_folders_with_what_is_wrong_in_them(folders: Path, tmp_path: Path) -> None:
    """Counted and named, and the training goes on with the rest."""
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(folders, data)
    classes = sorted((data / "train").iterdir())
    for file in sorted(classes[0].iterdir())[1:]:
        file.unlink()
    broken = sorted(classes[1].iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:40])
    (data / "train" / "empty").mkdir()
    (data / "test" / "another").mkdir()
    shutil.copy(sorted(classes[2].iterdir())[0], data / "test" / "another" / "a.png")
    said = train(data, out).stdout
    assert f"classes with one image: 1: {classes[0].name}" in said
    assert "classes without an image, left out: 1: empty" in said
    assert "test: 1 images left out, of classes not in training: 1: another" in said
    assert f"images that could not be read, left out: 1: {broken}" in said
    assert result(out)["classes"] == 16
    line = ["python", str(HERE / "verify.py"), "--data", str(data), "--run", str(out), "--workers", "0"]
    assert "18 images of 6 classes" in run_command(line).stdout
    seen = run_command([*line, "--split", "valid"], check=False)
    assert "classes that the training has seen, compared all the same: 16" in seen.stdout
    assert seen.returncode == 1 and "verification needs both" in seen.stderr


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data", "{tmp}"], "has no train images; it should have train.npz"),
        (["--data", "{tmp}/empty"], "has no classes; it should have a folder for each"),
        (["--data", "{tmp}/damaged"], "train.npz is not an archive of images, labels and classes"),
        (["--head", "cascade", "--margin", "cosface"], "--margin is for --head softmax or sampling"),
        (["--head", "product", "--shard"], "--shard is for --head cascade or sampling; got --head product"),
        (["--head", "sampling", "--shard"], "--shard splits the table over processes, and there is one"),
        (["--prototypes", "2"], "--prototypes is for --head cascade; got 2 for --head softmax"),
        (["--head", "sampling", "--groups", "9"], "groups must be 1..3, got 9"),
        (["--margin", "arcface", "--scale", "0"], "scale is a number above 0"),
        (["--lengths", "2,2"], "16"),
        (["--device", "cuda"], "--device cuda needs a GPU"),
    ],
)
def test_bad_input(letters: Path, tmp_path: Path, more: list[str], message: str) -> None:
    (tmp_path / "empty" / "train").mkdir(parents=True)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "train.npz").write_bytes(b"PK not an archive")
    done = train(letters, tmp_path / "out", *(each.format(tmp=tmp_path) for each in more), check=False)
    assert done.returncode == 1, done.stdout
    said = [line for line in done.stderr.splitlines() if "error" in line]
    assert len(said) == 1 and said[0].startswith("train.py: error: ") and message in said[0], done.stderr
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_is_not_trained_over(letters: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"damaged")
    done = train(letters, tmp_path, check=False)
    assert done.returncode == 1 and "is damaged or no checkpoint of this program" in done.stderr
    assert (tmp_path / "checkpoint.pt").read_bytes() == b"damaged"


# ---- rates, times


def test_rates_by_hand() -> None:
    """Four images of two classes: pairs of one class at cosines 1 and 0, of two at 0.6, 0.6, 0.8 and 0.8."""
    code = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch, verify
x = torch.tensor([[1, 0, 0], [1, 0, 0], [0.6, 0.8, 0], [0.8, -0.6, 0]])
x, y = torch.nn.functional.normalize(x), torch.tensor([5, 5, 2, 2])
rates, same, other = verify.accept_rates(x, y, (0.0, 0.5, 1.0))
print(json.dumps([rates, same, other, verify.rank_1(x, y)]))
"""
    rates, same, other, rank_1 = json.loads(run_command(["python", "-c", code, str(HERE)]).stdout)
    # One pair of one class is above all others, and one below.
    assert (same, other) == (2, 4) and rates == [50.0, 50.0, 100.0]
    # The second image of class 5 is as its first; that of class 2 is nearer to the other class's.
    assert rank_1 == 50.0


def test_times_of_layers() -> None:
    line = [
        "python",
        str(HERE / "time_layer.py"),
        "--classes",
        "60",
        "--dim",
        "8",
        "--batch",
        "4",
        "--rounds",
        "1",
    ]
    done = run_command([*line, "--heads", "softmax", "sampling+arcface", "mixture"])
    assert [row.split(" | ")[0] for row in done.stdout.splitlines()[3:]] == [
        "| softmax",
        "| sampling+arcface",
        "| mixture",
    ]
    done = run_command([*line, "--heads", "soft"], check=False)
    assert done.returncode == 1 and "got 'soft'" in done.stderr
