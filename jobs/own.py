"""Functions and classes of the user's own, named `package.module:name`, on their way to workers.

The driver finds the file and reads it, and imports nothing. What is not installed travels as its
source, with the modules beside it that it imports: a worker of whichever engine and machine imports
it from there, under its own name. What is installed is imported as every package is.
"""

from __future__ import annotations

import ast
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import decode_source, find_spec, resolve_name, spec_from_loader
from pathlib import Path
from types import CodeType
from typing import Any

from layerrank.jobs.config.blocks import ConfigError
from layerrank.storage.manifest import digest_of

_OURS = "layerrank"  # which every worker has
_INSTALLED = ("site-packages", "dist-packages")  # folders of what is, wherever they lie


@dataclass(frozen=True)
class Module:
    """A module as it travels; a folder of modules without `__init__.py` has no source."""

    name: str
    file: str
    source: str
    is_package: bool


@dataclass(frozen=True)
class Own:
    """A function or a class by its name, with what it is made of and the digest of that.

    Of an installed one the digest is of its module alone, and no module travels.
    """

    name: str
    digest: str
    modules: tuple[Module, ...] = ()

    def load(self) -> Any:  # noqa: ANN401  (the user's)
        """Import and return it; ConfigError if there is no such thing."""
        module, _, name = self.name.partition(":")
        _CARRIED.take(self)
        try:
            found = import_module(module)
        except Exception as error:
            raise ConfigError(
                f"{self.name}: its module cannot be imported: {type(error).__name__}: {error}"
            ) from error
        if not callable(each := getattr(found, name, None)):
            what = (
                "no function or class" if each is None else f"a {type(each).__name__}, no function,"
            )
            raise ConfigError(f"{self.name}: its module ({found.__file__}) has {what} {name}")
        return each


def find(name: str, folder: str) -> Own:
    """Return a function or a class by its name, whose module lies in a folder or is installed.

    The folder is that of the config; then comes the one that the command was started in.
    """
    module = name.partition(":")[0]
    here = [*dict.fromkeys((Path(folder).resolve(), Path.cwd()))]
    above = next((each for each in [*here, *_elsewhere(module)] if _file(each, module)), None)
    if above is None:
        looked = " or ".join(map(str, here))
        raise ConfigError(
            f"{name}: there is no module {module} in {looked}, and none is installed: put "
            f"{module.replace('.', '/')}.py beside the config, or install its package"
        )
    if _is_installed(above):
        file = _file(above, module)
        assert file is not None
        return Own(name, digest_of({module: _read(module, file)}))
    modules = _needed(above, module)
    return Own(name, digest_of({each.name: each.source for each in modules}), modules)


def require_no_modules(kept: object, run: str) -> None:
    """ConfigError if what an output keeps of a run names modules: looking at it imports none.

    To read such a config is to import them, as tasks of mteb are known by their classes.
    """
    if modules := ", ".join(dict.fromkeys(_named_modules(kept))):
        raise ConfigError(
            f"run {run} has tasks of mteb from modules of its own ({modules}), which are not "
            "imported because an output names them: run `layerrank report` with its config"
        )


def _named_modules(kept: object) -> Iterator[str]:
    if isinstance(kept, Mapping):
        if "mteb" in kept and (modules := kept.get("modules")):
            yield from [modules] if isinstance(modules, str) else map(str, modules)
        for each in kept.values():
            yield from _named_modules(each)
    elif isinstance(kept, Sequence) and not isinstance(kept, str):
        for each in kept:
            yield from _named_modules(each)


def _elsewhere(module: str) -> Iterator[Path]:
    """Yield the folders that Python would import the package of a module from."""
    top = module.partition(".")[0]
    try:
        spec = None if top == "__main__" else find_spec(top)
    except ValueError:  # of a module that somebody made by hand
        spec = None
    if spec:
        yield from (Path(each).parent for each in spec.submodule_search_locations or ())
        if spec.origin:
            yield Path(spec.origin).parent


