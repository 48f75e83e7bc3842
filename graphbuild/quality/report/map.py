"""The map on top of the report: a picture of where the texts lie, with the names of its regions and the largest hubs.

Positions are those of `graphbuild explore` where it has run, else of UMAP on some texts where that is installed, else the
leading coordinates of the sketches. Shape letters: N texts of the graph, n texts on the map, W and H pixels.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from importlib.util import find_spec
from textwrap import wrap

import numpy as np
import numpy.typing as npt
import polars as pl
from PIL import Image

from graphbuild.quality.explore.columns import in_degrees, start_positions
from graphbuild.quality.explore.labels import label_clusters
from graphbuild.quality.explore.layout import judge, lay_out
from graphbuild.quality.explore.select import MOST_TEXTS, Selection, select_texts
from graphbuild.quality.explore.write import FOLDER
from graphbuild.quality.view import GraphView
from graphbuild.store import schemas
from graphbuild.store.arrays import Float32, Ids
from graphbuild.store.atomic import read_json

_MOST_LAID_OUT = 5_000
"""Texts of a map that is made for the report alone: some ten seconds."""
_LEAST_TEXTS = 16
_WIDTH = 1320
_FLATTEST, _TALLEST = 0.45, 0.75
"""Height by width."""
_COLOR = (38, 130, 165)
"""Seen on white as on black."""
_RADII = ((1_000, 5), (10_000, 3), (50_000, 2), (MOST_TEXTS, 1))
"""Up to so many texts, a point of so many pixels about its middle."""
_EDGE = 0.03
_OUTLYING = 0.002
"""Share of texts at each side that the frame may leave out: a far island would make a dot of all else."""
_SCREEN, _PHONE = 720, 340
"""Widths in pixels for which labels are placed: a sheet of paper (screens are wider), and a phone."""
_LETTER, _LINE = 6.6, 15
_LABEL_WIDTH = 26


@dataclass(frozen=True, slots=True)
class Mark:
    """A name or a number on the map; its place is in percent from the left and from the top."""

    left: float
    top: float
    text: str
    on_phones: bool = True


@dataclass(frozen=True, slots=True)
class MapFigure:
    """The map, and how to read it."""

    image: str
    width: int
    height: int
    labels: tuple[Mark, ...]
    hubs: tuple[Mark, ...]
    """Numbered as in the list of hubs."""
    caption: str


@dataclass(frozen=True, slots=True)
class Places:
    """Where texts lie on the map."""

    ids_n: Ids
    positions_n2: Float32
    labels: tuple[tuple[float, float, str], ...]
    """x, y and the text that stands for the region, the largest first."""
    how: str


def draw_map(view: GraphView, hubs: list[int], *, seed: int) -> tuple[MapFigure | None, str]:
    """Return the map, or None and why there is none.

    Args:
        view: The graph.
        hubs: Texts whose places are numbered.
        seed: Of the positions, where they are made here.
    """
    places = _explored(view) or _laid_out(view, seed)
    if places is None:
        return None, "No map: it takes 16 texts, and umap-learn or a sketch. For umap-learn: pip install 'xclr-graph[explore]'."
    frame = _Frame.around(places.positions_n2)
    spots_n2, inside_n = frame.place(places.positions_n2)
    rows = {int(text_id): row for row, text_id in enumerate(places.ids_n.tolist())}
    numbered = [(number, rows[hub]) for number, hub in enumerate(hubs, start=1) if hub in rows and inside_n[rows[hub]]]
    figure = MapFigure(
        image=_paint(spots_n2[inside_n], frame.height),
        width=_WIDTH,
        height=frame.height,
        labels=_place_labels(places, frame, [spots_n2[row].tolist() for _, row in numbered]),
        # The first is drawn last, above those that it would be hidden by.
        hubs=tuple(Mark(100 * spots_n2[row, 0], 100 * spots_n2[row, 1], str(number)) for number, row in reversed(numbered)),
        caption=places.how,
    )
    return figure, ""


def _explored(view: GraphView) -> Places | None:
    """The map of `graphbuild explore`, if it is there and of these texts."""
    folder = view.path / FOLDER
    try:
        frame = pl.read_parquet(folder / "atlas.parquet", columns=["x", "y", schemas.TEXT_ID, schemas.TEXT])
        labels = pl.read_parquet(folder / "labels.parquet").filter(pl.col("level") == 0).sort("priority", descending=True)
        state = read_json(folder / "state.json")
        charts = state["props"]["initialState"]["charts"].values()
        how = next(str(chart["content"]) for chart in charts if chart["type"] == "markdown")
        named = tuple(labels.select("x", "y", schemas.TEXT).iter_rows())
    # Files that lie beside the graph, and that anybody may have changed, cost the report its map at most.
    except Exception:
        return None
    now = view.texts.select(schemas.TEXT_ID, schemas.TEXT)
    same = frame.lazy().join(now, on=(schemas.TEXT_ID, schemas.TEXT), how="semi").select(pl.len()).collect(engine="streaming")
    if same.item() != len(frame) or not len(frame):
        return None
    return Places(frame[schemas.TEXT_ID].to_numpy(), frame.select("x", "y").to_numpy().astype(np.float32), named, how)


def _laid_out(view: GraphView, seed: int) -> Places | None:
    """A map of some texts, by what is installed; None where there is too little for one."""
    graph = view.graph
    embedded = "embed" in view.manifest.stages
    if graph.n_texts < _LEAST_TEXTS or graph.k < 2:
        return None
    if find_spec("umap") is not None and (embedded or graph.n_texts <= _MOST_LAID_OUT):
        chosen = select_texts(view, in_degrees(graph), count=_MOST_LAID_OUT, seed=seed)
        positions = lay_out(chosen.neighbors_nm, chosen.similarities_nm, start_positions(view, chosen), seed=seed)
        how = f"By UMAP, of {chosen.how}; graphbuild explore makes one to walk around in."
    elif graph.sketch_dim >= 3 and (embedded or graph.n_texts <= MOST_TEXTS):
        chosen = select_texts(view, in_degrees(graph), count=MOST_TEXTS, seed=seed)
        positions = start_positions(view, chosen)
        how = f"By two principal coordinates, of {chosen.how}; pip install 'xclr-graph[explore]' for a map by neighbours."
    else:
        return None
    truth = judge(positions, chosen.neighbors_nm, graph.embeddings()[chosen.ids_n] if embedded else None, seed=seed)
    return Places(chosen.ids_n, positions, _labels(view, chosen, positions, seed), f"{how} {truth.summary()}")


def _labels(view: GraphView, chosen: Selection, positions_n2: Float32, seed: int) -> tuple[tuple[float, float, str], ...]:
    found = [one for one in label_clusters(positions_n2, chosen.neighbors_nm, chosen.similarities_nm, seed=seed) if not one.level]
    found.sort(key=lambda one: (-one.texts, one.row))
    texts = dict(view.texts_of([int(chosen.ids_n[one.row]) for one in found]).iter_rows())
    return tuple((*positions_n2[one.row].tolist(), texts[int(chosen.ids_n[one.row])]) for one in found)


@dataclass(frozen=True, slots=True)
class _Frame:
    """What part of the plane is shown; both axes have one scale."""

    left: float
    top: float
    across: float
    height: int

    @classmethod
    def around(cls, positions_n2: Float32) -> _Frame:
        low, high = np.quantile(positions_n2.astype(np.float64), [_OUTLYING, 1 - _OUTLYING], axis=0)
        width, height = np.maximum(high - low, 1e-9) * (1 + 2 * _EDGE)
        ratio = float(np.clip(height / width, _FLATTEST, _TALLEST))
        across = max(float(width), float(height) / ratio)
        middle = (low + high) / 2
        return cls(float(middle[0]) - across / 2, float(middle[1]) + across * ratio / 2, across, round(_WIDTH * ratio))

    def place(self, positions_n2: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Return shares of the width and of the height, from the top left, and which lie inside."""
        across = (positions_n2[:, 0] - self.left) / self.across
        down = (self.top - positions_n2[:, 1]) / (self.across * self.height / _WIDTH)
        inside = (across >= 0) & (across < 1) & (down >= 0) & (down < 1)
        return np.stack([across, down], axis=1).astype(np.float64), inside


