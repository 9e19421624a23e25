"""A trainable low-rank term: two factors, their scale, and how they start.

Shape legend: a target is seen as a matrix `(m, n)`, or as a stack of E matrices `(E, m, n)`;
r = rank. The product is `left (.., m, r) @ right (.., r, n)`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from graftwork._errors import DeltaError
from graftwork.tuning._seeded import seed_of
from graftwork.tuning._tuner import Role

Side = Literal["left", "right"]

_NEGLIGIBLE = 1e-7
"""Singular values below this part of the largest are rounding of float32 factors."""


class Factors:
    """A product `factor * left @ right` whose factors are trained.

    Arguments:
        left: `(.., m, r)` starting values.
        right: `(.., r, n)` starting values.
        factor: multiplies the product (alpha / r).
        zero: the factor that starts at zero, B of the paper, which LoRA+ trains faster.
        anchored: the product counts from where it starts: what is added to the frozen weight is
            `factor * (left @ right - left_0 @ right_0)`, so that it begins at zero although no
            factor does (PiSSA).
    """

    def __init__(
        self, left: Tensor, right: Tensor, factor: float, *, zero: Side, anchored: bool = False
    ) -> None:
        self.left, self.right = nn.Parameter(left), nn.Parameter(right)
        self.factor, self.zero = factor, zero
        self.origin = (left.clone(), right.clone()) if anchored else None

    @property
    def rank(self) -> int:
        """Columns of the trained left factor."""
        return int(self.left.shape[-1])

    def roles(self) -> tuple[tuple[Role, nn.Parameter], ...]:
        """Return the factors: "values" for A, "values_b" for B, which starts at zero."""
        a, b = (self.right, self.left) if self.zero == "left" else (self.left, self.right)
        return (("values", a), ("values_b", b))

    def operands(self) -> tuple[Tensor, Tensor]:
        """Return left `(.., m, k)` and right `(.., k, n)` of the whole product; k = r, or 2r."""
        if self.origin is None:
            return self.left, self.right
        left, right = self.origin
        return torch.cat([self.left, left], -1), torch.cat([self.right, -right], -2)

    def product(self) -> Tensor:
        """Return what is added to the matrix `(.., m, n)`."""
        left, right = self.operands()
        return (left @ right) * self.factor

    @torch.no_grad()
    def final(self) -> tuple[Tensor, Tensor]:
        """Return the factors that are stored, before rounding.

        An anchored product is factorised anew: rounding two large products whose difference is
        small would lose the difference.
        """
        left, right = self.operands()
        if self.origin is not None:
            left, right = _balanced(left, right)
        return left.cpu(), right.cpu()

    @torch.no_grad()
    def start_from(self, left: Tensor, right: Tensor, factor: float) -> None:
        """Begin at another product, of this rank or a smaller one; the rest begins at zero.

        Raises:
            DeltaError: it has a larger rank, or this product counts from its own start.
        """
        rank = left.shape[-1]
        if self.origin is not None or rank > self.rank:
            raise DeltaError(
                f"its product has rank {rank}, this tuner trains {self.rank}"
                + (" counted from the base's principal part" if self.origin is not None else "")
                + f"; take start='zero' and a rank of {rank} or more"
            )
        ratio = factor / self.factor
        a, b = (right, left * ratio) if self.zero == "left" else (left * ratio, right)
        if self.zero == "left":
            self.right[..., :rank, :] = a
            self.left.zero_()[..., :rank] = b
        else:
            self.left[..., :rank] = a
            self.right.zero_()[..., :rank, :] = b

    def tensors(self) -> dict[str, Tensor]:
        """Return all state by name."""
        state = {"left": self.left.detach(), "right": self.right.detach()}
        if self.origin is not None:
            state |= {"left_0": self.origin[0], "right_0": self.origin[1]}
        return state


def uniform_factor(shape: tuple[int, ...], fan: int, seed: int, name: str) -> Tensor:
    """Return A's start, `U(-1/sqrt(fan), 1/sqrt(fan))`, as the authors' code draws it.

    The paper says Gaussian; its code uses Kaiming's uniform with a = sqrt(5), which is this.
    """
    bound = 1.0 / math.sqrt(fan)
    drawn = torch.rand(shape, generator=_generator(seed, name))
    return drawn.mul_(2.0 * bound).sub_(bound)


def normal_factor(shape: tuple[int, ...], seed: int, name: str) -> Tensor:
    """Return standard normal values, B's start of an embedding table."""
    return torch.randn(shape, generator=_generator(seed, name))


@torch.no_grad()
def principal_factors(matrix: Tensor, rank: int, factor: float) -> tuple[Tensor, Tensor]:
    """Return factors whose scaled product is the best rank-r part of `matrix` `(.., m, n)`.

    PiSSA's start (Meng, Wang, Zhang, 2024, eq. 2-3): `U S^(1/2)` and `S^(1/2) V^T`, here divided by
    the square root of `factor`.
    """
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    root = (s[..., :rank] / factor).sqrt()
    left, right = u[..., :, :rank] * root.unsqueeze(-2), root.unsqueeze(-1) * vh[..., :rank, :]
    return left.to(matrix.dtype).contiguous(), right.to(matrix.dtype).contiguous()


def _balanced(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors of the same product, of its own rank, with singular values split evenly."""
    q_left, r_left = torch.linalg.qr(left.double())
    q_right, r_right = torch.linalg.qr(right.double().mT)
    u, s, vh = torch.linalg.svd(r_left @ r_right.mT, full_matrices=False)
    # what the two large products are made of, not their difference, sets what rounding leaves
    size = torch.linalg.matrix_norm(r_left, 2) * torch.linalg.matrix_norm(r_right, 2)
    kept = max(1, int((s > _NEGLIGIBLE * size.unsqueeze(-1)).sum(-1).max()))
    root = s[..., :kept].sqrt()
    left = (q_left @ u[..., :, :kept]) * root.unsqueeze(-2)
    right = root.unsqueeze(-1) * (vh[..., :kept, :] @ q_right.mT)
    return left, right


def _generator(seed: int, name: str) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(seed, name))
