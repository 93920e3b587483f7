"""Model of generation on many GPUs: time, lost work, load on the storage, and cost.

Four ways to divide the work are compared: claim files in a shared folder (`claims`), static shards
written as tar files to an object store (`shards`), Ray with one committing process (`ray`), and Ray
with actors that write tar files (`ray-shards`). `simulate` plays the run of all GPUs with random
image times and node losses; `loads` gives the steady load on each shared resource. `Inputs` states
every number that goes in, and its origin.
"""

import heapq
import random
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.metadata_index import reading_interval_s

Mode = Literal["claims", "shards", "ray", "ray-shards"]
MODES: tuple[Mode, ...] = ("claims", "shards", "ray", "ray-shards")
LEASE_H = 180 / 3600  # as in pipeline/claims.py
LARGEST_UNIT = 256  # images that a GPU takes at once in the simulation of `claims` and `ray`
COMMITTED = {"claims": 1, "ray": 8}  # images that are committed together; with tars a whole tar


def stated(value: float, unit: str, origin: str) -> Any:
    """Return a dataclass field with its unit and its origin."""
    return field(default=value, metadata={"unit": unit, "origin": origin})


@dataclass(frozen=True)
class Inputs:
    """What goes into the model. Each field tells its unit and where the number comes from."""

    matmul_tflops: float = stated(790, "TFLOP/s", "measured: bfloat16 matrix product on an H200")
    utilization: float = stated(
        0.45, "", "assumed; published: 0.37 of the A100's peak, compiled, batch 16 (diffusers)"
    )
    tile_tflop: float = stated(
        2.176, "TFLOP", "computed: U-Net and ControlNet, SD 1.5, 64x64 latent, with guidance"
    )
    autoencoder_tflop: float = stated(
        17.86, "TFLOP", "computed: decode 512, encode 1024, decode 1024 pixels"
    )
    steps: int = stated(20, "", "default of Stable Diffusion")
    variation: float = stated(0.3, "", "assumed: standard deviation over mean of the image times")
    gpus_per_node: int = stated(8, "", "assumed")
    model_gb: float = stated(5.7, "GB", "computed: float32 weights of SD 1.5 and ControlNet")
    start_s: float = stated(60, "s", "assumed: imports and weights to the GPU")
    replace_s: float = stated(600, "s", "assumed: until a lost node is replaced")
    read_gb_s: float = stated(5, "GB/s", "assumed: all nodes together, from shared storage")
    metadata_per_s: float = stated(20_000, "1/s", "assumed: operations of one file server")
    puts_per_s: float = stated(3_500, "1/s", "published: S3, per prefix")
    commits_per_s: float = stated(110, "1/s", "measured: benchmarks/run_overhead.py")
    meeting_operations: float = stated(
        25, "", "counted: benchmarks/claims_model.py, of a run, for each pair of workers"
    )
    sample_mb: float = stated(0.48, "MB", "assumed: PNG of 512x512 pixels and label map")
    write_gb_s: float = stated(5, "GB/s", "assumed: all nodes together, to shared storage")
    gpu_hour_usd: float = stated(3, "USD", "assumed")
    put_usd: float = stated(5e-6, "USD", "published: S3 standard")
    gb_month_usd: float = stated(0.023, "USD", "published: S3 standard")

    def image_s(self, tiles: float) -> float:
        """Return the seconds of one image: base pass, tiles and autoencoder."""
        tflop = self.tile_tflop * self.steps * (1 + tiles) + self.autoencoder_tflop
        return tflop / (self.matmul_tflops * self.utilization)

    def tile_ms(self) -> float:
        """Return the milliseconds of one guided tile evaluation."""
        return 1000 * self.tile_tflop / (self.matmul_tflops * self.utilization)

    def load_s(self, gpus: int) -> float:
        """Return the seconds from start to first image; each node reads the weights once."""
        nodes = -(-gpus // self.gpus_per_node)
        return self.start_s + nodes * self.model_gb / self.read_gb_s


@dataclass(frozen=True)
class Case:
    """One run: how many GPUs and images, how the work is divided, how often a node is lost."""

    gpus: int
    images: int
    mode: Mode
    tiles: float = 9
    losses_per_node_hour: float = 0.0

    @property
    def writes_tars(self) -> bool:
        """Whether samples are committed as whole tar files."""
        return self.mode in ("shards", "ray-shards")

    @property
    def shard_samples(self) -> int:
        """Samples per tar file: 250, fewer where a GPU would get less than four files."""
        return max(1, min(250, self.images // (4 * self.gpus)))


@dataclass
class Outcome:
    """What a simulated run took."""

    hours: float
    lost_gpu_hours: float
    losses: int
    ideal_hours: float

    @property
    def efficiency(self) -> float:
        """Return the time without start, losses and waiting over the time taken."""
        return self.ideal_hours / self.hours


class Losses:
    """The times at which each node is lost, sampled as they are needed."""

    def __init__(self, case: Case, inputs: Inputs, rng: random.Random) -> None:
        self.rate, self.rng = case.losses_per_node_hour, rng
        nodes = -(-case.gpus // inputs.gpus_per_node)
        self.next = [self._after(0.0) for _ in range(nodes)]
        self.past: list[list[float]] = [[] for _ in range(nodes)]

    def _after(self, time_h: float) -> float:
        return time_h + self.rng.expovariate(self.rate) if self.rate else float("inf")

    def first(self, node: int, start_h: float, end_h: float) -> float | None:
        """Return when `node` is lost between start and end, None if it is not."""
        while self.next[node] <= end_h:
            self.past[node].append(self.next[node])
            self.next[node] = self._after(self.next[node])
        return next((t for t in self.past[node] if start_h < t <= end_h), None)


def simulate(case: Case, inputs: Inputs, seed: int = 0) -> Outcome:
    """Play a run: every GPU takes units of images until none is left.

    A lost node loses what it had not committed: the image (`claims`), the eight images (`ray`) or
    the current tar file. The rest goes to any GPU, with `claims` after the lease; a static shard
    waits until its own node is replaced. A shared resource beyond its capacity slows all alike. Of
    `claims` the workers meet towards the end, and wait for the file server.
    """
    rng = random.Random(seed)
    losses = Losses(case, inputs, random.Random(seed + 1))
    image_h = inputs.image_s(case.tiles) / 3600
    again_h = (inputs.replace_s + inputs.start_s) / 3600
    load_h = inputs.load_s(case.gpus) / 3600
    static = case.mode == "shards"
    pool, own = case.images, shares(case) if static else []
    free = [(load_h, gpu) for gpu in range(case.gpus)]
    returned: list[tuple[float, int]] = []  # images of dead GPUs, and when they can be taken
    end_h = lost_h = 0.0
    while free:
        now, gpu = heapq.heappop(free)
        while returned and returned[0][0] <= now:
            pool += heapq.heappop(returned)[1]
        left = own[gpu] if static else pool
        if not left:
            if returned and not static:
                heapq.heappush(free, (returned[0][0], gpu))
            continue
        unit = min(left, case.shard_samples)
        if not case.writes_tars:
            unit = min(left, max(1, min(LARGEST_UNIT, left // (4 * case.gpus))))
        pool -= 0 if static else unit
        spread = inputs.variation * unit**0.5
        unit_h = image_h * max(0.2 * unit, rng.gauss(unit, spread))
        done_h = now + unit_h
        loss = losses.first(gpu // inputs.gpus_per_node, now, done_h)
        if loss is None:
            own[gpu : gpu + 1] = [own[gpu] - unit] if static else []
            end_h = max(end_h, done_h)
            heapq.heappush(free, (done_h, gpu))
            continue
        committed = COMMITTED.get(case.mode, unit)
        kept = int((loss - now) / unit_h * unit) // committed * committed
        lost_h += (loss - now) - kept * unit_h / unit + again_h
        if not static:
            wait_h = LEASE_H if case.mode == "claims" else 0.0
            heapq.heappush(returned, (loss + wait_h, unit - kept))
        heapq.heappush(free, (loss + again_h, gpu))
    slower = max(1.0, bottleneck(case, inputs)[1])
    return Outcome(
        hours=load_h + (end_h - load_h) * slower + meeting_h(case, inputs),
        lost_gpu_hours=lost_h,
        losses=sum(sum(t <= end_h for t in past) for past in losses.past),
        ideal_hours=case.images * image_h / case.gpus,
    )


def shares(case: Case) -> list[int]:
    """Return how many images the static shard of each GPU has: whole tar files, in turn."""
    size, counts = case.shard_samples, [0] * case.gpus
    for number, first in enumerate(range(0, case.images, size)):
        counts[number % case.gpus] += min(size, case.images - first)
    return counts


def file_operations(workers: int, image_s: float) -> float:
    """Return the operations on a shared folder per image with claim files.

    Label and image: create, sync, rename, and sync of the folder; row: open and sync; claim: link,
    look for the file, open and unlink. To read the rows a worker lists the folder and opens the
    metadata file of every worker, whose size the file server tells it. Few workers do so after each
    image and once per claim of eight, more of them at intervals.
    """
    interval_s = reading_interval_s(workers)
    readings = image_s / interval_s if interval_s else 1 + 1 / 8
    return 2 * 4 + 2 + 4 + readings * (1 + 2 * workers)


def meeting_h(case: Case, inputs: Inputs) -> float:
    """Return the hours in which the file server answers workers that meet in the same part."""
    if case.mode != "claims" or case.gpus == 1:
        return 0.0
    return inputs.meeting_operations * case.gpus**2 / inputs.metadata_per_s / 3600


def loads(case: Case, inputs: Inputs) -> dict[str, tuple[float, float]]:
    """Return load and capacity of each shared resource while all GPUs generate."""
    rate = case.gpus / inputs.image_s(case.tiles)
    found = {"write, GB/s": (rate * inputs.sample_mb / 1000, inputs.write_gb_s)}
    if case.mode == "claims":
        operations = rate * file_operations(case.gpus, inputs.image_s(case.tiles))
        found["file operations, 1/s"] = operations, inputs.metadata_per_s
    elif case.writes_tars:
        found["PUT requests, 1/s"] = 2 * rate / case.shard_samples, inputs.puts_per_s
    else:
        found["commits of the driver, 1/s"] = rate, inputs.commits_per_s
    return found


def most_gpus(mode: Mode, inputs: Inputs) -> int:
    """Return how many GPUs a way carries before a shared resource is used up."""
    low, high = 1, 1 << 24
    while high - low > 1:
        middle = (low + high) // 2
        full = bottleneck(Case(middle, middle * 1000, mode), inputs)[1] > 1
        low, high = (low, middle) if full else (middle, high)
    return low


def bottleneck(case: Case, inputs: Inputs) -> tuple[str, float]:
    """Return the shared resource with the highest load, and its load over its capacity."""
    found = loads(case, inputs)
    name = max(found, key=lambda n: found[n][0] / found[n][1])
    return name, found[name][0] / found[name][1]


def cost_per_image(case: Case, inputs: Inputs, outcome: Outcome) -> dict[str, float]:
    """Return the US dollars per image: GPUs, requests, and a month in the object store."""
    puts = 2 / case.shard_samples if case.writes_tars else 0.0
    return {
        "GPUs": outcome.hours * case.gpus * inputs.gpu_hour_usd / case.images,
        "requests": puts * inputs.put_usd,
        "a month of storage": inputs.sample_mb / 1000 * inputs.gb_month_usd,
    }
