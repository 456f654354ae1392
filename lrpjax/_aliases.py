"""Modules under more than one name: what users import stays, wherever the package keeps the code."""

import importlib
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def install(places: Mapping[str, str]) -> None:
    """Makes `import name` give the very module object of its place, and import that place no sooner than then.

    Args:
        places: {name: the module that it stands for}.
    """
    # Last, so that only names that nobody else knows are looked up here: no other import gets slower.
    sys.meta_path.append(_Finder(places))


class _Finder(MetaPathFinder):
    def __init__(self, places: Mapping[str, str]):
        self.places = places

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        place = self.places.get(fullname)
        return None if place is None else ModuleSpec(fullname, _Loader(place))


class _Loader(Loader):
    def __init__(self, place: str):
        self.place = place

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self.place)
        self.own: Any = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # It has run already. The import system has given it the other name's spec, which it must not keep.
        module.__spec__ = self.own
