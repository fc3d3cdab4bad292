"""The figures of the stage ``speed`` as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

DECODE = "decode, "


def write_plots(report: dict[str, Any], out: Path) -> list[Path]:
    """Draw what was measured; nothing where matplotlib does not import."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    entries = {entry["name"]: entry["figures"] for entry in report["stages"].get("speed", [])}
    drawn = []
    if rates := _decode_rates(entries):
        drawn.append(_draw_decode(rates, out / "decode.png"))
    kernels = {
        name.removeprefix("kernel: "): figures["of copy"] for name, figures in entries.items() if "of copy" in figures
    }
    if kernels:
        drawn.append(_draw_shares(kernels, out / "kernels.png"))
    return drawn


def _decode_rates(entries: dict[str, dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Tokens per second by candidate and batch."""
    rates: dict[str, dict[int, float]] = {}
    for name, figures in entries.items():
        if not name.startswith(DECODE):
            continue
        batch = int(name.rpartition(" ")[2])
        for figure, value in figures.items():
            if figure.endswith(", tokens/s"):
                rates.setdefault(figure.removesuffix(", tokens/s"), {})[batch] = value
    return rates


def _axes(title: str) -> tuple[Any, Any]:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    axes.set_title(title)
    return figure, axes


def _draw_decode(rates: dict[str, dict[int, float]], path: Path) -> Path:
    figure, axes = _axes("Decoding, ruGPT-3 Large's shape, float16, context 612")
    for name, by_batch in rates.items():
        batches = sorted(by_batch)
        axes.plot(batches, [by_batch[batch] for batch in batches], marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="batch", ylabel="tokens per second")
    ticks = sorted({batch for by_batch in rates.values() for batch in by_batch})
    axes.set_xticks(ticks, [str(batch) for batch in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    return path


def _draw_shares(shares: dict[str, float], path: Path) -> Path:
    figure, axes = _axes("Kernels: bytes per second, as a share of a large copy")
    axes.barh(list(shares), list(shares.values()))
    axes.invert_yaxis()
    axes.axvline(1.0, color="black", linewidth=1)
    figure.savefig(path, dpi=120)
    return path
