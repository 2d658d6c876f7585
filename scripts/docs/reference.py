"""The reference pages of commands and flags, made of the argument parsers themselves."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator
from typing import Any

from mhe_fairseq.cli.main import make_parser

_NOTE = "<!-- Made by scripts/docs/reference.py when the site is built. -->\n"


def commands_page() -> str:
    """`mhe` and each of its commands, as Markdown."""
    return "\n".join(
        [
            _NOTE,
            "# `mhe` commands\n",
            "This page is made of the commands' own argument parsers: it says what `--help` says. Bad input "
            "ends a command with one sentence and exit status 1.\n",
            *_command(make_parser(), level=2),
        ]
    )


def flags_page() -> str:
    """The flags that this plugin adds to fairseq's commands, as Markdown. Imports fairseq."""
    import mhe_fairseq  # noqa: F401  (registers)
    from mhe_fairseq.models.flags import add_head_args

    heads = argparse.ArgumentParser(prog="fairseq-train")
    add_head_args(heads)
    return "\n".join(
        [
            _NOTE,
            "# Training flags\n",
            "This page is made of the parsers that `fairseq-train` reads. `--user-dir mhe_fairseq` adds the "
            "flags, architectures, criterions and tasks below; all flags of fairseq stay.\n",
            "## Flags of every `mhe_` architecture\n",
            *_flags(heads),
            "## Architectures\n",
            *_architectures(),
            "## Criterions\n",
            *_registered("--criterion", _criterions()),
            "## Tasks\n",
            *_registered("--task", _tasks()),
        ]
    )


def _command(parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    """A heading, what it does, how it is called, its flags; then its subcommands the same way."""
    yield f"{'#' * min(level, 4)} `{parser.prog}`\n"
    if parser.description:
        yield f"{escape(parser.description)}\n"
    # The formatter breaks lines at the terminal's width, which must not change the page.
    formatter = argparse.HelpFormatter(parser.prog, width=60)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups, prefix="")
    yield f"```text\n{formatter.format_help().strip()}\n```\n"
    yield from _flags(parser)
    if parser.epilog:
        yield f"{escape(parser.epilog)}\n"
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _command(child, level + 1)


def _flags(parser: argparse.ArgumentParser) -> Iterator[str]:
    """A definition list: a flag, what it does."""
    formatter = parser._get_formatter()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction | argparse._HelpAction):
            continue
        if action.help == argparse.SUPPRESS:
            continue
        yield f"`{formatter._format_action_invocation(action)}`"
        said = formatter._expand_help(action) if action.help else ""
        required = " (required)" if action.required and action.option_strings else ""
        yield f":   {escape(said) or 'no help'}{required}\n"


def _architectures() -> Iterator[str]:
    from fairseq.models import ARCH_MODEL_REGISTRY

    by_class: dict[Any, list[str]] = {}
    for name, model in ARCH_MODEL_REGISTRY.items():
        if name.startswith("mhe_"):
            by_class.setdefault(model, []).append(name)
    yield (
        "An architecture has the sizes of fairseq's of the same name without `mhe_`, or without "
        "`mhe_label_`. fairseq has none like `mhe_label_bag`.\n"
    )
    for model, names in by_class.items():
        yield f"[`{model.__name__}`][{_public_name(model)}]"
        yield f":   {', '.join(f'`{name}`' for name in sorted(names))}\n"


def _criterions() -> Iterator[tuple[str, Any, list[str]]]:
    from fairseq.criterions import CRITERION_REGISTRY

    for name, chosen in CRITERION_REGISTRY.items():
        if name.startswith("mhe_"):
            yield name, chosen, []


def _tasks() -> Iterator[tuple[str, Any, list[str]]]:
    from fairseq.tasks import TASK_REGISTRY

    for name, chosen in TASK_REGISTRY.items():
        if name.startswith("mhe_"):
            stock = TASK_REGISTRY.get(name.removeprefix("mhe_"))
            yield name, chosen, [] if stock is None else list(_names_of_flags(stock))


def _registered(flag: str, things: Iterable[tuple[str, Any, list[str]]]) -> Iterator[str]:
    """What a registry of fairseq's has of ours: name, class, flags not to repeat."""
    for name, chosen, known in things:
        yield f"### `{flag} {name}`\n"
        yield f"Class [`{chosen.__name__}`][{_public_name(chosen)}].\n"
        parser = argparse.ArgumentParser(prog="fairseq-train")
        _add_flags(parser, chosen)
        parser._actions = [action for action in parser._actions if action.dest not in known]
        if known:
            yield f"Its flags are those of fairseq's `{flag} {name.removeprefix('mhe_')}`.\n"
        yield from _flags(parser)


def _add_flags(parser: argparse.ArgumentParser, registered: Any) -> None:
    """Of a class that has a dataclass of them, or that adds them by itself as fairseq's older ones do."""
    from fairseq.dataclass.utils import gen_parser_from_dataclass

    dataclass = getattr(registered, "__dataclass", None)
    if dataclass is None:
        registered.add_args(parser)
    else:
        gen_parser_from_dataclass(parser, dataclass())


def _names_of_flags(registered: Any) -> Iterator[str]:
    """Names of the values that they give."""
    parser = argparse.ArgumentParser()
    _add_flags(parser, registered)
    return (action.dest for action in parser._actions)


def _public_name(chosen: Any) -> str:
    """Where the Python API has it: the package that its module lies in."""
    return f"{chosen.__module__.rpartition('.')[0]}.{chosen.__qualname__}"


def escape(text: str) -> str:
    """Text as Markdown that shows it: flags, and what stands in backticks, as code; all else as it stands."""
    parts = re.split(r"`([^`]+)`|((?<![\w-])--?[a-z][\w-]*)", " ".join(text.split()))
    said = []
    for plain, code, flag in zip(parts[::3], [*parts[1::3], ""], [*parts[2::3], ""], strict=True):
        said.append(re.sub(r"([\\`*_{}\[\]<>#|$])", r"\\\1", plain))
        said.append(f"`{code or flag}`" if code or flag else "")
    return "".join(said)
