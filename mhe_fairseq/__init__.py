"""Multi-head encoding output layers for fairseq: ``fairseq-train DATA --user-dir mhe_fairseq ...``.

Importing this package registers its models and criterions with fairseq. ``mhe_fairseq.coding`` and
``mhe_fairseq.heads`` need torch only and work without fairseq.
"""

import importlib.util
import logging

from mhe_fairseq.errors import MHEError
from mhe_fairseq.version import __version__

__all__ = ["MHEError", "__version__"]


def _register() -> None:
    """Register with fairseq where it is installed.

    Raises:
        ImportError: a fairseq that cannot be imported here.
    """
    if importlib.util.find_spec("fairseq") is None:
        return
    # fairseq tells about optional packages it lacks, on import and at the root logger's level.
    logging.getLogger("fairseq.tasks.text_to_speech").setLevel(logging.WARNING)
    try:
        import fairseq.checkpoint_utils
        import fairseq.models.transformer
        import fairseq.sequence_generator  # noqa: F401
    except Exception as error:
        said = str(error).partition("\n")[0]
        raise ImportError(
            "the fairseq installed here does not work on this Python and torch "
            f"({type(error).__name__}: {said}); "
            "mhe_fairseq runs on ve-fairseq 0.12.3: "
            "pip uninstall -y fairseq && pip install ve-fairseq==0.12.3"
        ) from error
    importlib.import_module("mhe_fairseq.fairseq_fixes").install()
    importlib.import_module("mhe_fairseq.models")
    importlib.import_module("mhe_fairseq.models.sharding").install()
    importlib.import_module("mhe_fairseq.models.exact_end").install()
    importlib.import_module("mhe_fairseq.models.quantization").install()
    importlib.import_module("mhe_fairseq.criterions")
    importlib.import_module("mhe_fairseq.tasks")


_register()
