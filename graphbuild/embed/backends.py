"""A transformer computed by ONNX Runtime or OpenVINO: tensors of one call in, token embeddings out; pooling stays with torch.

Shape letters: B rows, L tokens, H width of the transformer. Files are those that Sentence Transformers exports, int8 ones included;
Optimum is not needed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphbuild.embed.encoder_files import EncoderSpec
from graphbuild.errors import ArtifactError, OptionError, one_line

_OUTPUTS = ("token_embeddings", "last_hidden_state")
Arrays = dict[str, NDArray[np.int64]]
Session = Callable[[Arrays], NDArray[np.float32]]


class BackendTransformer:
    """What stands in the place of an encoder's first module."""

    def __init__(self, spec: EncoderSpec) -> None:
        """Open the file of the backend.

        Raises:
            OptionError: If the backend is not installed.
            ArtifactError: If it cannot read the file.
        """
        self._inputs, self._run = _OPENERS[spec.backend](Path(str(spec.folder)) / str(spec.backend_file))

    def __call__(self, features: dict[str, Any]) -> dict[str, Any]:
        """Return the features with `token_embeddings`, (B, L, H) float32."""
        import torch

        arrays = {name: features[name].cpu().numpy() for name in self._inputs if name in features}
        found = torch.from_numpy(np.ascontiguousarray(self._run(arrays), np.float32))
        return {**features, "token_embeddings": found.to(features["attention_mask"].device)}


def _open_onnx(path: Path) -> tuple[list[str], Session]:
    import torch

    try:
        import onnxruntime
    except ImportError:
        raise OptionError("--backend onnx: ONNX Runtime is not installed. Run `uv pip install 'xclr-graph[onnx]'`.") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=onnxruntime.get_available_providers())
    # It raises a dozen kinds of its own.
    except Exception as error:
        raise ArtifactError(f"{path}: ONNX Runtime cannot read it ({one_line(str(error))[:200]}). Export it again.") from error
    names = [one.name for one in session.get_outputs()]
    output = next((name for name in _OUTPUTS if name in names), names[0])

    def run(arrays: Arrays) -> NDArray[np.float32]:
        found: NDArray[np.float32] = session.run([output], arrays)[0]
        return found

    return [one.name for one in session.get_inputs()], run


def _open_openvino(path: Path) -> tuple[list[str], Session]:
    try:
        import openvino
    except ImportError:
        raise OptionError("--backend openvino: OpenVINO is not installed. Run `uv pip install 'xclr-graph[openvino]'`.") from None
    try:
        model = openvino.Core().compile_model(str(path), "CPU")
    except Exception as error:
        raise ArtifactError(f"{path}: OpenVINO cannot read it ({one_line(str(error))[:200]}). Export it again.") from error
    names = [name for one in model.outputs for name in one.get_names()]
    output = next((name for name in _OUTPUTS if name in names), None)
    found = model.output(output) if output is not None else model.output(0)

    def run(arrays: Arrays) -> NDArray[np.float32]:
        values: NDArray[np.float32] = model(arrays)[found]
        return values

    return [one.any_name for one in model.inputs], run


_OPENERS = {"onnx": _open_onnx, "openvino": _open_openvino}
