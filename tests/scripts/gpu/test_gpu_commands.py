"""What parts (d) to (g) would run on a GPU: whole parts, whose command lines fairseq reads and no more."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from fairseq import options

from scripts.gpu import decoding, pretraining, ranks, training
from scripts.gpu.made_data import Text
from scripts.gpu.parts import Outcome, Part, Settings, run_part
from scripts.gpu.search_case import Spec
from scripts.gpu.workshop import Ran, Workshop
from tests.scripts.gpu.test_fairseq_logs import GENERATED, TRAINING

SMALL, LARGE = 32_768, 262_144


class Reader(Workshop):
    """Runs nothing. Keeps (module, arguments, env), and answers as a command that went well."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, list[str], dict[str, str]]] = []

    def open(self, is_cuda: bool) -> None:
        assert is_cuda

    def run(self, module: str, arguments: Sequence[str], env: Mapping[str, str] | None = None) -> Ran:
        self.asked.append((module, list(arguments), dict(env or {})))
        said = GENERATED if module == "fairseq_cli.generate" else TRAINING
        said = said.replace('"num_updates": "15"', '"num_updates": "40"')
        if (env or {}).get("MHE_KERNELS") == "0":
            said = said.replace("runs in kernels", "runs in plain torch")
        if "--ddp-backend" in arguments:
            wrapper = ranks._WRAPPERS[arguments[arguments.index("--ddp-backend") + 1]]
            said += f"\none rank, wrapped by {wrapper} over nccl\n"
        if module == "scripts.gpu.search_case":
            with open(arguments[1], "w") as file:
                json.dump({"wrong": "", "differences": {}}, file)
        return Ran(0, said, 1.0)


def through(part: Part) -> tuple[Outcome, Reader]:
    reader = Reader()
    with reader:
        settings = Settings(torch.device("cuda"), smoke=False, jobs=1, workshop=reader)
        return run_part(part, settings, 60, lambda line: None), reader


def read(module: str, arguments: list[str]) -> Namespace:
    """As the command reads it. What it does not know ends the test."""
    parser = options.get_generation_parser() if "generate" in module else options.get_training_parser()
    found: Namespace = options.parse_args_and_arch(parser, arguments)
    return found


def fairseq_lines(reader: Reader) -> list[tuple[Namespace, dict[str, str]]]:
    return [
        (read(module, arguments), env)
        for module, arguments, env in reader.asked
        if module.startswith("fairseq_cli") or module == "scripts.gpu.one_rank"
    ]


def texts(reader: Reader) -> list[Text]:
    made = [json.loads(words[1]) for module, words, _ in reader.asked if module == "scripts.gpu.made_data"]
    return [Text(**each) for each in made]


def test_trainings() -> None:
    outcome, reader = through(training.PART)
    lines = fairseq_lines(reader)
    assert not outcome.failed and not outcome.missed and len(lines) == len(outcome.checks)
    assert [text.vocab for text in texts(reader)] == [SMALL, LARGE]
    for (line, env), check in zip(lines, outcome.checks, strict=True):
        assert line.fp16 == (check["precision"] == "fp16") and line.bf16 == (check["precision"] == "bf16")
        assert env == {"MHE_CUDNN_ATTENTION": check["attention"]} and line.max_tokens == 8192
        assert line.encoder_layers == line.decoder_layers == 6 and line.encoder_embed_dim == 512
        assert line.encoder_ffn_embed_dim == 2048 and line.encoder_attention_heads == 8
        assert line.user_dir.endswith("mhe_fairseq") and line.label_smoothing == 0.1 and not line.cpu
        is_stock = check["layer"].startswith("stock")
        assert line.arch == ("transformer" if is_stock else "mhe_transformer")
        assert line.share_all_embeddings == (check["layer"] not in ("stock, not tied", "cascade"))
        # The log's last line is of a whole interval after the warm-up.
        assert line.max_update % line.log_interval == 0 and line.max_update > 15 + line.log_interval
    heads = {check["layer"]: line.mhe_head for (line, _), check in zip(lines, outcome.checks, strict=True)
             if not check["layer"].startswith("stock")}  # fmt: skip
    assert heads == {"cascade-tied": "cascade", "cascade": "cascade", "sampling": "sampling",
                     "product": "product", "mixture": "product"}  # fmt: skip


def test_searches() -> None:
    outcome, reader = through(decoding.PART)
    specs = [Spec(**json.loads(words[0])) for module, words, _ in reader.asked if "search_case" in module]
    assert {(each.head, each.vocab) for each in specs} == {
        (head, vocab) for head in decoding.HEADS for vocab in (SMALL, LARGE)
    }
    assert all((each.dim, each.layers, each.beam, each.device) == (512, 6, 5, "cuda") for each in specs)
    lines = [line for line, _ in fairseq_lines(reader)]
    searched = [line for line in lines if hasattr(line, "beam") and line.path]
    assert [line.task for line in searched] == ["mhe_translation", "translation", "translation"]
    assert searched[0].path == searched[1].path != searched[2].path
    assert all(line.fp16 and line.beam == 5 and line.min_len == line.max_len_b == 25 for line in searched)
    # The log that it is shown has two sentences of the 256.
    assert [check["name"] for check in outcome.failed] == [f"fairseq-generate, V = {SMALL:,}"]
    assert "of 256 sentences [2, 2, 2] were translated" in outcome.failed[0]["wrong"]


def test_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks.importlib.util, "find_spec", lambda name: object())
    outcome, reader = through(ranks.PART)
    assert not outcome.failed and not outcome.absent
    first = outcome.checks[0]
    assert (first["head"], first["backend"], first["precision"]) == ("cascade-tied", "pytorch_ddp", "fp16")
    assert first["group"] == "nccl" and {check["backend"] for check in outcome.checks} == set(ranks._WRAPPERS)
    for line, _ in fairseq_lines(reader):
        assert (
            line.lr == [0.001]
            and line.lr_scheduler == "fixed"
            and line.dropout == 0
            and line.log_interval == 1
        )
    alone = [words for module, words, _ in reader.asked if module == "fairseq_cli.train"]
    # Each training without a group is run once.
    assert len(alone) == len({tuple(words) for words in alone}) == 6


def test_ranks_that_are_not_wrapped_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_wrapper", lambda ran: ("nothing", "none"))
    outcome, _ = through(ranks.PART)
    assert all(check["wrong"] == "the model was wrapped by nothing" for check in outcome.checks)


def test_language_models() -> None:
    outcome, reader = through(pretraining.PART)
    assert (
        not outcome.failed and [check["precision"] for check in outcome.checks] == ["fp16"] * 2 + ["fp32"] * 2
    )
    lines = fairseq_lines(reader)
    assert [env for _, env in lines] == [{}, {"MHE_KERNELS": "0"}] * 4
    assert [line.arch for line, _ in lines[:4]] == ["mhe_roberta"] * 2 + ["mhe_transformer_lm"] * 2
    assert [line.criterion for line, _ in lines[:4]] == ["mhe_masked_lm"] * 2 + ["mhe_cross_entropy"] * 2
    (text,) = texts(reader)
    assert text.vocab == SMALL and not text.pairs


def test_kernels_that_do_not_run_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Reader.run

    def plain(self: Reader, module: str, arguments: Sequence[str], env: Any = None) -> Ran:
        return run(self, module, arguments, {"MHE_KERNELS": "0"})

    monkeypatch.setattr(Reader, "run", plain)
    outcome, _ = through(pretraining.PART)
    assert all("did not take them" in check["wrong"] for check in outcome.checks) and len(outcome.failed) == 4
