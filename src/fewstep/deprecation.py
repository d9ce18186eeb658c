"""Names of version 0.1 that work until 0.3; each use warns and says the new name."""

import functools
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def warn(old: str, new: str, stacklevel: int = 3) -> None:
    """Warn that ``old`` is called ``new``; ``stacklevel`` 3 blames the caller's caller."""
    warnings.warn(
        f"{old} is called {new} since fewstep 0.2; the old name will be removed in 0.3",
        DeprecationWarning,
        stacklevel,
    )


def renamed(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A ``__getattr__`` for ``module`` that gives the new object for each old name in ``names``.

    A new name that is now in another module is written ``"package.module:name"``.
    """

    def __getattr__(name: str) -> Any:  # noqa: N807
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        home, _, attribute = names[name].rpartition(":")
        warn(f"{module}.{name}", f"{home or module}.{attribute}")
        return getattr(import_module(home or module), attribute)

    return __getattr__


class OldName:
    """A member under its name of version 0.1: the one that is called ``new`` now."""

    def __init__(self, new: str) -> None:
        self.new = new

    def __set_name__(self, owner: type, name: str) -> None:
        self.old = f"{owner.__name__}.{name}"

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:  # of the class: help() looks
            return self
        warn(self.old, f"{self.old.partition('.')[0]}.{self.new.lstrip('_')}")
        return getattr(instance, self.new)


class OldMember:
    """A member of a class under its ``old`` name, as ``value``: on instances, classes, super()."""

    def __init__(self, old: str, new: str, value: Any) -> None:
        self.old, self.new, self.value = old, new, value

    def __get__(self, instance: Any, owner: type) -> Any:
        warn(f"{owner.__name__}.{self.old}", self.new)
        return self.value.__get__(instance, owner) if hasattr(self.value, "__get__") else self.value


def is_own(cls: type, old: str) -> bool:
    """Whether the class itself has a member of that ``old`` name, written by its author."""
    return old in vars(cls) and not isinstance(vars(cls)[old], OldMember)


def renamed_arguments(**names: str) -> Callable[[F], F]:
    """A decorator: a keyword argument under its old name is passed on under its new one."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for old in names.keys() & kwargs.keys():
                if names[old] in kwargs:
                    raise TypeError(f"{function.__qualname__} got {old!r} and {names[old]!r}")
                warn(f"argument {old!r} of {function.__qualname__}", repr(names[old]))
                kwargs[names[old]] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call  # type: ignore[return-value]

    return decorate
