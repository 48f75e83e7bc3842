"""What the server of `helpers_forked` imports, once for all of its forks; nothing here starts a thread, for a fork has none."""

from __future__ import annotations

import gc
import os

import faiss  # noqa: F401
import helpers_family  # noqa: F401
import numpy as np
import torch._dynamo
import torch.nn.parallel.distributed  # noqa: F401

import train.data.parquet
import train.results.export  # noqa: F401
from graphbuild.cli import cli as graphbuild_cli  # noqa: F401
from graphbuild.embed import hashing  # noqa: F401
from graphbuild.embed.build import build_embeddings  # noqa: F401
from graphbuild.embed.text.keys import KeyTable
from train.cli import main as train_main  # noqa: F401
from train.run import loop  # noqa: F401

# The first kernel that is called makes numba load most of itself.
KeyTable().number(np.zeros((1, 2), np.uint64))
# Only a power cut would tell it from nothing.
os.fsync = lambda _: None
# A fork then neither searches nor copies what all of them share.
gc.collect()
gc.freeze()
