"""Retrieval between images and their captions by CLIP's two towers: R@1, R@5 and R@10 in both directions.

As on Flickr30k and COCO (Karpathy and Fei-Fei 2015, arXiv 1412.2306): an image finds a caption if any of its own is among the
first k of all captions, and a caption finds its image likewise. Equal captions are one, which finds any of its images.

Shape letters: n images, M texts, D width of the projection, P pairs of an image and a text that belong together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from graphbuild.store.graph import Graph
from train.evaluate.protocols.zero_shot import project
from train.model.encoders import Encoder
from train.model.text_tower import TextTower, Tokenizer, encode_texts

RANKS = (1, 5, 10)
_AT_ONCE = 1024


def image_text_scores(
    features: Tensor, sample_ids: Sequence[str], graph: Graph, encoder: Encoder, tower: TextTower, tokenizer: Tokenizer
) -> dict[str, float]:
    """Return `to_text_r1` and so on, `to_image_r1` and so on, and how many images and texts there were; empty if no image is known.

    Args:
        features: Of the backbone; (n, F).
        sample_ids: Of the images; those that the graph does not know are left out.
        graph: Knows the captions.
        encoder: Whose projection lies beside the texts'.
        tower: The text tower that was trained with it.
        tokenizer: That of the graph.
    """
    found = graph.sample_texts(sample_ids)
    if not found.known.any():
        return {}
    counts = torch.from_numpy(found.offsets).diff()[torch.from_numpy(found.known)]
    images_P = torch.repeat_interleave(torch.arange(len(counts)), counts)
    distinct, texts_P = torch.unique(torch.from_numpy(found.text_ids), return_inverse=True)
    device = features.device
    z_nD = functional.normalize(project(encoder, features[torch.from_numpy(found.known).to(device)]), dim=1)
    captions = graph.texts().take(distinct.numpy()).to_pylist()
    parts = [encode_texts(tower, tokenizer, captions[i : i + _AT_ONCE]) for i in range(0, len(captions), _AT_ONCE)]
    t_MD, pairs = torch.cat(parts).to(device), torch.stack([images_P, texts_P]).to(device)
    scores = {f"to_text_r{rank}": value for rank, value in zip(RANKS, recalls(z_nD, t_MD, pairs), strict=True)}
    scores |= {f"to_image_r{rank}": value for rank, value in zip(RANKS, recalls(t_MD, z_nD, pairs.flip(0)), strict=True)}
    return {**scores, "images": float(len(z_nD)), "texts": float(len(t_MD))}


def recalls(queries: Tensor, keys: Tensor, pairs: Tensor, ranks: Sequence[int] = RANKS) -> list[float]:
    """Return the share of queries that have one of their own keys among the first k, for each k.

    Args:
        queries: Unit vectors; (n, D).
        keys: Unit vectors; (M, D).
        pairs: Row of a query and of a key that belong together; (2, P).
        ranks: Each k.
    """
    hits = torch.zeros(len(ranks), dtype=torch.int64)
    for start in range(0, len(queries), _AT_ONCE):
        near = queries[start : start + _AT_ONCE] @ keys.T
        inside = pairs[:, (pairs[0] >= start) & (pairs[0] < start + len(near))]
        own = torch.zeros_like(near, dtype=torch.bool)
        own[inside[0] - start, inside[1]] = True
        met = own.gather(1, near.topk(min(max(ranks), len(keys)), dim=1).indices).cumsum(1) > 0
        hits += torch.stack([met[:, min(rank, len(keys)) - 1].sum() for rank in ranks]).cpu()
    return [float(count) / len(queries) for count in hits]
