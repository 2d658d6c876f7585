"""Shared by tests that run commands for real."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests import command_forks
from tests.command_forks import BIN, REPO

TOY_SOURCE, TOY_TARGET = "src", "tgt"
TOY_SIZES = {"train": 200, "valid": 30, "test": 30}


def command_env(extra: Mapping[str, str] | None = None, forked: bool = True) -> dict[str, str]:
    """The environment commands run in: this interpreter's scripts, this checkout's package, one thread.

    With ``forked`` fairseq's commands, ``mhe`` and ``python`` are clients of a process that forks them
    (``command_forks``). A test that kills one calls ``command_forks.settle`` before it looks at what is left.

    One thread because several tests run at once on few cores, and because sums of floats then always
    come out the same.
    """
    env = dict(os.environ)
    paths = [str(REPO), env.get("PYTHONPATH", "")]
    env["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    env["OMP_NUM_THREADS"] = "1"
    env["PYTHONWARNINGS"] = "ignore"
    # Commands would compile the package each for itself.
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    # A user's workaround must not hide a checkpoint that does not load by itself.
    env.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    folders = [command_forks.clients(env)] if forked else []
    env["PATH"] = os.pathsep.join([*map(str, folders), str(BIN), env.get("PATH", "")])
    env.update(extra or {})
    return env


def resolve_command(args: Sequence[str | os.PathLike[str]], forked: bool = False) -> list[str]:
    """``args`` as strings, the first one a script of BIN's, or with ``forked`` a client."""
    line = [os.fspath(arg) for arg in args]
    if "/" not in line[0]:
        for folder in [command_forks.clients(command_env()), BIN] if forked else [BIN]:
            if (folder / line[0]).exists():
                line[0] = str(folder / line[0])
                break
    return line


def run_command(
    args: Sequence[str | os.PathLike[str]],
    cwd: str | os.PathLike[str] | None = None,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    timeout: float = 600,
    stdin: str | None = None,
    merged: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return what it said (``stdout``, ``stderr``, ``returncode``).

    Args:
        args: the command; a bare first word (``python``, ``fairseq-train``) means the script of the
            interpreter that runs the tests.
        cwd: where to run it (default: the repository).
        check: fail, showing what the command printed, when it exits non-zero.
        env: variables to add.
        timeout: seconds.
        stdin: text to feed it.
        merged: all it says is in ``stdout``, in its order.
    """
    done = subprocess.run(
        resolve_command(args, forked=True),
        cwd=REPO if cwd is None else cwd,
        env=command_env(env),
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if merged else subprocess.PIPE,
        text=True,
        errors="replace",
        timeout=timeout,
    )
    if check and done.returncode != 0:
        raise AssertionError(
            f"exit {done.returncode}: {' '.join(done.args)}\n"
            f"stdout: {done.stdout[-8000 if merged else -4000 :]}\nstderr: {(done.stderr or '')[-8000:]}"
        )
    return done


def write_toy_corpus(folder: Path, sizes: Mapping[str, int] = TOY_SIZES, seed: int = 0) -> None:
    """A language of 40 words whose translation is every word in capitals, the order reversed.

    Writes ``{train,valid,test}.{src,tgt}``. Words have Zipf-like frequencies, as real ones have.
    """
    rng = random.Random(seed)
    words = [f"{a}{b}" for a in "bdfgklmn" for b in "aeiou"]
    weights = [1 / (rank + 1) for rank in range(len(words))]
    folder.mkdir(parents=True, exist_ok=True)
    for split, size in sizes.items():
        lines = [rng.choices(words, weights, k=rng.randint(2, 9)) for _ in range(size)]
        for side, order in ((TOY_SOURCE, 1), (TOY_TARGET, -1)):
            text = [" ".join(line[::order]) for line in lines]
            if side == TOY_TARGET:
                text = [line.upper() for line in text]
            (folder / f"{split}.{side}").write_text("\n".join(text) + "\n", encoding="utf-8")


def make_toy_data(folder: Path) -> Path:
    """``write_toy_corpus`` binarised by fairseq-preprocess; returns the data-bin folder.

    One dictionary for both sides, so that every way of sharing embeddings can be tried. The plain text
    lies in ``folder/text``.
    """
    text, data = folder / "text", folder / "data-bin"
    write_toy_corpus(text)
    run_command(
        ["fairseq-preprocess", "-s", TOY_SOURCE, "-t", TOY_TARGET, "--joined-dictionary"]
        + [f"--{split}pref={text / split}" for split in TOY_SIZES]
        + ["--destdir", str(data), "--workers", "1"],
        cwd=folder,
    )
    return data
