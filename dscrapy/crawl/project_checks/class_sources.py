"""The source of classes, as trees: methods, attributes, and which of them use which.

Classes of Scrapy, of the standard library and ours are left out: they keep no state
that makes results differ.
"""

import ast
import inspect
import sys
from collections.abc import Iterable, Iterator
from types import ModuleType

Function = ast.FunctionDef | ast.AsyncFunctionDef

_MAKERS = frozenset({"from_crawler", "from_settings"})
# Parameters that are the same for every page.
_SAME_ALWAYS = frozenset({"self", "cls", "spider", "crawler", "settings", "info"})
# Containers by name alone: imports are not looked up.
_CONTAINERS = frozenset(
    {
        *("set", "dict", "list", "bytearray", "defaultdict", "Counter", "deque"),
        *("OrderedDict", "WeakSet", "WeakKeyDictionary", "WeakValueDictionary"),
        *("LRUCache", "TTLCache", "BloomFilter", "ScalableBloomFilter"),
        *("Dict", "List", "Set", "DefaultDict", "Deque", "MutableMapping"),
    }
)


class Sources:
    """Trees of modules, each read once."""

    def __init__(self) -> None:
        self._trees: dict[str, ast.Module | None] = {}

    def body(self, cls: type) -> "Body":
        """Return the methods and attributes of the class and its bases, from source."""
        body = Body()
        for base in cls.__mro__:
            module = sys.modules.get(base.__module__)
            if module is None or is_library(base.__module__):
                continue
            tree = self._tree(module)
            node = None if tree is None else _class_node(base, tree)
            if tree is not None and node is not None:
                body.read(node, tree)
        return body

    def _tree(self, module: ModuleType) -> ast.Module | None:
        name = module.__name__
        if name not in self._trees:
            try:
                self._trees[name] = ast.parse(inspect.getsource(module))
            except (OSError, TypeError, ValueError, SyntaxError):
                # Compiled, made at run time, or changed since.
                self._trees[name] = None
        return self._trees[name]


def is_library(module: str) -> bool:
    """Whether a module is of Scrapy, of the standard library or ours."""
    top = module.partition(".")[0]
    return top in ("scrapy", "dscrapy") or top in sys.stdlib_module_names


def _class_node(cls: type, tree: ast.Module) -> ast.ClassDef | None:
    scope: ast.AST = tree
    for name in cls.__qualname__.split("."):
        if name == "<locals>":
            continue
        inner = [
            node
            for node in ast.walk(scope)
            if isinstance(node, ast.ClassDef | Function) and node.name == name
        ]
        if not inner:
            return None
        # The last definition of a name is the one that counts.
        scope = inner[-1]
    return scope if isinstance(scope, ast.ClassDef) else None


class Body:
    """The methods of a class and its bases by name, and their attributes.

    ``values`` has the values and annotations of each attribute, wherever they are
    written; ``tested`` are attributes on the right of an ``in``, ``globals`` the
    containers of the modules.
    """

    def __init__(self) -> None:
        self.methods: dict[str, list[Function]] = {}
        self.values: dict[str, list[ast.expr]] = {}
        self.tested: set[str] = set()
        self.globals: set[str] = set()
        self._names: set[str] = set()

    def read(self, node: ast.ClassDef, module: ast.Module) -> None:
        """Add a class; classes are added in the order of the look-up."""
        self._names.add(node.name)
        self.globals.update(
            name for name, value in _assigned(module.body) if is_container(value)
        )
        for name, value in _assigned(node.body):
            self.values.setdefault(name, []).append(value)
        for function in node.body:
            if isinstance(function, Function):
                self.methods.setdefault(function.name, []).append(function)
                if function.name in _MAKERS:
                    _InstanceIsSelf(function)
        for part in ast.walk(node):
            if isinstance(part, ast.Compare):
                for operator, right in zip(part.ops, part.comparators, strict=True):
                    if isinstance(operator, ast.In | ast.NotIn):
                        self.tested.update(filter(None, [self.attribute(right)]))
            for target, written in targets(part):
                name = self.attribute(target)
                if name and written is not None:
                    self.values.setdefault(name, []).append(written)

    def attribute(self, node: ast.AST) -> str:
        """Return the name if ``node`` is an attribute of the class, else ""."""
        if not isinstance(node, ast.Attribute):
            return ""
        match node.value:
            case ast.Name(id=name):
                is_of_self = name in ("self", "cls") or name in self._names
            case ast.Call(func=ast.Name(id="type"), args=[ast.Name(id="self")]):
                is_of_self = True
            case ast.Attribute(attr="__class__", value=ast.Name(id="self")):
                is_of_self = True
            case _:
                is_of_self = False
        return node.attr if is_of_self else ""

    def root(self, node: ast.AST, aliases: dict[str, str]) -> str:
        """Return the attribute that an expression is a part of, else "".

        ``aliases`` are locals that stand for an attribute."""
        while True:
            name = self.attribute(node)
            if name:
                return name
            match node:
                case ast.Attribute(value=inner) | ast.Subscript(value=inner):
                    node = inner
                case ast.Call(func=ast.Attribute(value=inner)):
                    node = inner
                case ast.Name(id=name):
                    return aliases.get(name, "")
                case _:
                    return ""

    def aliases(self, function: Function) -> dict[str, str]:
        """Return locals that stand for an attribute or a part of one, and globals."""
        origins = {name: name for name in self.globals - names_from_arguments(function)}
        for node in ast.walk(function):
            for target, value in targets(node):
                if not isinstance(target, ast.Name):
                    continue
                name = ""
                if isinstance(value, ast.Attribute | ast.Subscript):
                    name = self.root(value, {})
                if name:
                    origins[target.id] = name
        return origins

    def is_read(self, node: ast.AST, name: str) -> bool:
        """Whether ``node`` reads the attribute."""
        return (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Load)
            and self.attribute(node) == name
        )

    def is_filled(self, name: str) -> bool:
        """Whether an attribute or global is a container, as far as the source shows."""
        if name in self.tested or name in self.globals:
            return True
        return any(map(is_container, self.values.get(name, ())))

    def functions(self) -> Iterator[Function]:
        """Yield all methods."""
        for functions in self.methods.values():
            yield from functions

    def receivers(self, signals: frozenset[str]) -> list[str]:
        """Return the methods connected to these signals, or named like them."""
        methods = [name for name in self.methods if name in signals]
        for function in self.functions():
            for call in calls(function):
                if last_name(call.func) != "connect" or not call.args:
                    continue
                named = [*call.args[1:2], *(word.value for word in call.keywords)]
                receiver = call.args[0]
                if signals.intersection(map(last_name, named)):
                    methods.append(last_name(receiver))
        return methods

    def reached(self, names: Iterable[str]) -> list[Function]:
        """Return these methods, and all methods of the class that they mention."""
        waiting, reached_names = list(names), dict[str, None]()
        while waiting:
            name = waiting.pop()
            if name in reached_names or name not in self.methods:
                continue
            reached_names[name] = None
            for function in self.methods[name]:
                waiting += filter(None, map(self.attribute, ast.walk(function)))
        return [function for name in reached_names for function in self.methods[name]]


