"""What the bars of a GPU run say of rows."""

from benchmarks.gpu import bars as gpu_bars


def verdicts(rows, numbers=None):
    """Of each bar that was measured: (value, where, verdict)."""
    lines = gpu_bars.judged(rows, numbers or {})
    return {line[0]: tuple(line[3:]) for line in lines if line[-1] != "not measured"}
