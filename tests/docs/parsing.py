"""Has commands read by their own argument parsers, without running them.

    python -m tests.docs.parsing < [[WORD, ...], ...] as JSON

Writes, for each command, what its parser said against it, "" for nothing. Every command is read in a process
of its own, forked from this one, which has imported fairseq.

A value in capitals (`DATA-BIN`, `CORPUS/train.en`) or with a `$` stands for one that the reader chooses: any
type takes it. The word `...` stands for arguments left out: then it is only asked whether the flags that are
there exist.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import re
import runpy
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

LEFT_OUT = "..."

#: fairseq's commands -> what makes their parser in fairseq.options.
_FAIRSEQ = {
    "fairseq-train": "get_training_parser",
    "fairseq-generate": "get_generation_parser",
    "fairseq-interactive": "get_interactive_generation_parser",
    "fairseq-validate": "get_validation_parser",
    "fairseq-eval-lm": "get_eval_lm_parser",
    "fairseq-preprocess": "get_preprocessing_parser",
}

HANDLED = {*_FAIRSEQ, "fairseq-hydra-train", "mhe", "python"}


class Refused(Exception):
    """Said by a parser."""


class Accepted(Exception):
    """A script's parser has read its command: there is nothing more to do."""


def is_placeholder(value: str) -> bool:
    return "$" in value or re.match(r"[A-Z][A-Z0-9_-]*(?![a-z0-9])", value) is not None


def check(words: Sequence[str]) -> str:
    """What is wrong with a command, "" for nothing."""
    name, arguments = words[0], [_expanded(word) for word in words[1:]]
    try:
        if name == "fairseq-hydra-train":
            _hydra(arguments)
        elif name in _FAIRSEQ:
            _fairseq(name, arguments)
        elif name == "mhe":
            parser = importlib.import_module("mhe_fairseq.cli.main").make_parser()
            parser.parse_args(arguments)
        else:
            _script(arguments)
    except Accepted:
        return ""
    except SystemExit as exit:
        return f"exit status {exit.code}" if exit.code else ""
    except Exception as error:
        return str(error).strip() or type(error).__name__
    return ""


def _expanded(word: str) -> str:
    return word.replace("$PWD", os.getcwd())


def _fairseq(name: str, arguments: list[str]) -> None:
    from fairseq import options

    parser = getattr(options, _FAIRSEQ[name])()
    if LEFT_OUT in arguments:
        _known_flags(arguments, set(parser._option_string_actions) | _registered_flags())
    elif name == "fairseq-train" and not any(re.match(r"(--arch|-a)\b", word) for word in arguments):
        raise Refused("it names no --arch")
    elif name == "fairseq-preprocess":
        parser.parse_args(arguments)
    else:
        args = options.parse_args_and_arch(parser, arguments)
        # This process has loaded it already, the reader's has not.
        ours = [value for key in ("arch", "task", "criterion") if _ours(value := getattr(args, key, None))]
        if ours and not args.user_dir:
            raise Refused(f"{ours[0]} needs --user-dir mhe_fairseq")


