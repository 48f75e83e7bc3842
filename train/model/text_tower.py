"""CLIP's text side: token ids of the graph's texts, made once, and a small transformer trained on them from scratch.

The tokenizer is the one that the graph's encoder has, from the graph directory; OpenCLIP's towers, which are an extra, go with
tokenizers of their own. Shape letters: N texts, B samples in a batch,
L tokens of a text at most, D width of the projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from graphbuild.errors import ArtifactError, OptionError
from graphbuild.store.graph import Graph
from graphbuild.system.progress import progress

HEAD_WIDTH = 64
_TEXTS_AT_ONCE = 65_536
_FILE = "tokenizer.json"


class Tokenizer:
    """Texts to token ids, padded or cut to one length."""

    def __init__(self, folder: Path, length: int) -> None:
        """Read a tokenizer.

        Args:
            folder: That of the graph, or a copy of it.
            length: L.

        Raises:
            OptionError: If there is none: the graph was imported, or built by an encoder without one.
            ArtifactError: If it is damaged.
        """
        from tokenizers import Tokenizer as FastTokenizer

        path = folder / _FILE
        if not path.exists():
            raise OptionError(
                f"clip needs the tokenizer of the graph's encoder, and {path} is missing. Build the graph with a Sentence "
                "Transformer: `graphbuild embed --encoder all-MiniLM-L6-v2`."
            )
        try:
            self._tokenizer: Any = FastTokenizer.from_file(str(path))
        except Exception as error:
            # The library raises bare exceptions.
            raise ArtifactError(f"{path}: not a tokenizer ({error}). Run `graphbuild embed --overwrite`.") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.length = length

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return int(self._tokenizer.get_vocab_size())

    def ids(self, texts: Sequence[str]) -> tuple[list[npt.NDArray[np.int32]], int]:
        """Return the token ids of each text, at most L, and how many texts were cut."""
        found = [np.array(encoded.ids, np.int32) for encoded in self._tokenizer.encode_batch(list(texts))]
        return [ids[: self.length] for ids in found], sum(len(ids) > self.length for ids in found)


class TextTokens:
    """Token ids of all texts of a graph: four bytes a token, and eight a text."""

    def __init__(self, graph: Graph, tokenizer: Tokenizer) -> None:
        """Tokenise every text, once."""
        parts: list[npt.NDArray[np.int32]] = []
        counts: list[npt.NDArray[np.int64]] = []
        self.length, self.cut = tokenizer.length, 0
        with progress("tokenise", graph.n_texts, unit="texts") as meter:
            texts = graph.texts()
            for start in range(0, graph.n_texts, _TEXTS_AT_ONCE):
                ids, cut = tokenizer.ids(texts.slice(start, _TEXTS_AT_ONCE).to_pylist())
                parts.append(np.concatenate(ids))
                counts.append(np.array([len(some) for some in ids], np.int64))
                self.cut += cut
                meter.advance(len(ids))
        self._flat = np.concatenate(parts)
        self._offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(counts))])

    def batch(self, text_ids_B: npt.NDArray[np.integer]) -> Tensor:
        """Return the tokens of some texts, -1 beyond their ends; (B, L) int64 on the CPU."""
        starts, stops = self._offsets[text_ids_B], self._offsets[text_ids_B + 1]
        places = starts[:, None] + np.arange(self.length)
        inside = places < stops[:, None]
        tokens = self._flat[np.where(inside, places, 0)]
        return torch.from_numpy(np.where(inside, tokens, -1).astype(np.int64))


class TextTower(nn.Module):
    """Token ids to unit vectors: embeddings, a transformer (pre-norm), the mean over tokens, a linear map."""

    def __init__(self, *, vocabulary: int, length: int, width: int, layers: int, out_dim: int) -> None:
        """Build it with random weights from the global generator.

        Args:
            vocabulary: Number of tokens.
            length: L.
            width: Of the transformer; a multiple of 64.
            layers: How many.
            out_dim: D.
        """
        super().__init__()
        self.shape = {"vocabulary": vocabulary, "length": length, "width": width, "layers": layers, "out_dim": out_dim}
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.empty(length, width))
        layer = nn.TransformerEncoderLayer(
            width, width // HEAD_WIDTH, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.out = nn.Linear(width, out_dim, bias=False)
        # As CLIP begins (arXiv 2103.00020, code of the authors): its deviations for tokens and places.
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.places, std=0.01)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """Return unit vectors, float32 under autocast too; -1 marks what lies beyond a text's end; (B, L) -> (B, D)."""
        beyond = tokens_BL < 0
        hidden = self.tokens(tokens_BL.clamp(min=0)) + self.places[: tokens_BL.shape[1]]
        hidden = self.transformer(hidden, src_key_padding_mask=beyond).float()
        kept = (~beyond)[:, :, None].float()
        mean = (hidden * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)
        return nn.functional.normalize(self.out(mean).float(), dim=1)


def encode_texts(tower: TextTower, tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    """Compute unit vectors of any texts, for zero-shot classification and retrieval; (len(texts), D)."""
    ids, _ = tokenizer.ids(texts)
    tokens = torch.full((len(ids), tokenizer.length), -1, dtype=torch.int64)
    for row, some in enumerate(ids):
        tokens[row, : len(some)] = torch.from_numpy(some).long()
    with torch.inference_mode():
        vectors: Tensor = tower(tokens.to(tower.places.device))
    return vectors


def open_tokens(graph: Graph, length: int) -> tuple[TextTokens, int]:
    """Open the tokens of a graph's texts; returns them and the size of the vocabulary.

    Raises:
        OptionError: If the graph has no tokenizer.
    """
    tokenizer = Tokenizer(graph.tokenizer, length)
    return TextTokens(graph, tokenizer), tokenizer.vocabulary
