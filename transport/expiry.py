"""The figure that tells how long keys still count, for every service: computed when it is asked for."""

from collections.abc import Callable, Iterable

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

Left = tuple[str, str, float]
"""A registry entry, the id of its key, and for how many seconds of block time it counts yet."""


class KeyExpiry(Collector):
    """`PREFIX_key_expires_seconds{holder, key}`: negative for a key that has expired; absent where it never does."""

    def __init__(self, prefix: str, read: Callable[[], Iterable[Left]]) -> None:
        self._name = f"{prefix}_key_expires_seconds"
        self._read = read

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """The samples of this moment."""
        family = GaugeMetricFamily(
            self._name, "Seconds of block time until a key expires (alarm when there are few)", labels=["holder", "key"]
        )
        for holder, key, seconds in self._read():
            family.add_metric([holder, key], seconds)
        return [family]

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """The name alone: nothing is read while the registry of figures is made."""
        return [GaugeMetricFamily(self._name, "", labels=["holder", "key"])]