def _paint(spots_n2: npt.NDArray[np.float64], height: int) -> str:
    """Return a PNG, as data URI, that is transparent where there are no texts and the denser the more there are."""
    radius = next((pixels for most, pixels in _RADII if len(spots_n2) <= most), 0)
    columns, rows = (spots_n2 * (_WIDTH, height)).astype(np.int64).T
    counts = np.zeros((height, _WIDTH), np.int64)
    for down in range(-radius, radius + 1):
        for across in range(-radius, radius + 1):
            if down**2 + across**2 <= radius**2 + radius / 2:
                y, x = np.clip(rows + down, 0, height - 1), np.clip(columns + across, 0, _WIDTH - 1)
                counts += np.bincount(y * _WIDTH + x, minlength=counts.size).reshape(counts.shape)
    dense = np.quantile(counts[counts > 0], 0.99) if counts.any() else 1
    # Sixteen steps are enough for the eye, and make a file of a third.
    share = np.clip(np.log1p(counts) / np.log1p(max(dense, 3)), 0, 1)
    alpha = np.where(counts > 0, 40 + np.round(share * 15) / 15 * 215, 0).astype(np.uint8)
    pixels = np.empty((height, _WIDTH, 4), np.uint8)
    pixels[..., :3], pixels[..., 3] = _COLOR, alpha
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _place_labels(places: Places, frame: _Frame, hubs: list[list[float]]) -> tuple[Mark, ...]:
    """The labels that have room, the largest regions first; those that have it on a phone, too, are marked."""
    if not places.labels:
        return ()
    ratio = frame.height / _WIDTH
    spots, inside = frame.place(np.array([(x, y) for x, y, _ in places.labels], np.float64))
    names = ["\n".join(wrap(text, _LABEL_WIDTH, max_lines=2, placeholder=" ...")) for _, _, text in places.labels]
    taken = {width: [_box(across, down, "00", width, ratio) for across, down in hubs] for width in (_SCREEN, _PHONE)}
    marks = []
    for (across, down), shown, name in zip(spots.tolist(), inside, names, strict=True):
        half = max(map(len, name.split("\n"))) * _LETTER / 2 / _SCREEN
        across = min(max(across, half), 1 - half)
        found = {width: _box(across, down, name, width, ratio) for width in taken}
        free = {
            width: shown and box[0] >= 0 and box[2] <= width and not any(_overlap(box, other) for other in taken[width])
            for width, box in found.items()
        }
        if not free[_SCREEN]:
            continue
        for width in taken:
            taken[width] += [found[width]] if free[width] else []
        marks.append(Mark(100 * across, 100 * down, name, free[_PHONE]))
    return tuple(marks)


def _box(across: float, down: float, name: str, width: int, ratio: float) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a label about a spot, in pixels of a screen."""
    lines = name.split("\n")
    half, tall = max(map(len, lines)) * _LETTER / 2, len(lines) * _LINE / 2
    x, y = across * width, down * width * ratio
    return round(x - half, 6), y - tall, round(x + half, 6), y + tall


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
