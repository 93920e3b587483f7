"""The rounds of a top-up: their folders, what they accepted, and the set that they make together.

    OUTPUT/rounds/0/quality filtered             of the samples of DATA
    OUTPUT/rounds/1/generated quality filtered   of the samples that round 0 rejected
    OUTPUT/dataset                               all that a round accepted

Without a segmentation network there is no filter: a sample is rejected if it failed or a person
excluded it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from generation.quality import tables
from generation.regeneration import Row, read_rejected
from pipeline import files, marks
from pipeline.dataset import Sample, open_dataset
from pipeline.dataset_writer import SHARD_SIZE, DatasetWriter
from pipeline.errors import UserError
from pipeline.metadata import is_dataset, read_rows
from pipeline.rows import KINDS, is_ok, sample_id

SHOWN_SAMPLES = 5
BATCH = 256  # samples whose rows are written together
FILE_FIELDS = ("file_name", "sha256")  # of a row, for each kind of file
BY_HAND = f"excluded by a person, see {marks.NAME}"


@dataclass(frozen=True)
class Round:
    """The folders of a round. `filtered` is None without a filter."""

    number: int
    data: Path
    """Dataset folder of its samples."""
    quality: Path
    filtered: Path | None

    def rejected(self) -> dict[int, Row]:
        """Return the rows of its rejected samples by index, in order."""
        filtered = () if self.filtered is None else (self.filtered,)
        return read_rejected([f for f in (self.data, *filtered) if is_dataset(f)])

    def accepted(self) -> list[Sample]:
        """Return its other samples, in order."""
        folder, rejected = self.filtered or self.data, self.rejected()
        if all(int(key) in rejected for key in read_rows(folder)):
            return []
        samples = open_dataset(folder, labelled=True)
        return [sample for sample in samples if int(sample.id) not in rejected]

    def can_be_judged(self) -> bool:
        """Tell whether it has a finished sample that nobody excluded."""
        excluded = marks.excluded(marks.read_marks(self.data))
        rows = read_rows(self.data).items()
        return any(is_ok(row) and key not in excluded for key, row in rows)


def round_of(output: Path, number: int, data: Path, *, is_filtered: bool) -> Round:
    """Return round `number` of a top-up of `data`."""
    folder = output / "rounds" / str(number)
    return Round(
        number=number,
        data=folder / "generated" if number else data,
        quality=folder / "quality",
        filtered=folder / "filtered" if is_filtered else None,
    )


def write_set(writer: DatasetWriter, rounds: Sequence[Round]) -> list[set[str]]:
    """Write what is missing of the set; return the ids that each round adds to it.

    Raises `UserError` if the set holds images that no round accepts now.
    """
    accepted: dict[str, tuple[int, Sample]] = {}
    for one in rounds:
        for sample in one.accepted():
            accepted.setdefault(sample.id, (one.number, sample))
    known = read_rows(writer.folder)
    done = {key: row for key, row in known.items() if is_ok(row)}
    attempts = {key: sample.row["attempt"] for key, (_, sample) in accepted.items()}
    _refuse_stale(writer.folder, done, attempts)

    # Accepted samples, then those that the last round rejects
    todo = [pair for key, pair in accepted.items() if key not in done]
    for first in range(0, len(todo), BATCH):
        batch = todo[first : first + BATCH]
        writer.append_rows([_place(writer, sample, number) for number, sample in batch])
    last = rounds[-1]
    rows = [_rejected_row(writer.adopt(r), last.number) for r in last.rejected().values()]
    writer.append_rows([r for r in rows if known.get(r["id"], {}).get("attempt") != r["attempt"]])
    return [{k for k, (number, _) in accepted.items() if number == one.number} for one in rounds]


def _refuse_stale(folder: Path, done: Mapping[str, Row], attempts: Mapping[str, int]) -> None:
    """Raise `UserError` if a set holds an image of another attempt than the accepted one.

    An image that is there may have been excluded later, or be of a round beyond --attempts.
    `attempts`: the accepted attempt of each sample.
    """
    stale = [key for key, row in done.items() if row.get("attempt") != attempts.get(key)]
    if stale:
        raise UserError(
            f"{folder}: holds {len(stale)} images that are rejected now or are of a round beyond "
            f"--attempts ({', '.join(stale[:SHOWN_SAMPLES])}); raise --attempts, or delete this "
            "folder and repeat the command, which fills it again from the rounds"
        )


def _place(writer: DatasetWriter, sample: Sample, number: int) -> Row:
    """Give the files of a sample of round `number` a second name in the set; return its row."""
    row = writer.adopt(sample.row) | {"round": number}
    shard = f"{int(sample.id) // SHARD_SIZE:04d}"
    for kind, path in (("image", sample.image), ("label", sample.label)):
        if path is not None:
            row[f"{kind}_file_name"] = f"{kind}s/{shard}/{sample.id}{path.suffix}"
            files.place(path, writer.folder / row[f"{kind}_file_name"])
    return row


def _rejected_row(row: Row, number: int) -> Row:
    """Return the row of a sample of which no image was accepted in `number` rounds."""
    absent = {f"{kind}_{name}" for kind in KINDS for name in FILE_FIELDS}
    kept = {k: v for k, v in row.items() if k not in absent} | {"round": number}
    return kept | ({"status": "withdrawn", "error": BY_HAND} if is_ok(row) else {})


def summary_of(plan: Mapping[str, Row], rounds: Sequence[Round], added: list[set[str]]) -> Row:
    """Return how many samples each round adds, by condition and class of the plan.

    `plan`: the rows of the original set. `added`: the ids that each round adds.
    """
    rejected = {sample_id(index): row for index, row in rounds[-1].rejected().items()}
    return {
        "samples": len(plan),
        "accepted": sum(map(len, added)),
        "rounds": len(rounds) - 1,
        "conditions": _shares(plan, added, "condition"),
        "classes": _shares(plan, added, "rare_class"),
        "missing": {
            key: {
                "condition": row.get("condition"),
                "rare_class": row.get("rare_class"),
                "attempt": row["attempt"],
                "reason": BY_HAND if is_ok(row) else row.get("error", ""),
            }
            for key, row in rejected.items()
        },
    }


def _shares(plan: Mapping[str, Row], added: list[set[str]], field: str) -> dict[str, Row]:
    """Return planned, added and missing samples by the value of a field."""
    value = {key: str(row.get(field) or "any") for key, row in plan.items()}
    by_round = [Counter(value[key] for key in ids) for ids in added]
    return {
        name: {
            "planned": planned,
            "added": [counts[name] for counts in by_round],
            "missing": planned - sum(counts[name] for counts in by_round),
        }
        for name, planned in sorted(Counter(value.values()).items())
    }


def markdown_of(summary: Row) -> str:
    """Return the summary as Markdown tables."""
    numbers = [f"round {k}" for k in range(summary["rounds"] + 1)]
    parts = [
        f"{summary['accepted']} of {summary['samples']} samples were accepted. Round 0 has the "
        "original images; each further round generates the rejected samples again, with other "
        "noise. Columns are numbers of samples."
    ]
    for title, key in (("condition", "conditions"), ("label map chosen for class", "classes")):
        rows = [
            [name, one["planned"], *one["added"], one["missing"]]
            for name, one in summary[key].items()
        ]
        parts.append(tables.table([title, "planned", *numbers, "missing"], rows))
    return "\n\n".join(parts) + "\n"