class _InstanceIsSelf(ast.NodeTransformer):
    """Renames the instance that ``from_crawler`` makes to ``self``, since that method
    sets attributes of the instance and connects its methods."""

    def __init__(self, function: Function) -> None:
        self._instances = {
            target.id
            for node in ast.walk(function)
            for target, value in targets(node)
            if isinstance(target, ast.Name)
            and isinstance(value, ast.Call)
            and names(value.func) & {"cls", "super"}
        }
        self.visit(function)

    def visit_Name(self, node: ast.Name) -> ast.Name:
        if node.id in self._instances:
            node.id = "self"
        return node


# ---- trees --------------------------------------------------------------------------


def targets(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr | None]]:
    """Yield each target of a statement, with the value if there is one."""
    match node:
        case ast.Assign(targets=several, value=value):
            for target in several:
                yield from _unpacked(target, value)
        case ast.AugAssign(target=target) | ast.NamedExpr(target=target):
            yield target, node.value
        case ast.AnnAssign(target=target):
            yield target, node.value
        case ast.For(target=target) | ast.AsyncFor(target=target):
            yield from _unpacked(target, node.iter)
        case ast.withitem(optional_vars=ast.expr() as target, context_expr=value):
            yield from _unpacked(target, value)
        case ast.Delete(targets=several):
            for target in several:
                yield target, None
        case _:
            return


def _unpacked(
    target: ast.expr, value: ast.expr
) -> Iterator[tuple[ast.expr, ast.expr | None]]:
    if not isinstance(target, ast.Tuple | ast.List):
        yield target, value
        return
    values: list[ast.expr] = [value] * len(target.elts)
    if isinstance(value, ast.Tuple | ast.List) and len(value.elts) == len(target.elts):
        values = value.elts
    for element, part in zip(target.elts, values, strict=True):
        yield from _unpacked(element, part)


def _assigned(body: list[ast.stmt]) -> Iterator[tuple[str, ast.expr]]:
    """Yield the names that a module or class body sets, with values and annotations."""
    for statement in body:
        for target, value in targets(statement):
            if not isinstance(target, ast.Name):
                continue
            if value is not None:
                yield target.id, value
            if isinstance(statement, ast.AnnAssign):
                yield target.id, statement.annotation


def calls(node: ast.AST) -> Iterator[ast.Call]:
    """Yield all calls in a tree."""
    for part in ast.walk(node):
        if isinstance(part, ast.Call):
            yield part


def names(node: ast.AST) -> set[str]:
    """Return the names that a tree mentions."""
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def last_name(node: ast.AST) -> str:
    """Return the last part of a dotted name."""
    match node:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""


def names_from_arguments(function: Function) -> set[str]:
    """Return a function's parameters, and the locals that are made from them.

    Parameters that are the same for every page (``self``, ``spider``) are left out.
    """
    arguments = function.args
    derived = {
        argument.arg
        for argument in (
            *arguments.posonlyargs,
            *arguments.args,
            *arguments.kwonlyargs,
            *filter(None, [arguments.vararg, arguments.kwarg]),
        )
    }
    derived -= _SAME_ALWAYS
    for node in ast.walk(function):
        for target, value in targets(node):
            if isinstance(target, ast.Name) and value is not None:
                derived |= {target.id} if names(value) & derived else set()
    return derived


def is_container(value: ast.expr) -> bool:
    """Whether a value or annotation is that of a set, list, dict or the like."""
    match value:
        case ast.List() | ast.Dict() | ast.Set():
            return True
        case ast.ListComp() | ast.DictComp() | ast.SetComp():
            return True
        case ast.BoolOp(values=parts):
            return any(map(is_container, parts))
        case ast.IfExp(body=node, orelse=otherwise):
            return is_container(node) or is_container(otherwise)
        case ast.Call(func=function, keywords=words):
            # dataclasses.field(default_factory=set), attrs.field(factory=dict)
            factories = [word.value for word in words if "factory" in (word.arg or "")]
            return any(_names_container(node) for node in (function, *factories))
    return _names_container(value)


def _names_container(node: ast.expr) -> bool:
    if isinstance(node, ast.Subscript):
        # list[str], Counter[str]()
        node = node.value
    return last_name(node) in _CONTAINERS
