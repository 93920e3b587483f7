"""The loop of one process: its share of the missing samples, written one by one.

The missing samples are dealt to the processes in turn. All processes list them before any of them
writes, so none has to ask another, and a resumed run may have another number of processes.
"""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from generation.layouts import Layout, LayoutSource
from generation.listing import describe
from generation.plan import PlanItem, noise_seed
from generation.settings import Config
from pipeline.dataset import DatasetWriter, read_rows, sample_id
from pipeline.stopping import StopRequest

if TYPE_CHECKING:
    from generation.engine import Sampler

ATTEMPTS = 3  # a picture that is not finite or constant is drawn anew twice


class RowCounter:
    """Counts the `ok` rows that all processes append, reading only what is new."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0
        self._offsets: dict[Path, int] = {}

    def update(self) -> int:
        """Return how many `ok` rows there are by now."""
        for path in self.folder.glob("metadata*.jsonl"):
            with open(path, "rb") as handle:
                handle.seek(self._offsets.get(path, 0))
                data = handle.read()
            whole = data[: data.rfind(b"\n") + 1]
            self.count += sum(b'"status": "ok"' in line for line in whole.splitlines())
            self._offsets[path] = self._offsets.get(path, 0) + len(whole)
        return self.count


def missing_indices(n: int, folder: Path) -> list[int]:
    """Return the indices below `n` without an `ok` row, in order."""
    rows = read_rows(folder) if folder.is_dir() else {}
    done = {key for key, row in rows.items() if row.get("status") == "ok"}
    return [index for index in range(n) if sample_id(index) not in done]


class Maker:
    """Makes single samples from plan items."""

    def __init__(
        self, sampler: "Sampler", config: Config, source: LayoutSource, layouts: list[Layout],
        facts: dict[str, Any],
    ) -> None:  # fmt: skip
        self.sampler, self.config = sampler, config
        self.source, self.layouts, self.facts = source, layouts, facts

    def prepare(self, item: PlanItem) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the label crop and the row of a sample, before it is drawn."""
        layout = self.layouts[item.layout]
        label, row = describe(item, self.source.read(layout.name), layout, self.config)
        return label, row | self.facts

    def make(self, item: PlanItem) -> tuple[np.ndarray | None, np.ndarray, dict[str, Any]]:
        """Return (image or None, label, row); a failed sample's row says why in `error`."""
        label, row = self.prepare(item)
        prompt = row["prompt"]
        row["prompt_cut"] = self.sampler.networks.text.truncates(prompt)
        started = time.perf_counter()
        for attempt in range(ATTEMPTS):
            seed = noise_seed(self.config.seed, item.index, attempt)
            picture = self.sampler.draw(label, prompt, seed)
            row |= {"seed": seed, "attempt": attempt, "tiles": picture.tiles}
            row |= {"tiles_total": picture.tiles_total, "evaluations": picture.evaluations}
            if picture.image is not None:
                break
        row["seconds"] = round(time.perf_counter() - started, 3)
        row["drawn_at"] = datetime.now(UTC).isoformat(timespec="seconds")
        if picture.image is None:
            row["error"] = f"{picture.problem} in {ATTEMPTS} attempts"
        return picture.image, label, row


def run_share(
    maker: Maker, writer: DatasetWriter, items: list[PlanItem], *, n: int, show_progress: bool
) -> int:
    """Make and write `items` in order; return 0, or the exit code of a stop signal.

    The bar of the main process counts the rows of all processes, so rate and ETA are the run's.
    """
    counter = RowCounter(writer.folder)
    done = min(counter.update(), n)
    bar = tqdm(
        total=n, initial=done, unit="sample", disable=not show_progress, smoothing=0.05,
        dynamic_ncols=True,
    )  # fmt: skip
    with bar, StopRequest().listening() as stop:
        for item in items:
            if stop.signal_number:
                break
            image, label, row = maker.make(item)
            if image is None:
                writer.write_failure(item.index, row.pop("error"), row)
            else:
                writer.write(item.index, image, label, row)
            bar.update(min(counter.update(), n) - bar.n)
        return stop.exit_code
