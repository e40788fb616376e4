"""The house rules that a program can check, checked: it reads every module of the package.

Each failure says which rule, where, and why there is such a rule.
"""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "iocp_loop"
DOCS = PACKAGE.parent / "docs"
FUNCTION_LINES_MAX = 70  # 50 is the aim; what fits on a screen can be read as a whole.
MODULE_LINES_MAX = 500  # 400 is the aim.

# As docs/architecture.md has them: a module imports from lower levels, and from its own. A folder is on one level, but
# for the two of the core.
LEVELS = {
    "_win32": 0,
    "_core._kept": 1,
    "_core._operation": 1,
    "_core._arena": 1,
    "_core._port": 1,
    "_core._endpoint": 1,
    "_core": 2,
    "_handles": 3,
    "_asyncio": 4,
    "_transports": 4,
    "_loop": 5,
    "_cli": 6,
    "lowlevel": 5,
    "__init__": 7,
    "__main__": 7,
    # Beside the levels: instruments are imported by name only where somebody asks for them.
    "_debug": 1,
}
ASYNCIO_FROM_LEVEL = 4
MODULES = sorted(PACKAGE.rglob("*.py"))


class Module:
    """One parsed file and its place among the levels."""

    def __init__(self, path):
        self.path = path
        self.name = path.relative_to(PACKAGE).as_posix()
        self.source = path.read_text(encoding="utf-8")
        self.lines = self.source.splitlines()
        self.tree = ast.parse(self.source)
        self.parts = path.relative_to(PACKAGE).with_suffix("").parts
        self.room = self.parts[0]
        self.level = level_of(".".join(self.parts))

    def nodes(self, *kinds):
        return [node for node in ast.walk(self.tree) if isinstance(node, kinds)]

    def at(self, node):
        return f"iocp_loop/{self.name}:{node.lineno}"

    def imports(self, *, also_for_types=False):
        """(node, module imported): absolute names as they are, relative ones from `iocp_loop` on."""
        for_types = {
            id(inner)
            for node in self.nodes(ast.If)
            if ast.unparse(node.test) == "TYPE_CHECKING"
            for inner in ast.walk(node)
        }
        for node in self.nodes(ast.Import, ast.ImportFrom):
            if id(node) in for_types and not also_for_types:
                continue
            if isinstance(node, ast.Import):
                yield from ((node, alias.name) for alias in node.names)
            elif not node.level:
                yield node, node.module
            else:
                for name in self.relative(node):
                    yield node, f"iocp_loop.{name}"

    def relative(self, node):
        """What a relative import names, from the package on; of `from .folder import name`, both are a part."""
        inside = list(self.parts[: len(self.parts) - node.level])
        module = [*inside, *(node.module.split(".") if node.module else ())]
        return [".".join(module)] if len(module) > 1 else [".".join([*module, alias.name]) for alias in node.names]


def level_of(name):
    """Of a dotted name within the package; None if it has none."""
    parts = name.split(".")
    return next((LEVELS[key] for key in (".".join(parts[:2]), parts[0]) if key in LEVELS), None)


PARSED = [Module(path) for path in MODULES]


@pytest.fixture(params=PARSED, ids=lambda module: module.name)
def module(request):
    return request.param


def fail(where, rule, why):
    pytest.fail(f"{where}: {rule}\n  why: {why}", pytrace=False)


def test_every_module_has_a_level(module):
    if module.level is None:
        fail(module.name, "is in no level", "a room without a level may import anything")


def test_imports_point_down(module):
    """Those for types, too: a reader follows them as Python follows the others."""
    why = "a lower level that knows a higher one can be neither read nor tested without it"
    for node, name in module.imports(also_for_types=True):
        package, _, room = name.partition(".")
        if package != "iocp_loop" or room == "__version__":
            continue
        level = level_of(room)
        if level is None:
            fail(module.at(node), f"imports {name}, which has no level", why)
        if level > module.level:
            fail(module.at(node), f"level {module.level} imports {name} of level {level}", why)


# Rooms that name each other are one thing in several files. These are, and why.
CIRCLES = {
    ("_core._endpoint", "_core._operation"): "an endpoint lists its operations, an operation names its endpoint",
    ("_core._cancels", "_core._interrupted", "_core._keys", "_core._proactor", "_core._shortages"): (
        "the proactor, and the parts of it that have a table of their own"
    ),
    ("_core._arena", "_debug.stomp"): "the arena of stomp mode is one, and is loaded by them only when asked for",
}


