"""The archives of the translation recipes in miniature: their real layout, text of the bundled corpus; and a
server of them that is as bad as real ones."""

from __future__ import annotations

import hashlib
import io
import lzma
import tarfile
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import TracebackType

from tests.helpers import REPO

Pairs = list[tuple[str, str]]


def bundled(split: str, begin: int, end: int) -> Pairs:
    """Pairs (English, German) of the bundled corpus."""
    sides = []
    for language in ("en", "de"):
        path = REPO / "examples" / "translation" / "data" / f"{split}.{language}.xz"
        with lzma.open(path, "rt", encoding="utf-8", newline="\n") as file:
            sides.append([line.strip() for line in file.read().split("\n")[begin:end]])
    return list(zip(*sides, strict=True))


def tar(path: Path, members: dict[str, str]) -> None:
    with tarfile.open(path, "w:gz") as file:
        for name, text in members.items():
            data = text.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


def plain(stem: str, pairs: Pairs, languages: tuple[str, str]) -> dict[str, str]:
    """Two files STEM.LANGUAGE of the sides."""
    return {
        f"{stem}.{language}": "".join(f"{pair[side]}\n" for pair in pairs)
        for side, language in enumerate(languages)
    }


def segments(lines: list[str], kind: str) -> str:
    """A test set as WMT and IWSLT publish it."""
    body = "".join(f'<seg id="{n}"> {line}  </seg>\n' for n, line in enumerate(lines, start=1))
    head = f'<{kind} setid="x" srclang="any">\n<doc docid="d" genre="news" origlang="en">\n<p>\n'
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{head}{body}</p>\n</doc>\n</{kind}>\n'


def talks(lines: list[str], side: str) -> str:
    """IWSLT's train.tags: a title and a description are text, too."""
    about = f"<url>http://x/{side}</url>\n<keywords>talks, {side}</keywords>\n<talkid>1</talkid>\n"
    title, description, *rest = lines
    tagged = f"<title>{title}</title>\n<description>TED: {description}</description>\n"
    return about + tagged + "".join(f" {line} \n" for line in rest)


def sides(pairs: Pairs) -> tuple[list[str], list[str]]:
    return [left for left, _ in pairs], [right for _, right in pairs]


def wmt14(folder: Path) -> None:
    """newstest2014 of 40 sentences."""
    french = {"training/europarl-v7.fr-en.fr": "Reprise\n", "training/europarl-v7.fr-en.en": "Resumption\n"}
    odd = [
        ("An English side without a German one", ""),
        ("Spaces \u00a0and\u2028a line end\r", "Bleibt eine Zeile"),
    ]
    train = plain("training/europarl-v7.de-en", bundled("train", 0, 300) + odd, ("en", "de"))
    tar(folder / "training-parallel-europarl-v7.tgz", {**french, **train})
    tar(
        folder / "training-parallel-commoncrawl.tgz",
        {
            f"./{name}": text
            for name, text in plain("commoncrawl.de-en", bundled("train", 300, 450), ("en", "de")).items()
        },
    )
    news = plain("training/news-commentary-v9.de-en", bundled("train", 450, 600), ("en", "de"))
    tar(folder / "training-parallel-nc-v9.tgz", news)
    english, german = sides(bundled("valid", 0, 40))
    tar(
        folder / "wmt13.test.tgz",
        {
            f"test/newstest2013-src.{language}.sgm": segments(lines, "srcset")
            for language, lines in (("en", english), ("de", german))
        },
    )
    english, german = sides(bundled("test", 0, 40))
    tar(
        folder / "wmt14_full.test-full.tgz",
        {
            "test-full/newstest2014-deen-src.en.sgm": segments(english, "srcset"),
            "test-full/newstest2014-deen-ref.de.sgm": segments(german, "refset"),
            "test-full/newstest2014-fren-src.en.sgm": segments(english[:3], "srcset"),
        },
    )


