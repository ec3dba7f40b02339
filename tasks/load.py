"""How busy the machine is, for MLflow's page of system metrics."""

import time

import psutil
import torch

_INTERVAL = 10.0
"""Seconds between two looks; one takes less than a millisecond."""
_MEGABYTE = 1e6


class Load:
    """Looks at the machine now and then; MLflow's own way asks its server from a thread."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._looked = float("-inf")
        psutil.cpu_percent()  # the first answer covers no time

    def look(self) -> dict[str, float]:
        """Return the figures, under MLflow's names; none if the last look was a moment ago."""
        now = time.monotonic()
        if now - self._looked < _INTERVAL:
            return {}
        self._looked = now
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_percentage": psutil.virtual_memory().percent,
            "process_memory_megabytes": self._process.memory_info().rss / _MEGABYTE,
        }
        used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        for index in range(torch.cuda.device_count() if used else 0):
            free, total = torch.cuda.mem_get_info(index)
            values[f"gpu_{index}_memory_usage_megabytes"] = (total - free) / _MEGABYTE
            values[f"gpu_{index}_memory_usage_percentage"] = 100 * (1 - free / total)
        return {f"system/{key}": value for key, value in values.items()}
