"""scripts/data/arguments.py: folders that fairseq's commands would not read."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.data.arguments import preparing


def test_a_folder_is_taken_as_it_is() -> None:
    assert preparing(None).parse_args(["--out", "a b/c-1.x"]).out == Path("a b/c-1.x")


@pytest.mark.parametrize("out", ["1024,10", "run:1/data"])
def test_paths_that_fairseq_takes_for_two_are_refused(out: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        preparing(None).parse_args(["--out", out])
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith(
        "error: argument --out: fairseq's commands take a path with a comma or a colon for two paths; "
        f"give another, not {out}\n"
    )
