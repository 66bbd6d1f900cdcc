"""Imports point down only, and heavy libraries come in where the work at hand needs them."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import embedcache as ec

ROOT = Path(__file__).parents[1]
OURS = ("cli", "heads", "embedcache")

LAYERS: tuple[tuple[str, ...], ...] = (
    ("cli",),
    ("heads",),
    ("embedcache",),  # the package itself: names that are imported when they are asked for
    (
        "embedcache.cache",
        "embedcache.encoder",
        "embedcache.footprint",
        "embedcache.view",
        "embedcache.token_view",
        "embedcache.exchange",
        "embedcache.housekeeping",
        "embedcache.verification",
    ),
    (
        "embedcache.extraction",
        "embedcache.writing",
        "embedcache.word_ids",
        "embedcache.jobs",
        "embedcache.precision",
        "embedcache.encoding",
        "embedcache.opening",
    ),
    (
        "embedcache.options",
        "embedcache.probing",
        "embedcache.failures",
        "embedcache.planning",
        "embedcache.items",
        "embedcache.catalog",
        "embedcache.datasets",
        "embedcache.backbones",
        "embedcache.engines",
        "embedcache.store",
        "embedcache.container",
        "embedcache.ragged",
        "embedcache.words",
        "embedcache.demo",
    ),
    ("embedcache.samples", "embedcache.provenance", "embedcache.files", "embedcache.errors"),
)
"""Top to bottom: a module imports from its own layer and those below. A new module gets its place here."""

APART = ("embedcache.datasets", "embedcache.backbones", "embedcache.store", "embedcache.demo")
"""These never import each other: only the layer above them brings them together."""

CLOSED_TO_HEADS = (
    "embedcache.backbones",
    "embedcache.engines",
    "embedcache.datasets",
    *(name for name in LAYERS[4] if name != "embedcache.encoding"),  # predict encodes what no cache has seen
)

HEAVY = frozenset({"torch", "torchvision", "timm", "transformers", "sentence_transformers"})
HEAVY_AT_ONCE = ("embedcache.backbones.encoders", "embedcache.engines.local", "heads.folded", "heads.training")
"""The modules that are forward passes or training: they import torch at once, others when they are at it."""


@dataclass(frozen=True)
class Import:
    """One name that a module imports. at_once: when the module is imported, not inside a function or for types only."""

    importer: str
    imported: str
    line: int
    at_once: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def sources() -> dict[str, str]:
    """Source of each of our modules by its dotted name."""
    found = {"cli": ROOT / "cli.py"}
    for package in ("heads", "embedcache"):
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {name: path.read_text(encoding="utf-8") for name, path in sorted(found.items())}


def imports(module: str, source: str, known: frozenset[str], *, package: bool = False) -> Iterator[Import]:
    """What a module imports, wherever in its text. ``from package import module`` means the module."""
    for node, at_once in statements(ast.parse(source).body, at_once=True):
        for name in names(node, module, known, package=package):
            yield Import(module, name, node.lineno, at_once)


def statements(body: list[ast.stmt], *, at_once: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Import statements, and whether each runs when the module is imported."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, at_once
            continue
        later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or is_for_types_only(node)
        for block in ("body", "orelse", "finalbody", "handlers", "cases"):
            inner = getattr(node, block, [])
            yield from statements(inner, at_once=at_once and (not later or block == "orelse"))


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def names(node: ast.Import | ast.ImportFrom, module: str, known: frozenset[str], *, package: bool) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        parents = module.split(".")[: None if package and node.level == 1 else int(package) - node.level]
        base = ".".join([*parents, base]).rstrip(".")
    for alias in node.names:
        submodule = f"{base}.{alias.name}"
        yield submodule if submodule in known else base


SOURCES = sources()
KNOWN = frozenset(SOURCES)
IMPORTS = [
    one
    for name, text in SOURCES.items()
    for one in imports(name, text, KNOWN, package=any(other.startswith(f"{name}.") for other in KNOWN))
]
OWN = [one for one in IMPORTS if one.imported.split(".")[0] in OURS]


def layer(module: str) -> int:
    """The place of a module in LAYERS, 0 at the top; what is named most closely decides."""
    places = {name: place for place, names in enumerate(LAYERS) for name in names}
    fitting = [name for name in places if within(module, name)]
    return places[max(fitting, key=len)]


def shown(bad: list[Import]) -> str:
    return "\n".join(map(str, bad))


def test_every_module_has_a_place_among_the_layers() -> None:
    placed = [name for names in LAYERS for name in names if name != "embedcache"]
    lost = [name for name in KNOWN - {"embedcache"} if not any(within(name, one) for one in placed)]
    assert not lost, f"give these a place in LAYERS: {lost}"
    gone = [name for name in placed if name not in KNOWN]
    assert not gone, f"these are in LAYERS and nowhere else: {gone}"


def test_imports_point_down_only() -> None:
    bad = [one for one in OWN if layer(one.imported) < layer(one.importer)]
    assert not bad, shown(bad)


def test_data_sets_backbones_and_the_store_never_import_each_other() -> None:
    bad = [
        one
        for one in OWN
        for left in APART
        for right in APART
        if left != right and within(one.importer, left) and within(one.imported, right)
    ]
    assert not bad, shown(bad)


def test_heads_know_the_cache_and_not_how_it_came_about() -> None:
    closed = [one for one in OWN if any(within(one.imported, name) for name in CLOSED_TO_HEADS)]
    bad = [one for one in closed if within(one.importer, "heads")]
    assert not bad, shown(bad)


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph: dict[str, set[str]] = {name: set() for name in KNOWN}
    for one in OWN:
        if one.at_once and not within(one.importer, one.imported):
            graph[one.importer].add(one.imported)
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_heavy_libraries_are_imported_where_forward_passes_are_and_nowhere_else() -> None:
    bad = [one for one in IMPORTS if one.at_once and one.imported.split(".")[0] in HEAVY]
    assert not (wrong := [one for one in bad if one.importer not in HEAVY_AT_ONCE]), shown(wrong)
    assert {one.importer for one in bad} == set(HEAVY_AT_ONCE)


def test_the_reader_of_imports_sees_them_wherever_they_are() -> None:
    text = """