def circles(modules):
    """The groups of modules each of which leads to all the others by imports, those for types included."""
    names = {".".join(module.parts) for module in modules}
    arrows = {
        ".".join(module.parts): {name.removeprefix("iocp_loop.") for _, name in module.imports(also_for_types=True)}
        & names
        for module in modules
    }

    def reached(name):
        found, left = set(), [name]
        while left:
            for other in arrows[left.pop()] - found:
                found.add(other)
                left.append(other)
        return found

    all_reached = {name: reached(name) for name in names}
    return {
        tuple(sorted(other for other in all_reached[name] if name in all_reached[other]))
        for name in names
        if name in all_reached[name]
    }


def test_no_rooms_name_each_other_but_those_that_are_one_thing():
    assert circles(PARSED) == set(CIRCLES)


def test_a_circle_is_noticed():
    broken = [Module(PACKAGE / "_core/_port.py"), Module(PACKAGE / "_core/_arena.py")]
    broken[0].tree = ast.parse("from ._arena import Arena")
    broken[1].tree = ast.parse("if TYPE_CHECKING:\n    from ._port import CompletionPort")
    assert circles(broken) == {("_core._arena", "_core._port")}


def test_levels_0_to_3_know_no_asyncio(module):
    why = "the proactor and its handles serve plain threads too (examples/worker_threads.py)"
    if module.level < ASYNCIO_FROM_LEVEL:
        for node, name in module.imports(also_for_types=True):
            if name.split(".")[0] == "asyncio":
                fail(module.at(node), f"level {module.level} imports {name}", why)


def test_private_names_of_asyncio_are_on_one_page(module):
    why = "what a new Python changes must be found in _asyncio/_private.py, and nowhere else"
    if module.name == "_asyncio/_private.py":
        return
    for node, name in module.imports(also_for_types=True):
        if name.startswith("asyncio."):
            fail(module.at(node), f"imports {name}", why)
        if name == "asyncio" and isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if alias.name.startswith("_") or alias.name in UNDOCUMENTED_SUBMODULES:
                    fail(module.at(node), f"imports asyncio.{alias.name}", why)
    for node in module.nodes(ast.Attribute):
        chain = ast.unparse(node).split(".")
        if chain[0] == "asyncio" and any(
            part in UNDOCUMENTED_SUBMODULES or (part.startswith("_") and not part.endswith("__")) for part in chain[1:]
        ):
            fail(module.at(node), f"uses {'.'.join(chain)}", why)


UNDOCUMENTED_SUBMODULES = {
    "base_events",
    "base_subprocess",
    "constants",
    "events",
    "proactor_events",
    "selector_events",
    "sslproto",
    "tasks",
    "transports",
    "trsock",
    "windows_events",
    "windows_utils",
}


def test_only_level_0_touches_a_dll(module):
    why = "Kernel is the seam of the tests; a call past it can be neither counted nor faked"
    forbidden = {"WinDLL", "windll", "OleDLL", "oledll", "CDLL", "cdll", "_CFuncPtr"}
    if module.level == 0:
        forbidden = {"windll", "oledll", "cdll"}  # Shared by the whole process: any library may change a prototype.
    for node in module.nodes(ast.Attribute, ast.Name):
        name = node.attr if isinstance(node, ast.Attribute) else node.id
        if name in forbidden:
            fail(module.at(node), f"uses {name}", why)


def test_above_level_0_no_win32_number_is_spelled(module):
    """A literal as large as a status, a control code or a Winsock error is one. Small flags cannot be told apart."""
    why = "constants.py has a name for it, and the header it comes from"
    if module.level == 0:
        return
    for node in module.nodes(ast.Constant):
        value = node.value
        if type(value) is not int or value in WIDTHS:
            continue
        spelled = ast.get_source_segment(module.source, node) or ""
        if 10_004 <= value <= 11_031 or (spelled[:2] in ("0x", "0X") and value > 0xFFFF) or value >= 2**31:
            fail(module.at(node), f"spells {spelled}", why)


# Masks that say "so many bits", and nothing about Windows.
WIDTHS = {0xFF, 0xFFFF, 0xFFFF_FFFF, 0xFFFF_0000}


def test_win32_struct_members_end_at_the_port(module):
    """dwNumberOfBytesTransferred and the like: plain English from level 2 up."""
    why = "Win32 spelling below, plain English above"
    if module.level < 2:
        return
    hungarian = re.compile(r"(?:dw|lp|cb|ul|sz|h)[A-Z]\w*[a-z]\w*$")
    for node in module.nodes(ast.Attribute, ast.Name, ast.arg):
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else node.arg
        if hungarian.match(name):
            fail(module.at(node), f"uses {name}", why)


