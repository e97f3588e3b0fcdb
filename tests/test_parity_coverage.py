"""Every file of recorded numbers is used by a test, or named here as waiting for its method."""

import re
from pathlib import Path

WAITING = {
    "Kernel-Diff": {
        "kerneldiff_6steps",
        "kerneldiff_ops",
        "kerneldiff_unet_small",
        "kerneldiff_unet_256_64",
        "dwdn",
        "dwdn_small",
        "dwdn_refine_fsr",
        "infwide_xrf_module",
    },
}


def test_recorded_numbers_are_used_or_named_as_waiting(fixtures_dir):
    recorded = {
        path.stem.removesuffix(".config") for path in fixtures_dir.rglob("*") if path.suffix in (".npz", ".json")
    }
    tests = [path for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__)]
    text = "\n".join(path.read_text() for path in tests)
    # A file is used where its name stands as a string of its own or ends a path in one.
    unused = {name for name in recorded if not re.search(rf'[/"]{name}(\.npz|\.json)?"', text)}
    assert unused == set.union(*WAITING.values())
