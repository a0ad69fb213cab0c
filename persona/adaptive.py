"""Adaptive layers: named linear layers of any torch module, run with or without an edit.

An adaptive layer is an ordinary ``nn.Linear`` that was swapped for an ``AdaptiveLinear`` holding the very same parameters
under the same names, so state dicts, optimisers and exports do not notice. Inside ``with layers.applied(edit):`` its forward
adds the edit; outside it is the plain linear layer, bit for bit.

Shapes: B devices, in/out features of a layer, ``...`` any dimensions between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from fnmatch import fnmatchcase
from types import MappingProxyType

import torch
from torch import Tensor, nn

from persona.edits import Edit, LayerEdit, LayerSpec
from persona.errors import ConfigError, MismatchError, nearest

AUTO = "auto"
# torch may compute these from the weights of their linear layers, without calling the layers.
_FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer)

# One variable for all layers: edits are per thread and task, and modules stay free of state that cannot be copied.
_ACTIVE: ContextVar[Mapping[int, LayerEdit]] = ContextVar("active_edits", default=MappingProxyType({}))


class AdaptiveLinear(nn.Linear):
    """A linear layer that adds the active edit: y = x (W + dW)^T + b + db, one edit per device."""

    def __init__(self, linear: nn.Linear) -> None:
        # The parameters are those of ``linear``, so nothing is allocated here.
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..., in) -> (B, ..., out). An edit of batch 1 is shared by all rows."""
        edit = _ACTIVE.get().get(id(self))
        if edit is None:
            return nn.functional.linear(x, self.weight, self.bias)
        return edit.linear(x, self.weight, self.bias)


class AdaptiveLayers:
    """The adaptive layers of ``module``, found by their names and made editable in place.

    Args:
        module: any module that holds the named linear layers.
        names: dotted names as in ``module.named_modules()``, in the order in which they are applied.

    Raises:
        ConfigError: a name is missing, is given twice, or is not a linear layer.

    Example::

        layers = AdaptiveLayers(model, ["classifier.0", "classifier.3"])
        with layers.applied(edit):
            y = model(x)
    """

    def __init__(self, module: nn.Module, names: Iterable[str]) -> None:
        self.layers: dict[str, AdaptiveLinear] = {}
        linear = {name for name, child in module.named_modules() if isinstance(child, nn.Linear)}
        for name in names:
            if name not in linear:
                raise ConfigError(f"{type(module).__name__} has no linear layer {name!r}: {nearest(name, linear)}")
            if name in self.layers:
                raise ConfigError(f"adaptive layer {name!r} is given twice")
            self.layers[name] = _swap(module, name)

    @property
    def specs(self) -> tuple[LayerSpec, ...]:
        """Names and shapes, in the order of application."""
        return tuple(
            LayerSpec(name, layer.out_features, layer.in_features, layer.bias is not None)
            for name, layer in self.layers.items()
        )

    def weight_scales(self) -> Tensor:
        """(L,) root mean square of every layer's own weight: the unit of the bounds tau."""
        return torch.stack([layer.weight.detach().square().mean().sqrt() for layer in self.layers.values()])

    def parameters(self) -> list[nn.Parameter]:
        """Weights and biases of the adaptive layers."""
        return [p for layer in self.layers.values() for p in layer.parameters()]

    @torch.no_grad()
    def add(self, edit: Edit) -> None:
        """Add an edit of batch 1 to the layers' own parameters, for good.

        Raises:
            MismatchError: the edit's layers are not these layers, or it is of several devices.
        """
        self._check(edit)
        if len(edit) != 1:
            raise MismatchError(f"layers can take in the edit of one device, but this one is of {len(edit)}")
        for name, layer in self.layers.items():
            change = edit.layers[name].dense()
            layer.weight.add_(change.weight[0].T)
            if change.bias is not None:
                layer.bias.add_(change.bias[0])

    @contextmanager
    def applied(self, edit: Edit | None) -> Iterator[None]:
        """Run the module under ``edit`` inside the block (per thread and task); ``None`` means the plain module.

        Raises:
            MismatchError: the edit's layers are not these layers.
        """
        if edit is None:
            yield
            return
        self._check(edit)
        active = dict(_ACTIVE.get()) | {id(layer): edit.layers[name] for name, layer in self.layers.items()}
        token = _ACTIVE.set(active)
        try:
            yield
        finally:
            _ACTIVE.reset(token)

    def _check(self, edit: Edit) -> None:
        if edit.specs != self.specs:
            raise MismatchError(
                f"this edit is for the layers {_describe(edit.specs)}, but the host's adaptive layers are "
                f"{_describe(self.specs)}: use an edit made for this host"
            )


def linear_layers(module: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Names of the linear layers of ``module`` that can be edited and that a pattern means, in the module's order.

    Args:
        module: any module.
        patterns: as those of file names (``body.*``), or ``auto`` alone: the last two.

    Raises:
        ConfigError: a pattern means no such layer.
    """
    fused = {id(child) for m in module.modules() if isinstance(m, _FUSED) for child in m.modules()}
    linear = {name: m for name, m in module.named_modules() if name and type(m) in (nn.Linear, AdaptiveLinear)}
    known = [name for name, layer in linear.items() if id(layer) not in fused]
    if list(patterns) == [AUTO] and known:
        return known[-2:]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            why = " (torch runs those of its attention and encoder blocks without calling them)" if fused else ""
            raise ConfigError(
                f"{type(module).__name__} has no linear layer {pattern!r} that can be edited{why}: {nearest(pattern, known)}"
            )
    return [name for name in known if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _swap(module: nn.Module, name: str) -> AdaptiveLinear:
    parent_name, _, child_name = name.rpartition(".")
    parent = module.get_submodule(parent_name)
    child = getattr(parent, child_name)
    if not isinstance(child, AdaptiveLinear):
        child = AdaptiveLinear(child)
        setattr(parent, child_name, child)
    return child


def _describe(specs: Iterable[LayerSpec]) -> str:
    return ", ".join(f"{s.name} ({s.out_features}x{s.in_features})" for s in specs)
