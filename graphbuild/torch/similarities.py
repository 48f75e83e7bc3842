"""The torch twin of `graphbuild.targets.assemble`, for CPU and CUDA: text ids in, similarities among the batch's samples out.

SimCLR, SupCon and X-CLR are one loss; what differs is the matrix G of this module. Shape letters: B samples in a batch,
T anchors whose rows of G are at hand (all, unless said otherwise), K neighbours stored, R sketch width, D embedding width.
`start` is the first of the T anchors: its own view is in that column. Nothing here waits for a device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from graphbuild.errors import OptionError
from graphbuild.store.graph import Graph
from graphbuild.targets import assemble as reference
from graphbuild.torch.blocks import Dense, Found, Gather, OneHot, SameClass, Shaped, Target, Whole
from graphbuild.torch.rows import DeviceRows, GraphOnDevice, MappedRows, RowTensors, belongs_on_device, rows_to_device, to_device

Teacher = Literal["graph", "embeddings"]


class Similarities(NamedTuple):
    """Similarities among a batch's samples, and how many of them came from stored edges."""

    similarity_BB: Tensor
    """Symmetric, 1 on the diagonal and between samples of one text; (B, B) float32."""
    stored_B: Tensor
    """For each anchor, the other samples of the batch that its row stores; (B,) int32."""


class Fidelity(NamedTuple):
    """What a batch's target looks like; each a scalar tensor, so that reading it is the caller's choice. Nats."""

    own_view_mass: Tensor
    """Mean share of the target on the other view of the same picture."""
    entropy: Tensor
    """Mean entropy; its exponential is the effective number of positives."""
    hit_rate: Tensor
    """Stored neighbours per anchor in the batch."""
    kl_to_dense: Tensor | None
    """KL(dense || target), mean over rows; None where no embeddings were loaded."""


@dataclass(frozen=True, slots=True)
class GraphTarget:
    """The target of a batch, by rows."""

    plain: Target
    """G before `min_similarity` and `own_weight`: what compares with the dense one."""
    target: Target
    """G as the loss takes it."""
    counted_B: Tensor | None = None
    """Stored neighbours of every anchor, where they were counted on the way; (B,)."""

    def stored(self, start: int, stop: int) -> Tensor:
        """For each of some anchors, the other samples of the batch that its row stores; (T,) int32."""
        if self.counted_B is not None:
            return self.counted_B[start:stop]
        if isinstance(self.plain, Found):
            return self.plain.stored(start, stop)
        return torch.zeros(stop - start, dtype=torch.int32)