def test_no_exception_is_swallowed(module):
    why = "nothing is caught and forgotten; SystemExit and KeyboardInterrupt are nobody's to keep"
    for node in module.nodes(ast.ExceptHandler):
        caught = "" if node.type is None else ast.unparse(node.type)
        if node.type is None:
            fail(module.at(node), "except without a class", why)
        nothing_done = all(isinstance(step, ast.Pass | ast.Continue) for step in node.body)
        if nothing_done and re.search(r"\b(Base)?Exception\b", caught):
            fail(module.at(node), f"except {caught} that does nothing", why)
        if nothing_done and "#" not in "\n".join(module.lines[node.lineno - 1 : node.end_lineno]):
            fail(module.at(node), f"except {caught} that does nothing and does not say why", why)


def test_except_base_exception_lets_exits_through(module):
    """`except BaseException` stands behind `except (SystemExit, KeyboardInterrupt): raise`, or raises itself."""
    why = "Ctrl+C in a callback must end the program"
    for node in module.nodes(ast.Try):
        let_through = False
        for handler in node.handlers:
            caught = "" if handler.type is None else ast.unparse(handler.type)
            if caught == "(SystemExit, KeyboardInterrupt)" and raises(handler):
                let_through = True
            elif caught == "BaseException" and not let_through and not raises(handler):
                fail(module.at(handler), "except BaseException keeps SystemExit", why)


def raises(node):
    return any(isinstance(inner, ast.Raise) for inner in ast.walk(node))


def test_functions_fit_on_a_screen(module):
    for node in module.nodes(ast.FunctionDef, ast.AsyncFunctionDef):
        length = node.end_lineno - node.lineno + 1
        if length > FUNCTION_LINES_MAX:
            fail(module.at(node), f"{node.name} has {length} lines", f"{FUNCTION_LINES_MAX} is the most one can see")


def test_modules_can_be_held_in_mind(module):
    if len(module.lines) > MODULE_LINES_MAX:
        fail(module.name, f"{len(module.lines)} lines", f"split it: {MODULE_LINES_MAX} is the most, 400 the aim")


def comments(module):
    for token in tokenize.generate_tokens(io.StringIO(module.source).readline):
        if token.type == tokenize.COMMENT:
            yield token


def test_nothing_is_left_to_do_without_an_issue(module):
    why = "a wish in a comment is forgotten; an issue is found"
    for token in comments(module):
        if re.search(r"\b(TODO|FIXME|XXX|HACK)\b", token.string) and not re.search(r"https?://\S+|#\d+", token.string):
            fail(f"{module.name}:{token.start[0]}", token.string, why)


def test_every_handover_says_who_owns_the_memory(module):
    """Writing to or removing from the pending table, and taking operations back, have `# SAFETY:` just above."""
    why = "each of these lines moves ownership between us and the kernel; a reader must see which way"
    for node in module.nodes(ast.Assign, ast.Delete, ast.Call):
        if is_handover(ast.unparse(node)):
            above = "\n".join(module.lines[max(0, node.lineno - 6) : node.end_lineno + 2])
            inside_take_back = any(
                function.name == "_take_back" and function.lineno <= node.lineno <= function.end_lineno
                for function in module.nodes(ast.FunctionDef)
            )  # Its callers say it, each for its own reason.
            if "SAFETY:" not in above and not inside_take_back:
                fail(module.at(node), f"no SAFETY comment near `{ast.unparse(node)}`", why)


def is_handover(code):
    return bool(
        re.match(r"(self\.)?pending\[.*\] = ", code)
        or re.match(r"del (self\.)?pending\[", code)
        or re.match(r"self\._take_back\(", code)
        or re.match(r"self\.pending\.(pop|clear)\(", code)
        or re.match(r"ORPHANS\.(append|extend)\(", code)
    )


def test_the_pending_table_is_written_in_one_room():
    """The choke point: submit, take back, settle, close, and what is left of them after an interrupt; and what waits
    for the kernel's memory."""
    writers = set()
    for parsed in PARSED:
        for node in parsed.nodes(ast.Assign, ast.Delete, ast.Call):
            if re.match(r"(del )?[\w.]*\bpending(\[.*\]( = |$)|\.(pop|clear|update|setdefault)\()", ast.unparse(node)):
                writers.add(parsed.name)
    assert writers == {"_core/_proactor.py", "_core/_interrupted.py", "_core/_shortages.py"}