def wmt16(folder: Path) -> None:
    """German for Romanian, with some of its letters."""

    def romanian(pairs: Pairs) -> Pairs:
        return [(left, right.replace("sch", "\u015f").replace("zu", "\u0163u")) for left, right in pairs]

    train = romanian(bundled("train", 0, 400))
    tar(
        folder / "training-parallel-ep-v8.tgz",
        plain("training-parallel-ep-v8/europarl-v8.ro-en", train, ("en", "ro")),
    )
    with zipfile.ZipFile(folder / "SETIMES.en-ro.txt.zip", "w") as file:
        file.writestr("README", "SETIMES\n")
        for name, text in plain("SETIMES.en-ro", romanian(bundled("train", 400, 600)), ("en", "ro")).items():
            file.writestr(name, text)
    for name, stem, split in (
        ("wmt16_dev.dev.tgz", "dev/newsdev2016-enro", "valid"),
        ("wmt16.test.tgz", "test/newstest2016-enro", "test"),
    ):
        english, other = sides(romanian(bundled(split, 0, 40)))
        tar(
            folder / name,
            {
                f"{stem}-src.en.sgm": segments(english, "srcset"),
                f"{stem}-ref.ro.sgm": segments(other, "refset"),
            },
        )


def iwslt14(folder: Path) -> None:
    """Five test sets of 8 sentences."""
    english, german = sides(bundled("train", 0, 600))
    members = {"de-en/README": "TED\n"}
    members |= {
        "de-en/train.tags.de-en.de": talks(german, "de"),
        "de-en/train.tags.de-en.en": talks(english, "en"),
    }
    names = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")
    for number, name in enumerate(names):
        english, german = sides(bundled("test", 8 * number, 8 * number + 8))
        for language, lines in (("de", german), ("en", english)):
            members[f"de-en/IWSLT14.{name}.de-en.{language}.xml"] = segments(lines, "refset")
    tar(folder / "de-en.tgz", members)


def opus100(folder: Path) -> None:
    """German; a twentieth as much of "fr", which is English backwards; "yo", which has no test set."""
    for pair, count in (("de-en", 400), ("en-fr", 20), ("en-yo", 10)):
        members: dict[str, str] = {}
        for split, begin, end in (("train", 0, count), ("dev", 0, 20), ("test", 0, 20)):
            if pair == "en-yo" and split != "train":
                continue
            text = bundled({"dev": "valid"}.get(split, split), begin, end)
            if pair != "de-en":
                text = [(left, left[::-1]) for left, _ in text]
            other = pair.replace("en", "").strip("-")
            stem = f"opus-100-corpus/v1.0/supervised/{pair}/opus.{pair}-{split}"
            members |= plain(stem, text, ("en", other))
        tar(folder / f"opus-100-corpus-{pair}-v1.0.tar.gz", members)


ARCHIVES = {"wmt14_en_de": wmt14, "wmt16_en_ro": wmt16, "iwslt14_de_en": iwslt14, "opus100": opus100}


def make(recipe: str, folder: Path) -> Path:
    """The archives of a recipe in ``folder``. Returns SHA256SUMS of them, beside it."""
    folder.mkdir(parents=True)
    ARCHIVES[recipe](folder)
    listed = folder.with_name(f"{folder.name}.SHA256SUMS")
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(folder.iterdir())
    ]
    listed.write_text("".join(lines))
    return listed


class Mirror(ThreadingHTTPServer):
    """Serves a folder. The first answer about ``dropped`` ends in the middle; the first whole one about
    ``corrupt`` has a wrong byte."""

    daemon_threads = True

    def __init__(self, folder: Path, dropped: str = "", corrupt: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.dropped, self.corrupt = folder, dropped, corrupt
        self.url = f"http://127.0.0.1:{self.server_port}/files"
        self.requests: list[tuple[str, str | None]] = []

    def __enter__(self) -> Mirror:
        Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Mirror

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:  # noqa: N802
        server, name, asked = self.server, Path(self.path).name, self.headers["Range"]
        server.requests.append((name, asked))
        if not (server.folder / name).is_file():
            self.send_error(404)
            return
        data = (server.folder / name).read_bytes()
        begin = int(asked[len("bytes=") : -1]) if asked else 0
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        body = data[begin:]
        if name == server.dropped:
            server.dropped = ""
            body = body[: len(body) // 2]
        elif name == server.corrupt:
            server.corrupt = ""
            body = body[:-9] + b"!" + body[-8:]
        self.wfile.write(body)