class TargetAssembler:
    """Turns the text ids of a batch into its similarity matrix G."""

    def __init__(
        self,
        graph: Graph,
        *,
        tau_s: float = 0.1,
        absent: float | None = None,
        symmetrize: reference.Symmetrize = "union",
        min_similarity: float | None = None,
        own_weight: float = 0.0,
        teacher: Teacher = "graph",
        device: torch.device | str = "cpu",
        graph_on_device: GraphOnDevice = "auto",
        measure_fidelity: bool = False,
    ) -> None:
        """Open a teacher.

        Args:
            graph: The graph, open for reading.
            tau_s: Temperature of the target.
            absent: What a pair counts as that the graph does not store; None takes the sketch.
            symmetrize: Whether a pair counts as stored if either of its rows stores it (`union`), or only if both do (`mutual`).
            min_similarity: Pairs below it are left out of the target.
            own_weight: Share of the target that is given to the own view; the rest is the soft target.
            teacher: `graph` for stored rows and sketches, `embeddings` for the dense target from them (2 N D bytes of memory).
            device: Where G is wanted.
            graph_on_device: Whether the graph's rows are held there; `auto` does so on a GPU with room to spare.
            measure_fidelity: Load the embeddings too, so that `fidelity` can tell KL(dense || target).

        Raises:
            OptionError: If the graph has no sketch and no constant is given, or a temperature is not positive.
            ResourceError: If the graph is to be held on a device that has no room for it.
        """
        if tau_s <= 0:
            raise OptionError(f"--tau-s is a positive temperature, not {tau_s:g}. The paper's is 0.1.")
        if teacher == "graph":
            # A complete graph has no absent pairs, so it needs neither sketch nor constant.
            absent = 0.0 if absent is None and not graph.sketch_dim and graph.is_complete else absent
            reference.check_absent(graph.sketch_dim, absent)
        self.graph, self.tau_s, self.absent, self.teacher = graph, tau_s, absent, teacher
        self.symmetrize, self.min_similarity, self.own_weight = symmetrize, min_similarity, own_weight
        self.device = torch.device(device)
        self.last_stored_B = torch.zeros(0, dtype=torch.int32, device=self.device)
        """Stored neighbours of each anchor of the last batch; their mean is its hit rate."""
        resident = teacher == "graph" and belongs_on_device(graph, self.device, graph_on_device)
        self._resident = DeviceRows(graph, self.device) if resident else None
        self._mapped = MappedRows(graph)
        self._embeddings = graph.embeddings() if teacher == "embeddings" or measure_fidelity else None

    @property
    def graph_on_device(self) -> bool:
        """Whether the graph's rows are held on the device."""
        return self._resident is not None

    def read_ahead(self, text_ids_B: Tensor) -> None:
        """Begin to read the rows of the next batch, where they come from files. Text ids are on the CPU."""
        if self.teacher == "graph" and self._resident is None:
            self._mapped.read_ahead(text_ids_B.numpy())

    def assemble(self, text_ids_B: Tensor) -> Tensor:
        """The similarities G of a batch; (B, B) float32 on the assembler's device. Text ids may be on any device.

        On a CPU this is the numba reference. On a GPU all of it happens there: where the graph is held on the device only the
        text ids travel, else the B rows; neither waits for the device, if the text ids are on the CPU.
        """
        made = self.target(text_ids_B)
        self.last_stored_B = made.stored(0, len(text_ids_B))
        return made.target.rows(0, len(text_ids_B))

    def target(self, text_ids_B: Tensor, anchors: range | None = None, *, gather: Gather | None = None) -> GraphTarget:
        """G of a batch by rows, as the loss takes them tile by tile.

        Args:
            text_ids_B: The text of each sample of the whole batch; (B,).
            anchors: The samples whose rows are asked for; None: all, and at once.
            gather: Where several processes share a batch, brings their rows together; `anchors` are then this process's.
        """
        if self.teacher == "embeddings":
            plain: Target = self.dense_target(text_ids_B)
        elif anchors is None and self._resident is None and self.device.type == "cpu":
            return self._whole(text_ids_B.detach().cpu().numpy())
        else:
            plain = self._found(text_ids_B, anchors if gather else None, gather or (lambda own: own))
        return GraphTarget(plain, Shaped(plain, self._shape))

    def _shape(self, similarity_TB: Tensor, start: int) -> Tensor:
        options = {"min_similarity": self.min_similarity, "own_weight": self.own_weight, "tau_s": self.tau_s}
        return shape(similarity_TB, start=start, **options)  # type: ignore[arg-type]

    def _whole(self, text_ids_B: npt.NDArray[np.integer]) -> GraphTarget:
        rows = self._mapped.rows(text_ids_B)
        assembly = reference.assemble(rows, text_ids_B, absent=self.absent, symmetrize=self.symmetrize)
        plain = Whole(torch.from_numpy(assembly.similarity_BB))
        return GraphTarget(plain, Shaped(plain, self._shape), torch.from_numpy(assembly.stored_B))

    def _found(self, text_ids_B: Tensor, own: range | None, gather: Gather) -> Found:
        ids = _move(text_ids_B, self.device)
        options = {"absent": self.absent, "symmetrize": self.symmetrize}
        if self._resident is not None:
            # Each process holds the graph: looking all rows up costs less than sending what was found.
            return Found(self._resident.rows(ids), ids, **options)  # type: ignore[arg-type]
        mine = text_ids_B if own is None else text_ids_B[own.start : own.stop]
        rows = rows_to_device(self._mapped.rows(mine.detach().cpu().numpy()), self.device)
        return Found(rows, ids, gather=gather, **options)  # type: ignore[arg-type]

    def dense(self, text_ids_B: Tensor) -> Tensor:
        """The exact similarities of a batch, from stored embeddings; (B, B) float32.

        Raises:
            ValueError: If the embeddings were not loaded.
        """
        if self._embeddings is None:
            raise ValueError("the embeddings were not loaded: pass teacher='embeddings' or measure_fidelity=True")
        return self.dense_target(text_ids_B).rows(0, len(text_ids_B))

    def dense_target(self, text_ids_B: Tensor) -> Dense:
        """The same by rows."""
        assert self._embeddings is not None, "asked for only where `dense` is"
        vectors = to_device(self._embeddings[text_ids_B.detach().cpu().numpy()], self.device)
        return Dense(vectors, _move(text_ids_B, self.device))

    def fidelity(self, text_ids_B: Tensor, similarity_BB: Tensor) -> Fidelity:
        """Measures of a batch's target, with its KL to the dense one where the embeddings are loaded."""
        exact = None if self._embeddings is None else self.dense(text_ids_B)
        return Fidelity(
            own_view_mass=own_view_mass(similarity_BB, self.tau_s),
            entropy=target_entropy(similarity_BB, self.tau_s).mean(),
            hit_rate=self.last_stored_B.float().mean(),
            kl_to_dense=None if exact is None else kl(exact, similarity_BB, self.tau_s),
        )


