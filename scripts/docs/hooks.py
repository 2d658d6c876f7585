"""What MkDocs does for this site beside its own: generated pages, formulas, links into the repository.

A formula or a link that cannot be made is a warning, which `make docs` takes for an error.
"""

from __future__ import annotations

import html
import logging
import os
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
# Modules of fairseq call basicConfig(level=DEBUG) on import, which does nothing after this.
logging.getLogger().addHandler(logging.NullHandler())

from scripts.docs.formulas import FormulaError, mathml  # noqa: E402
from scripts.docs.markdown import NEEDS, REPO, links, prose_lines  # noqa: E402
from scripts.docs.reference import commands_page, flags_page  # noqa: E402

_LOG = logging.getLogger("mkdocs.hooks.mhe_fairseq")

#: What pymdownx.arithmatex makes of $...$ and $$...$$.
_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">(?:\\\((?P<line>.*?)\\\)|\\\[(?P<block>.*?)\\\])</(?P=tag)>',
    re.DOTALL,
)
#: Lie in docs/ without being part of the site: `exclude_docs` in mkdocs.yml.
_RECORDS = {".json", ".toml"}
_FENCE_WITH_WORDS = re.compile(r"(?P<fence>\s*`{3,})(?P<language>\w+) +(?P<words>[\w -]+?)\s*")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made of the argument parsers."""
    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    files.append(File.generated(config, "reference/flags.md", content=flags_page()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Words after ```sh, and links to files of the repository that are no pages."""
    lines = markdown.splitlines()
    for number, line, prose in prose_lines(markdown):
        lines[number] = _with_links(line, page, config) if prose else _with_needs(line, page)
    return "\n".join(lines) + "\n"


def _with_needs(line: str, page: Page) -> str:
    match = _FENCE_WITH_WORDS.fullmatch(line)
    if match is None:
        return line
    words = match["words"].split()
    if unknown := [word for word in words if word not in NEEDS]:
        _LOG.warning(
            "%s: ```%s %s: %s is none of %s",
            page.file.src_uri, match["language"], match["words"], unknown[0], ", ".join(NEEDS),
        )  # fmt: skip
        return line
    needs = ", ".join(NEEDS[word] for word in words)
    return f'{match["fence"]}{{.{match["language"]} data-needs="{needs}"}}'


def _with_links(line: str, page: Page, config: MkDocsConfig) -> str:
    """A link to what is no page and no picture becomes its text and the path from the repository's root."""
    folder = Path(config.docs_dir) / Path(page.file.src_uri).parent
    for match in reversed(list(links(line))):
        target = match["target"].partition("#")[0]
        if not target or re.match(r"[a-z]+:", target):
            continue
        path = Path(os.path.normpath(folder / target))
        if path.is_relative_to(config.docs_dir) and not path.is_dir() and path.suffix not in _RECORDS:
            continue
        if match["image"] or not path.exists() or not path.is_relative_to(REPO):
            _LOG.warning("%s: link to %s, which is not there", page.file.src_uri, match["target"])
            continue
        name, text = path.relative_to(REPO).as_posix(), match["text"]
        known = name in text or text.strip("`") == name.rpartition("/")[2]
        said = f"`{name}`" if known else f"{text} (`{name}`)"
        line = line[: match.start()] + said + line[match.end() :]
    return line


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Formulas."""

    def shown(match: re.Match[str]) -> str:
        block = match["block"] is not None
        source = html.unescape(match["block"] if block else match["line"]).strip()
        try:
            made = mathml(source, block)
        except FormulaError as error:
            _LOG.warning("%s: formula %s: %s", page.file.src_uri, source, error)
            return match[0]
        return f'<div class="math-block">{made}</div>' if block else made

    return _FORMULA.sub(shown, content)
