"""What the project asks of the operator of a measurement, whatever it does to the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from torch import Tensor

from codiffuse.fourier import Size


class Operator(Protocol):
    """y = A(x; params), differentiable in the image and in each of its parameters.

    `image_shape` and `crop_to_frame` are told the `kernel_size` of an operator that has a `kernel` (`support`), and of
    another nothing but the size or the image. Guidance may ask for more: joint PiGDM for `solve_joint_gram` and
    `parameter_gram`, non-blind DPS for `adjoint`, as in `operators/blur.py`.

    Attributes:
        params: names of its parameters, which are keywords of a call.
    """

    params: ClassVar[tuple[str, ...]]

    def __call__(self, image: Tensor, *args: Any, **params: Any) -> Tensor:
        """The measurement `(B, C, H', W')` of an image `(B, C, H, W)`, without its noise."""
        ...

    def image_shape(self, y_shape: Size, *args: Any, **support: Any) -> Size:
        """The `(H, W)` of the image behind a measurement of this size."""
        ...

    def crop_to_frame(self, image: Tensor, *args: Any, **support: Any) -> Tensor:
        """The part of an image `(..., H, W)` that the measurement shows."""
        ...


def support(sizes: Mapping[str, Size]) -> dict[str, Size]:
    """What `image_shape` and `crop_to_frame` are told of parameters of these sizes: that of the kernel, if any."""
    return {"kernel_size": sizes["kernel"]} if "kernel" in sizes else {}


def support_of(params: Mapping[str, Tensor]) -> dict[str, Size]:
    """The same of parameters `(..., h, w)`."""
    return support({name: (value.shape[-2], value.shape[-1]) for name, value in params.items()})
