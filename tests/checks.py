"""What checks the package's types in tests: shapes by jaxtyping where an annotation has any, else types by beartype.

jaxtyping binds the arguments of every call anew and decorates the functions inside functions at every call: a seventh
of the suite's time.
"""

import dataclasses
import inspect
import typing

import beartype
import jaxtyping

# A whole number is a fine float, as everywhere in Python; a wrong type is a TypeError, as Python's own are.
_check_types = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True, violation_type=TypeError))
_check_shapes = jaxtyping.jaxtyped(typechecker=_check_types)


def _has_shape(annotation) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    return any(_has_shape(part) for part in typing.get_args(annotation))


def checked(thing):
    """The function, or the dataclass with its `__init__`, with what checks its annotations."""
    if inspect.isclass(thing):
        if dataclasses.is_dataclass(thing) and "__init__" in vars(thing):
            thing.__init__ = _check_shapes(thing.__init__)  # beartype alone lets pass what a dataclass generates
        return thing
    if not thing.__annotations__:
        return thing
    try:
        annotations = inspect.get_annotations(thing, eval_str=True)
    except NameError:  # a name that the module makes later
        return _check_shapes(thing)
    return (_check_shapes if any(map(_has_shape, annotations.values())) else _check_types)(thing)


def install(names: list[str]) -> None:
    """Modules of these names and below are checked once they are imported: jaxtyping's hook, with `checked`."""
    jaxtyping.jaxtyped = lambda typechecker: checked  # the name that the hook writes before functions and classes
    jaxtyping.install_import_hook(names, None)