def _move(text_ids_B: Tensor, device: torch.device) -> Tensor:
    on_host = text_ids_B.device.type == "cpu"
    return to_device(text_ids_B.numpy(), device) if on_host else text_ids_B.to(device, non_blocking=True)


def assemble(
    neighbor_ids_BK: Tensor,
    similarities_BK: Tensor,
    sketch_BR: Tensor,
    scale_B: Tensor,
    text_ids_B: Tensor,
    *,
    absent: float | None,
    symmetrize: reference.Symmetrize = "union",
) -> Similarities:
    """`graphbuild.targets.assemble.assemble` in torch: the same bits, fixed shapes, no wait for the device.

    Args:
        neighbor_ids_BK: Stored neighbours of each sample's text; (B, K) int32.
        similarities_BK: Their similarities; (B, K) float16.
        sketch_BR: Sketches; (B, R) int8.
        scale_B: Their scales; (B,) float32.
        text_ids_B: The text of each sample; (B,) integers.
        absent: What a pair counts as that neither row stores; None takes the sketch.
        symmetrize: `mutual` takes a pair that only one of its rows stores for absent.
    """
    rows = RowTensors(neighbor_ids_BK, similarities_BK, sketch_BR, scale_B)
    found, batch = Found(rows, text_ids_B, absent=absent, symmetrize=symmetrize), len(text_ids_B)
    return Similarities(found.rows(0, batch), found.stored(0, batch))


def dense(embeddings_BD: Tensor, text_ids_B: Tensor) -> Tensor:
    """Similarities of stored embeddings, 1 where texts are equal; (B, B) float32."""
    return Dense(embeddings_BD, text_ids_B).rows(0, len(text_ids_B))


def one_hot(batch: int, *, device: torch.device | str = "cpu") -> Tensor:
    """SimCLR's G: 1 on the diagonal, everything else left out (-inf); (B, B) float32."""
    return OneHot(batch, device).rows(0, batch)


def same_class(labels_B: Tensor) -> Tensor:
    """SupCon's G: 1 between samples of one class, everything else left out (-inf); (B, B) float32.

    With text ids for labels, classes are equal texts.
    """
    return SameClass(labels_B).rows(0, len(labels_B))


