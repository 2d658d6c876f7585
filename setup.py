"""Packaging of mhe_fairseq."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def version() -> str:
    """The one version number, read as text: importing the package would need torch and fairseq."""
    text = (ROOT / "mhe_fairseq" / "version.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    if match is None:
        raise RuntimeError('mhe_fairseq/version.py has no line __version__ = "..."')
    return match.group(1)


def readme() -> str:
    path = ROOT / "README.md"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


setup(
    name="mhe-fairseq",
    version=version(),
    description="Multi-head encoding output layers for fairseq: large vocabularies without V-wide work",
    long_description=readme(),
    long_description_content_type="text/markdown",
    author="the mhe_fairseq authors",
    license="MIT",
    license_files=["LICENSE"],
    project_urls={
        "Paper": "https://arxiv.org/abs/2412.10182",
        "fairseq": "https://github.com/facebookresearch/fairseq",
    },
    keywords=[
        "fairseq",
        "multi-head encoding",
        "softmax",
        "large vocabulary",
        "machine translation",
        "language model",
    ],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Text Processing :: Linguistic",
        "Typing :: Typed",
    ],
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=["mhe_fairseq", "mhe_fairseq.*"]),
    package_data={"mhe_fairseq": ["py.typed"]},
    install_requires=[
        "torch>=2.6",
        # The one fairseq distribution with wheels for Python 3.11 and 3.12. A bare "fairseq" would put
        # 0.12.2, which those Pythons cannot import, over it.
        "ve-fairseq==0.12.3",
        "numpy",
        "rich",
        "sacrebleu",
        "sacremoses",
        "scikit-learn",
        "scipy",
        "sentencepiece",
        "tensorboard",
    ],
    extras_require={
        "test": ["pytest", "pytest-xdist", "hypothesis"],
        "lint": ["ruff", "mypy"],
        "plot": ["matplotlib"],
        # Images from font files and folders of images: examples/classification.
        "images": ["pillow"],
        "docs": ["mkdocs", "mkdocs-material", "mkdocstrings[python]", "latex2mathml"],
        # Translates with exported models (mhe export); has wheels for Linux, macOS and Windows.
        "deploy": ["ctranslate2"],
        # A CUDA build of torch brings the triton that it wants; this says which is the oldest that will do.
        "gpu": ["triton>=3.2; platform_system == 'Linux'"],
    },
    entry_points={"console_scripts": ["mhe = mhe_fairseq.cli.main:main"]},
)
