"""The programs of `balora.sandbox.programs` as one text for an interpreter without packages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files

_PACKAGE = "balora.sandbox.programs"
_MODULES = ("plain", "start", "child", "judge")

# the names of modules are looked up whole, so that none of the packages above them is needed
_BEGIN = """\
import json, sys, types
sys.path = [folder for folder in sys.path if folder]
given = json.loads(sys.argv.pop(1))
package = types.ModuleType({package!r})
sys.modules[{package!r}] = package
for name, source in {sources!r}.items():
    module = types.ModuleType({package!r} + "." + name)
    sys.modules[module.__name__] = module
    setattr(package, name, module)
    exec(compile(source, module.__name__, "exec"), module.__dict__)
package.start.limit_and_report(given["uid"], given["rlimits"])
getattr(package, given["role"]).main(*given["descriptors"])
"""


@cache
def script() -> str:
    """Return the text, which reads what to do from its first argument: see `order`."""
    folder = files(_PACKAGE)
    sources = {name: (folder / f"{name}.py").read_text(encoding="utf-8") for name in _MODULES}
    return _BEGIN.format(package=_PACKAGE, sources=sources)


def order(
    role: str, descriptors: Sequence[int], rlimits: Mapping[str, tuple[int, int]], uid: int | None
) -> str:
    """Return the argument of `script`.

    Args:
        role: ``child``, the program's process, or ``judge``, that of the tests.
        descriptors: Two pipes, for requests and for replies.
        rlimits: Soft and hard limits, by name.
        uid: The user to become, where that is possible.
    """
    return json.dumps(
        {
            "role": role,
            "descriptors": list(descriptors),
            "rlimits": dict(rlimits),
            "uid": uid,
        }
    )
