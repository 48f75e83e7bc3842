"""Foreign libraries kept quiet while they load models; what they raise becomes an error that names the model."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from graphbuild.errors import ArtifactError, OptionError, one_line


@contextmanager
def loading(folder: Path, *, kind: str, code: str) -> Iterator[None]:
    """Load a model of Sentence Transformers, without bars.

    Args:
        folder: Its files.
        kind: What it should be, for the message.
        code: What to do where it needs code of its own.

    Raises:
        OptionError: If it needs code of its own.
        ArtifactError: If it cannot be loaded.
    """
    quiet_libraries()
    from transformers.utils import logging as transformers_logging

    bars: Any = transformers_logging
    bars.disable_progress_bar()
    try:
        yield
    # What a foreign folder makes these libraries raise cannot be listed.
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise OptionError(f"{folder}: {code}") from None
        raise ArtifactError(
            f"{folder}: not a {kind} that can be loaded ({type(error).__name__}: {one_line(str(error))[:300]})."
        ) from error


def quiet_libraries() -> None:
    """Switch off the bars and advice of libraries: what matters goes through this program's own messages."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    warnings.filterwarnings("ignore", module=r"(transformers|sentence_transformers|huggingface_hub|torch)\b")
    for name in ("transformers", "sentence_transformers", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
