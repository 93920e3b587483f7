"""Plot the loss curves of training runs as one SVG.

python experiments/loss_curves.py --output curves.svg NAME=RUN/metrics.jsonl [NAME=...]
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline import files
from pipeline.errors import guard

WIDTH, HEIGHT, MARGIN = 300, 180, 34


def panel(name: str, steps: np.ndarray, losses: np.ndarray, left: int) -> str:
    """Return the SVG of one curve on a logarithmic loss axis; faint raw values, bold mean."""
    window = max(1, len(losses) // 30)
    padded = np.pad(losses, (window // 2, window - 1 - window // 2), mode="edge")
    smooth = np.convolve(padded, np.ones(window) / window, "valid")
    low, high = np.log(np.quantile(losses, [0.0, 0.99]))
    x = left + MARGIN + (WIDTH - 2 * MARGIN) * steps / steps.max()

    def y(values: np.ndarray) -> np.ndarray:
        share = (np.log(values).clip(low, high) - low) / max(high - low, 1e-9)
        return HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * share

    def line(values: np.ndarray, style: str) -> str:
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y(values), strict=True))
        return f'<polyline points="{points}" fill="none" {style}/>'

    right, bottom = left + WIDTH - MARGIN, HEIGHT - MARGIN
    return (
        f'<rect x="{left + MARGIN}" y="{MARGIN}" width="{WIDTH - 2 * MARGIN}" '
        f'height="{HEIGHT - 2 * MARGIN}" fill="none" stroke="#bbb"/>'
        + line(losses, 'stroke="#9bc" stroke-width="0.7"')
        + line(smooth, 'stroke="#136" stroke-width="1.6"')
        + f'<text x="{left + MARGIN}" y="{MARGIN - 8}" font-weight="bold">{name}</text>'
        + f'<text x="{right}" y="{bottom + 14}" text-anchor="end">{int(steps.max())} steps</text>'
        + f'<text x="{left + MARGIN - 4}" y="{MARGIN + 8}" text-anchor="end">'
        + f"{np.exp(high):.2g}</text>"
        + f'<text x="{left + MARGIN - 4}" y="{bottom}" text-anchor="end">{np.exp(low):.2g}</text>'
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="+", metavar="NAME=METRICS", help="title of a curve and its metrics.jsonl"
    )
    parser.add_argument("--output", required=True, type=Path, help="SVG file to write")
    arguments = parser.parse_args()
    panels = []
    for i, run in enumerate(arguments.runs):
        name, _, path = run.partition("=")
        rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
        loss_at = {row["step"]: row["loss"] for row in rows}  # a resumed run repeats some steps
        steps, losses = (np.array([*x], dtype=float) for x in (loss_at, loss_at.values()))
        panels.append(panel(name, steps, losses, i * WIDTH))
    size = f'viewBox="0 0 {WIDTH * len(panels)} {HEIGHT}" width="{WIDTH * len(panels)}"'
    text = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="10">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(panels)}</svg>\n'
    )
    files.write_bytes(arguments.output, text.encode())


if __name__ == "__main__":
    guard(main)
