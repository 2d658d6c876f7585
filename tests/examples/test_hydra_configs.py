"""The recipes' hydra configs train, and have the numbers of run.sh."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.examples.recipes import RECIPES
from tests.helpers import REPO, TOY_SOURCE, TOY_TARGET, run_command
from tests.masked_lm import run_lines

#: The configs' models, small enough for a test.
SMALL = [f"+model.{side}_layers=1" for side in ("encoder", "decoder")] + [
    f"+model.{side}_{part}=32" for side in ("encoder", "decoder") for part in ("embed_dim", "ffn_embed_dim")
]


@pytest.mark.slow
def test_hydra_configs_train(toy_data: Path, tmp_path: Path) -> None:
    codes = str(tmp_path / "codes")
    run_command(["mhe", "assign", "--data", str(toy_data), "--by", "random", "-o", codes])
    lines = {
        recipe: ["hydra_train", "--config-dir", str(RECIPES / recipe), "--config-name", recipe]
        + [f"task.data={toy_data}", f"task.source_lang={TOY_SOURCE}", f"task.target_lang={TOY_TARGET}"]
        + [f"common.user_dir={REPO / 'mhe_fairseq'}", "common.fp16=false", "common.cpu=true"]
        + ["dataset.num_workers=0", "dataset.max_tokens=500", f"model.mhe_codebook={codes}"]
        + ["optimization.max_update=2", "optimization.update_freq=[1]", *SMALL]
        + [f"checkpoint.save_dir={tmp_path / recipe}", f"hydra.run.dir={tmp_path / 'hydra' / recipe}"]
        for recipe in ("wmt14_en_de", "wmt16_en_ro", "iwslt14_de_en", "opus100")
    }
    for recipe, ended in run_lines(tmp_path / "logs", lines).items():
        assert ended.status == 0, ended.said[-3000:]
        assert (tmp_path / recipe / "checkpoint_last.pt").is_file()


@pytest.mark.parametrize("recipe", ["wmt14_en_de", "wmt16_en_ro", "iwslt14_de_en", "opus100"])
def test_a_hydra_config_is_the_recipe(recipe: str, tmp_path: Path) -> None:
    """The numbers of run.sh, as it would train on 8 GPUs, stand in the config."""
    from omegaconf import OmegaConf

    config = OmegaConf.load(RECIPES / recipe / f"{recipe}.yaml")
    # The script itself up to where it would begin to work; then what it has settled.
    text = (RECIPES / recipe / "run.sh").read_text()
    head = text[: text.index("begin_translation")].replace('"$(dirname "$0")/..', f'"{RECIPES}')
    said = 'echo "$UPDATES $VALIDATE_EVERY $KEEP $ARCH ${MODEL[*]} ${OPTIMIZER[*]}" >&2'
    script = tmp_path / "run.sh"
    script.write_text(f"{head}\n{said}\n")
    found = run_command(["bash", str(script), "--cpu"]).stderr.split()
    flags = dict(zip(found, [*found[1:], ""], strict=True))
    assert [int(number) for number in found[:3]] == [
        config.optimization.max_update,
        config.dataset.validate_interval_updates,
        config.checkpoint.keep_interval_updates,
    ]
    assert config.checkpoint.save_interval_updates == config.dataset.validate_interval_updates
    assert found[3] == config.model._name and "--share-all-embeddings" in found
    assert float(flags["--dropout"]) == config.model.dropout
    assert float(flags["--lr"]) == config.optimization.lr[0]
    assert float(flags["--clip-norm"]) == config.optimization.clip_norm
    assert float(flags["--weight-decay"]) == config.optimizer.weight_decay
    assert int(flags["--warmup-updates"]) == config.lr_scheduler.warmup_updates
    assert float(flags.get("--warmup-init-lr", "-1")) == config.lr_scheduler.get("warmup_init_lr", -1)
