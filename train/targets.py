"""The torch twin of `graphbuild.targets`, for CPU and CUDA: text ids in, similarities among the batch's samples out.

SimCLR, SupCon and X-CLR are one loss; what differs is the matrix G of this module. Shape letters: B samples in a batch,
K neighbours stored, R sketch width, D embedding width. Nothing here waits for a device.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from graphbuild import targets as reference
from graphbuild.errors import OptionError
from graphbuild.graph import Graph
from train.graph_rows import (
    DeviceRows,
    GraphOnDevice,
    MappedRows,
    RowTensors,
    belongs_on_device,
    rows_to_device,
    to_device,
)

Teacher = Literal["graph", "dense"]


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
            teacher: `graph` for stored rows and sketches, `dense` for the stored embeddings (2 N D bytes of memory).
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
        self.last_plain_BB = torch.zeros(0, 0, device=self.device)
        """The last G before `min_similarity` and `own_weight`: what compares with the dense one."""
        resident = teacher == "graph" and belongs_on_device(graph, self.device, graph_on_device)
        self._resident = DeviceRows(graph, self.device) if resident else None
        self._mapped = MappedRows(graph)
        self._embeddings = graph.embeddings() if teacher == "dense" or measure_fidelity else None

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
        self.last_plain_BB = self._plain(text_ids_B)
        return shape(self.last_plain_BB, min_similarity=self.min_similarity, own_weight=self.own_weight, tau_s=self.tau_s)

    def _plain(self, text_ids_B: Tensor) -> Tensor:
        if self.teacher == "dense":
            self.last_stored_B = torch.zeros(len(text_ids_B), dtype=torch.int32, device=self.device)
            return self.dense(text_ids_B)
        if self._resident is not None:
            ids = _move(text_ids_B, self.device)
            return self._on_device(self._resident.rows(ids), ids)
        host_ids = text_ids_B.detach().cpu().numpy()
        rows = self._mapped.rows(host_ids)
        if self.device.type != "cpu":
            return self._on_device(rows_to_device(rows, self.device), _move(text_ids_B, self.device))
        assembly = reference.assemble(rows, host_ids, absent=self.absent, symmetrize=self.symmetrize)
        similarity, self.last_stored_B = torch.from_numpy(assembly.similarity_BB), torch.from_numpy(assembly.stored_B)
        return similarity

    def dense(self, text_ids_B: Tensor) -> Tensor:
        """The exact similarities of a batch, from stored embeddings; (B, B) float32.

        Raises:
            ValueError: If the embeddings were not loaded.
        """
        if self._embeddings is None:
            raise ValueError("the embeddings were not loaded: pass teacher='dense' or measure_fidelity=True")
        vectors = torch.from_numpy(self._embeddings[text_ids_B.detach().cpu().numpy()]).to(self.device).float()
        return dense(vectors, text_ids_B.to(self.device))

    def fidelity(self, text_ids_B: Tensor, similarity_BB: Tensor) -> Fidelity:
        """Measures of a batch's target, with its KL to the dense one where the embeddings are loaded."""
        exact = None if self._embeddings is None else self.dense(text_ids_B)
        return Fidelity(
            own_view_mass=own_view_mass(similarity_BB, self.tau_s),
            entropy=target_entropy(similarity_BB, self.tau_s).mean(),
            hit_rate=self.last_stored_B.float().mean(),
            kl_to_dense=None if exact is None else kl(exact, similarity_BB, self.tau_s),
        )

    def _on_device(self, rows: RowTensors, text_ids_B: Tensor) -> Tensor:
        similarity, self.last_stored_B = assemble(*rows, text_ids_B, absent=self.absent, symmetrize=self.symmetrize)
        return similarity


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
    """`graphbuild.targets.assemble` in torch: the same bits, fixed shapes, no wait for the device.

    Args:
        neighbor_ids_BK: Stored neighbours of each sample's text; (B, K) int32.
        similarities_BK: Their similarities; (B, K) float16.
        sketch_BR: Sketches; (B, R) int8.
        scale_B: Their scales; (B,) float32.
        text_ids_B: The text of each sample; (B,) integers.
        absent: What a pair counts as that neither row stores; None takes the sketch.
        symmetrize: `mutual` takes a pair that only one of its rows stores for absent.
    """
    ids = text_ids_B.to(torch.int32)
    batch = len(ids)
    # Stable, so that the head of the samples of one text is the lowest of them, as in the reference.
    sorted_ids, order = torch.sort(ids, stable=True)
    head_B = order[torch.searchsorted(sorted_ids, ids)]
    place_BK = torch.searchsorted(sorted_ids, neighbor_ids_BK.contiguous()).clamp_(max=batch - 1)
    found_BK = sorted_ids[place_BK] == neighbor_ids_BK
    # Misses go to one column more than there are samples, which is cut off: shapes stay fixed.
    column_BK = torch.where(found_BK, order[place_BK], batch)
    own = torch.full((batch, batch + 1), -torch.inf, device=ids.device)
    own.scatter_(1, column_BK, similarities_BK.float())
    own_BB = own[:, head_B]
    stored_B = torch.isfinite(own_BB).sum(dim=1, dtype=torch.int32)
    similarity = torch.maximum(own_BB, own_BB.T)
    if symmetrize == "mutual":
        similarity = similarity.masked_fill_(torch.minimum(own_BB, own_BB.T) == -torch.inf, -torch.inf)
    fill = _sketch_products(sketch_BR, scale_B) if absent is None else torch.full((), absent, device=ids.device)
    similarity = torch.where(similarity == -torch.inf, fill, similarity)
    return Similarities(similarity.masked_fill_(ids[:, None] == ids[None, :], 1.0), stored_B)


