# %% [markdown]
# # A blurred picture, restored from Python
#
# Run it with `python docs/restore.py`, or cell by cell in an editor that knows `# %%`. It needs no network and takes a
# minute or two on a CPU. We blur a packaged photograph ourselves, so that we can compare; for a picture of your own,
# one line is enough:
#
# ```python
# restored = codiffuse.restore("photo.jpg")
# ```

# %%
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import codiffuse
from codiffuse.data.sources import centre_crop, downscale, sources
from codiffuse.metrics.image import psnr_aligned
from codiffuse.metrics.kernel import mnc
from codiffuse.operators.blur import BlurOperator
from codiffuse.simulate.motion import RandomPathKernels

side = int(os.environ.get("CODIFFUSE_DOCS_SIDE", 96))  # of the blurred picture, px: the time goes with its square
kernel_size = 17
sigma = 3 / 255

# %% [markdown]
# ## A photograph with a shaken camera
#
# A blur is a convolution with a small picture, the kernel: the path that the camera took. With the boundary `valid` the
# border of the blurred picture holds light from beyond its frame, as in a real photograph. Some noise comes on top.

# %%
[coffee] = sources("sample:coffee")
sharp = downscale(coffee.load().pixels, 220)  # (3, H, W) in [0, 1]
operator = BlurOperator("valid")
canvas = operator.image_shape((side, side), kernel_size=(kernel_size, kernel_size))
scene = centre_crop(sharp, canvas)
true_kernel = RandomPathKernels(kernel_size)(np.random.default_rng(3))  # (1, h, w), sums to one

blurred = operator(scene[None], kernel=true_kernel[None])[0]
blurred = blurred + sigma * torch.randn(blurred.shape, generator=torch.Generator().manual_seed(0))
truth = operator.crop_to_frame(scene, kernel_size=(kernel_size, kernel_size))

# %% [markdown]
# ## Restoring it
#
# `restore` takes a file, a Pillow picture, an array or a tensor. We do not tell it the kernel, only that it fits into
# `kernel_size` pixels ("auto" finds that too), and not the noise level, which it estimates. It finds the kernel first,
# and then restores the picture with it, four times over: samples of what the picture may have been. A callback sees
# every step. All settings are those of `conf/infer.yaml`.


# %%
def progress(info):
    if info.number % 24 == 0:
        print(f"step {info.number} of {info.total}")


restored = codiffuse.restore(blurred, kernel_size=kernel_size, num_samples=4, seed=0, callback=progress)
print(restored)

# %% [markdown]
# `image` and `kernel` are NumPy arrays, `row` holds everything that was measured, and `notes` what was done to the
# picture on reading. `residual` is what picture and kernel together leave unexplained, in units of the noise: near 1
# the model fits. `trust` is the estimated chance that the result is better than what we had (`None` for a picture that
# looks sharp, or in which hardly any blur was found), and `flags` are what speaks against it.

# %%
print(f"{restored.status}; noise {255 * restored.row['sigma']:.1f} of 255; residual {restored.residual:.2f} times that")
print(f"trust {restored.trust}; flags: {', '.join(restored.flags) or 'none'}")

# %% [markdown]
# ## Before and after, and the kernels that were found and used


# %%
def shown(*arrays, scale=1):
    """Arrays `(H, W)` or `(H, W, 3)` side by side as a picture of Pillow, each pixel `scale` pixels wide."""
    levels = np.uint8(np.rint(255 * np.concatenate(arrays, axis=1).clip(0, 1)))
    return Image.fromarray(levels.repeat(scale, 0).repeat(scale, 1))


shown(blurred.movedim(0, -1).numpy(), restored.image, scale=3)

# %%
shown(*(kernel / kernel.max() for kernel in (restored.kernel, true_kernel[0].numpy())), scale=12)

# %% [markdown]
# ## How sure is it?
#
# `std` tells for every pixel how far the truth is likely to be from the restoration: a standard deviation, made of the
# samples, and large along edges whose place the measurement leaves open. It holds for the kernel that was found; that
# this kernel itself may be wrong is what `trust` and `flags` are about.

# %%
print(f"standard deviation: median {np.median(restored.std):.3f}, largest {restored.std.max():.3f}")
shown(restored.std / restored.std.max(), scale=3)

# %% [markdown]
# ## How good is it?
#
# A blind restoration is only defined up to a shift: the kernel can move one way and the picture the other. So both are
# compared at their best shift (`docs/conventions.md`).

# %%
estimate = torch.from_numpy(restored.image).movedim(-1, 0)
options = {"max_shift": kernel_size // 2, "border": kernel_size // 2}
for name, picture in (("blurred", blurred.clamp(0, 1)), ("restored", estimate)):
    print(f"{name:9s} {float(psnr_aligned(picture[None], truth[None], **options)):.2f} dB")
match = float(mnc(torch.from_numpy(restored.kernel)[None, None], true_kernel[None]))
print(f"kernel    {match:.2f} (1 is the same up to a shift)")

# %% [markdown]
# ## Keeping it
#
# `save` writes the files that a run of `infer.py` leaves of a picture, with a panel that shows them together.

# %%
folder = restored.save(Path("outputs/restore"))
print(*sorted(path.name for path in folder.iterdir()))
print(f"panel: {folder / 'panel.png'}")
