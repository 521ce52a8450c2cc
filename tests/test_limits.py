"""Limits of size: lines of a module; code lines, complexity and parameters of a function; the budget of the experiments.

Complexity is McCabe's: one, and one for every branch, loop, handler, case, conditional expression and comprehension. The code
lines of a function are those of its body that hold more than a comment, without the docstring; those of a module are counted
alike.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

import testtime

ROOT = Path(testtime.__file__).parent
LINES, CODE, COMPLEXITY, PARAMETERS = 500, 60, 20, 12
BUDGET, BUDGETED = 6500, ("experiments", "report", "cli")
LATER = (
    "experiments/production",
    "experiments/forecasting",
    "experiments/local_tokens",
    "experiments/segmentation",
    "experiments/vision_language",
    "cli/serve.py",
)
"""Families that were added to the engine later; what they declare is not part of its budget."""
BRANCHES = (
    ast.If,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.IfExp,
    ast.ExceptHandler,
    ast.comprehension,
    ast.match_case,
)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    """Qualified names and functions, methods and inner functions included."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function):
            yield prefix + node.name, node
        named = isinstance(node, Function | ast.ClassDef)
        yield from functions(node, f"{prefix}{node.name}." if named else prefix)


def own_nodes(function: Function) -> Iterator[ast.AST]:
    """The nodes of a function without those of the functions and classes in it."""
    todo = list(ast.iter_child_nodes(function))
    while todo:
        node = todo.pop()
        yield node
        if not isinstance(node, Function | ast.ClassDef):
            todo += ast.iter_child_nodes(node)


def code_lines(function: Function, text: list[str]) -> int:
    body = function.body[ast.get_docstring(function) is not None :]
    inside = {line for s in body for line in range(s.lineno, s.end_lineno + 1)}
    return sum(
        bool(text[line - 1].strip()) and not text[line - 1].lstrip().startswith("#") for line in inside
    )


def module_code_lines(text: str) -> int:
    """Number of lines that hold more than a comment, without those of docstrings."""
    tree, docs = ast.parse(text), set[int]()
    for node in ast.walk(tree):
        if isinstance(node, Function | ast.ClassDef | ast.Module) and ast.get_docstring(node) is not None:
            docs |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = [line.strip() for number, line in enumerate(text.splitlines(), 1) if number not in docs]
    return sum(bool(line) and not line.startswith("#") for line in lines)


def complexity(function: Function) -> int:
    return 1 + sum(isinstance(node, BRANCHES) for node in own_nodes(function))


def parameters(function: Function) -> int:
    """Number of parameters that a caller gives."""
    a = function.args
    return len([p for p in (*a.posonlyargs, *a.args, *a.kwonlyargs) if p.arg not in ("self", "cls")])


def excesses(text: str) -> list[str]:
    """What of a module exceeds the limits."""
    lines = text.splitlines()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        tree = ast.parse(text)
    found = [f"{len(lines)} lines, at most {LINES}"] if len(lines) > LINES else []
    for name, function in functions(tree):
        measures = (
            (code_lines(function, lines), CODE, "code lines"),
            (complexity(function), COMPLEXITY, "complexity"),
        )
        for value, limit, what in (*measures, (parameters(function), PARAMETERS, "parameters")):
            if value > limit:
                found.append(f"{name}: {value} {what}, at most {limit}")
    return found


MANY = ", ".join(f"a{i}" for i in range(13))
LARGE = {
    "module": ("\n" * 501, "501 lines, at most 500"),
    "function": (
        "def f():\n    '''Text.'''\n" + "    x = 1\n\n    # y\n" * 61,
        "f: 61 code lines, at most 60",
    ),
    "branches": ("def f(x):\n" + "    if x: pass\n" * 20, "f: 21 complexity, at most 20"),
    "parameters": (
        f"class A:\n    def __init__(self, {MANY}): pass",
        "A.__init__: 13 parameters, at most 12",
    ),
    "inner function": (f"def f():\n    def g({MANY}): pass", "f.g: 13 parameters, at most 12"),
}


@pytest.mark.parametrize("name", LARGE)
def test_an_excess_is_found(name):
    text, message = LARGE[name]
    assert excesses(text) == [message]


def test_what_is_within_the_limits_passes():
    inner = "    def g(x):\n" + "        if x: pass\n" * 19
    assert excesses("def f(x):\n" + "    if x: pass\n" * 19 + inner + "\n" * 10) == []


def test_every_module_and_function_is_within_the_limits():
    found = {
        str(path.relative_to(ROOT)): excesses(path.read_text("utf-8")) for path in sorted(ROOT.rglob("*.py"))
    }
    assert len(found) > 200
    assert {path: some for path, some in found.items() if some} == {}


COUNTED = """'''Text.

More.
'''
# a comment
import a  # and a comment

B = '''
no comment
'''


class C:
    '''Text.'''

    def f(self):
        '''Text.'''
        return (
            1
        )
"""


def test_code_lines_of_a_module_are_those_without_docstrings_comments_and_blank_lines():
    assert module_code_lines(COUNTED) == 9


def test_the_experiments_their_report_and_the_command_line_are_within_the_budget():
    later = [path for part in LATER for path in (*(ROOT / part).rglob("*.py"), ROOT / part)]
    paths = {part: sorted({*(ROOT / part).rglob("*.py")} - {*later}) for part in BUDGETED}
    found = {part: sum(module_code_lines(p.read_text("utf-8")) for p in of) for part, of in paths.items()}
    assert all(found.values())
    assert sum(found.values()) <= BUDGET, f"{found}: shorten what is there before more is added"


def test_the_names_of_test_files_are_unique():
    """pytest imports them by their base names."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []
