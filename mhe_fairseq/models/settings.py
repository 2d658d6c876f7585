"""The settings of a training, whichever of fairseq's two ways they are kept in."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict


def set_options(section: Any, **values: Any) -> None:
    """Set options of a part of a config, which is a Namespace for what fairseq has not migrated."""
    if OmegaConf.is_config(section):
        with open_dict(section):
            section.update(values)
    else:
        vars(section).update(values)


def all_settings(args: Any) -> dict[str, Any]:
    """All settings by their own names, as the command line has them.

    Args:
        args: a namespace of all settings, or a model's config, whose parent has the others.
    """
    if not OmegaConf.is_config(args):
        return dict(vars(args))
    flat: dict[str, Any] = {}
    parent = args._get_parent()
    if isinstance(parent, DictConfig) and "common" in parent:
        whole: Any = OmegaConf.to_container(parent, resolve=True, enum_to_str=True)
        for name, section in whole.items():
            if isinstance(section, dict) and name != "model":
                flat |= {key: value for key, value in section.items() if key != "_name"}
                flat[name] = section.get("_name")
    own: Any = OmegaConf.to_container(args, resolve=True, enum_to_str=True)
    return flat | {key: value for key, value in own.items() if key != "_name"} | {"arch": own.get("_name")}
