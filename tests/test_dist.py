"""What the wheel and the sdist hold. `make dist` installs and uses them, which takes a network."""

from __future__ import annotations

import email
import re
import shutil
import sys
import tarfile
import zipfile
from email.message import Message
from pathlib import Path

import pytest

from mhe_fairseq.version import __version__
from tests.helpers import REPO, run_command

BUILD = "from setuptools import build_meta; build_meta.build_sdist('out'); build_meta.build_wheel('out')"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one wheel and one sdist, of a copy of this checkout."""
    copy = tmp_path_factory.mktemp("dist") / "copy"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info")
    copy.mkdir()
    for name in ("mhe_fairseq", "tests", "examples", "scripts", "docs"):
        shutil.copytree(REPO / name, copy / name, ignore=ignored)
    for path in REPO.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, copy)
    run_command([sys.executable, "-c", BUILD], cwd=copy)
    return copy / "out"


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def metadata(built: Path) -> Message:
    with zipfile.ZipFile(only(built, "*.whl")) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(wheel.read(name))


@pytest.mark.slow
def test_the_wheel_is_the_package_and_nothing_else(built: Path) -> None:
    with zipfile.ZipFile(only(built, "*.whl")) as wheel:
        names = wheel.namelist()
    ours = {name for name in names if ".dist-info/" not in name}
    here = {str(path.relative_to(REPO)) for path in (REPO / "mhe_fairseq").rglob("*.py")}
    assert ours == here | {"mhe_fairseq/py.typed"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_the_sdist_is_what_an_installation_needs(built: Path) -> None:
    with tarfile.open(only(built, "*.tar.gz")) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"setup.py", "pyproject.toml", "LICENSE", "README.md", "mhe_fairseq/py.typed"} <= names
    assert {name.partition("/")[0] for name in names if "/" in name} == {
        "mhe_fairseq",
        "mhe_fairseq.egg-info",
    }


@pytest.mark.slow
def test_metadata(built: Path) -> None:
    told = metadata(built)
    assert told["Version"] == __version__
    assert told["License"] == "MIT"
    assert {"test", "lint", "plot", "gpu"} <= set(told.get_all("Provides-Extra", []))
    pythons = [each for each in told.get_all("Classifier", []) if re.search(r"Python :: 3\.\d+$", each)]
    assert [each.rpartition(".")[2] for each in pythons] == ["11", "12"]
    # An address that is not on the web helps nobody.
    for each in told.get_all("Project-URL", []):
        assert re.fullmatch(r"[\w ]+, https://\S+", each)
    assert str(told.get_payload()).startswith("# mhe_fairseq")
