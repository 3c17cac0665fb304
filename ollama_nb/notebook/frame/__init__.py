"""``df.ollama`` and ``series.ollama``: run models over the rows of pandas objects.

Importing this package registers nothing and loads nothing: :func:`watch` waits for pandas to be imported, and the
accessor's module is loaded when ``.ollama`` is first used.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    Factory = Callable[[Any], Any]

NAME = "ollama"


def watch(factory: Factory) -> None:
    """Register ``factory`` (a pandas object → its accessor) now if pandas is loaded, otherwise when it is imported."""
    if hasattr(sys.modules.get("pandas"), "DataFrame"):
        register(factory)
    else:
        sys.meta_path.insert(0, _PandasFinder(factory))


def register(factory: Factory) -> None:
    """Register ``factory`` with pandas, unless an accessor of this name is registered."""
    pandas = sys.modules["pandas"]
    if not hasattr(pandas.DataFrame, NAME):
        pandas.api.extensions.register_dataframe_accessor(NAME)(factory)
        pandas.api.extensions.register_series_accessor(NAME)(factory)


class _PandasFinder:
    """An import hook that wraps the loader of pandas and then removes itself."""

    def __init__(self, factory: Factory) -> None:
        self._factory = factory

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "pandas":
            return None
        sys.meta_path.remove(self)
        found = (finder.find_spec(fullname, path, target) for finder in sys.meta_path)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader, self._factory)  # type: ignore[assignment]
        return spec


class _RegisteringLoader:
    """Loads pandas with its own loader, then registers the accessor."""

    def __init__(self, loader: Loader, factory: Factory) -> None:
        self._loader, self._factory = loader, factory

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader  # the wrapper leaves no trace
        self._loader.exec_module(module)
        register(self._factory)
