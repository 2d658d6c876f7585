"""Forked commands find the plugin where they ask for it, and only there."""

from __future__ import annotations

from pathlib import Path

from tests.helpers import run_command

TRAIN = ["fairseq-train", "nowhere", "--arch", "mhe_transformer_tiny", "--max-tokens", "9"]


def test_the_plugin_is_there_when_it_is_asked_for(tmp_path: Path) -> None:
    asked = run_command([*TRAIN, "--user-dir", "mhe_fairseq"], check=False)
    assert asked.returncode == 1 and "nowhere" in asked.stderr
    for flags in ([], ["--user-dir", str(tmp_path)]):
        without = run_command([*TRAIN, *flags], check=False)
        assert without.returncode == 2 and "invalid choice: 'mhe_transformer_tiny'" in without.stderr