def test_overlapped_calls_start_in_one_place():
    """`operation.start(...)` is called by Proactor.submit; handles prepare, they do not call.

    And once more where a submit was interrupted, of what the kernel never sees.
    """
    callers = {
        (parsed.name, parsed.lines[node.lineno - 1].strip())
        for parsed in PARSED
        for node in parsed.nodes(ast.Call)
        if isinstance(node.func, ast.Attribute) and node.func.attr == "start" and "operation" in ast.unparse(node.func)
    }
    assert {name for name, _ in callers} == {"_core/_proactor.py", "_core/_interrupted.py"}
    assert len(callers) == 2
    cancels = {
        parsed.name
        for parsed in PARSED
        for node in parsed.nodes(ast.Call)
        if isinstance(node.func, ast.Attribute) and node.func.attr == "CancelIoEx"
    }
    # And where an experiment asks the system what comes of it, of what is no operation.
    assert cancels == {"_core/_cancels.py", "_cli/_experiments.py"}


def test_instruments_are_imported_only_when_asked_for(module):
    """No import of _debug at the top of a module outside _debug itself."""
    why = "instruments cost something; whoever does not ask for them must not load them"
    if module.room == "_debug":
        return
    for node in module.tree.body:
        if isinstance(node, ast.ImportFrom) and "_debug" in (node.module or ""):
            fail(module.at(node), "imports _debug when it is loaded", why)


def test_every_module_begins_with_what_it_is(module):
    if not ast.get_docstring(module.tree):
        fail(module.name, "has no docstring", "the first thing a reader needs is what this room is for")


# The nets below must not have holes: each rule once, against code that breaks it.
BROKEN = {
    test_imports_point_down: ("_core/_port.py", "from ._proactor import Proactor"),
    test_levels_0_to_3_know_no_asyncio: ("_handles/_sockets.py", "import asyncio"),
    test_private_names_of_asyncio_are_on_one_page: ("_loop/_event_loop.py", "from asyncio import sslproto"),
    test_only_level_0_touches_a_dll: ("_core/_port.py", "import ctypes\nctypes.WinDLL('kernel32')"),
    test_above_level_0_no_win32_number_is_spelled: ("_core/_proactor.py", "if code == 10054: raise code"),
    test_win32_struct_members_end_at_the_port: ("_core/_proactor.py", "entry.dwNumberOfBytesTransferred"),
    test_no_exception_is_swallowed: ("_core/_port.py", "try:\n    f()\nexcept OSError:\n    pass"),
    test_except_base_exception_lets_exits_through: (
        "_loop/_event_loop.py",
        "try:\n    f()\nexcept BaseException:\n    g()",
    ),
    test_functions_fit_on_a_screen: ("_core/_port.py", "def f():\n" + "    x()\n" * FUNCTION_LINES_MAX),
    test_modules_can_be_held_in_mind: ("_core/_port.py", "x()\n" * (MODULE_LINES_MAX + 1)),
    test_nothing_is_left_to_do_without_an_issue: ("_core/_port.py", "x()  # TO" + "DO: later"),
    test_every_handover_says_who_owns_the_memory: ("_core/_proactor.py", "self.pending[address] = operation"),
    test_instruments_are_imported_only_when_asked_for: ("_core/_arena.py", "from .._debug.stomp import StompArena"),
    test_every_module_begins_with_what_it_is: ("_core/_port.py", "x = 1"),
}


@pytest.mark.parametrize("rule", BROKEN, ids=lambda rule: rule.__name__)
def test_a_rule_notices_what_breaks_it(rule):
    name, source = BROKEN[rule]
    broken = Module(PACKAGE / name)
    broken.source, broken.lines, broken.tree = source, source.splitlines(), ast.parse(source)
    with pytest.raises(pytest.fail.Exception):
        rule(broken)


def glossary():
    """word -> what is not said for it, of the table "Words" in docs/architecture.md."""
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    table = page.partition("\n## Words\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("|")]
    return {cells[0].strip(): [word.strip() for word in cells[2].split(",") if word.strip()] for cells in rows[2:]}


def test_each_word_has_one_meaning_and_its_rivals_are_not_used():
    words = glossary()
    assert len(words) >= 12
    rivals = {rival: word for word, others in words.items() for rival in others}
    assert rivals
    texts = {module.name: module.source for module in map(Module, MODULES)}
    texts |= {path.name: path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md")}
    texts["architecture.md"] = re.sub(r"^\|.*\n", "", texts["architecture.md"], flags=re.MULTILINE)
    found = [
        f"{name}: {rival!r} for {word!r}"
        for name, text in texts.items()
        for rival, word in rivals.items()
        if re.search(rf"(?<![a-z]){rival}", text, re.IGNORECASE)
    ]
    assert found == []
