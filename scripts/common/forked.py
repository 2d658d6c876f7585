"""Commands in processes forked from one that has imported what they import: seconds less each.

A forked process has what a fresh one has: the command is run as ``__main__``, with its own environment,
folder, arguments and open files. The plugin is not imported before, nor are the commands' own modules.
"""

from __future__ import annotations

import atexit
import builtins
import gc
import importlib
import logging
import os
import random
import runpy
import sys
import threading
import types
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

#: Most of what fairseq's commands import. torch's optimisers import its compiler.
MODULES = (
    "fairseq.options",
    "fairseq.trainer",
    "fairseq.sequence_generator",
    "fairseq.checkpoint_utils",
    "torch._dynamo",
)

#: Handlers and level of the root logger after fairseq was imported, which sets it up where nobody has.
_set_up: tuple[list[logging.Handler], int] = ([], logging.WARNING)


def import_most(*more: str) -> None:
    """What a process does before it forks commands; ``more`` are modules besides ``MODULES``."""
    logging.disable(logging.CRITICAL)
    for module in (*MODULES, *more):
        importlib.import_module(module)
    logging.disable(logging.NOTSET)
    global _set_up
    _set_up = list(logging.root.handlers), logging.root.level
    logging.root.handlers.clear()
    logging.root.setLevel(logging.WARNING)
    freeze()


def freeze() -> None:
    """After the last import: a collection in a forked process would copy all of the memory that it shares."""
    gc.collect()
    gc.freeze()


def for_answers() -> TextIO:
    """Standard output, for answers alone: what imports print goes to standard error from here on."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


def start(
    line: Sequence[str], cwd: str, env: Mapping[str, str], files: Sequence[int], own_session: bool = False
) -> int:
    """Fork a process that becomes a command.

    Args:
        line: a Python script, or ``-m`` and a module, or ``-c`` and code, and arguments.
        cwd: its folder.
        env: its environment, all of it.
        files: descriptors of its standard input, output and error; closed here.
        own_session: what it starts can then be ended with it, by ``os.killpg``.

    Returns:
        Its process id.
    """
    child = os.fork()
    if not child:
        if own_session:
            os.setsid()
        for number, file in enumerate(files):
            os.dup2(file, number)
        _become(line, cwd, env)
    for file in set(files):
        os.close(file)
    return child


def status(child: int) -> int:
    """Wait for a process; its status as ``subprocess`` tells it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _become(line: Sequence[str], cwd: str, env: Mapping[str, str]) -> NoReturn:
    sys.stdin = open(0, encoding="utf-8", closefd=False)
    paths = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ.clear()
    os.environ.update(env)
    _set_warnings(env.get("PYTHONWARNINGS", ""))
    os.chdir(cwd)
    # A fresh process draws other numbers, too.
    random.seed()
    is_module = line[0] == "-m"
    sys.argv = list(line[is_module:])
    sys.path[0] = {"-m": cwd, "-c": ""}.get(line[0], str(Path(line[0]).resolve().parent))
    if not env.get("PYTHONPATH"):
        sys.path[1:] = [path for path in sys.path[1:] if path not in paths]
    # Those of the checkout that the command is of may be others.
    for module in [name for name in sys.modules if name.split(".")[0] in ("scripts", "tests")]:
        del sys.modules[module]
    _set_logging_up_with_fairseq()
    code = 0
    try:
        if is_module:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            main = types.ModuleType("__main__")
            # What processes that the command spawns send back is of a module of the second name.
            sys.modules["__main__"] = sys.modules["__mp_main__"] = main
            if line[0] == "-c":
                source: str | bytes = sys.argv.pop(1)
                name = "<string>"
            else:
                main.__file__ = name = os.path.abspath(line[0])
                source = Path(name).read_bytes()
            exec(compile(source, name, "exec"), vars(main))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    _end(code)


def _set_logging_up_with_fairseq() -> None:
    """When the command imports it, or the plugin, which does: it is imported already, and sets nothing up."""
    original = builtins.__import__

    def watched(name: str, *arguments: Any, **named: Any) -> Any:
        if name.partition(".")[0] in ("fairseq", "mhe_fairseq"):
            builtins.__import__ = original
            if not logging.root.handlers:
                logging.root.handlers[:] = _set_up[0]
                logging.root.setLevel(_set_up[1])
        return original(name, *arguments, **named)

    builtins.__import__ = watched


def _set_warnings(options: str) -> None:
    """Filters of warnings as Python makes them when it begins, not those of the process forked from."""
    before = list(warnings.filters)
    warnings.filters[:] = []  # type: ignore[index]
    warnings._processoptions(sys.warnoptions)  # type: ignore[attr-defined]
    own = list(warnings.filters)
    warnings.filters[:] = [each for each in before if each not in own]  # type: ignore[index]
    sys.warnoptions[:] = filter(None, options.split(","))
    warnings._processoptions(sys.warnoptions)  # type: ignore[attr-defined]
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _end(code: int) -> NoReturn:
    """As Python ends, but that nothing is taken apart: memory that is shared would be copied for it."""
    for step in (threading._shutdown, atexit._run_exitfuncs, sys.stdout.flush, sys.stderr.flush):  # type: ignore[attr-defined]
        try:
            step()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            code = code or 1
    os._exit(code)
