"""What Hydra composes for fairseq's commands is what it composes without."""

from __future__ import annotations

import pytest
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import mhe_fairseq  # noqa: F401  (another of the architectures)
from scripts.common import faster_hydra

LINES = [
    line.split()
    for line in (
        "DATA --task translation --arch mhe_transformer_tiny --criterion mhe_cross_entropy",
        "DATA --task translation --arch transformer --lr 0.1,0.2 --clip-norm 1.5",
        "DATA --task language_modeling --arch transformer_lm --optimizer adam --adam-betas (0.9,0.98) --fp16",
    )
]


def composed(line: list[str]) -> str:
    namespace = options.parse_args_and_arch(options.get_training_parser(), line)
    return OmegaConf.to_yaml(convert_namespace_to_omegaconf(namespace))


def test_the_same_is_composed(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [composed(line) for line in LINES]
    assert len(set(expected)) == len(LINES)
    # So that both are put back in the end.
    monkeypatch.setattr(OverridesParser, "parse_rule", OverridesParser.parse_rule)
    monkeypatch.setattr(CachingConfigRepository, "__init__", CachingConfigRepository.__init__)
    faster_hydra.install()
    for _ in range(2):
        assert [composed(line) for line in LINES] == expected


def test_no_override_is_parsed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    original = OverridesParser.parse_rule

    def parse_rule(self: OverridesParser, text: str, rule: str) -> object:
        parsed.append(text)
        return original(self, text, rule)

    monkeypatch.setattr(OverridesParser, "parse_rule", parse_rule)
    monkeypatch.setattr(CachingConfigRepository, "__init__", CachingConfigRepository.__init__)
    faster_hydra.install()
    assert len(parsed) == len(set(parsed)) > 200
    del parsed[:]
    composed(LINES[0])
    assert 0 < len(parsed) < 100
