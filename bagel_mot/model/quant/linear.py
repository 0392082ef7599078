"""A linear map, and an embedding, with quantised weights."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from bagel_mot.model.quant import Fp8Matrix, Int8Matrix, QuantisedMatrix, RowScaledMatrix


class QuantisedWeight(nn.Module):
    """A quantised matrix, not trained itself. In a state dictionary it is as the `weight` that it was made from, in the
    precision of the activations.
    """

    def __init__(self, matrix: QuantisedMatrix, dtype: torch.dtype) -> None:
        """A module with the tensors of a matrix as its buffers.

        Args:
            matrix: the weights.
            dtype: the precision of the activations.
        """
        super().__init__()
        self.kind, self.shape, self.dtype = type(matrix), matrix.shape, dtype
        self._names = tuple(matrix.tensors)
        for name, tensor in matrix.tensors.items():
            self.register_buffer(name, tensor)

    @property
    def matrix(self) -> QuantisedMatrix:
        return self.kind(self.shape, {name: self._buffers[name] for name in self._names})  # type: ignore[misc]

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # Moving is fine. Casting would change the scales, and the values of float8 with them.
        if fn(torch.empty(0, dtype=torch.float32)).dtype != torch.float32:
            raise RuntimeError("quantised weights cannot be cast: load the model anew in the precision that is wanted")
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.matrix.dequantise(self.dtype)

    def extra_repr(self) -> str:
        return f"{self.shape[0]}, {self.shape[1]}, format={self.kind.format}"


class QuantisedEmbedding(QuantisedWeight):
    """An embedding that dequantises the rows that are asked for."""

    def __init__(self, matrix: RowScaledMatrix, dtype: torch.dtype) -> None:
        super().__init__(matrix, dtype)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (N,) or of any shape, int64 -> (N, width)"""
        matrix = self.matrix
        assert isinstance(matrix, RowScaledMatrix)
        return matrix.rows(ids, self.dtype)


class _FrozenProduct(torch.autograd.Function):
    """The product with a quantised matrix, and its gradient for the input, for which the matrix is dequantised anew: so
    that adapters, such as those of QLoRA, can be trained on both sides of it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: QuantisedLinear) -> Tensor:
        """(T, in) -> (T, out)"""
        ctx.matrix = linear.matrix
        return linear._products(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """(T, out) -> (T, in)"""
        matrix: QuantisedMatrix = ctx.matrix
        found = gradient.new_zeros(gradient.shape[0], matrix.shape[1])
        for start, stop in matrix.blocks():
            found.addmm_(gradient[:, start:stop], matrix.dequantise(gradient.dtype, start, stop))
        return found, None


class QuantisedLinear(QuantisedWeight):
    """A linear map with such a matrix.

    Attributes:
        dynamic: multiply with activations in 8 bits too.
    """

    def __init__(
        self, matrix: QuantisedMatrix, bias: Tensor | None, dtype: torch.dtype, *, dynamic: bool = False
    ) -> None:
        """A linear map.

        Args:
            matrix: the weights.
            bias: (out,), or None.
            dtype: the precision of the activations.
            dynamic: multiply INT8 or FP8 weights with activations in 8 bits too.
        """
        super().__init__(matrix, dtype)
        self.dynamic = dynamic
        self.out_features, self.in_features = matrix.shape
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """(T, in_features) -> (T, out_features)"""
        if torch.is_grad_enabled() and x.requires_grad:
            products = _FrozenProduct.apply(x, self)
        # On the CPU the kernels are chosen by the number of rows, and torch.compile cannot lower some of them.
        else:
            products = self._products_apart(x) if x.device.type == "cpu" else self._products(x)
        bias = self._buffers["bias"]
        return products if bias is None else products + bias

    def _products(self, x: Tensor) -> Tensor:
        matrix = self.matrix
        if self.dynamic and isinstance(matrix, Int8Matrix | Fp8Matrix):
            return matrix.multiply_dynamic(x)
        return matrix.multiply(x)

    def _products_apart(self, x: Tensor) -> Tensor:
        return self._products(x)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._buffers["bias"] is not None:
            destination[prefix + "bias"] = self._buffers["bias"]

    def extra_repr(self) -> str:
        dynamic = ", dynamic" if self.dynamic else ""
        return f"in_features={self.in_features}, out_features={self.out_features}, format={self.kind.format}{dynamic}"
