"""Why the calls of a module cannot be seen, where that can be told from the model.

A trace that ends without the visit that was asked for says so; this says what in the model may be the cause.
"""

from torch import nn

from interlace.site import Site, spell


def why(root: nn.Module, top: str, site: Site) -> str | None:
    """The reason in words, or None.

    Args:
        root: The module at the root.
        top: Its name in paths.
        site: What was asked for.
    """
    here, path = root, top
    for part in site.path.partition(".source.")[0].split(".")[1:]:
        if type(here).__module__.startswith("torch._dynamo"):
            return (
                f"`{spell(path)}` is compiled by torch.compile, so the modules inside are not called. Ask for its "
                f"own output,\nor trace the module that it was made of: `{spell(path)}.{part}.trace(...)`."
            )
        if type(here).__module__.startswith("torch.jit"):
            return (
                f"`{spell(path)}` is scripted or traced by torch.jit: what is inside runs in C++. "
                "Ask for its own output."
            )
        if here.__dict__.get("_compiled_call_impl") is not None and _is_compiled(here):
            return (
                f"`{spell(path)}.compile()` has been called, so the modules inside are not called. "
                "Ask for its own output."
            )
        children = here._modules
        found = children[part] if part in children else None  # noqa: SIM401  (scripted modules have no `get`)
        if found is None:
            return None
        here, path = found, f"{path}.{part}"
    if id(here) != site.key and ".source." not in site.path:
        return (
            f"The model has put another module at `{spell(path)}` since this trace was opened. "
            "The next trace sees the new one."
        )
    return None


def _is_compiled(module: nn.Module) -> bool:
    """Whether `module.compile()` stands in the slot, below a tap or alone."""
    held = module.__dict__["_compiled_call_impl"]
    tap = getattr(held, "tap", None)
    return tap is None or tap.held is not None
