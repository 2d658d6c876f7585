"""scripts/study/averaged.py: which checkpoints are taken. Its commands are run by test_exact_end."""

from __future__ import annotations

from pathlib import Path

from scripts.common.commands import Step
from scripts.study.averaged import begun, link_checkpoints


def saved(folder: Path, *updates: int) -> Path:
    folder.mkdir()
    for update in updates:
        (folder / f"checkpoint_1_{update}.pt").write_text(str(update))
    (folder / "checkpoint_last.pt").write_text("last")
    return folder


def test_a_training_begins_with_the_last_checkpoint_before(tmp_path: Path) -> None:
    earlier = saved(tmp_path / "earlier", 100, 200, 1000)
    step = Step("train", ["fairseq-train"], tmp_path / "made")
    assert begun(step, earlier, 999).words[1:] == ["--restore-file", str(earlier / "checkpoint_1_200.pt")]
    assert begun(step, earlier, 1000).words[-1].endswith("checkpoint_1_1000.pt")
    assert begun(step, earlier, 99) is step


def test_only_what_is_averaged_is_linked(tmp_path: Path) -> None:
    earlier = saved(tmp_path / "earlier", 100, 200, 300, 1000)
    for _ in range(2):
        link_checkpoints(tmp_path / "there", earlier, 200, 300)
    assert {path.name for path in (tmp_path / "there").iterdir()} == {
        "checkpoint_1_200.pt",
        "checkpoint_1_300.pt",
    }
