"""The table as a chart: one bar per figure, from 1 (equal) to the ratio, with the range of its rounds."""

from __future__ import annotations

from pathlib import Path

from table import Figure

COLOURS = {"llama-server": "#3465a4", "ollama": "#c17d11"}
OTHER = "#5c9e5c"


def draw(figures: list[Figure], path: Path) -> bool:
    """Write an SVG; False if matplotlib is not installed (extra ``bench``)."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: pip install 'ollama-nb[bench]' brings matplotlib")
        return False
    matplotlib.use("svg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter, NullLocator

    matplotlib.rcParams.update({"svg.hashsalt": "ollama-nb", "font.size": 8})
    shown = list(reversed(figures))
    fig, axes = plt.subplots(figsize=(8, 0.24 * len(shown) + 1))
    for y, figure in enumerate(shown):
        low, high, middle = min(figure.ratios), max(figure.ratios), figure.ratio
        axes.barh(y, middle - 1, left=1, height=0.7, color=COLOURS.get(figure.rival, OTHER))
        axes.plot([low, high], [y, y], color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(matplotlib.ticker.FixedLocator([0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(shown)), [f"{figure.title} | {figure.rival}" for figure in shown])
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.set_xlabel("times better than the other (log scale); line: spread of the rounds")
    fig.tight_layout()
    fig.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(fig)
    return True