def _is_installed(folder: Path) -> bool:
    library = Path(sysconfig.get_path("stdlib"))
    return folder.is_relative_to(library) or not {*folder.parts}.isdisjoint(_INSTALLED)


def _file(folder: Path, module: str) -> Path | None:
    """Return the file of a module below a folder."""
    path = folder.joinpath(*module.split("."))
    files = (path / "__init__.py", path.with_suffix(".py"))
    return next((each for each in files if each.is_file()), None)


def _needed(folder: Path, module: str) -> tuple[Module, ...]:
    """Return a module and those below the folder that it imports, and these import, by name."""
    found: dict[str, Module] = {}
    names = [module]
    while names:
        name = names.pop()
        if name in found or name.partition(".")[0] == _OURS:
            continue
        file, path = _file(folder, name), folder.joinpath(*name.split("."))
        if file is None and not (
            path.is_dir() and any(each.startswith(f"{name}.") for each in found)
        ):
            continue  # installed, or a name in a module
        is_package = file is None or file.stem == "__init__"
        source = _read(name, file) if file else ""
        found[name] = Module(name, str(file or path), source, is_package)
        names += _imports(found[name])
        if above := name.rpartition(".")[0]:
            names.append(above)
    return tuple(found[name] for name in sorted(found))


def _read(name: str, file: Path) -> str:
    try:
        source = decode_source(file.read_bytes())
        ast.parse(source)
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ConfigError(f"module {name}: {file} is no Python: {error}") from error
    return source


def _imports(module: Module) -> Iterator[str]:
    """Yield what a module imports, with what may be a module in that."""
    package = module.name if module.is_package else module.name.rpartition(".")[0]
    for node in ast.walk(ast.parse(module.source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            with suppress(ImportError):  # from above the package, which Python refuses too
                whole = resolve_name("." * node.level + (node.module or ""), package)
                yield whole
                yield from (f"{whole}.{alias.name}" for alias in node.names)


class _Carried(MetaPathFinder, InspectLoader):
    """Imports the modules that came to this process with what it works on."""

    def __init__(self) -> None:
        self._modules: dict[str, Module] = {}

    def take(self, own: Own) -> None:
        """Have the modules of a function or class imported from what came with it from now on.

        Those of an earlier version are forgotten. ConfigError if a module of that name was imported
        from elsewhere: this process needs it.
        """
        new = {each.name: each for each in own.modules if self._modules.get(each.name) != each}
        if not new:
            return
        sys.meta_path[:] = [self, *(each for each in sys.meta_path if each is not self)]
        for name, each in new.items():
            there = sys.modules.get(name)
            file = getattr(there, "__file__", None) or each.file
            if there and name not in self._modules and Path(file).resolve() != Path(each.file):
                raise ConfigError(
                    f"{own.name}: its module {name} ({each.file}) has the name of one that is "
                    f"needed here ({file}); give it another name"
                )
        for name in {*self._modules, *new}:
            sys.modules.pop(name, None)
        self._modules |= new

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: object = None
    ) -> ModuleSpec | None:
        """Return where a module is imported from; None if it did not come here."""
        del path, target
        found = self._modules.get(fullname)
        if found is None:
            return None
        spec = spec_from_loader(fullname, self, origin=found.file, is_package=found.is_package)
        assert spec is not None
        spec.has_location = True  # for `__file__`, and the lines of a traceback
        return spec

    def get_source(self, fullname: str) -> str:
        """Return the source of a module."""
        return self._modules[fullname].source

    def is_package(self, fullname: str) -> bool:
        """Whether a module is a package."""
        return self._modules[fullname].is_package

    def get_code(self, fullname: str) -> CodeType:
        """Return the code of a module."""
        found = self._modules[fullname]
        code: CodeType = compile(found.source, found.file, "exec", dont_inherit=True)
        return code


_CARRIED = _Carried()
