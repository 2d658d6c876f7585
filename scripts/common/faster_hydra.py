"""Hydra's part of fairseq's commands, quicker in processes forked from one that has composed configurations.

fairseq makes some 300 overrides of a command's arguments, nearly all of which are the defaults; Hydra has
each parsed by a grammar, and builds the configuration from its sources: a third of the time in which a small
command runs. What the first command with some task, model, criterion and so on has composed is kept in a
folder, and another one with the same overrides its values.
"""

from __future__ import annotations

import copy
import hashlib
import io
import os
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fairseq.dataclass.utils as fairseq_utils
import hydra
from fairseq.dataclass.constants import ChoiceEnum, StrEnum
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from scripts.common.files import write_whole

#: Of ``fairseq.dataclass.utils``, which composes this configuration of fairseq's.
_PATH, _NAME = os.path.join("..", "config"), "config"


#: Where configurations are kept.
_kept: Path | None = None


def install(kept: Path) -> None:
    """Parse no override twice, here and in forked processes, and build no configuration twice.

    The result of each command is what it is without.

    Args:
        kept: an empty folder for configurations, of processes that have the same fairseq.
    """
    global _kept
    _kept = kept
    parse = OverridesParser.parse_rule
    known: dict[tuple[str, str], Any] = {}

    def parse_rule(self: OverridesParser, text: str, rule: str) -> Any:
        if (text, rule) not in known:
            known[text, rule] = parse(self, text, rule)
        # What is remembered is copied, for Hydra writes to it.
        return copy.deepcopy(known[text, rule])

    for owner, name, quicker in (
        (OverridesParser, "parse_rule", parse_rule),
        (CachingConfigRepository, "__init__", _beside),
        (fairseq_utils, "initialize", _Later),
        (fairseq_utils, "compose", _compose),
    ):
        setattr(owner, name, quicker)


def _parted(overrides: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Overrides that choose, and key -> line of those that give a value, which fairseq has in some group."""
    lines = {line.partition("=")[0]: line for line in overrides}
    values = {key: line for key, line in lines.items() if "." in key}
    return [line for key, line in lines.items() if key not in values], values


class _Pickler(pickle.Pickler):
    """For fairseq's enumerations, which have no names: others of the same words take their place."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, type) and issubclass(value, StrEnum) and value is not StrEnum:
            return ChoiceEnum, ([choice.value for choice in value],)
        return NotImplemented


class _Later:
    """In the place of ``initialize``, which is not needed where nothing is read from its sources."""

    def __init__(self, config_path: str) -> None:
        assert config_path == _PATH

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def _compose(name: str, overrides: list[str], strict: bool) -> DictConfig:
    assert name == _NAME and not strict
    assert _kept is not None
    choices, values = _parted(overrides)
    # With the plugin fields are of its types.
    has_plugin = "mhe_fairseq" in sys.modules
    path = _kept / hashlib.sha1(repr([has_plugin, *choices, *values]).encode()).hexdigest()
    if not path.is_file():
        config = _from_sources(overrides)
        written = io.BytesIO()
        _Pickler(written).dump((values, config))
        write_whole(path, [written.getvalue()])
        return config
    given, config = pickle.loads(path.read_bytes())
    changed = [line for key, line in values.items() if given[key] != line]
    parsed = OverridesParser.create().parse_overrides(overrides=changed)
    # As it is when Hydra overrides.
    OmegaConf.set_struct(config, True)
    ConfigLoaderImpl._apply_overrides_to_config(parsed, config)
    OmegaConf.set_struct(config, False)
    return config


def _from_sources(overrides: list[str]) -> DictConfig:
    """By Hydra."""
    folder = Path(fairseq_utils.__file__).parent.parent / "config"
    with hydra.initialize_config_dir(str(folder), job_name="utils"):
        return hydra.compose(_NAME, overrides=overrides, strict=False)


def _beside(self: CachingConfigRepository, delegate: IConfigRepository) -> None:
    """As Hydra does it, but that what is read of configurations' sources is not copied with them: a copy's
    ``initialize_sources`` gives it sources of its own, and what they load is copied when it is loaded."""
    self.delegate = copy.copy(delegate)
    self.cache = {}
