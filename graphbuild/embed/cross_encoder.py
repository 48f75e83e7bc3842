"""Cross-encoders: pairs of texts in, similarities in [0, 1] out, the same whichever text comes first.

Shape letters: P pairs. A cross-encoder gives one number a pair, a logit; its logistic function is the similarity, and the mean over
both orders is stored. Remote code is never run. torch is loaded with the cross-encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from graphbuild.embed.encoder_files import EncoderSpec, find_encoder, require_recorded_files
from graphbuild.embed.libraries import loading
from graphbuild.errors import ArtifactError, OptionError
from graphbuild.store.atomic import read_json
from graphbuild.system.allocator import keep_freed_memory

_OWNER = "cross-encoder"
_OPTION = "--cross-encoder"
_HEAD = "ForSequenceClassification"
_BATCH = {"cpu": 32, "cuda": 256}

Pair = tuple[str, str]


def find_cross_encoder(name: str) -> EncoderSpec:
    """Find a cross-encoder's files and take their digests; loads neither torch nor weights.

    Args:
        name: A folder, or a name on the Hugging Face hub, of `cross-encoder` where none is named.

    Raises:
        SourceError: If it is not found.
        OptionError: If it is no cross-encoder, its weights are pickled, or it gives other than one number a pair.
    """
    spec = find_encoder(name, owner=_OWNER, option=_OPTION)
    if spec.folder is None:
        raise OptionError(f"{_OPTION} {name}: is no cross-encoder. Name one, such as cross-encoder/stsb-distilroberta-base.")
    _require_one_number(Path(spec.folder))
    return spec


def _require_one_number(folder: Path) -> None:
    """See what a model gives, by its configuration: a head that is not there would be made of random numbers."""
    path = folder / "config.json"
    try:
        held = read_json(path)
        kinds, classes = [str(one) for one in held.get("architectures") or ()], _classes_of(held)
    except (OSError, ValueError, TypeError, AttributeError):
        kinds, classes = [], []
    if not any(kind.endswith(_HEAD) for kind in kinds):
        what = ", ".join(kinds) or "no model"
        raise OptionError(f"{folder}: is no cross-encoder: its config.json names {what}, and not a model {_HEAD}. Choose another.")
    if len(classes) != 1:
        raise OptionError(
            f"{folder}: gives {len(classes)} numbers a pair ({', '.join(classes[:5])}), which are no similarity. Choose a "
            "cross-encoder of one output, such as those trained on STS-B or Quora."
        )


def _classes_of(config: dict[str, Any]) -> list[str]:
    """Names of a model's outputs; a configuration of transformers that names none has two."""
    return [str(one) for one in (config.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}).values()]


@lru_cache(maxsize=1)
def load_cross_encoder(spec: EncoderSpec) -> CrossScorer:
    """Load a cross-encoder, once per process, after its files were compared with the digests of `spec`.

    Raises:
        ArtifactMismatch: If its files here are others.
        OptionError: If it needs remote code.
        ArtifactError: If its files cannot be loaded.
    """
    require_recorded_files(spec)
    return CrossScorer(Path(str(spec.folder)))


class CrossScorer:
    """A Sentence Transformers cross-encoder of one output."""

    def __init__(self, folder: Path) -> None:
        import torch

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.device == "cpu":
            keep_freed_memory()
        self._folder = folder
        self._model = _load(folder, self.device)

    def similarities(self, pairs_P: Sequence[Pair]) -> NDArray[np.float64]:
        """Return the mean of the logistic function of both orders' logits, in [0, 1]; (P,).

        Raises:
            ArtifactError: If a logit is not finite, or there is another number than one a pair; the pair is named.
        """
        both = [*pairs_P, *((second, first) for first, second in pairs_P)]
        logits = np.asarray(self._model.predict(both, batch_size=_BATCH[self.device], show_progress_bar=False), np.float64)
        if logits.shape != (len(both),):
            raise ArtifactError(
                f"{self._folder}: gave numbers of shape {list(logits.shape)} for {len(both)} pairs, and not one each."
            )
        if not np.isfinite(logits).all():
            first, second = both[int(np.flatnonzero(~np.isfinite(logits))[0])]
            raise ArtifactError(
                f"{self._folder}: gave a number that is not finite for {first[:60]!r} and {second[:60]!r}. Choose another "
                "cross-encoder."
            )
        forth_P, back_P = expit(logits).reshape(2, -1)
        mean: NDArray[np.float64] = (forth_P + back_P) / 2
        return mean


def _load(folder: Path, device: str) -> Any:
    code = "this cross-encoder needs code from its own repository, which is never run. Choose another."
    with loading(folder, kind="cross-encoder", code=code):
        from sentence_transformers import CrossEncoder
        from torch import nn

        return CrossEncoder(
            str(folder),
            device=device,
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"use_safetensors": True},
            # The logits themselves, whatever the model would make of them.
            activation_fn=nn.Identity(),
        )
