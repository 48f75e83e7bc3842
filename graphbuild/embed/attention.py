"""Flash attention: whether a machine has it, and a transformer whose sequences lie end to end in a call, without padding.

Shape letters: B rows and L tokens of a call as pooling sees it, T tokens of it end to end, H width of the transformer. Sentence
Transformers lays sequences end to end likewise; here every call has one T, because in half precision the bytes depend on the shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from graphbuild.errors import OptionError

FLASH = "flash"
"""What --attention takes, beside padded."""
IMPLEMENTATIONS = {"flash_attn": "flash_attention_2", "kernels": "kernels-community/flash-attn2"}
"""What transformers calls the flash attention of a package, the one that is preferred first; kernels fetches it from the hub."""
_LEAST = (8, 0)
"""Compute capability."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What decides whether a machine has flash attention."""

    capability: tuple[int, int] | None
    """Compute capability of its GPU; None where torch sees none."""
    packages: frozenset[str]
    """Those of `IMPLEMENTATIONS` that are installed, in versions that transformers takes."""

    @classmethod
    def here(cls) -> Machine:
        """Look at this one; torch and transformers are loaded."""
        import torch
        from transformers.utils.import_utils import is_flash_attn_2_available, is_kernels_available

        looked = {"flash_attn": is_flash_attn_2_available, "kernels": is_kernels_available}
        packages = frozenset(name for name, is_there in looked.items() if is_there())
        return cls(capability=torch.cuda.get_device_capability() if torch.cuda.is_available() else None, packages=packages)

    def lacks(self, implementation: str | None = None) -> str | None:
        """Say what it lacks for one implementation, None: for any, in words that follow its name; None if nothing."""
        if self.capability is None:
            return "has no CUDA GPU that torch sees"
        if self.capability < _LEAST:
            return f"has a GPU of compute capability {'.'.join(map(str, self.capability))}, and 8.0 is needed"
        wanted = {package for package, name in IMPLEMENTATIONS.items() if implementation in (None, name)}
        if not wanted & self.packages:
            missing = " nor ".join(sorted(wanted))
            return f"has {'neither ' if len(wanted) > 1 else 'no '}{missing} of a version that transformers takes"
        return None

    def implementation(self) -> str:
        """Return what transformers calls the flash attention of this machine.

        Raises:
            OptionError: If it has none.
        """
        if lack := self.lacks():
            raise OptionError(f"--attention flash: this machine {lack}. Leave it out.")
        return next(name for package, name in IMPLEMENTATIONS.items() if package in self.packages)


class UnpaddedTransformer:
    """What stands in the place of an encoder's first module: its sequences end to end in the call, padded again for pooling."""

    def __init__(self, module: Any, tokens: int) -> None:
        """Take the module of a transformer that was loaded with an attention which tells sequences apart.

        Args:
            module: The encoder's first module.
            tokens: T; calls of several rows are filled up to it.

        Raises:
            OptionError: If the architecture hands nothing on to its attention.
        """
        if not module.auto_model.is_backend_compatible():
            raise OptionError(f"--attention flash: {type(module.auto_model).__name__} takes no sequences end to end. Leave it out.")
        self._module, self._tokens, self._first = module, tokens, _first_position(module.auto_model)

    def __call__(self, features: dict[str, Any]) -> dict[str, Any]:
        """Return the features with `token_embeddings`, (B, L, H), 0 where nothing is; the mask says where, on either side."""
        mask_BL = features["attention_mask"].bool()
        flat = self._flatten(features["input_ids"], mask_BL)
        if "token_type_ids" in features:
            flat["token_type_ids"] = flat["input_ids"].new_zeros(flat["input_ids"].shape)
        found_TH = self._module(flat)["token_embeddings"][0]
        padded_BLH = found_TH.new_zeros((*mask_BL.shape, found_TH.shape[-1]))
        padded_BLH[mask_BL] = found_TH[: int(mask_BL.sum())]
        return {**features, "token_embeddings": padded_BLH}

    def _flatten(self, ids_BL: Any, mask_BL: Any) -> dict[str, Any]:
        """The tensors of the call, (1, T), and where sequences begin, as flash attention takes them."""
        import torch

        rows, longest = mask_BL.shape
        lengths = mask_BL.sum(1).tolist()
        empty = 0 if rows == 1 else self._tokens - sum(lengths)
        lengths = [length for length in lengths if length] + _filler(empty, longest)
        ids_T = torch.nn.functional.pad(ids_BL[mask_BL], (0, empty))
        starts = torch.tensor([0, *lengths], device=ids_T.device).cumsum(0)
        sequence_T = torch.repeat_interleave(torch.tensor(lengths, device=ids_T.device))
        positions_T = torch.arange(len(ids_T), device=ids_T.device) - starts[sequence_T] + self._first
        boundaries = starts.to(torch.int32)
        return {
            "input_ids": ids_T[None],
            "position_ids": positions_T[None],
            "cu_seq_lens_q": boundaries,
            "cu_seq_lens_k": boundaries,
            "max_length_q": longest,
            "max_length_k": longest,
        }


def _filler(tokens: int, longest: int) -> list[int]:
    """Lengths of sequences that fill so many places."""
    return [longest] * (tokens // longest) + [tokens % longest] * bool(tokens % longest)


def _first_position(model: Any) -> int:
    """The number of a sequence's first token: RoBERTa and what comes from it count from `padding_idx` + 1."""
    import torch

    for module in model.modules():
        learned = isinstance(getattr(module, "position_embeddings", None), torch.nn.Embedding)
        if learned and isinstance(padding := getattr(module, "padding_idx", None), int):
            return padding + 1
    return 0
