"""Hydra's part of fairseq's commands, quicker in processes forked from one that has composed configurations.

fairseq makes some 300 overrides of a command's arguments, nearly all of which are the defaults, and Hydra
has each parsed by a grammar: a third of the time in which a small command runs.
"""

from __future__ import annotations

import copy
from typing import Any

from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra.core.override_parser.overrides_parser import OverridesParser

#: Arguments whose defaults are those of most commands.
_TRAINING = ["DATA", "--task", "translation", "--arch", "transformer", "--optimizer", "adam"]
_TRAINING += ["--criterion", "label_smoothed_cross_entropy", "--cpu"]
_ASKING = ["DATA", "--task", "translation", "--path", "PATH", "--cpu"]


def install() -> None:
    """Parse no override twice, here and in forked processes, and compose what most commands do.

    The result of each command is what it is without: what is remembered is copied, for Hydra writes to it.
    """
    parse = OverridesParser.parse_rule
    known: dict[tuple[str, str], Any] = {}

    def parse_rule(self: OverridesParser, text: str, rule: str) -> Any:
        if (text, rule) not in known:
            known[text, rule] = parse(self, text, rule)
        return copy.deepcopy(known[text, rule])

    for owner, name, quicker in (
        (OverridesParser, "parse_rule", parse_rule),
        (CachingConfigRepository, "__init__", _beside),
    ):
        setattr(owner, name, quicker)
    for parser, arguments in (
        (options.get_training_parser(), _TRAINING),
        (options.get_generation_parser(), _ASKING),
        (options.get_interactive_generation_parser(), _ASKING),
        (options.get_validation_parser(), _ASKING),
        (options.get_eval_lm_parser(), _ASKING),
    ):
        convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, arguments))


def _beside(self: CachingConfigRepository, delegate: IConfigRepository) -> None:
    """As Hydra does it, but that what is read of configurations' sources is not copied with them: a copy's
    ``initialize_sources`` gives it sources of its own, and what they load is copied when it is loaded."""
    self.delegate = copy.copy(delegate)
    self.cache = {}
