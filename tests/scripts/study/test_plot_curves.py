"""curves.py and plot_curves.py of the scripts: what is read of a log, and what is drawn of it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from scripts.common.curves import Curve, LogError, Point, read_log
from scripts.study.plot_curves import COLOURS, DPI, WIDTH, PlotError, draw
from tests.helpers import REPO, run_command

STAMP = "2026-01-01 00:00:00 | INFO | "


def batches(update: int, ppl: float, wps: float = 100.0, wpb: float = 50.0) -> str:
    values = {"epoch": 1, "loss": "9", "ppl": str(ppl), "wps": str(wps), "wpb": str(wpb)}
    return f"{STAMP}train_inner | {json.dumps({**values, 'num_updates': str(update), 'wall': '7'})}\n"


def valid(update: int, ppl: float) -> str:
    values = {"epoch": 1, "valid_loss": "9", "valid_ppl": str(ppl), "valid_num_updates": str(update)}
    return f"{STAMP}valid | {json.dumps(values)}\n"


def write(folder: Path, *lines: str) -> Path:
    path = folder / "train.log"
    path.write_text("".join(lines))
    return path


def curve(name: str, *points: tuple[int, float, float]) -> Curve:
    made = [Point(*point) for point in points]
    return Curve(name, made, made)


SLOW = curve("softmax", (10, 10.0, 400.0), (20, 20.0, 100.0), (30, 30.0, 50.0))
FAST = curve("cascade", (10, 4.0, 200.0), (20, 8.0, 50.0), (30, 12.0, 40.0))


def test_seconds_are_those_of_the_updates(tmp_path: Path) -> None:
    """A batch of 50 words at 100 words a second takes half a second; a validation lies between two lines."""
    log = write(tmp_path, batches(10, 300), batches(20, 200, wps=50), valid(15, 120), valid(20, 110))
    read = read_log(log, "softmax")
    assert read.name == "softmax"
    assert read.training == [Point(10, 5.0, 300.0), Point(20, 15.0, 200.0)]
    assert read.validation == [Point(15, 10.0, 120.0), Point(20, 15.0, 110.0)]


def test_validation_after_the_last_line(tmp_path: Path) -> None:
    read = read_log(write(tmp_path, batches(10, 300), valid(14, 120)), "softmax")
    assert read.validation == [Point(14, 7.0, 120.0)]


def test_resumed_log_counts_an_update_once(tmp_path: Path) -> None:
    """Killed after 30 updates, the last of them lost, in the middle of a line; resumed after 20 of them."""
    log = write(
        tmp_path,
        *(batches(10, 300), batches(20, 200), valid(20, 150), batches(30, 170, wps=10), valid(30, 140)),
        STAMP + 'train_inner | {"epoch": 1, "lo',
        # Python's first line goes on where the cut one ended.
        *(
            f"{STAMP}fairseq.trainer | Loaded checkpoint\n",
            batches(30, 160),
            valid(30, 130),
            batches(40, 150),
        ),
        *(valid(40, 120), f'{STAMP}train | {{"epoch": 1, "train_ppl": "1", "train_num_updates": "40"}}\n'),
    )
    read = read_log(log, "cascade")
    assert read.training == [
        Point(10, 5.0, 300.0),
        Point(20, 10.0, 200.0),
        Point(30, 15.0, 160.0),
        Point(40, 20.0, 150.0),
    ]
    assert [(point.update, point.perplexity) for point in read.validation] == [
        (20, 150),
        (30, 130),
        (40, 120),
    ]


def test_cut_line_does_not_hide_the_next(tmp_path: Path) -> None:
    log = write(tmp_path, STAMP + 'train_inner | {"epoch": 1, "lo', batches(10, 300), valid(10, 150))
    assert read_log(log, "cascade").training == [Point(10, 5.0, 300.0)]


def test_log_files_of_fairseq_repeat_lines(tmp_path: Path) -> None:
    """``--log-file`` has no time before the JSON, and writes a line once for each progress bar so far."""
    bare = [line[line.index("{") :] for line in (batches(10, 300), valid(10, 150))]
    log = write(tmp_path, bare[0], *(bare[1:] * 3))
    assert read_log(log, "x") == read_log(write(tmp_path, batches(10, 300), valid(10, 150)), "x")


def test_losses_without_perplexity(tmp_path: Path) -> None:
    """Base 2; under label smoothing the loss is no likelihood, and nll_loss is."""
    lines = [
        {"loss": "3", "wps": "0", "wpb": "1", "num_updates": "1"},
        {"valid_loss": "9", "valid_nll_loss": "4", "valid_num_updates": "1"},
    ]
    read = read_log(write(tmp_path, *(json.dumps(line) + "\n" for line in lines)), "x")
    assert read.training == [Point(1, 0.0, 8.0)] and read.validation == [Point(1, 0.0, 16.0)]


def test_logs_that_tell_nothing(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"there is no log .*none\.log"):
        read_log(tmp_path / "none.log", "x")
    with pytest.raises(LogError, match="has no lines of training"):
        read_log(write(tmp_path, "free text {\n", "{}\n"), "x")
    with pytest.raises(LogError, match="has no lines of validation"):
        read_log(write(tmp_path, batches(10, 300)), "x")


def test_where_a_curve_reaches_a_perplexity() -> None:
    assert FAST.reaches(50) == Point(20, 8.0, 50.0)
    # Half way from 200 to 50 in the logarithm.
    there = FAST.reaches(100)
    assert there is not None and (there.update, round(there.seconds, 9)) == (15, 6.0)
    assert FAST.reaches(1000) == FAST.validation[0]
    assert FAST.reaches(39) is None
    assert SLOW.best == SLOW.validation[-1]


def texts(figure: Figure) -> list[str]:
    parts: list[Figure | Axes] = [figure, *figure.axes]
    return [text.get_text() for part in parts for text in part.texts]


def test_figure_names_each_curve_where_it_ends() -> None:
    figure = draw([SLOW, FAST], "A title", "and more", [["of", "a"], ["softmax", "1"], ["cascade", "2"]])
    assert figure.get_size_inches()[0] == WIDTH and figure.dpi == DPI
    assert len(figure.axes) == 2
    for axes in figure.axes:
        labels = [text for text in axes.texts if isinstance(text, Annotation) and " " in text.get_text()]
        named = {text.get_text(): text for text in labels}
        assert {"softmax 50.0", "cascade 40.0"} <= set(named)
        assert [named[key].get_color() for key in ("softmax 50.0", "cascade 40.0")] == list(COLOURS[:2])
        assert axes.get_yscale() == "log"
    assert [axes.get_xlabel().split()[0] for axes in figure.axes] == ["updates", "seconds"]
    # As good as the softmax's 50 after 8 seconds in place of 30.
    assert "as good, 3.8x sooner" in texts(figure)
    assert {"A title", "and more", "of", "1", "2"} <= set(texts(figure))


def test_labels_keep_apart() -> None:
    close = curve("cascade", (10, 10.0, 400.0), (30, 30.0, 50.1))
    figure = draw([SLOW, close], "A title")
    figure.canvas.draw()
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts if text.get_text()[-4:] in ("50.0", "50.1")]
        assert len(boxes) == 2 and not boxes[0].overlaps(boxes[1])
        # And inside the picture.
        assert all(box.x1 <= figure.bbox.x1 for box in boxes)


def test_no_arrow_for_a_curve_that_is_never_as_good() -> None:
    assert not any("sooner" in text for text in texts(draw([FAST, SLOW], "A title")))


def test_tables_and_curves_that_do_not_fit() -> None:
    with pytest.raises(PlotError, match="a row for each curve"):
        draw([SLOW, FAST], "", "", [["of"], ["softmax"]])
    with pytest.raises(PlotError, match="at most 7 curves"):
        draw([SLOW] * 8, "")


def command(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    script = str(REPO / "scripts" / "study" / "plot_curves.py")
    return run_command(["python", script, *words], env=env, check=False)


def test_command_writes_a_png(tmp_path: Path) -> None:
    log = write(tmp_path, batches(10, 300), valid(10, 150), batches(20, 200), valid(20, 100))
    out = tmp_path / "folder" / "curves.png"
    done = command(f"a={log}", f"b={log}", "--out", str(out), "--title", "A title")
    assert done.returncode == 0, done.stderr
    data = out.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(data[16:20], "big") == WIDTH * DPI


@pytest.mark.slow
def test_bad_input_of_the_command(tmp_path: Path) -> None:
    log = write(tmp_path, batches(10, 300), valid(10, 150))
    for words, said in (
        ((str(log),), "expected NAME=LOG"),
        ((f"a={log}", f"a={log}"), "each name once"),
        ((f"a={tmp_path / 'none'}",), "there is no log"),
        ((f"a={log}", "--out", str(tmp_path / "curves.no-such-format")), "no-such-format"),
    ):
        done = command(*words)
        assert done.returncode == 1 and said in done.stderr, done.stderr
        assert done.stderr.startswith("plot_curves.py: error: ") and done.stderr.count("\n") == 1


def test_without_matplotlib_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError")
    log = write(tmp_path, batches(10, 300), valid(10, 150))
    done = command(f"a={log}", PYTHONPATH=f"{tmp_path}:{REPO}")
    assert done.returncode == 1 and "matplotlib is not installed; install it with: pip" in done.stderr
