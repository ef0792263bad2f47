r"""Mutation testing of constants: the patterns and numbers that stand in a module, not in a function.

    uv run .ci/pattern_mutants.py scoring/notation scoring/numeric

mutmut leaves them alone. Of each pattern one piece at a time is dropped: an alternative, a group or look-around, a
quantifier, a character of a class, a literal, a flag; atomic groups lose that, digits become the next one; numbers go
up and down by one, truth values turn. What no longer compiles, or compiles to the same, is no change. The module's own
tests then run in this process, on functions that find the changed constants in their module.

Survivors that are no fault of a test: a LaTeX command that is recognised by a letter less (``\fra``); one character
more or less to look back; ASCII digits that are translated to themselves; a number that need not be atomic, since what
is left of it when its last digit is given back is refused by that digit; brackets within those of a unit, a numerator
or a root's index; "answer is" that its number is written on to.
"""

from __future__ import annotations

import ast
import copy
import importlib
import re
import signal
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

SECONDS = 30  # for all tests of one change; a pattern that backtracks for ever counts as noticed
FIRST_FIELD = 0xF0000  # private characters that stand for the {fields} of an f-string

_ESCAPE = r"\\(?:u[0-9a-f]{4}|.)"
_CLASS = rf"\[\^?(?:{_ESCAPE}|[^\]\\])+\]"
_TOKEN = re.compile(rf"{_CLASS}|{_ESCAPE}|\(\?(?:[:>=!]|<[=!])|\{{[0-9,]+\}}|.", re.DOTALL)
_ITEM = re.compile(rf"(?:{_ESCAPE}|[^\\])(?:-(?:{_ESCAPE}|[^\\]))?", re.DOTALL)
_QUANTIFIER = re.compile(r"[*+?]|\{[0-9,]+\}")


def changed_patterns(pattern: str) -> Iterator[str]:
    """The pattern, or part of one, without one of its pieces."""
    spans = [found.span() for found in _TOKEN.finditer(pattern)]
    opened: list[tuple[int, int]] = []  # of each open group, its start and that of its last alternative
    atom: tuple[int, int] | None = None
    alternative = 0

    def without(start: int, end: int, instead: str = "") -> str:
        return pattern[:start] + instead + pattern[end:]

    for start, end in [*spans, (len(pattern), len(pattern))]:
        token = pattern[start:end]
        if token in ("|", ")", "") and (pattern[alternative - 1 : alternative] == "|" or token == "|"):
            yield without(alternative, end) if token == "|" else without(alternative - 1, start)
        if token == "|":
            alternative, atom = end, None
        elif token[:1] == "(":
            opened.append((start, alternative))
            alternative = end
            if token == "(?>":
                yield without(start, end, "(?:")
        elif token == ")":
            group, alternative = opened.pop()
            atom = (group, end)
            yield without(*atom)
        elif atom and _QUANTIFIER.fullmatch(token):
            yield without(start, end)
            yield without(atom[0], end)
            for number in re.finditer("[0-9]+", token):
                yield without(start + number.start(), start + number.end(), str(int(number[0]) + 1))
        elif token:
            atom = (start, end)
            yield without(start, end)
            if token.isdecimal():
                yield without(start, end, str((int(token) + 1) % 10))
            if re.fullmatch(_CLASS, token, re.DOTALL):
                items = list(_ITEM.finditer(token, 2 if token[1] == "^" else 1, len(token) - 1))
                for item in items if len(items) > 1 else []:
                    yield without(start + item.start(), start + item.end())


def changed_expressions(node: ast.expr) -> Iterator[ast.expr]:
    """The expression with one constant in it changed, or one argument of `re.compile` behind the first left out."""
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        yield from (ast.Constant(node.value + step) for step in (1, -1))
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield from map(ast.Constant, changed_patterns(node.value))
    elif isinstance(node, ast.JoinedStr):
        fields = [part for part in node.values if isinstance(part, ast.FormattedValue)]
        rest = iter(range(len(fields)))
        parts = (p.value if isinstance(p, ast.Constant) else chr(FIRST_FIELD + next(rest)) for p in node.values)
        for text in changed_patterns("".join(parts)):
            pieces = re.split(f"([{chr(FIRST_FIELD)}-{chr(FIRST_FIELD + len(fields))}])", text)
            yield ast.JoinedStr(
                [fields[ord(p) - FIRST_FIELD] if i % 2 else ast.Constant(p) for i, p in enumerate(pieces)]
            )
    else:
        for name, value in ast.iter_fields(node):
            children = value if isinstance(value, list) else [value]
            for index, child in enumerate(children):
                if isinstance(child, ast.expr | ast.keyword):
                    inner = child.value if isinstance(child, ast.keyword) else child
                    for changed in changed_expressions(inner):
                        whole = copy.deepcopy(node)
                        place: Any = getattr(whole, name)
                        if isinstance(child, ast.keyword):
                            place[index].value = changed
                        elif isinstance(value, list):
                            place[index] = changed
                        else:
                            setattr(whole, name, changed)
                        yield whole
        if isinstance(node, ast.Call) and len(node.args) > 1 and ast.unparse(node.func) == "re.compile":
            yield ast.Call(node.func, node.args[:1], [])


def changed_constants(module: ModuleType) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a change is called, and the module's constants by name after it."""
    with open(str(module.__file__), encoding="utf-8") as file:
        tree = ast.parse(file.read())
    assignments = [node for node in tree.body if isinstance(node, ast.Assign)]
    names = [target.id for node in assignments for target in node.targets if isinstance(target, ast.Name)]
    before = {name: getattr(module, name) for name in names}
    seen = [before]
    for node in assignments:
        original = node.value
        for node.value in changed_expressions(original):
            namespace = dict(vars(module))
            try:
                for each in assignments:
                    exec(compile(ast.fix_missing_locations(ast.Module([each], [])), "<change>", "exec"), namespace)
            except (re.error, ValueError, ArithmeticError):
                continue
            after = {name: namespace[name] for name in names}
            if after not in seen:
                seen.append(after)
                yield ast.unparse(node), after
        node.value = original


class Runner:
    """A pytest plugin that runs the tests it finds once for each change of the module's constants."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        before, changes, noticed = dict(vars(self.module)), 0, 0
        if not passes(session.items):
            sys.exit(f"{self.module.__name__}: its tests do not pass as it is")
        for change, constants in changed_constants(self.module):
            vars(self.module).update(constants)
            changes += 1
            if passes(session.items):
                print(f"\nsurvived: {change}", flush=True)
            else:
                noticed += 1
            vars(self.module).update(before)
        print(f"\n{self.module.__name__}: {changes} changes, {noticed} noticed", flush=True)
        return True


def passes(items: list[pytest.Item]) -> bool:
    """Whether all tests pass, within the time."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        return not any(report.failed for item in items for report in runtestprotocol(item, log=False, nextitem=None))
    except TimeoutError:
        return False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def stop(*_: object) -> None:
    raise TimeoutError


def main(names: list[str]) -> None:
    signal.signal(signal.SIGALRM, stop)
    for name in names:
        module = importlib.import_module("reft_math." + name.replace("/", "."))
        folder, _, file = name.rpartition("/")
        test = f"tests/reft_math/{folder}/test_{file}.py"
        pytest.main(["-q", "-s", "-n", "0", "-p", "no:cacheprovider", test], plugins=[Runner(module)])


if __name__ == "__main__":
    main(sys.argv[1:])
