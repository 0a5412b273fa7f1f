"""What Prometheus would read at the port of the local Ray that the tests share."""

import time
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

_LABELS = ("status", "stage", "statistic")


def scrape(run=None):
    """crackvae's values by name and label, of one run or of what has none."""
    import ray

    (node,) = ray.nodes()
    text = urlopen(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=10).read().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {
        (sample.name, next((sample.labels[label] for label in _LABELS if label in sample.labels), None)): sample.value
        for sample in samples
        if sample.name.startswith("ray_crackvae_") and sample.labels.get("run") == run
    }


def until(holds, seconds=30):
    """Waits for something to hold: Ray hands values on every second in tests."""
    end = time.monotonic() + seconds
    while not (found := holds()) and time.monotonic() < end:
        time.sleep(0.3)
    return found
