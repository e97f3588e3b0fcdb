"""LPIPS, the perceptual distance of Zhang et al. (2018), on AlexNet features, without network access."""

import os
import warnings
from pathlib import Path

import torch
from torch import Tensor

from codiffuse.errors import InputError

WEIGHTS_FILE = "lpips_alexnet.pth"
TORCHVISION_FILE = "alexnet-owt-7be5be79.pth"
MIN_SIDE_PX = 31  # below, the second pooling of AlexNet has nothing left to pool


def find_lpips_weights() -> Path | None:
    """The AlexNet weights on this machine, or None.

    First `lpips_alexnet.pth` in the folder named by `CODIFFUSE_WEIGHTS` (default `weights/`), then torchvision's
    `alexnet-owt-7be5be79.pth` in the cache of torch hub.
    """
    candidates = (_weights_folder() / WEIGHTS_FILE, _hub_folder() / TORCHVISION_FILE)
    return next((path for path in candidates if path.is_file()), None)


class Lpips:
    """LPIPS between images in [0, 1]: 0 for equal images, larger is worse; AlexNet backbone, version 0.1.

    Args:
        weights: state dict with torchvision's names `features.N.weight|bias` and, optionally, the heads
            `linK.model.1.weight` (those of the `lpips` package otherwise). None: `find_lpips_weights()`.

    Raises:
        InputError: no weights are found, or the file holds others.
    """

    def __init__(self, weights: str | Path | None = None) -> None:
        path = Path(weights) if weights is not None else find_lpips_weights()
        if path is None or not path.is_file():
            raise InputError(
                f"LPIPS needs the weights of AlexNet, found no {path or 'file'}: put {WEIGHTS_FILE} into "
                f"{_weights_folder()} (CODIFFUSE_WEIGHTS names this folder) or torchvision's {TORCHVISION_FILE} into "
                f"{_hub_folder()}"
            )
        self._network = _load_network(path)

    def __call__(self, estimate: Tensor, truth: Tensor) -> Tensor:
        """Distance `(B,)` in float64 between images `(B, C, H, W)`, clipped to [0, 1].

        A single channel is repeated three times, since AlexNet sees colour.

        Raises:
            InputError: the images differ in shape, or a side is below 31 px: AlexNet cannot see so little, and
                enlarged images would give numbers that compare with no others.
        """
        if estimate.shape != truth.shape:
            raise InputError(f"expected two images of one shape, got {tuple(estimate.shape)} and {tuple(truth.shape)}")
        if min(truth.shape[-2:]) < MIN_SIDE_PX:
            raise InputError(
                f"LPIPS needs images of at least {MIN_SIDE_PX} px a side, got {truth.shape[-2]} x {truth.shape[-1]}: "
                "use larger images or leave LPIPS out"
            )
        network = self._network.to(truth.device)
        images = (image.float().clamp(0, 1).expand(-1, 3, -1, -1) for image in (estimate, truth))
        with torch.no_grad():
            return network(*images, normalize=True).flatten().double()  # normalize: [0, 1] -> [-1, 1]


def _weights_folder() -> Path:
    return Path(os.environ.get("CODIFFUSE_WEIGHTS", "weights"))


def _hub_folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _load_network(path: Path) -> torch.nn.Module:
    import lpips

    with warnings.catch_warnings():
        # `lpips` asks torchvision for the random network by an argument that torchvision has since renamed.
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
        network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval().requires_grad_(False)
    given = torch.load(path, map_location="cpu", weights_only=True)
    state = network.state_dict()
    # Renamed `net.sliceK.N.weight` and, a second name of the heads, `lins.K.model.1.weight`.
    names = {key: _published_name(key) for key in state}
    missing = sorted({name for name in names.values() if name.startswith("features.")} - given.keys())
    if missing:
        raise InputError(f"{path} is not a file of AlexNet weights: it has no {missing[0]}")
    network.load_state_dict({key: given.get(name, state[key]) for key, name in names.items()})
    return network


def _published_name(key: str) -> str:
    """Name of a tensor of `lpips.LPIPS` in the weights file."""
    if key.startswith("net."):
        return "features." + ".".join(key.split(".")[-2:])
    return key.replace("lins.", "lin", 1)
