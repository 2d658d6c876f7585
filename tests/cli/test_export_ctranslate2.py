"""What `mhe export` writes goes through CTranslate2's converter, and is translated there as here."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from mhe_fairseq.cli.main import main
from tests.cli.test_convert import convert
from tests.commands import CRITERION, generate, hypotheses, train
from tests.helpers import run_command

ctranslate2 = pytest.importorskip(
    "ctranslate2", reason="ctranslate2 is not installed: pip install -c constraints.txt -e .[deploy]"
)

pytestmark = pytest.mark.slow

#: Tokens of a translation at most.
LONGEST = 40


@pytest.fixture(scope="module", params=["sampling", "cascade"])
def ours(request: pytest.FixtureRequest, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sampling head, or a softmax that was fitted to a cascade."""
    folder = tmp_path_factory.mktemp(request.param)
    flags = ["--mhe-head", request.param, "--mhe-groups", "3", "--share-decoder-input-output-embed"]
    train(toy_data, folder, *CRITERION, *flags, "--max-update", "60", "--no-epoch-checkpoints")
    if request.param == "sampling":
        return folder / "checkpoint_best.pt"
    convert(folder / "checkpoint_best.pt", toy_data, folder / "softmax.pt", "--head", "softmax")
    return folder / "softmax.pt"


@pytest.mark.parametrize("form", [[], ["--namespace"]], ids=["attributes", "namespace"])
def test_translations_are_ours(form: list[str], ours: Path, toy_data: Path, tmp_path: Path) -> None:
    stock, converted = tmp_path / "stock.pt", tmp_path / "converted"
    assert main(["export", str(ours), "-o", str(stock), *form]) == 0
    line = ["python", "-m", "ctranslate2.converters.fairseq", "--model_path", str(stock)]
    line += ["--data_dir", str(toy_data), "--source_lang", "src", "--target_lang", "tgt"]
    line += ["--output_dir", str(converted)]
    # The plugin is nowhere to be found.
    packages = str(Path(str(ctranslate2.__file__)).parent.parent)
    done = run_command(line, cwd=tmp_path, env={"PYTHONPATH": packages}, check=not form)
    if form:
        # As with fairseq's own checkpoints.
        assert "argparse.Namespace" in done.stderr and not converted.exists()
        run_command([*line, "--unsafe_deserialization"], cwd=tmp_path, env={"PYTHONPATH": packages})
    text = (toy_data.parent / "text" / "test.src").read_text().splitlines()
    translator = ctranslate2.Translator(str(converted), device="cpu", inter_threads=1, intra_threads=1)
    # By default it forbids an empty translation before the softmax, and fairseq behind it: the first token's
    # probability would be larger by what the end of the sentence has.
    found = translator.translate_batch(
        [line.split() for line in text],
        beam_size=5,
        return_scores=True,
        max_decoding_length=LONGEST,
        min_decoding_length=0,
    )
    limits = ["--max-len-a", "0", "--max-len-b", str(LONGEST)]
    expected = hypotheses(generate(toy_data, ours, "--beam", "5", *limits).stdout)
    assert len(found) == len(expected) == len(text)
    # Where a search ends is each library's own affair: of translations that are nearly as good a few differ.
    alike = [" ".join(result.hypotheses[0]) == expected[number][1] for number, result in enumerate(found)]
    assert sum(alike) >= 0.8 * len(text)
    theirs = [expected[number][1].split() for number in range(len(text))]
    scored = translator.score_batch([line.split() for line in text], theirs)
    compared = 0
    for number, result in enumerate(scored):
        # A translation that is cut off fairseq ends without an end of the sentence.
        if len(theirs[number]) < LONGEST - 1:
            compared += 1
            # fairseq prints scores of base 2.
            score = sum(result.log_probs) / len(result.log_probs) / math.log(2)
            assert score == pytest.approx(expected[number][0], abs=1e-4)
    assert compared >= 0.8 * len(text)
