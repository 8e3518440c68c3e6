"""From the name of a hook, as a user writes it, to one module of the model, or its input."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sae.errors import UserError

ALIASES = {
    "attention": ("attention", "attn", "self_attn", "self_attention"),
    "mlp": ("mlp", "feed_forward", "ffn", "output.dense"),
}
"""Short name of a part of a layer -> what families call it, the first that exists counts.

`output.dense` is BERT's: the last linear map of its feed-forward half, before the residual.
"""

INPUT = ".in"
"""What the name of a module's input ends with."""

INPUT_ALIASES = {**ALIASES, "mlp": ("mlp", "feed_forward", "ffn", "intermediate.dense")}
"""The same where inputs are meant: BERT's feed-forward half has no module of its own."""


def resolve(model: nn.Module, hook: str) -> str:
    """The full dotted name of the module that `hook` means, with `.in` behind it where `hook` has
    that: then its input is meant, not its output.

    Tried in order: the full name; the end of exactly one full name (`h.3` in GPT-2); the form that
    fits all families, `layers.N` or `layers.N.part`, with N counted in the model's one stack of
    layers and `part` a name inside the layer, where `attention` and `mlp` fit all families too.

    Raises:
        UserError: nothing or several modules match; names what exists near it.
    """
    names = [name for name, _ in model.named_modules() if name]
    if hook not in names and hook.endswith(INPUT):
        return _resolve(model, hook.removesuffix(INPUT), names, INPUT_ALIASES) + INPUT
    return _resolve(model, hook, names, ALIASES)


def _resolve(
    model: nn.Module, hook: str, names: list[str], aliases: Mapping[str, tuple[str, ...]]
) -> str:
    if hook in names:
        return hook
    ends = [name for name in names if name.endswith("." + hook)]
    if len(ends) == 1:
        return ends[0]
    if not ends and (name := _in_stack(model, hook, aliases)):
        return name
    if ends:
        raise UserError(
            f"hooks={hook!r} matches {len(ends)} modules: {', '.join(ends[:8])}; give one in full"
        )
    raise UserError(f"hooks={hook!r} matches no module; {_nearest(model, hook, names)}")


def attach(model: nn.Module, name: str, function: Callable[[Any], Any]) -> RemovableHandle:
    """Call `function` with what the module `name` gives, or, of `<module>.in`, is given, whenever
    it runs. What it returns takes the place of that, unless it is None.

    A module's input is the first that it is given by position, or else its first tensor by name.
    """
    if name in dict(model.named_modules()):
        module = model.get_submodule(name)
        return module.register_forward_hook(lambda _module, _args, output: function(output))

    def before(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        key = next((k for k, v in kwargs.items() if isinstance(v, Tensor)), None)
        new = function(args[0] if args else kwargs.get(key))
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, key: new})

    module = model.get_submodule(name.removesuffix(INPUT))
    return module.register_forward_pre_hook(before, with_kwargs=True)


def stacks(model: nn.Module) -> list[str]:
    """Names of the lists of layers: the longest module lists that lie in no other list."""
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    outer = {n: m for n, m in lists.items() if not any(n.startswith(o + ".") for o in lists)}
    depth = max(map(len, outer.values()), default=0)
    return [name for name, layers in outer.items() if len(layers) == depth]


def _in_stack(model: nn.Module, hook: str, aliases: Mapping[str, tuple[str, ...]]) -> str | None:
    head, _, rest = hook.partition(".")
    number, _, part = rest.partition(".")
    found = stacks(model)
    if head != "layers" or not number.isdecimal() or len(found) != 1:
        return None
    layer = f"{found[0]}.{int(number)}"
    inside = dict(model.named_modules())
    if layer not in inside:
        return None
    if not part:
        return layer
    first, dot, further = part.partition(".")
    for name in (first, *aliases.get(first, ())):
        if (full := f"{layer}.{name}{dot}{further}") in inside:
            return full
    return None


def _nearest(model: nn.Module, hook: str, names: list[str]) -> str:
    near = difflib.get_close_matches(hook, names, n=4, cutoff=0.4)
    tails = {".".join(name.split(".")[-depth:]): name for name in names for depth in (2, 3)}
    near += [tails[t] for t in difflib.get_close_matches(hook, tails, n=4, cutoff=0.6)]
    layers = [
        f"layers.0 to layers.{len(model.get_submodule(name)) - 1} ({name}.N)"
        for name in stacks(model)
    ]
    listed = ", ".join([*layers, *dict.fromkeys(near)])
    return f"it has {listed}" if listed else f"it has {', '.join(names[:8])}"
