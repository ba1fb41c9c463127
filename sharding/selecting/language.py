"""A selection as text into terms: the syntax of Python's expressions, of which only what is named here is allowed."""

import ast
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from epistream.sharding.selecting.facts import NAMES, Constant
from epistream.sharding.selecting.terms import Comparison, Every, Joined, Name, Numbers, Other, Place, Span, Term

_MOST_CHARACTERS = 1 << 20
_MOST_DEPTH = 100
_LARGEST = 1 << 48
# Slices are known to Python inside of brackets only.
_BEFORE, _BEHIND = "_[", "\n]"
_SIGNS: Mapping[type[ast.cmpop], str] = {
    ast.Eq: "==",
    ast.NotEq: "==",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.In: "in",
    ast.NotIn: "in",
}
_TURNED = {"==": "==", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_EXAMPLES = "such as 0:100, or success and length < 500"
ReadFile = Callable[[str], Term]


def parse(text: str, read_file: ReadFile) -> Term:
    """The terms of a text.

    Args:
        text: As a user wrote it.
        read_file: What a file that it names lists.

    Raises:
        OptionError: If it is no selection; the message has the place.
    """
    return _Parser(text, read_file).parse()


@dataclass(frozen=True)
class _Parser:
    text: str
    read_file: ReadFile

    def parse(self) -> Term:
        if len(self.text) > _MOST_CHARACTERS:
            raise self._whole(f"{len(self.text):,} characters, wanted at most {_MOST_CHARACTERS:,}. Use a file: @FILE.")
        if not self.text.strip():
            raise self._whole(f"nothing, wanted episodes, {_EXAMPLES}. Leave it out for all.")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a backslash in a text; what is no selection is an error here
                node = ast.parse(f"{_BEFORE}{self.text}{_BEHIND}", mode="eval").body
        except SyntaxError as error:
            raise self._syntax(error) from None
        except (ValueError, RecursionError, MemoryError):
            raise self._whole(f"it cannot be read, wanted episodes, {_EXAMPLES}.") from None
        # Brackets that end before the text does make something else of it.
        if not isinstance(node, ast.Subscript) or not isinstance(node.value, ast.Name) or node.value.id != "_":
            raise self._whole(f"brackets that do not match, wanted episodes, {_EXAMPLES}.")
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if not parts:
            raise self._whole(f"nothing, wanted episodes, {_EXAMPLES}. Leave it out for all.")
        numbers = [(part, number) for part in parts if (number := self._number_or_none(part)) is not None]
        terms: list[Term] = [self._part(part) for part in parts if self._number_or_none(part) is None]
        if numbers:
            first, last = self._place(numbers[0][0]), self._place(numbers[-1][0])
            place = Place(self.text, first.start, last.stop)
            terms.append(Numbers(np.array([number for _, number in numbers], np.int64), place))
        return terms[0] if len(terms) == 1 else Joined(tuple(terms), is_all=False)

    def _part(self, node: ast.expr) -> Term:
        """What stands between two commas."""
        if not isinstance(node, ast.Slice):
            return self._term(node, 0)
        ends = []
        for end in (node.lower, node.upper, node.step):
            number = None if end is None else self._number_or_none(end)
            if end is not None and number is None:
                raise self._error(end, "wanted whole numbers about ':'. To join with 'and', write 0 <= index < 100.")
            ends.append(number)
        if ends[2] is not None and ends[2] < 1:
            raise self._error(node, f"in steps of {ends[2]}, wanted 1 or more: an order is no part of a selection.")
        return Span(*ends)

    def _term(self, node: ast.expr, depth: int) -> Term:
        if depth > _MOST_DEPTH:
            raise self._error(node, f"nested more than {_MOST_DEPTH} times, wanted fewer brackets.")
        if isinstance(node, ast.BoolOp):
            terms = tuple(self._term(one, depth + 1) for one in node.values)
            return Joined(terms, is_all=isinstance(node.op, ast.And))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return Other(self._term(node.operand, depth + 1))
        if isinstance(node, ast.Compare):
            return self._comparisons(node)
        if isinstance(node, ast.Constant) and isinstance(node.value, bool):
            return Every(node.value)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "listed":
            return self.read_file(self._only_text(node, "listed"))
        name = self._name_or_none(node)
        if name is not None:
            return name
        if self._number_or_none(node) is not None:
            raise self._error(node, "a number beside 'and', 'or' or 'not'. Write index == ..., or put a comma.")
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            raise self._error(node, f"a text alone, wanted what has it: source == {node.value!r:.60}, for example.")
        raise self._not_allowed(node)

    def _comparisons(self, node: ast.Compare) -> Term:
        """A chain, each of whose links must fit."""
        sides = [node.left, *node.comparators]
        links: list[Term] = []
        for left, sign, right in zip(sides, node.ops, sides[1:], strict=False):
            place = Place(self.text, self._place(left).start, self._place(right).stop)
            links.append(self._comparison(left, sign, right, place))
        return links[0] if len(links) == 1 else Joined(tuple(links), is_all=True)

    def _comparison(self, left: ast.expr, sign: ast.cmpop, right: ast.expr, place: Place) -> Comparison:
        if type(sign) not in _SIGNS:
            raise place.error("wanted a comparison by == != < <= > >= in, or not in.")
        told, is_not = _SIGNS[type(sign)], isinstance(sign, ast.NotEq | ast.NotIn)
        names = self._name_or_none(left), self._name_or_none(right)
        if all(names) or not any(names):
            raise place.error("wanted a name on one side, and a number or a text in quotes on the other.")
        if names[0] is not None:
            listed = self._list(right) if told == "in" else self._constant(right)
            return Comparison(names[0], told, listed, is_not, place)
        assert names[1] is not None
        wanted = self._constant(left)
        if told == "in":
            if not isinstance(wanted, str):
                raise place.error("wanted a text in quotes that is in another one.")
            return Comparison(names[1], "contains", wanted, is_not, place)
        return Comparison(names[1], _TURNED[told], wanted, is_not, place)

    def _list(self, node: ast.expr) -> tuple[Constant, ...]:
        if not isinstance(node, ast.List | ast.Tuple | ast.Set):
            raise self._error(node, "wanted a list in brackets: name in ['a', 'b']; or the text first: 'a' in name.")
        if not node.elts:
            raise self._error(node, "an empty list, wanted at least one value.")
        return tuple(map(self._constant, node.elts))

    def _constant(self, node: ast.expr) -> Constant:
        is_signed = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd)
        inner = node.operand if isinstance(node, ast.UnaryOp) and is_signed else node
        value = inner.value if isinstance(inner, ast.Constant) else None
        if isinstance(value, int | float) and not (is_signed and isinstance(value, bool)):
            return -value if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) else value
        if isinstance(value, str) and not is_signed:
            return value
        raise self._not_allowed(node)

    def _number_or_none(self, node: ast.expr) -> int | None:
        """The whole number that a node is, if it is one."""
        is_minus = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
        inner = node.operand if isinstance(node, ast.UnaryOp) and is_minus else node
        if not isinstance(inner, ast.Constant) or type(inner.value) is not int:
            return None
        if inner.value > _LARGEST:
            raise self._error(node, "wanted the position of an episode.")
        return -inner.value if is_minus else inner.value

    def _name_or_none(self, node: ast.expr) -> Name | None:
        """A name, with dots, or ``attribute("...")``."""
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "attribute":
            return Name(self._only_text(node, "attribute"), True, self._place(node))
        parts: list[str] = []
        inner = node
        while isinstance(inner, ast.Attribute):
            parts.append(inner.attr)
            inner = inner.value
        if not isinstance(inner, ast.Name):
            return None
        return Name(".".join([inner.id, *reversed(parts)]), False, self._place(node))

    def _only_text(self, node: ast.Call, function: str) -> str:
        if len(node.args) == 1 and not node.keywords:
            [value] = node.args
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                return value.value
        raise self._error(node, f"wanted one text in quotes: {function}('...').")

    def _place(self, node: ast.expr) -> Place:
        """Where a node stands: Python counts bytes of a line, and the brackets before."""
        lines = f"{_BEFORE}{self.text}{_BEHIND}".encode().split(b"\n")
        ends = ((node.lineno, node.col_offset), (node.end_lineno or node.lineno, node.end_col_offset or 0))
        start, stop = (
            len(b"\n".join([*lines[: line - 1], lines[line - 1][:column]]).decode()) - len(_BEFORE)
            for line, column in ends
        )
        return Place(self.text, max(0, start), min(stop, len(self.text)))

    def _error(self, node: ast.expr, what: str) -> Exception:
        return self._place(node).error(what)

    def _whole(self, what: str) -> Exception:
        return Place(self.text, 0, len(self.text)).error(what)

    def _not_allowed(self, node: ast.expr) -> Exception:
        if isinstance(node, ast.Call):
            return self._error(node, "no function of a selection, which are attribute('NAME') and listed('FILE').")
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
            return self._error(node, "write 'and' and 'or' in place of '&' and '|'.")
        return self._error(
            node,
            f"no part of a selection, wanted numbers, slices, and comparisons of {', '.join(NAMES)} or attributes.",
        )

    def _syntax(self, error: SyntaxError) -> Exception:
        lines = self.text.split("\n")
        line = min(max(1, error.lineno or 1), len(lines))
        column = (error.offset or 1) - 1 - (len(_BEFORE) if line == 1 else 0)
        at = sum(len(one) + 1 for one in lines[: line - 1]) + min(max(0, column), len(lines[line - 1]))
        if at >= len(self.text.rstrip()) or (error.lineno or 1) > len(lines):
            return self._whole(f"it ends too early, wanted episodes, {_EXAMPLES}.")
        return Place(self.text, at, len(self.text)).error(
            f"it cannot be read from here on, wanted episodes, {_EXAMPLES}. Texts are in quotes: task == 'pick*'."
        )
