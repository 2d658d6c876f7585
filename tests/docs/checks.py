"""What is wrong with the shell blocks of a page, found without running them."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

from scripts.docs.markdown import NEEDS, REPO, Block
from tests.docs.parsing import HANDLED, LEFT_OUT
from tests.docs.shell import Command, commands, shell_blocks
from tests.helpers import run_command

#: Commands that start another one: torchrun --nproc-per-node 8 .../bin/fairseq-train ...
_STARTERS = {"torchrun", "srun", "nohup", "time", "env", "exec"}


def problems(pages: Iterable[Path]) -> list[str]:
    """One line for everything that is wrong: file, line, command, what.

    Shell that bash cannot parse; a word after ```sh that means nothing; scripts, make targets and variables
    that are not there; what the commands' own parsers say.
    """
    found: list[str] = []
    to_parse: list[Command] = []
    for block in [block for page in pages for block in shell_blocks(page)]:
        found += _block_problems(block)
        try:
            inside = list(commands(block))
        except ValueError as error:
            found.append(f"{_place(block)}: {error}")
            continue
        for command in inside:
            found += [f"{command}: {said}" for said in _not_there(command)]
            to_parse += _parsed_commands(command)
    said = _ask({_words(command) for command in to_parse})
    found += [f"{command}: {said[_words(command)]}" for command in to_parse if said[_words(command)]]
    return found


def _place(block: Block) -> str:
    path = block.path.relative_to(REPO) if block.path.is_relative_to(REPO) else block.path
    return f"{path}:{block.line}"


def _block_problems(block: Block) -> list[str]:
    found = [
        f"{_place(block)}: the word after ```{block.language} is {word!r}, not one of {', '.join(NEEDS)}"
        for word in block.words
        if word not in NEEDS
    ]
    bash = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
    if bash.returncode:
        found.append(f"{_place(block)}: bash cannot read it: {bash.stderr.strip()}")
    return found


def _not_there(command: Command) -> list[str]:
    """Files of the repository that a command runs, targets of make, and variables that nothing reads."""
    name, *arguments = command.words
    found = []
    script = _script_of(command)
    if script is not None and not _exists(script):
        found.append(f"{script} does not exist")
    if name.startswith("fairseq-") and name not in HANDLED:
        found.append(f"{name} is no command that this project knows")
    if name == "make":
        variables = [variable for variable, _ in command.env]
        for word in arguments:
            if match := re.match(r"(\w+)=", word):
                variables.append(match[1])
            elif not word.startswith("-") and word not in _make_targets():
                found.append(f"make has no target {word}")
        found += [f"nothing reads {variable}" for variable in variables if not _is_read(variable)]
    elif script is not None and script.endswith(".sh"):
        found += [f"{script} does not read {name}" for name, _ in command.env if not _is_read(name)]
    return found


def _script_of(command: Command) -> str | None:
    """The file of this repository that it runs, if it runs one by its path."""
    name, *arguments = command.words
    if _is_python(name) or name in {"bash", "sh", "source"}:
        return next((word for word in arguments[:1] if not word.startswith("-") and "/" in word), None)
    return name if "/" in name and "$" not in name and not name.startswith("/") else None


def _exists(script: str) -> bool:
    return (REPO / script).is_file()


def _is_python(name: str) -> bool:
    return re.fullmatch(r"(.*/)?python(3(\.\d+)?)?", name) is not None


@cache
def _makefile() -> str:
    return (REPO / "Makefile").read_text(encoding="utf-8")


def _make_targets() -> set[str]:
    return {
        target for line in re.findall(r"^\.PHONY:(.*)", _makefile(), re.MULTILINE) for target in line.split()
    }


@cache
def _is_read(variable: str) -> bool:
    """By the Makefile, or by a shell script of the repository."""
    scripts = [*(REPO / "scripts").rglob("*.sh"), *(REPO / "examples").rglob("*.sh")]
    texts = [_makefile(), *(path.read_text(encoding="utf-8") for path in scripts)]
    return any(re.search(rf"\$[({{]?{variable}\b", text) for text in texts)


def _flags_of_make(command: Command) -> Iterable[Command]:
    """`make gpu-check GPU_FLAGS="--parts a"` gives flags to the script that the Makefile names with it."""
    assigned = dict(command.env)
    for word in command.words[1:]:
        name, _, value = word.partition("=")
        assigned[name] = value
    for script, variable in re.findall(r"(scripts/[\w/]+\.py)\b.*\$\((\w+)\)", _makefile()):
        if variable in assigned:
            flags = shlex.split(assigned[variable])
            yield replace(command, words=("python", script, LEFT_OUT, *flags))


def _parsed_commands(command: Command) -> Iterable[Command]:
    """What of a command has a parser of ours or fairseq's, as this command's words."""
    name, *arguments = command.words
    if name == "make":
        yield from _flags_of_make(command)
    elif _is_python(name) and "torch.distributed.run" not in arguments:
        if _script_of(command) is not None and _exists(arguments[0]) or _is_own_module(arguments):
            yield replace(command, words=("python", *arguments))
    elif name in HANDLED:
        yield command
    elif name in _STARTERS or _is_python(name):
        for number, word in enumerate(arguments):
            started = os.path.basename(word)
            if started in HANDLED:
                yield replace(command, words=(started, *arguments[number + 1 :]))
                return


def _is_own_module(arguments: list[str]) -> bool:
    """`-m scripts.gpu.check`; others, such as pytest, do not stop where their arguments are read."""
    return arguments[:1] == ["-m"] and arguments[1].partition(".")[0] in {"scripts", "mhe_fairseq"}


def _words(command: Command) -> tuple[str, ...]:
    return command.words


def _ask(lines: set[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    ordered = sorted(lines)
    if not ordered:
        return {}
    said = run_command(["python", "-m", "tests.docs.parsing"], stdin=json.dumps(ordered)).stdout
    return dict(zip(ordered, json.loads(said), strict=True))
