"""Scoring on a Ray cluster: one actor per GPU, or per CPU, over the same blocks of samples.

The actors read images and labels; the driver writes what they return, so that rows and files are
those of a scoring without a cluster.
"""

from pathlib import Path

import torch
from tqdm import tqdm

from generation.quality import judges, score_rows
from generation.quality.classifiers import Classifier
from generation.quality.settings import Config
from pipeline.dataset import Sample
from pipeline.ray_cluster import Actor, Demand, Job, run_jobs


class Scorer(Actor):
    """The actor: the networks of a scoring on one device."""

    def __init__(self, config: Config, classifiers: dict[str, Classifier]) -> None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        self.judges = judges.Judges(config, accelerator or torch.device("cpu"), classifiers)

    def score(self, block: judges.Block, part: str, folder: Path) -> judges.Scored:
        """Return the rows of a block, and the files that belong to them."""
        return self.judges.score_block(block, part, folder)


def score_parts(
    config: Config, parts: dict[str, list[Sample]], classifiers: dict[str, Classifier]
) -> int:
    """Score what is missing of all parts; returns 0, or the code of a stop signal."""
    folder = config.folder
    jobs: list[Job] = []
    done: dict[str, set[str]] = {}
    appenders = {part: score_rows.Appender(folder, part, 0) for part in parts}
    for part, samples in parts.items():
        blocks, done[part] = judges.missing_blocks(part, samples, folder, config.batch_size)
        for block in blocks:
            jobs.append(Job(len(jobs), len(block.samples), (block, part, folder)))
    if not jobs:
        return 0

    demand = Demand(config.ray, config.ray_workers)
    with tqdm(total=len(jobs), desc="score", unit="block", leave=False) as bar:

        def commit(job: Job, scored: judges.Scored) -> None:
            _, part, _ = job.arguments
            judges.write(scored, done[part], appenders[part])
            bar.update()

        return run_jobs(demand, Scorer, (config, classifiers), "score", jobs, commit)
