"""The layers of the design: a module imports its own line and lines below it, and no imports run in circles."""

import ast
from functools import cache
from pathlib import Path

import pytest

import testtime

ROOT = Path(testtime.__file__).parent
LAYERS = """
cli __main__
experiments
serve report
catalogue laws
selection wrap saving build evaluation prequential export
methods multitask space forecasting vision_language language search
source
adapter facts freezing state notices construction gate prediction
norm parts training
tasks models intake
streams scenes data corruptions metrics
files toml claims errors labels lazy progress processor workers plugins moved
"""  # docs/architecture.md explains them
LEVEL = {
    name: -i for i, line in enumerate(LAYERS.strip().splitlines()) for name in line.split()
}  # higher imports lower
FACADE = "testtime"  # the package itself hands out names from above, when they are asked for


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        parts = (FACADE, *path.relative_to(ROOT).with_suffix("").parts)
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


FILES = dict(modules())


@cache
def imports(path):
    """The modules of the package that a file imports, for types alone left out: (module, whether at import time)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    later = {
        id(node)
        for f in ast.walk(tree)
        if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(f)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in typing or not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        first = node.names if isinstance(node, ast.Import) else ()
        names = [alias.name for alias in first]
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [
                full if (full := f"{node.module}.{alias.name}") in FILES else node.module
                for alias in node.names
            ]
        found += [(name, id(node) not in later) for name in names if name.split(".")[0] == FACADE]
    return found


@pytest.mark.parametrize("name", sorted({m.split(".")[1] for m in FILES if m != FACADE}))
def test_every_package_has_a_layer(name):
    assert name in LEVEL, f"{name} is in no line of LAYERS; add it to docs/architecture.md and here"


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_run_downwards(module):
    if module == FACADE:
        return
    own = LEVEL[module.split(".")[1]]
    upwards = sorted(
        {other for other, _ in imports(FILES[module]) if other != FACADE and LEVEL[other.split(".")[1]] > own}
    )
    assert not upwards, f"{module} imports from lines above it: {', '.join(upwards)}"


def test_no_imports_run_in_circles():
    graph = {
        module: {other for other, now in imports(path) if now and other in FILES and other != module}
        for module, path in FILES.items()
    }
    done, stack = set(), []

    def visit(module):
        assert module not in stack, " -> ".join([*stack[stack.index(module) :], module])
        if module in done:
            return
        stack.append(module)
        for other in sorted(graph[module]):
            visit(other)
        stack.pop()
        done.add(module)

    for module in sorted(graph):
        visit(module)
