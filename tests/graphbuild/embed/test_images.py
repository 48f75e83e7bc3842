"""Vectors of pictures, against plain loops over the libraries' own transforms and networks, with random weights."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_model_data_config
from torchvision import transforms

from graphbuild.embed.build import build_embeddings
from graphbuild.embed.config import EmbedConfig, EmbedResult
from graphbuild.embed.image_files import find_image_encoder, load_net
from graphbuild.embed.nearest import nearest_texts
from graphbuild.errors import ArtifactError, ArtifactMismatch, OptionError, ResourceError, SourceError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.quality.compare import compare_graphs
from graphbuild.quality.verify import verify_graph
from graphbuild.store.embeddings import load_embeddings
from graphbuild.store.manifest import Manifest
from graphbuild.system.backbones import MEAN, STD, build_backbone
from graphbuild.system.pictures import open_picture, to_rgb

COUNT = 11
BROKEN = 4
NET = "test_vit"


def _pictures() -> dict[str, bytes]:
    """JPEGs, PNGs and one that is grey, of several shapes, and one cut short."""
    rng = np.random.default_rng(0)
    found = {}
    for i in range(COUNT):
        shape = (40 + 7 * i, 90 - 5 * i, 3)
        image = Image.fromarray((rng.random(shape) * 60 + 190 * i / COUNT).astype(np.uint8))
        buffer = io.BytesIO()
        (image.convert("L") if i == 2 else image).save(buffer, format="PNG" if i % 2 else "JPEG")
        content = buffer.getvalue()
        found[f"p{i:02d}"] = content[: len(content) // 2] if i == BROKEN else content
    return found


PICTURES = _pictures()
READABLE = [name for i, name in enumerate(PICTURES) if i != BROKEN]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures in Parquet, in a shard and in class folders, and a network of each library with random weights."""
    root = tmp_path_factory.mktemp("pictures")
    columns = {
        "key": list(PICTURES),
        "image": pa.array([{"bytes": data, "path": None} for data in PICTURES.values()]),
        "caption": [f"a picture {name}" for name in PICTURES],
        "label": list(range(COUNT)),
    }
    table = pa.table(columns)
    pq.write_table(table.slice(0, 6), root / "a.parquet", row_group_size=2)
    pq.write_table(table.slice(6), root / "b.parquet", row_group_size=3)
    with tarfile.open(root / "s.tar", "w") as tar:
        for name, data in PICTURES.items():
            for suffix, content in (("png", data), ("json", json.dumps({"sample_id": name}).encode())):
                entry = tarfile.TarInfo(f"{name}.{suffix}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    for i, (name, data) in enumerate(PICTURES.items()):
        path = root / "folder" / f"class{i // 6}" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    torch.manual_seed(0)
    save_file(timm.create_model(NET, num_classes=7).state_dict(), root / "vit.safetensors")
    return root


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP with random weights, as OpenCLIP saves it for the hub."""
    root = tmp_path_factory.mktemp("clip")
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    model = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    (root / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    torch.manual_seed(1)
    net = open_clip.CLIP(embed_dim=16, vision_cfg=open_clip.CLIPVisionCfg(**vision), text_cfg=open_clip.CLIPTextCfg(**text))  # type: ignore[arg-type]
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, root / "open_clip_model.safetensors")
    return root


def _embed(graph_dir: Path, source: Path | str, encoder: str, dataset: str = "parquet", **options: Any) -> EmbedResult:
    config = EmbedConfig(dataset=dataset, sources=(str(source),), encoder=encoder, embedded="images", **options)
    return build_embeddings(graph_dir, config)


def _loop(module: Any, transform: Any, names: list[str] = READABLE) -> NDArray[np.float16]:
    """One picture at a time."""
    with torch.inference_mode():
        vectors = torch.cat([module(transform(to_rgb(open_picture(PICTURES[name])))[None]) for name in names]).double().numpy()
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def _timm_loop(folder: Path) -> NDArray[np.float16]:
    net = timm.create_model(NET, num_classes=7)
    net.load_state_dict(load_file(folder / "vit.safetensors"))
    net.reset_classifier(0)
    return _loop(net.eval(), create_transform(**resolve_model_data_config(net), is_training=False))


def _samples(graph_dir: Path) -> list[str]:
    ids: list[str] = pq.read_table(graph_dir / "samples")["sample_id"].to_pylist()
    return ids


def test_vectors_of_a_timm_network_are_those_of_a_plain_loop(folder: Path, tmp_path: Path) -> None:
    encoder = f"timm:{NET}:{folder / 'vit.safetensors'}"
    result = _embed(tmp_path / "g", folder / "*.parquet", encoder, id_column="key", keep_columns=("label",), shard_size=4)
    np.testing.assert_allclose(load_embeddings(tmp_path / "g"), _timm_loop(folder), atol=1e-3)
    assert _samples(tmp_path / "g") == READABLE
    assert "1 pictures that cannot be decoded, left out" in result.summary()
    manifest = Manifest.load(tmp_path / "g")
    (listed,) = manifest.stages["text"].facts["unreadable_pictures"]
    assert listed["where"] == f"a.parquet:{BROKEN}"
    assert (manifest.encoder["name"], manifest.encoder["precision"]) == (encoder, "float32")
    assert "Resize" in manifest.encoder["transform"]
    assert pq.read_table(tmp_path / "g" / "samples")["label"].to_pylist() == [i for i in range(COUNT) if i != BROKEN]
    assert _embed(tmp_path / "g", folder / "*.parquet", encoder, id_column="key", keep_columns=("label",), shard_size=4).built == ()


@pytest.mark.parametrize(
    ("dataset", "source", "ids"),
    [
        ("webdataset", "s.tar", READABLE),
        ("imagefolder", "folder", [f"class{int(name[1:]) // 6}/{name}.png" for name in READABLE]),
    ],
)
def test_shards_and_folders_give_the_same_vectors(folder: Path, tmp_path: Path, dataset: str, source: str, ids: list[str]) -> None:
    _embed(tmp_path / "g", folder / source, f"timm:{NET}:{folder / 'vit.safetensors'}", dataset, shard_size=3)
    np.testing.assert_allclose(load_embeddings(tmp_path / "g"), _timm_loop(folder), atol=1e-3)
    assert _samples(tmp_path / "g") == ids


@pytest.mark.parametrize(("model", "size"), [("small", 32), ("resnet18", 96)])
def test_vectors_of_our_own_network_are_those_of_resize_and_centre_crop(
    folder: Path, tmp_path: Path, model: str, size: int
) -> None:
    torch.manual_seed(2)
    net, _ = build_backbone(model, size)
    path = tmp_path / "backbone.safetensors"
    save_file(net.state_dict(), path, {"format": "pt", "model": model, "image_size": str(size)})
    # As torchvision documents it, each picture by itself.
    how = transforms.Compose(
        [
            transforms.Resize(size),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    _embed(tmp_path / "g", folder / "*.parquet", str(path), id_column="key", caption_column="caption")
    np.testing.assert_allclose(load_embeddings(tmp_path / "g"), _loop(net.eval(), how), atol=1e-3)
    texts = pq.read_table(tmp_path / "g" / "texts")["text"].to_pylist()
    assert texts == [f"a picture {name}" for name in READABLE]


def test_clip_embeds_pictures_and_answers_texts_by_its_text_side(folder: Path, clip_folder: Path, tmp_path: Path) -> None:
    _embed(tmp_path / "g", folder / "*.parquet", f"open_clip:{clip_folder}", id_column="key")
    net, transform = open_clip.create_model_from_pretrained(f"local-dir:{clip_folder}")
    right = _loop(net.eval().encode_image, transform)  # type: ignore[union-attr]
    np.testing.assert_allclose(load_embeddings(tmp_path / "g"), right, atol=1e-3)
    with torch.inference_mode():
        text = net.encode_text(open_clip.get_tokenizer(f"local-dir:{clip_folder}")(["a dog"]))[0].double().numpy()  # type: ignore[union-attr]
    near = nearest_texts(tmp_path / "g", "a dog", count=3, encoder=f"open_clip:{clip_folder}").found
    scores = right.astype(np.float64) @ (text / np.linalg.norm(text))
    assert [one.text for one in near] == [READABLE[i] for i in np.argsort(-scores)[:3]]
    with pytest.raises(OptionError, match="name it: --encoder"):
        nearest_texts(tmp_path / "g", "a dog")
    # The same vectors, as somebody else's program may have made them.
    np.save(tmp_path / "v.npy", right.astype(np.float32))
    build_embeddings(tmp_path / "given", EmbedConfig(dataset="vectors", sources=(str(tmp_path / "v.npy"),)))
    given = nearest_texts(tmp_path / "given", "a dog", count=3, encoder=f"open_clip:{clip_folder}").found
    assert [one.text_id for one in given] == np.argsort(-scores)[:3].tolist()
    with pytest.raises(OptionError, match=f"{NET}.*has no text side"):
        nearest_texts(tmp_path / "given", "a dog", encoder=f"timm:{NET}:{folder / 'vit.safetensors'}")


def test_graph_of_pictures_is_searched_verified_and_compared_by_sample(folder: Path, tmp_path: Path) -> None:
    encoder = f"timm:{NET}:{folder / 'vit.safetensors'}"
    _embed(tmp_path / "images", folder / "*.parquet", encoder, id_column="key")
    captions = EmbedConfig(
        dataset="parquet", sources=(str(folder / "*.parquet"),), id_column="key", encoder="hashing:16", workers=0
    )
    build_embeddings(tmp_path / "captions", captions)
    for name in ("images", "captions"):
        build_knn(tmp_path / name, KnnConfig(k=4, sketch_dim=4))
    assert verify_graph(tmp_path / "images").k == 4
    found = compare_graphs(tmp_path / "captions", tmp_path / "images")
    assert (found.by_sample, found.texts) == (True, len(READABLE))
    with pytest.raises(OptionError, match="has no text side"):
        nearest_texts(tmp_path / "images", "a dog", encoder=encoder)
    assert nearest_texts(tmp_path / "images", "p03", count=2).found[0].text == "p03"


def test_a_run_that_was_cut_off_goes_on_to_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    encoder = f"timm:{NET}:{folder / 'vit.safetensors'}"
    options = {"id_column": "key", "shard_size": 3}
    _embed(tmp_path / "g", folder / "*.parquet", encoder, **options)
    shards = sorted((tmp_path / "g" / "embeddings").iterdir())
    before = [path.read_bytes() for path in shards]
    times = [path.stat().st_mtime_ns for path in shards]
    shards[1].unlink()
    assert _embed(tmp_path / "g", folder / "*.parquet", encoder, **options).built == ("embed",)
    assert [path.read_bytes() for path in shards] == before
    assert [path.stat().st_mtime_ns == then for path, then in zip(shards, times, strict=True)] == [True, False, True, True]


@pytest.mark.slow
def test_worker_processes_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        encoder = f"timm:{NET}:{folder / 'vit.safetensors'}"
        _embed(tmp_path / str(workers), folder / "*.parquet", encoder, workers=workers, id_column="key", shard_size=3)
    one, two = ([path.read_bytes() for path in sorted((tmp_path / name / "embeddings").iterdir())] for name in "02")
    assert one == two


def test_other_weights_are_told_by_their_digest(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes((folder / "vit.safetensors").read_bytes())
    spec = find_image_encoder(f"timm:{NET}:{path}", "auto")
    torch.manual_seed(5)
    save_file(timm.create_model(NET, num_classes=7).state_dict(), path)
    with pytest.raises(ArtifactMismatch, match="has another encoder"):
        load_net(spec)
    _embed(tmp_path / "g", folder / "a.parquet", f"timm:{NET}:{folder / 'vit.safetensors'}", id_column="key")
    with pytest.raises(OptionError, match="--overwrite"):
        _embed(tmp_path / "g", folder / "a.parquet", f"timm:{NET}:{path}", id_column="key")


def test_encoders_that_are_not_there_or_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    weights, source = folder / "vit.safetensors", folder / "a.parquet"
    cases: list[tuple[str, type[Exception], str]] = [
        ("timm:no_such_net", OptionError, "timm has no network 'no_such_net'"),
        (f"timm:resnet18:{weights}", ArtifactError, "does not hold the weights of this network"),
        (f"timm:{NET}:{tmp_path / 'missing.safetensors'}", OptionError, "is missing"),
        ("open_clip:ViT-B-32", OptionError, "name its weights"),
        ("open_clip:no-such-net:openai", OptionError, "OpenCLIP has no network"),
        (str(weights), ArtifactError, "not a network that `train` made"),
        ("all-MiniLM-L6-v2", OptionError, "is no image encoder"),
    ]
    for encoder, error, words in cases:
        with pytest.raises(error, match=words):
            _embed(tmp_path / "g", source, encoder, id_column="key")
    assert not (tmp_path / "g").exists()


def test_options_of_captions_and_of_pictures_do_not_mix(folder: Path, tmp_path: Path) -> None:
    encoder = f"timm:{NET}:{folder / 'vit.safetensors'}"
    with pytest.raises(OptionError, match="--template does not apply to --from images"):
        _embed(tmp_path / "g", folder / "a.parquet", encoder, templates=("a {}",))
    with pytest.raises(OptionError, match="Add --from images"):
        build_embeddings(tmp_path / "g", EmbedConfig(dataset="parquet", sources=(str(folder / "a.parquet"),), encoder=encoder))
    with pytest.raises(SourceError, match="no column 'nope'"):
        _embed(tmp_path / "g", folder / "a.parquet", encoder, image_column="nope")
    with pytest.raises(OptionError, match="--image-column names pictures to embed"):
        build_embeddings(tmp_path / "g", EmbedConfig(dataset="scenes", image_column="image"))


def test_pictures_none_of_which_can_be_decoded_are_an_error(folder: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"no picture", b""]}), tmp_path / "bad.parquet")
    with pytest.raises(SourceError, match="none of the 2 pictures can be decoded"):
        _embed(tmp_path / "g", tmp_path / "bad.parquet", f"timm:{NET}:{folder / 'vit.safetensors'}")


def test_weights_that_cannot_be_downloaded_say_where_to_put_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ResourceError, match="give their path: timm:resnet10t:FILE"):
        find_image_encoder("timm:resnet10t", "auto")