def shape(similarity_TB: Tensor, *, min_similarity: float | None, own_weight: float, tau_s: float, start: int = 0) -> Tensor:
    """G with the options of the target applied: pairs left out first, then the own view's share; (T, B)."""
    if min_similarity is not None:
        similarity_TB = leave_out(similarity_TB, min_similarity, start=start)
    return mix_own(similarity_TB, own_weight, tau_s, start=start) if own_weight else similarity_TB


def leave_out(similarity_TB: Tensor, min_similarity: float, *, start: int = 0) -> Tensor:
    """A copy of G in which pairs below a similarity have no part in the target (-inf); the own view stays; (T, B)."""
    kept = similarity_TB.masked_fill(similarity_TB < min_similarity, -torch.inf)
    kept.diagonal(start).copy_(similarity_TB.diagonal(start))
    return kept


def mix_own(similarity_TB: Tensor, own_weight: float, tau_s: float, *, start: int = 0) -> Tensor:
    """A copy of G whose target is (1 - own_weight) s + own_weight times one-hot on the own view; (T, B).

    The mixing of SCE (arXiv 2111.14585, section 3). It scales all other entries of a row alike, so a larger G_ii has the same
    effect: G_ii + tau_s log(1 + own_weight / ((1 - own_weight) s_ii)).
    """
    if own_weight >= 1:
        alone = torch.full_like(similarity_TB, -torch.inf)
        alone.diagonal(start).fill_(1.0)
        return alone
    mixed = similarity_TB.clone()
    if own_weight > 0:
        own_T = target_weights(similarity_TB, tau_s, start=start)[0].diagonal(start)
        mixed.diagonal(start).add_(tau_s * torch.log1p(own_weight / ((1 - own_weight) * own_T)))
    return mixed


def target_weights(similarity_TB: Tensor, tau_s: float, *, start: int = 0) -> tuple[Tensor, Tensor]:
    """The softmax of the target (docs/definitions.md) without its 2B x 2B matrix.

    Both views of i share s_i, which holds w_ij twice (both views of j), and w_ii once (the own view; the self pair is out).

    Returns:
        Weights w, (T, B), with 2 sum_j w_ij - w_ii = 1; and log w, (T, B), -inf where w is left out.
    """
    # The maximum is taken off before the division: at tau_s = 1e-5 float32 would lose it afterwards.
    logits = (similarity_TB - similarity_TB.amax(dim=1, keepdim=True)) / tau_s
    shares = logits.exp()
    total = 2 * shares.sum(dim=1) - shares.diagonal(start)
    return shares / total[:, None], logits - total.log()[:, None]


def _over_columns(terms_TB: Tensor, start: int) -> Tensor:
    """Sum over the 2B - 1 columns of a row of the target, from its block of G."""
    return 2 * terms_TB.sum(dim=1) - terms_TB.diagonal(start)


def entropy_of(weights_TB: Tensor, logs_TB: Tensor, *, start: int = 0) -> Tensor:
    """H(s_i), nats, from what `target_weights` gives; (T,)."""
    return -_over_columns(torch.where(weights_TB > 0, weights_TB * logs_TB, 0.0), start)


def target_entropy(similarity_TB: Tensor, tau_s: float, *, start: int = 0) -> Tensor:
    """H(s_i), nats; (T,)."""
    return entropy_of(*target_weights(similarity_TB, tau_s, start=start), start=start)


def own_view_mass(similarity_TB: Tensor, tau_s: float, *, start: int = 0) -> Tensor:
    """Mean share of the target on the own view; a scalar."""
    return target_weights(similarity_TB, tau_s, start=start)[0].diagonal(start).mean()


def kl(reference_TB: Tensor, similarity_TB: Tensor, tau_s: float, *, start: int = 0) -> Tensor:
    """KL(reference target || target), nats, mean over rows, over the 2B - 1 columns; a scalar."""
    weights, logs = target_weights(reference_TB, tau_s, start=start)
    other = target_weights(similarity_TB, tau_s, start=start)[1]
    return _over_columns(torch.where(weights > 0, weights * (logs - other), 0.0), start).mean()
