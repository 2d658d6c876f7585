"""What Hydra composes for fairseq's commands is what it composes without."""

from __future__ import annotations

from pathlib import Path

import fairseq.dataclass.utils
import pytest
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

import mhe_fairseq  # noqa: F401  (another of the architectures)
from scripts.common import faster_hydra

#: The first two have the same task, model and so on.
LINES = [
    line.split()
    for line in (
        "DATA --task translation --arch mhe_transformer_tiny --criterion mhe_cross_entropy",
        "DATA --task translation --arch mhe_transformer_tiny --criterion mhe_cross_entropy --lr 0.1,0.2",
        "DATA --task language_modeling --arch transformer_lm --optimizer adam --adam-betas (0.9,0.98) --fp16",
    )
]


def composed(line: list[str]) -> str:
    namespace = options.parse_args_and_arch(options.get_training_parser(), line)
    return OmegaConf.to_yaml(convert_namespace_to_omegaconf(namespace))


@pytest.fixture
def put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``install`` changes is as before in the end."""
    for name in ("initialize", "compose"):
        monkeypatch.setattr(fairseq.dataclass.utils, name, getattr(fairseq.dataclass.utils, name))


@pytest.mark.usefixtures("put_back")
def test_the_same_is_composed(tmp_path: Path) -> None:
    expected = [composed(line) for line in LINES]
    assert len(set(expected)) == len(LINES)
    faster_hydra.install(tmp_path)
    assert [composed(line) for line in LINES] == expected
    # One for two of them, which differ in values.
    kept = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(kept) == len(LINES) - 1
    for _ in range(2):
        assert [composed(line) for line in LINES] == expected
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == kept


@pytest.mark.usefixtures("put_back")
def test_what_is_bad_is_said_as_before(tmp_path: Path) -> None:
    namespace = options.parse_args_and_arch(options.get_training_parser(), LINES[0])
    said = []
    for is_kept in (False, True):
        faster_hydra.install(tmp_path)
        for path in tmp_path.iterdir():
            path.unlink()
        namespace.log_interval = 3
        if is_kept:
            convert_namespace_to_omegaconf(namespace)
        namespace.log_interval = None
        with pytest.raises(ConfigCompositionException, match="common.log_interval") as error:
            convert_namespace_to_omegaconf(namespace)
        said.append(str(error.value))
    assert said[0] == said[1]


@pytest.mark.usefixtures("put_back")
def test_other_values_alone_are_parsed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parsed: list[str] = []
    original = OverridesParser.parse_rule

    def parse_rule(self: OverridesParser, text: str, rule: str) -> object:
        parsed.append(text)
        return original(self, text, rule)

    monkeypatch.setattr(OverridesParser, "parse_rule", parse_rule)
    faster_hydra.install(tmp_path)
    composed(LINES[0])
    assert len(parsed) > 200
    del parsed[:]
    composed(LINES[1])
    assert parsed == ["optimization.lr=[0.1, 0.2]", "lr_scheduler.lr=[0.1, 0.2]"]
