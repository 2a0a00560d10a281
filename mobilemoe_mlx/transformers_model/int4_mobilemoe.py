"""INT4 as MobileMoE's QAT checkpoints store it, as PyTorch modules that keep it so in memory."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUP_SIZE = 32  # values of a row that share an INT4 scale


def unpack_int4(qweight: Tensor, scale: Tensor) -> Tensor:
    """uint8 [..., n / 2] and float16 [..., n / 32] to float32 [..., n], exactly.

    A byte holds two codes of -8..7, the first in its low four bits; a value is code x scale.
    """
    bits = qweight.view(torch.int8)
    values = torch.empty(
        *bits.shape[:-1], 2 * bits.shape[-1], dtype=torch.float32, device=bits.device
    )
    values[..., 0::2] = (bits << 4) >> 4  # int8 shifts right with its sign
    values[..., 1::2] = bits >> 4
    values.unflatten(-1, (-1, GROUP_SIZE)).mul_(scale.float().unsqueeze(-1))
    return values


class Int4Module(nn.Module):
    """A module with INT4 buffers, whose float16 scales no cast of the model may round."""

    def add_int4(self, name: str, scale_name: str, *shape: int) -> None:
        """Declare the codes and the scales of a matrix [..., n] whose groups lie along n."""
        *rows, columns = shape
        codes = torch.zeros(*rows, columns // 2, dtype=torch.uint8)
        self.register_buffer(name, codes)
        scales = torch.zeros(*rows, columns // GROUP_SIZE, dtype=torch.float16)
        self.register_buffer(scale_name, scales)

    def _apply(self, fn: Any, recurse: bool = True) -> Int4Module:
        # `model.bfloat16()` casts what is floating point; moving to a device must go on.
        scales = [name for name, x in self._buffers.items() if x.dtype == torch.float16]
        for name in scales:
            self._buffers[name] = self._buffers[name].view(torch.int16)
        super()._apply(fn, recurse)
        for name in scales:
            self._buffers[name] = self._buffers[name].view(torch.float16)
        return self


class Int4Linear(Int4Module):
    """A linear map without bias, its matrix [out, in] in INT4."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.add_int4("qweight", "weight_scale", out_features, in_features)

    @property
    def weight(self) -> Tensor:
        """The matrix in float32 [out, in]."""
        return unpack_int4(self.qweight, self.weight_scale)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class Int4Embedding(Int4Module):
    """The embedding [vocabulary, hidden] in INT4."""

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.add_int4("qweight", "weight_scale", num_embeddings, embedding_dim)

    @property
    def weight(self) -> Tensor:
        """The table in float32 [vocabulary, hidden]."""
        return unpack_int4(self.qweight, self.weight_scale)

    def forward(self, tokens: Tensor) -> Tensor:
        return unpack_int4(self.qweight[tokens], self.weight_scale[tokens])