def _sketch_products(sketch_BR: Tensor, scale_B: Tensor) -> Tensor:
    """scale_i scale_j <q_i, q_j>; the sums of byte products are exact in float32, whatever their order, and in TF32 too."""
    with torch.autocast(sketch_BR.device.type, enabled=False):
        codes = sketch_BR.float()
        return (codes @ codes.T) * (scale_B[:, None] * scale_B[None, :])


def dense(embeddings_BD: Tensor, text_ids_B: Tensor) -> Tensor:
    """Similarities of stored embeddings, 1 where texts are equal; (B, B) float32."""
    with torch.autocast(embeddings_BD.device.type, enabled=False):
        vectors = embeddings_BD.float()
        return (vectors @ vectors.T).masked_fill_(text_ids_B[:, None] == text_ids_B[None, :], 1.0)


def one_hot(batch: int, *, device: torch.device | str = "cpu") -> Tensor:
    """SimCLR's G: 1 on the diagonal, everything else left out (-inf); (B, B) float32."""
    return torch.full((batch, batch), -torch.inf, device=device).fill_diagonal_(1.0)


def same_class(labels_B: Tensor) -> Tensor:
    """SupCon's G: 1 between samples of one class, everything else left out (-inf); (B, B) float32.

    With text ids for labels, classes are equal texts.
    """
    same = labels_B[:, None] == labels_B[None, :]
    return torch.where(same, 1.0, -torch.inf)


def shape(similarity_BB: Tensor, *, min_similarity: float | None, own_weight: float, tau_s: float) -> Tensor:
    """G with the options of the target applied: pairs left out first, then the own view's share; (B, B)."""
    if min_similarity is not None:
        similarity_BB = leave_out(similarity_BB, min_similarity)
    return mix_own(similarity_BB, own_weight, tau_s) if own_weight else similarity_BB


def leave_out(similarity_BB: Tensor, min_similarity: float) -> Tensor:
    """A copy of G in which pairs below a similarity have no part in the target (-inf); the own view stays; (B, B)."""
    kept = similarity_BB.masked_fill(similarity_BB < min_similarity, -torch.inf)
    kept.diagonal().copy_(similarity_BB.diagonal())
    return kept


def mix_own(similarity_BB: Tensor, own_weight: float, tau_s: float) -> Tensor:
    """A copy of G whose target is (1 - own_weight) s + own_weight times one-hot on the own view; (B, B).

    The mixing of SCE (arXiv 2111.14585, section 3). It scales all other entries of a row alike, so a larger G_ii has the same
    effect: G_ii + tau_s log(1 + own_weight / ((1 - own_weight) s_ii)).
    """
    if own_weight >= 1:
        return one_hot(len(similarity_BB), device=similarity_BB.device).to(similarity_BB.dtype)
    mixed = similarity_BB.clone()
    if own_weight > 0:
        own_B = target_weights(similarity_BB, tau_s)[0].diagonal()
        mixed.diagonal().add_(tau_s * torch.log1p(own_weight / ((1 - own_weight) * own_B)))
    return mixed


def target_weights(similarity_BB: Tensor, tau_s: float) -> tuple[Tensor, Tensor]:
    """The softmax of the target (docs/definitions.md) without its 2B x 2B matrix.

    Both views of i share s_i, which holds w_ij twice (both views of j), and w_ii once (the own view; the self pair is out).

    Returns:
        Weights w, (B, B), with 2 sum_j w_ij - w_ii = 1; and log w, (B, B), -inf where w is left out.
    """
    # The maximum is taken off before the division: at tau_s = 1e-5 float32 would lose it afterwards.
    logits = (similarity_BB - similarity_BB.amax(dim=1, keepdim=True)) / tau_s
    shares = logits.exp()
    total = 2 * shares.sum(dim=1) - shares.diagonal()
    return shares / total[:, None], logits - total.log()[:, None]


def _over_columns(terms_BB: Tensor) -> Tensor:
    """Sum over the 2B - 1 columns of a row of the target, from its B x B block."""
    return 2 * terms_BB.sum(dim=1) - terms_BB.diagonal()


def target_entropy(similarity_BB: Tensor, tau_s: float) -> Tensor:
    """H(s_i), nats; (B,)."""
    weights, logs = target_weights(similarity_BB, tau_s)
    return -_over_columns(torch.where(weights > 0, weights * logs, 0.0))


def own_view_mass(similarity_BB: Tensor, tau_s: float) -> Tensor:
    """Mean share of the target on the own view; a scalar."""
    return target_weights(similarity_BB, tau_s)[0].diagonal().mean()


def kl(reference_BB: Tensor, similarity_BB: Tensor, tau_s: float) -> Tensor:
    """KL(reference target || target), nats, mean over rows, over the 2B - 1 columns; a scalar."""
    weights, logs = target_weights(reference_BB, tau_s)
    other = target_weights(similarity_BB, tau_s)[1]
    return _over_columns(torch.where(weights > 0, weights * (logs - other), 0.0)).mean()
