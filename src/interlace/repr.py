"""How a tree of envoys prints: as torch prints its modules, with aliases, shapes, and repeats folded."""

from typing import TYPE_CHECKING, Any

from torch import nn

from interlace.trees import describe

if TYPE_CHECKING:
    from interlace.envoy import Envoy


def show(envoy: "Envoy") -> str:
    """The text of an envoy and all below it."""
    return _text(envoy)


def _text(envoy: "Envoy") -> str:
    module = envoy._module
    lines = [*_children(envoy), *_mounts(envoy)]
    head = type(module).__name__ + "("
    extra = [line for line in module.extra_repr().split("\n") if line]
    notes = _notes(envoy)
    if not lines:
        return head + ", ".join(extra) + ")" + notes
    return head + "\n  " + "\n  ".join([*extra, *lines]) + "\n)" + notes


def _notes(envoy: "Envoy") -> str:
    hidden = getattr(type(envoy), "_hides", ())
    said = [f"  # `{name}` is a submodule: the value is `nns_{name}`" for name in sorted(hidden)]
    scan: Any = envoy._tree.shapes.get(envoy._path)
    if scan is not None:
        said.append(f"  # -> {describe(scan.result)}")
    for name, doc in getattr(type(envoy), "_views", {}).items():
        said.append(f"  # .{name}: {doc}")
    return "".join(said)


def _children(envoy: "Envoy") -> list[str]:
    aliases: dict[str, list[str]] = {}
    for alias, target in envoy._tree.names.aliases.get(envoy._path, {}).items():
        aliases.setdefault(target, []).append(alias)
    texts = []
    for name, child in envoy._module._modules.items():
        label = "/".join([*aliases.get(name, []), name])
        texts.append((label, "None" if child is None else _text(envoy._child(name))))
    return _fold(texts) if isinstance(envoy._module, (nn.ModuleList, nn.Sequential)) else _plain(texts)


def _mounts(envoy: "Envoy") -> list[str]:
    mounts = envoy._tree.names.aliases.get(envoy._path, {})
    return _plain(
        [
            (f"{alias}/{target}", _text(envoy._below(target)))
            for alias, target in mounts.items()
            if "." in target
        ]
    )


def _plain(texts: list[tuple[str, str]]) -> list[str]:
    return [_indent(f"({label}): {text}") for label, text in texts]


def _fold(texts: list[tuple[str, str]]) -> list[str]:
    """Identical neighbors on one line: `(0-11): 12 x Block(...)`."""
    lines, at = [], 0
    while at < len(texts):
        label, text = texts[at]
        end = at
        while end + 1 < len(texts) and texts[end + 1][1] == text:
            end += 1
        if end > at:
            lines.append(_indent(f"({label}-{texts[end][0]}): {end - at + 1} x {text}"))
        else:
            lines.append(_indent(f"({label}): {text}"))
        at = end + 1
    return lines


def _indent(text: str) -> str:
    return text.replace("\n", "\n  ")
