"""Hydra's part of fairseq's commands, quicker in processes forked from one that has composed configurations.

fairseq makes some 300 overrides of a command's arguments, nearly all of which are the defaults; Hydra has
each parsed by a grammar, and builds the configuration from its sources: a third of the time in which a small
command runs. What the first command with some task, model, criterion and so on has composed is kept in a
folder, and another one with the same overrides its values.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import fairseq.dataclass.utils as fairseq_utils
import hydra
from fairseq.dataclass.constants import ChoiceEnum, StrEnum
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

#: Of ``fairseq.dataclass.utils``, which composes this configuration of fairseq's.
_PATH, _NAME = os.path.join("..", "config"), "config"

#: Where configurations are kept.
_kept: Path | None = None


def install(kept: Path) -> None:
    """Build no configuration twice, here and in forked processes. The result of each command is what it is
    without.

    Args:
        kept: a folder for configurations, of processes that have the same fairseq; made where there is none.
    """
    global _kept
    kept.mkdir(exist_ok=True)
    _kept = kept.resolve()
    for name, quicker in (("initialize", _Later), ("compose", _compose)):
        setattr(fairseq_utils, name, quicker)


def _parted(overrides: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Overrides that choose, and key -> line of those that give a value, which fairseq has in some group."""
    lines = {line.partition("=")[0]: line for line in overrides}
    values = {key: line for key, line in lines.items() if "." in key}
    return [line for key, line in lines.items() if key not in values], values


class _Pickler(pickle.Pickler):
    """For fairseq's enumerations, which have no names: others of the same words take their place."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, type) and issubclass(value, StrEnum) and value is not StrEnum:
            return ChoiceEnum, ([choice.value for choice in cast(Any, value)],)
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
        # Ranks of a training compose the same at the same time.
        own = path.with_name(f"{path.name}.{os.getpid()}")
        with own.open("wb") as file:
            _Pickler(file).dump((values, config))
        os.replace(own, path)
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
