"""Links of pages that are not part of the site, which `make docs` does not see: READMEs and the like."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from scripts.docs.markdown import REPO, anchors, links, prose_lines
from tests.docs.shell import pages


def broken_links(paths: Iterable[Path]) -> Iterator[str]:
    """Relative links whose file or anchor is not there."""
    for path in paths:
        for number, line, prose in prose_lines(path.read_text(encoding="utf-8")):
            for match in links(line) if prose else ():
                if re.match(r"[a-z]+:", match["target"]):
                    continue
                name, _, wanted = match["target"].partition("#")
                target = Path(os.path.normpath(path.parent / name)) if name else path
                if not target.exists():
                    yield f"{path}:{number + 1}: {match['target']}: there is no such file"
                elif wanted and target.suffix == ".md":
                    if wanted not in anchors(target.read_text(encoding="utf-8")):
                        yield f"{path}:{number + 1}: {match['target']}: no heading has this anchor"


def test_no_link_is_broken() -> None:
    outside = [page for page in pages() if not page.is_relative_to(REPO / "docs")]
    assert REPO / "README.md" in outside
    assert not (found := list(broken_links(outside))), "\n".join(found)


def test_broken_links_are_named(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One thing\n\n[a](#one-thing) [b](page.md#two) [c](gone.md) [d](https://host/x)\n")
    first, second = broken_links([page])
    assert first.endswith("page.md:3: page.md#two: no heading has this anchor")
    assert second.endswith("page.md:3: gone.md: there is no such file")
