"""What the numbers of a configuration may not fall below."""

from typing import Any


def at_least(config: Any, group: str, **bounds: float) -> None:
    """Holds fields of a configuration to their least values; NaN is below any.

    Args:
      config: a dataclass of settings.
      group: what its keys begin with, as "sleep." or "".
      bounds: the least value of each field.

    Raises:
      ValueError: a field is below; the message names its dotted key.
    """
    for key, least in bounds.items():
        if not getattr(config, key) >= least:
            raise ValueError(f"{group}{key}={getattr(config, key)} must be at least {least}")


def above_zero(config: Any, group: str, *keys: str) -> None:
    """Holds fields of a configuration above 0; NaN is not.

    Args, Raises: as `at_least`.
    """
    for key in keys:
        if not getattr(config, key) > 0:
            raise ValueError(f"{group}{key}={getattr(config, key)} must be above 0")
