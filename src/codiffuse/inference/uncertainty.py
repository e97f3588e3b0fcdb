"""How much the spread of the samples must be raised to be that of the truth, by how they came about.

Each factor is for the shipped prior and `num_samples=4`, from 30 pictures of BSD100, which the prior has not seen
(docs/photographs.md).
"""

from typing import Literal

Origin = Literal["found", "given", "sharp"]

# Of samples with a kernel that was found, whose error they do not show; with the true one; and of a picture that was
# taken for sharp.
FACTORS: dict[Origin, float] = {"found": 3.3, "given": 1.8, "sharp": 1.25}