import a
from b import c
from b import d
from . import sibling
from .sibling import thing
if TYPE_CHECKING:
    import types_only
else:
    import real
try:
    import tried
except ImportError:
    import fallback
def f():
    import late
    class K:
        import later
class C:
    import in_class
    def g(self):
        with x:
            from b.c import deep
"""
    known = frozenset({"b", "b.c", "pkg.sibling"})
    found = [(one.imported, one.at_once) for one in imports("pkg.mod", text, known)]
    assert found == [
        ("a", True),
        ("b.c", True),
        ("b", True),
        ("pkg.sibling", True),
        ("pkg.sibling", True),
        ("types_only", False),
        ("real", True),
        ("tried", True),
        ("fallback", True),
        ("late", False),
        ("later", False),
        ("in_class", True),
        ("b.c", False),
    ]
    (own,) = imports("pkg", "from . import sibling", known, package=True)
    assert own.imported == "pkg.sibling"


# ------------------------------------------------------------------------------ what a process really imports


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with one small data set of texts."""
    folder = tmp_path_factory.mktemp("layers")
    kinds = ("sparrow", "owl")
    lines = [f"a {size} {kinds[i % 2]} at {i},{kinds[i % 2]}" for i in range(20) for size in ("small", "large")]
    (folder / "birds.csv").write_text("\n".join(["text,label", *lines]), encoding="utf-8")
    ec.extract(
        "table", folder / "birds.csv", backbones=["demo-text"], cache=folder / "cache", text=["text"], label="label"
    )
    return folder / "cache"


def modules_after(code: str, folder: Path) -> set[str]:
    """The top-level modules that a fresh interpreter has after running ``code``."""
    ending = "import sys; print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", f"{code}\n{ending}"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split())


def test_a_cache_is_read_without_heavy_libraries(cache: Path) -> None:
    code = f"""
import embedcache as ec, heads
opened = ec.open({str(cache)!r})
features = opened["birds"].features("demo-text")
assert features.matrix().shape == (40, 128)
assert len(opened["birds"].samples) == 40
"""
    assert not modules_after(code, cache.parent) & HEAVY


@pytest.mark.parametrize(
    "command",
    [
        ["ls"],
        ["ls", "--json"],
        ["info", "birds"],
        ["info", "birds", "--features", "demo-text"],
        ["verify"],
        ["fit-head", "--head", "logistic", "--dry-run"],
    ],
    ids=" ".join,
)
def test_a_command_on_a_cache_imports_no_heavy_libraries(cache: Path, command: list[str]) -> None:
    assert not modules_after(commanded(*command, "--cache", str(cache)), cache.parent) & HEAVY


def test_a_head_is_fitted_without_backbone_libraries(cache: Path) -> None:
    """Importing ``skops.io``, which saves the head, imports all of scikit-learn and with it an installed torch."""
    code = commanded("fit-head", "--head", "logistic", "--cache", str(cache), "--out", "runs")
    assert not modules_after(code, cache.parent) & (HEAVY - {"torch"})


def commanded(*arguments: str) -> str:
    """Code that runs a command."""
    return f"from cli import app\nassert not app({list(arguments)!r}, standalone_mode=False)"
