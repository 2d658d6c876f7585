"""Commands run one after the other, each once: printed, listed for repeating by hand, skipped when done."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from scripts.common.files import write_whole

#: What every command of fairseq is run with.
ENVIRONMENT = {
    # Threads that wait sleep: spinning, they would slow training tenfold where other programs want the cores.
    "OMP_WAIT_POLICY": "passive",
    # fairseq makes hydra warn at length about its own use of it.
    "PYTHONWARNINGS": "ignore::UserWarning",
}


#: Where every command runs.
ROOT = Path(__file__).resolve().parent.parent.parent


class CommandError(Exception):
    """A command that failed, or a folder that cannot be used, said in one sentence."""


@dataclass(frozen=True)
class Step:
    """A command, and what it makes.

    Attributes:
        name: of the step.
        words: the command.
        makes: a file or folder that is there when it is done.
        output: a file that takes what it prints, errors too; None: the terminal does.
        append: keep what that file had before.
    """

    name: str
    words: list[str]
    makes: Path
    output: Path | None = None
    append: bool = False

    def __str__(self) -> str:
        """As typed in a shell."""
        line = shlex.join(self.words)
        if self.output is None:
            return line
        target = shlex.quote(str(self.output))
        return f"{line} {'>>' if self.append else '>'} {target} 2>&1"

    @property
    def written(self) -> Path | None:
        """The file that is written while the command runs: a new one has its name only when it is whole."""
        if self.output is None or self.append:
            return self.output
        return self.output.with_name(self.output.name + ".tmp")


class Commands:
    """The steps of one folder.

    A step is skipped when it was done before with the same words and all steps before it were skipped too.

    Args:
        folder: where everything is written.
        settings: what may not change between two runs in one folder.
        say: prints a line.

    Raises:
        CommandError: the folder holds something else, or was started with other settings, or is in use.
    """

    def __init__(self, folder: Path, settings: dict[str, object], say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say
        self.redo = False
        mark = folder / "settings.json"
        if folder.exists() and not folder.is_dir():
            raise CommandError(f"{folder} is not a folder; give another --out")
        # A run killed at its very beginning leaves the lock alone.
        if folder.is_dir() and {path.name for path in folder.iterdir()} - {".lock"} and not mark.is_file():
            raise CommandError(f"{folder} holds something else; give --out an empty or new folder")
        folder.mkdir(parents=True, exist_ok=True)
        # Held by the commands too: one that outlived a killed run must end before another begins.
        self.lock = open(folder / ".lock", "w")  # noqa: SIM115
        self._take()
        self._check(mark, settings)
        self.list = folder / "commands.sh"
        exports = " ".join(f"{name}={value}" for name, value in ENVIRONMENT.items())
        self.list.write_text(
            "# Every command, in order. Run from the root of the repository, after\n"
            f"# source .venv/bin/activate\nset -e\nexport {exports}\n"
        )

    def _take(self, seconds: float = 8) -> None:
        until = time.monotonic() + seconds
        while True:
            try:
                return fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if time.monotonic() > until:
                    raise CommandError(
                        f"another run is working in {self.folder}; wait for it, or give another --out"
                    ) from None
                time.sleep(0.2)

    def _check(self, mark: Path, settings: dict[str, object]) -> None:
        if mark.is_file():
            try:
                found = json.loads(mark.read_text(encoding="utf-8"))
            except ValueError:
                raise CommandError(f"{mark} is damaged; remove {self.folder} to start again") from None
            changed = sorted(key for key in {*settings, *found} if settings.get(key) != found.get(key))
            if changed:
                raise CommandError(
                    f"{self.folder} was started with other {', '.join(changed)} (see {mark}); "
                    "give another --out, or remove it to start again"
                )
        else:
            write_whole(mark, [json.dumps(settings, indent=1).encode() + b"\n"])

    def run(
        self,
        step: Step,
        before: Callable[[], None] = lambda: None,
        during: Callable[[], None] = lambda: None,
        always: bool = False,
    ) -> bool:
        """List the command and, unless it is done, print and run it. Returns whether it was run.

        Args:
            step: what to run.
            before: called before a command is run.
            during: called again and again while it runs.
            always: run it, done or not.

        Raises:
            CommandError: it failed.
        """
        with self.list.open("a", encoding="utf-8") as file:
            file.write(f"{step}\n")
        done = self.folder / "done" / step.name
        known = done.read_text(encoding="utf-8") if done.is_file() else ""
        if not always and not self.redo and step.makes.exists() and known == f"{step}\n":
            self.say(f"{step.name}: done before, skipped")
            return False
        self.redo = True
        before()
        self.say(f"\n$ {step}")
        if step.output is None or step.written is None:
            self._execute(step, None, during)
        else:
            step.output.parent.mkdir(parents=True, exist_ok=True)
            with step.written.open("ab" if step.append else "wb") as out:
                self._execute(step, out, during)
            os.replace(step.written, step.output)
        if not step.makes.exists():
            raise CommandError(f"{step.name}: the command succeeded, but did not write {step.makes}")
        write_whole(done, [f"{step}\n".encode()])
        return True

    def _execute(self, step: Step, out: IO[bytes] | None, during: Callable[[], None]) -> None:
        process = subprocess.Popen(
            step.words,
            stdout=out,
            stderr=None if out is None else subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**ENVIRONMENT, **os.environ},
            pass_fds=[self.lock.fileno()],
        )
        try:
            while True:
                try:
                    code = process.wait(timeout=0.5)
                    break
                except subprocess.TimeoutExpired:
                    during()
        except BaseException:
            # Ctrl-C reaches the command by itself; whatever else ends us should end it.
            process.terminate()
            process.wait()
            raise
        during()
        if code:
            raise CommandError(f"{step.name}: the command failed with status {code}; {_why(step)}")


def from_root(path: Path) -> Path:
    """The same file, named from the root of the repository, where every command runs."""
    full = Path(os.path.abspath(path))
    return full.relative_to(ROOT) if full.is_relative_to(ROOT) else full


def _why(step: Step) -> str:
    """Where to look, and the last line there, which mostly says it."""
    if step.written is None:
        return "its message is above"
    lines = step.written.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"see {step.written}{f': {lines[-1]}' if lines else ''}"
