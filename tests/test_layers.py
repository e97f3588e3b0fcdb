"""The order of the house: who may import whom, where the frameworks stay, and that `import codiffuse` is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import codiffuse

ROOT = Path(codiffuse.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

# A module imports only what stands above it here. A module that is new at the top level needs a place.
ORDER = [
    "errors",
    "randomness",
    "schedule",
    "spaces",
    "fourier",
    "simulate",
    "operators",
    "networks",
    "priors",
    "guidance",
    "estimation",
    "methods",
    "metrics",
    "data",
    "inference",
    "training",
    "doctor",
    "cli",
    "api",
    "demo",
]
STRANGERS = {("training", "inference")}
FRAMEWORKS = {
    "hydra": {"cli.py", "training/callbacks.py"},
    "omegaconf": {"cli.py", "training/callbacks.py"},
    "wandb": {"cli.py", "training/callbacks.py"},
    "pytorch_lightning": {path.relative_to(ROOT).as_posix() for path in (ROOT / "training").glob("*.py")},
}
# Seconds to import, needed by few: imported inside the function that uses them.
HEAVY = {"gradio", "lpips", "matplotlib", "scipy", "skimage", "tifffile", "timm", "torchmetrics"}


def imports(tree):
    """Dotted names that the nodes of a tree import."""
    for node in tree:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the order"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def outside_functions(node):
    """The nodes that run when a module is imported."""
    yield node
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        for child in ast.iter_child_nodes(node):
            yield from outside_functions(child)


def layer(dotted):
    """`codiffuse.priors.zoo` -> `priors`; names of the package itself, such as `codiffuse.__version__`, have none."""
    package, _, rest = dotted.partition(".")
    top = rest.partition(".")[0]
    is_module = (ROOT / top).is_dir() or (ROOT / f"{top}.py").is_file()
    return top if package == "codiffuse" and top and is_module else None


@pytest.fixture(scope="module")
def trees():
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in MODULES}


def test_modules_import_only_what_stands_above_them(trees):
    wrong = []
    for name, tree in trees.items():
        own = name.removesuffix(".py").partition("/")[0]
        for dotted in imports(ast.walk(tree)):
            above = layer(dotted)
            if above is None or above == own:
                continue
            # The package's own `__init__` stands above everything: it may import nothing of it.
            if own == "__init__" or ORDER.index(above) > ORDER.index(own) or (own, above) in STRANGERS:
                wrong.append(f"{name} imports {dotted}")
    assert wrong == []


def test_frameworks_stay_at_the_edge(trees):
    wrong = [
        f"{name} imports {dotted}"
        for name, tree in trees.items()
        for dotted in imports(ast.walk(tree))
        if name not in FRAMEWORKS.get(dotted.partition(".")[0], {name})
    ]
    assert wrong == []


def test_heavy_packages_are_imported_where_they_are_used(trees):
    wrong = [
        f"{name} imports {dotted}"
        for name, tree in trees.items()
        for dotted in imports(outside_functions(tree))
        if dotted.partition(".")[0] in HEAVY
    ]
    assert wrong == []


def test_the_checks_see_what_is_there(trees):
    """Guards the guards: they read every layer, and find imports that are known to be there."""
    assert set(ORDER) >= {name.removesuffix(".py").partition("/")[0] for name in trees} - {"__init__"}
    found = set(imports(ast.walk(trees["priors/zoo.py"])))
    assert {"codiffuse.errors.InputError", "yaml", "safetensors.torch.load_file"} <= found
    assert "yaml" not in set(imports(outside_functions(trees["priors/zoo.py"])))
    assert layer("codiffuse.priors.zoo.load") == "priors"
    assert layer("codiffuse.fourier") == "fourier"
    assert layer("codiffuse.__version__") is None
    assert layer("torch.fft") is None


def test_importing_the_package_costs_torch_at_most():
    heavy = sorted(HEAVY | FRAMEWORKS.keys() | {"PIL"})
    code = f"import sys, codiffuse; print(*[name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
