"""The site is built without a warning, asks nothing of another host, and refuses what is broken."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mhe_fairseq.cli.main import make_parser
from mhe_fairseq.models.flags import FLAGS, SWITCHES, flag
from scripts.docs.markdown import NEEDS
from tests.helpers import REPO, run_command

pytestmark = pytest.mark.slow

MKDOCS = ["python", "-m", "mkdocs", "build", "--strict"]

#: Attributes by which a page has a browser fetch something at once. (A link is followed by a reader.)
FETCHED = {
    "script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src",
    "embed": "src", "object": "data", "link": "href",
}  # fmt: skip


class _Fetched(HTMLParser):
    """Collects the addresses of what a page fetches."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        address = dict(attrs).get(FETCHED.get(tag, ""))
        # The address of the page itself is for search engines.
        if address and dict(attrs).get("rel") != "canonical":
            self.addresses.append(address)


def outside(site: Path) -> list[str]:
    """What pages, styles and our own scripts would fetch from another host."""
    found = []
    for path in site.rglob("*.html"):
        parser = _Fetched()
        parser.feed(path.read_text(encoding="utf-8"))
        found += [f"{path}: {address}" for address in parser.addresses if re.match(r"(\w+:)?//", address)]
    for path in [*site.rglob("*.css"), *site.rglob("*.html")]:
        style = path.read_text(encoding="utf-8")
        addresses = re.findall(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')\s]+)""", style)
        found += [f"{path}: {address}" for address in addresses]
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    run_command([*MKDOCS, "--site-dir", folder])
    return folder


def test_every_page_is_there(site: Path) -> None:
    pages = {path.relative_to(REPO / "docs").with_suffix(".html") for path in (REPO / "docs").rglob("*.md")}
    built = {path.relative_to(site) for path in site.rglob("*.html")}
    assert built - {Path("404.html")} == {
        *pages,
        Path("reference/commands.html"),
        Path("reference/flags.html"),
    }


def test_nothing_is_fetched_from_another_host(site: Path) -> None:
    assert outside(site) == []
    # Diagrams of this kind have the theme fetch a script.
    assert not [
        path for path in site.rglob("*.html") if 'class="mermaid"' in path.read_text(encoding="utf-8")
    ]


def test_what_would_be_fetched_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<script src="https://h/x.js"></script><a href="https://h/page">a</a>')
    (tmp_path / "b.html").write_text('<link rel="stylesheet" href="//h/x.css"><img src="x.png">')
    (tmp_path / "c.css").write_text("@font-face { src: url('https://h/x.woff2') } a { color: red }")
    assert [text.rpartition(" ")[2] for text in sorted(outside(tmp_path))] == [
        "https://h/x.js", "//h/x.css", "https://h/x.woff2",
    ]  # fmt: skip


def test_every_command_and_flag_is_described(site: Path) -> None:
    commands = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    (subparsers,) = (
        action for action in make_parser()._actions if action.choices and action.dest == "command"
    )
    assert len(subparsers.choices) >= 6  # type: ignore[arg-type]
    for name, parser in subparsers.choices.items():  # type: ignore[union-attr]
        assert f'id="mhe-{name}"' in commands
        for option in parser._option_string_actions:
            assert option in {"-h", "--help"} or option in commands, (name, option)
    flags = (site / "reference" / "flags.html").read_text(encoding="utf-8")
    for name in (*FLAGS, *SWITCHES):
        assert f"<code>{flag(name)}" in flags
    for word in ("mhe_transformer_iwslt_de_en", "mhe_roberta_large", "--label-smoothing"):
        assert word in flags
    for word in ("--criterion mhe_masked_lm", "--task mhe_language_modeling"):
        assert f"<code>{word}</code>" in flags


def test_public_names_are_described(site: Path) -> None:
    import mhe_fairseq.coding
    import mhe_fairseq.heads

    python = (site / "reference" / "python.html").read_text(encoding="utf-8")
    for module in (mhe_fairseq.coding, mhe_fairseq.heads):
        for name in module.__all__:
            assert f'id="{module.__name__}.{name}"' in python


def _small_site(folder: Path, page: str) -> Path:
    """The site's configuration, hooks and theme with one page."""
    shutil.copytree(REPO / "docs" / "assets", folder / "docs" / "assets")
    (folder / "docs" / "index.md").write_text(page)
    config = (REPO / "mkdocs.yml").read_text(encoding="utf-8")
    config = config[: config.index("\nnav:")].replace("hooks: [scripts/", f"hooks: [{REPO}/scripts/")
    (folder / "mkdocs.yml").write_text(
        f"{config}\nnav: [index.md, reference/commands.md, reference/flags.md]\n"
    )
    return folder


BROKEN = {
    "[a](gone.md)": "gone.md",
    "[a](#gone)": "#gone",
    "[a](reference/commands.md#mhe-gone)": "#mhe-gone",
    "[a](../scripts/gone.py)": "../scripts/gone.py",
    "![a](gone.png)": "gone.png",
    r"$x + \gone$": r"formula x + \gone: \gone is not known",
    "```sh gpus\ntrue\n```": "gpus is none of " + ", ".join(NEEDS),
}


def test_what_is_broken_is_named(tmp_path: Path) -> None:
    page = "# A page\n\n" + "\n\n".join(BROKEN)
    folder = _small_site(tmp_path, page)
    done = run_command([*MKDOCS, "-f", folder / "mkdocs.yml"], cwd=folder, check=False)
    assert done.returncode != 0
    warnings = [line for line in done.stderr.splitlines() if "WARNING" in line]
    for text, named in BROKEN.items():
        assert any(named in line and "index.md" in line for line in warnings), text
