"""``--task mhe_multilabel``: documents with any number of labels each."""

# No `from __future__ import annotations`: fairseq reads the types of the configuration.

import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.data import (
    BaseWrapperDataset,
    Dictionary,
    IdDataset,
    NestedDictionaryDataset,
    NumelDataset,
    NumSamplesDataset,
    PrependTokenDataset,
    RightPadDataset,
    SortDataset,
    TruncateDataset,
    data_utils,
)
from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import FairseqTask, register_task
from omegaconf import II, MISSING
from torch import Tensor

from mhe_fairseq.criterions.label_ranking import PROPENSITY, inverse_propensities
from mhe_fairseq.errors import MHEError
from mhe_fairseq.models.labelling import LabelNames

logger = logging.getLogger(__name__)

#: In the data: what the propensities are made of, {"documents": N, "a": A, "b": B}.
FACTS = "multilabel.json"


@dataclass
class MHEMultilabelConfig(FairseqDataclass):
    """Flags of the task."""

    data: str = field(
        default=MISSING,
        metadata={"help": "folder with input0/ and label/, as scripts/data/prepare_multilabel.py writes it"},
    )
    max_positions: int = field(
        default=512, metadata={"help": "read so many tokens of a document, with the <s> before it"}
    )
    seed: int = II("common.seed")


@register_task("mhe_multilabel", dataclass=MHEMultilabelConfig)
class MHEMultilabelTask(FairseqTask):
    """Reads input0/ and label/ of the data, each with a dict.txt. A batch's ``target`` is (B, M) long, the
    labels of every document, -1 behind them; V stands for a label that is not in label/dict.txt.

    Raises:
        MHEError: no such data, or no label in it.
    """

    def __init__(self, cfg: MHEMultilabelConfig, dictionary: Dictionary, labels: Dictionary) -> None:
        super().__init__(cfg)
        self.dictionary, self.labels = dictionary, labels
        self.label_names = LabelNames(labels.symbols[labels.nspecial :])
        self._inverse: Tensor | None = None

    @classmethod
    def setup_task(cls, cfg: MHEMultilabelConfig, **kwargs: Any) -> "MHEMultilabelTask":
        if cfg.max_positions < 2:
            raise MHEError(f"--max-positions must be at least 2, got {cfg.max_positions}")
        folder = Path(cfg.data)
        if not folder.is_dir():
            raise MHEError(
                f"there is no data directory {folder}; scripts/data/prepare_multilabel.py writes one"
            )
        for part in ("input0", "label"):
            if not (folder / part / "dict.txt").is_file():
                raise MHEError(
                    f"the data {folder} has no {part}/dict.txt; documents with labels have input0/ and "
                    "label/, which scripts/data/prepare_multilabel.py writes"
                )
        dictionary = Dictionary.load(str(folder / "input0" / "dict.txt"))
        # As the tasks of masked language models have it, so that one's encoder fits.
        dictionary.add_symbol("<mask>")
        labels = Dictionary.load(str(folder / "label" / "dict.txt"))
        if len(labels) == labels.nspecial:
            raise MHEError(f"{folder}/label/dict.txt has no label")
        logger.info("mhe: %s tokens, %s labels", f"{len(dictionary):,}", f"{len(labels) - labels.nspecial:,}")
        return cls(cfg, dictionary, labels)

    def load_dataset(self, split: str, combine: bool = False, **kwargs: Any) -> Any:
        """Raises:
        MHEError: a part of it is missing, or the two have different lengths.
        """
        parts = [self._read(part, split, combine) for part in ("input0", "label")]
        text, labels = parts
        if len(text) != len(labels):
            raise MHEError(
                f"the {split} set of {self.cfg.data} has {len(text)} documents and labels of {len(labels)}; "
                "write both again"
            )
        longest = self.cfg.max_positions - 1
        cut = int((np.asarray(text.sizes) > longest).sum())
        if cut:
            logger.info(
                "mhe: %s of the %s documents of the %s set have more than %s tokens, the rest of which is "
                "not read", f"{cut:,}", f"{len(text):,}", split, longest,
            )  # fmt: skip
        text = PrependTokenDataset(TruncateDataset(text, longest), self.dictionary.bos())
        labels = LabelsDataset(labels, self.labels)
        with data_utils.numpy_seed(self.cfg.seed):
            order = np.random.permutation(len(text))
        dataset = NestedDictionaryDataset(
            {
                "id": IdDataset(),
                "net_input": {
                    "src_tokens": RightPadDataset(text, pad_idx=self.dictionary.pad()),
                    "src_lengths": NumelDataset(text, reduce=False),
                },
                "target": labels,
                "nsentences": NumSamplesDataset(),
                "ntokens": NumelDataset(text, reduce=True),
            },
            sizes=[text.sizes],
        )
        self.datasets[split] = SortDataset(dataset, sort_order=[order])
        return self.datasets[split]

    def _read(self, part: str, split: str, combine: bool) -> Any:
        path = os.path.join(self.cfg.data, part, split)
        dictionary = self.dictionary if part == "input0" else self.labels
        found = data_utils.load_indexed_dataset(path, dictionary, combine=combine)
        if found is None:
            raise MHEError(f"the data {self.cfg.data} has no {split} set: there is no {part}/{split}.idx")
        return found

    def inverse_propensities(self) -> Tensor:
        """(V + 1,) float64, the last for a label that no document of the training has.

        Raises:
            MHEError: the data say nothing of the training set.
        """
        if self._inverse is None:
            folder, facts = Path(self.cfg.data), {"a": PROPENSITY[0], "b": PROPENSITY[1]}
            if (folder / FACTS).is_file():
                try:
                    facts |= json.loads((folder / FACTS).read_text(encoding="utf-8"))
                except ValueError:
                    raise MHEError(f"{folder / FACTS} is damaged; prepare the data again") from None
            if "documents" not in facts:
                facts["documents"] = len(self._read("label", "train", combine=False))
            counts = torch.tensor([*self.labels.count[self.labels.nspecial :], 0])
            self._inverse = inverse_propensities(counts, int(facts["documents"]), facts["a"], facts["b"])
        return self._inverse

    def max_positions(self) -> int:
        return self.cfg.max_positions

    @property
    def source_dictionary(self) -> Dictionary:
        return self.dictionary

    @property
    def target_dictionary(self) -> None:
        """None: targets are no text."""
        return None


class LabelsDataset(BaseWrapperDataset):
    """The labels of documents by their numbers, of what fairseq-preprocess wrote of them.

    Args:
        dataset: of indices of ``labels``, each document's with </s> behind.
        labels: the dictionary.
    """

    def __init__(self, dataset: Any, labels: Dictionary) -> None:
        super().__init__(dataset)
        self.labels = labels

    def __getitem__(self, index: int) -> Tensor:
        item = self.dataset[index].long()
        item = item[item != self.labels.eos()]
        numbers = item - self.labels.nspecial
        return numbers.masked_fill(item == self.labels.unk(), len(self.labels) - self.labels.nspecial)

    def collater(self, samples: list[Tensor]) -> Tensor:
        """(B, M), -1 behind a document's labels."""
        return torch.nn.utils.rnn.pad_sequence(samples, batch_first=True, padding_value=-1)
