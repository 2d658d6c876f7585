"""Features that remember by which temperature fairseq divided them, in place of being divided."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor


class Undivided(Tensor):
    """A decoder's output while decoding, (B, T, d).

    fairseq divides what a decoder gives by the temperature, in place, before it asks for probabilities. Of
    logits that makes a temperature, of features it does not; so these are left as they are, and
    ``temperature`` tells the host, without asking the device, by what they were to be divided.
    """

    temperature: float = 1.0

    @classmethod
    def of(cls, features: Tensor) -> Undivided | HeldUndivided:
        """The same memory. A tensor of another kind cannot be of this one as well: it is held."""
        return features.as_subclass(cls) if type(features) is Tensor else HeldUndivided(features)

    def plain(self) -> Tensor:
        """The same memory, a plain tensor."""
        return self.as_subclass(Tensor)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        source = args[0] if args and isinstance(args[0], cls) else None
        if func is Tensor.div_ and source is not None and isinstance(args[1], (int, float)) and not kwargs:
            source.temperature *= args[1]
            return source
        result = super().__torch_function__(func, types, args, kwargs)
        if func is Tensor.__getitem__ and source is not None and isinstance(result, cls):
            result.temperature = source.temperature
            return result
        # What is computed of features is no decoder's output any more.
        return result.as_subclass(Tensor) if isinstance(result, cls) and result is not source else result


class HeldUndivided:
    """As ``Undivided``, around features of a subclass of tensors; no tensor itself.

    Args:
        features: (B, T, d).
        temperature: by which they were to be divided.
    """

    def __init__(self, features: Tensor, temperature: float = 1.0) -> None:
        self._features = features
        self.temperature = temperature

    def plain(self) -> Tensor:
        """The features."""
        return self._features

    def div_(self, by: float) -> HeldUndivided:
        self.temperature *= by
        return self

    def __getitem__(self, index: Any) -> HeldUndivided:
        return HeldUndivided(self._features[index], self.temperature)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._features, name)