def _ours(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("mhe_")


def _registered_flags() -> set[str]:
    """The flags of every architecture, task, criterion, optimizer, ... that fairseq and this plugin have."""
    from fairseq.models import MODEL_REGISTRY
    from fairseq.registry import REGISTRIES
    from fairseq.tasks import TASK_REGISTRY

    classes = {*MODEL_REGISTRY.values(), *TASK_REGISTRY.values()}
    for registry in REGISTRIES.values():
        classes.update(registry["registry"].values())
    flags: set[str] = set()
    for registered in classes:
        parser = argparse.ArgumentParser(conflict_handler="resolve")
        if hasattr(registered, "add_args"):
            registered.add_args(parser)
        flags.update(parser._option_string_actions)
    return flags


def _hydra(arguments: list[str]) -> None:
    from fairseq.dataclass.initialize import add_defaults, hydra_init
    from hydra import compose, initialize_config_dir

    parser = argparse.ArgumentParser(prog="fairseq-hydra-train")
    parser.add_argument("--config-dir", required=True)
    parser.add_argument("--config-name", required=True)
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_intermixed_args(arguments)
    if not os.path.isfile(os.path.join(args.config_dir, f"{args.config_name}.yaml")):
        raise Refused(f"{args.config_dir} has no {args.config_name}.yaml")
    hydra_init(args.config_name)  # as the command does: the name takes fairseq's schema
    with initialize_config_dir(os.path.abspath(args.config_dir)):
        add_defaults(compose(args.config_name, overrides=args.overrides))


def _script(arguments: list[str]) -> None:
    """`python PATH ...` or `python -m MODULE ...`, up to where its parser has read the arguments."""
    if arguments[0] == "-m":
        name, sys.argv = arguments[1], arguments[1:]
        run: Callable[..., Any] = runpy.run_module
    else:
        name, sys.argv = arguments[0], arguments
        sys.path.insert(0, os.path.dirname(os.path.abspath(name)))
        run = runpy.run_path
        with open(name, encoding="utf-8") as file:
            if "parse_args(" not in file.read():
                raise Refused("is no command: it has no argument parser")
    argparse.ArgumentParser.parse_args = _then_stop(argparse.ArgumentParser.parse_args)  # type: ignore
    run(name, run_name="__main__")


def _then_stop(parse: Callable[..., Any]) -> Callable[..., Any]:
    def parse_args(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        parse(self, args, namespace)
        raise Accepted

    return parse_args


def _known_flags(arguments: Sequence[str], known: set[str]) -> None:
    for word in arguments:
        if word == "--":  # what follows is another command's
            return
        flag = word.partition("=")[0]
        if re.match(r"--?[a-zA-Z]", flag) and flag not in known:
            raise Refused(f"unrecognized arguments: {flag}")


def _refuse_unknown_flags(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """An unknown flag is told before what is missing; and no flag is cut short."""
    for action in parser._actions:
        if action.nargs == argparse.REMAINDER:
            return
        if isinstance(action, argparse._SubParsersAction):
            for number, word in enumerate(arguments):
                if word in action.choices:
                    _known_flags(arguments[:number], set(parser._option_string_actions))
                    return _refuse_unknown_flags(action.choices[word], arguments[number + 1 :])
            raise Refused(f"no command of {parser.prog}: it has {', '.join(action.choices)}")
    _known_flags(arguments, set(parser._option_string_actions))


def _prepare_parsers() -> None:
    """Placeholders and `...` in every parser; a refusal is an exception."""
    cls = argparse.ArgumentParser
    get_value, check_value, parse = cls._get_value, cls._check_value, cls.parse_args

    def lenient_value(self: Any, action: Any, text: str) -> Any:
        return text if is_placeholder(text) else get_value(self, action, text)

    def lenient_check(self: Any, action: Any, value: Any) -> None:
        if not (isinstance(value, str) and is_placeholder(value)):
            check_value(self, action, value)

    def parse_args(self: Any, args: Any = None, namespace: Any = None) -> Any:
        arguments = list(sys.argv[1:] if args is None else args)
        _refuse_unknown_flags(self, arguments)
        return argparse.Namespace() if LEFT_OUT in arguments else parse(self, args, namespace)

    def refuse(self: Any, message: str) -> NoReturn:
        raise Refused(re.sub(r" \(choose from .{200,}\)", "", message))

    cls._get_value = lenient_value  # type: ignore
    cls._check_value = lenient_check  # type: ignore[method-assign]
    cls.parse_args = parse_args  # type: ignore
    cls.error = refuse  # type: ignore[method-assign]


def _forked(words: Sequence[str]) -> str:
    reader, writer = os.pipe()
    if child := os.fork():
        os.close(writer)
        with os.fdopen(reader, encoding="utf-8") as stream:
            said = stream.read()
        _, status = os.waitpid(child, 0)
        return json.loads(said) if said else f"its parser ended with status {status}"
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        json.dump(check(words), stream)
    os._exit(0)


def _load_plugin() -> None:
    """Once for all commands, by what `--user-dir mhe_fairseq` does, which then knows that it is loaded."""
    from fairseq import utils

    utils.import_user_module(argparse.Namespace(user_dir="mhe_fairseq"))


def main() -> None:
    logging.disable()
    for module in ("fairseq.options", "fairseq.models.transformer", "fairseq.sequence_generator"):
        importlib.import_module(module)
    _load_plugin()
    _prepare_parsers()
    json.dump([_forked(words) for words in json.load(sys.stdin)], sys.stdout)


if __name__ == "__main__":
    main()
