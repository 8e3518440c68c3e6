"""Resolves hook names, as users write them, to modules of the model or their inputs."""

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
"""Short name of a part of a layer -> its names in model families; the first that exists is used.

`output.dense` is BERT's: the last linear map of its feed-forward half, before the residual.
"""

INPUT = ".in"
"""The suffix that stands for a module's input."""

INPUT_ALIASES = {**ALIASES, "mlp": ("mlp", "feed_forward", "ffn", "intermediate.dense")}
"""The same for inputs: BERT's feed-forward half has no module that is called with its input."""


def resolve(model: nn.Module, hook: str) -> str:
    """Return the full dotted name of the module that `hook` names.

    The result ends with `.in` if `hook` does; it then names the module's input, not its output.

    These are tried in order: the full name; the end of exactly one full name (`h.3` in GPT-2); the
    form that fits all model families, `layers.N` or `layers.N.part`. N counts in the model's only
    stack of layers, and `part` is a name inside the layer, where `attention` and `mlp` also fit all
    families.

    Raises:
        UserError: No module or several modules match; the message lists similar names.
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
            f"hooks={hook!r} matches {len(ends)} modules: {', '.join(ends[:8])}; give a full name"
        )
    raise UserError(f"hooks={hook!r} matches no module; {_nearest(model, hook, names)}")


def attach(model: nn.Module, name: str, function: Callable[[Any], Any]) -> RemovableHandle:
    """Call `function` with a module's output, or with its input for `<module>.in`, at every run.

    The value that `function` returns replaces the output or input, unless it is None. A module's
    input is its first positional argument, or else its first keyword argument that is a tensor.
    """
    if name in dict(model.named_modules()):
        module = model.get_submodule(name)
        return module.register_forward_hook(lambda _module, _args, output: function(output))

    def before(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        key = next((k for k, v in kwargs.items() if isinstance(v, Tensor)), None)
        new = function(args[0] if args else kwargs.get(key or ""))
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, key: new})

    module = model.get_submodule(name.removesuffix(INPUT))
    return module.register_forward_pre_hook(before, with_kwargs=True)


def stacks(model: nn.Module) -> list[str]:
    """Return the names of the stacks of layers: the longest module lists outside other lists."""
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    outer = {n: m for n, m in lists.items() if not any(n.startswith(o + ".") for o in lists)}
    depth = max(map(len, outer.values()), default=0)
    return [name for name, layers in outer.items() if len(layers) == depth]


def _in_stack(model: nn.Module, hook: str, aliases: Mapping[str, tuple[str, ...]]) -> str | None:
    head, _, rest = hook.partition(".")
    number, _, part = rest.partition(".")
    names = stacks(model)
    if head != "layers" or not number.isdecimal() or len(names) != 1:
        return None
    layer = f"{names[0]}.{int(number)}"
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
        f"layers.0 to layers.{len(list(model.get_submodule(name).children())) - 1} ({name}.N)"
        for name in stacks(model)
    ]
    listed = ", ".join([*layers, *dict.fromkeys(near)])
    return f"it has {listed}" if listed else f"it has {', '.join(names[:8])}"
