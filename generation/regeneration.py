"""Which samples are rejected, and the run that generated them: what `--regenerate` repeats.

A rejected sample has a row with another status than `ok`, as generation/filter.py writes it, or is
excluded by marks.json. It is generated again from its own row: the same label map, class,
condition, time and place, hence the same crop and prompt, and so the shares of the plan hold. Only
the attempt, and with it the noise, is new: the one after that of the row. So the new sample depends
on the old row alone, not on the process or the order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from generation.label_maps import LabelMap
from generation.plan import PlanItem
from generation.precision import AUTO
from generation.settings import NOT_IN_DIGEST, Config, default_config
from pipeline import marks
from pipeline.config import differences, digest, from_mapping
from pipeline.errors import UserError
from pipeline.labels import CLASS_NAMES
from pipeline.metadata import metadata_files, read_rows
from pipeline.output_folders import SHOWN_DIFFERENCES
from pipeline.reading import read_json, shortened
from pipeline.rows import is_ok, sample_id

Row = dict[str, Any]

RUN_OF_ORIGIN = "generation_run"  # key of run.json in folders that were made from generated ones
PATHS = ("base", "unet", "controlnet", "label_maps")  # may lie elsewhere now; contents are compared
GROUP_PATHS = ("second_control.controlnet", "second_control.detector", "correction.head")
MOVABLE = tuple(f"--{path.replace('_', '-')}" for path in (*PATHS, *GROUP_PATHS))
OWN_KEY = "regenerated"  # of the identity
WORDS = ("condition", "time", "place", "source_label")


@dataclass(frozen=True)
class Regeneration:
    """The rejected samples of one or more dataset folders of one run."""

    folder: Path
    """The first of the folders, for messages."""
    record: Row
    """What run.json of the original run holds."""
    rows: dict[int, Row]
    """The rows of the rejected samples by index, in order."""

    @property
    def attempts(self) -> dict[int, int]:
        """The attempt with which each sample is generated now."""
        return {index: row["attempt"] + 1 for index, row in self.rows.items()}

    def settings(self, given: Config) -> Config:
        """Return the settings of the original run with the outputs and workers of this one.

        Settings that name models and label maps may be given again, where these have moved; of a
        group only these are taken. Raises `UserError` for any other setting that is given and
        differs.
        """
        stored, default = self._stored_settings(), default_config(given.base)
        changed: dict[str, Any] = {"n": max(self.rows, default=0) + 1}
        for name in (field.name for field in fields(Config) if field.name != "n"):
            value, own, usual = (getattr(c, name) for c in (given, stored, default))
            if name in NOT_IN_DIGEST:
                changed[name] = value
            elif value in (own, usual, AUTO):  # `auto` was settled by the original run
                continue
            elif name in PATHS:
                changed[name] = value
            elif any(path.startswith(f"{name}.") for path in GROUP_PATHS):
                changed[name] = self._moved(name, value, own, usual)
            else:
                raise self._differs(name, own)
        return replace(stored, **changed)

    def _moved(self, group: str, given: Any, stored: Any, default: Any) -> Any:
        """Return a group of settings of the original run with the paths that are given."""
        changed = {}
        for name in (field.name for field in fields(stored)):
            value, own, usual = (getattr(g, name) for g in (given, stored, default))
            if value in (own, usual):
                continue
            if f"{group}.{name}" not in GROUP_PATHS:
                raise self._differs(f"{group}.{name}", own)
            changed[name] = value
        return replace(stored, **changed)

    def _differs(self, name: str, own: Any) -> UserError:
        return UserError(
            f"--{name.replace('_', '-')}: differs from the run of {self.folder} "
            f"({shortened(own, 60)}); samples are generated again with its settings, leave "
            "this one out"
        )

    def _stored_settings(self) -> Config:
        paths = self.record["paths"]
        found = {
            k: v for k, v in self.record["config"].items() if k not in ("models", "data", "plan")
        }
        found.pop(OWN_KEY, None)
        found |= {name: paths[name] for name in PATHS}
        for path in GROUP_PATHS:
            group, _, name = path.partition(".")
            if path in paths and isinstance(found.get(group), dict):
                found[group] = found[group] | {name: paths[path]}
        return from_mapping(Config, found, str(self.folder / "run.json"))

    def items(self, label_maps: Sequence[LabelMap]) -> dict[int, PlanItem]:
        """Return what the samples will be, by index, from their own rows."""
        positions = {label_map.name: i for i, label_map in enumerate(label_maps)}
        found = {}
        for index, row in self.rows.items():
            if row["source_label"] not in positions:
                raise UserError(
                    f"{self.folder}: the label map {row['source_label']} of sample "
                    f"{sample_id(index)} is gone; give the folder of the original run by "
                    "--label-maps"
                )
            rare = row["rare_class"]
            found[index] = PlanItem(
                index=index,
                label_map=positions[row["source_label"]],
                rare_class=None if rare is None else CLASS_NAMES.index(rare),
                condition=row["condition"],
                time=row["time"],
                place=row["place"],
            )
        return found

    def identity(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Return the identity of this run: that of the original run, and which samples it repeats.

        `identity` is that of the settings, models and label maps as they are now. Raises
        `UserError` if it is not that of the original run.
        """
        original = _settings_of(self.record)
        identity = {k: v for k, v in identity.items() if k != "plan"}
        if "plan" in original:  # rows say what was planned: no plan is made, of whatever version
            identity["plan"] = original["plan"]
        if lines := differences(original, identity):
            raise UserError(
                f"--regenerate {self.folder}: its run had other settings, models or label maps "
                f"({'; '.join(lines[:SHOWN_DIFFERENCES])}); restore them, or name the folders "
                f"where they are by {', '.join(MOVABLE)}"
            )
        told = [[i, row["attempt"], *(row[w] for w in WORDS)] for i, row in self.rows.items()]
        return {**identity, OWN_KEY: {"samples": len(told), "rows": digest(told)}}


def paths_of(config: Config) -> dict[str, str]:
    """Return the settings that run.json needs beside the identity, which leaves paths out."""
    return {path: attrgetter(path)(config) for path in (*PATHS, *GROUP_PATHS)}


def read_regeneration(folders: Sequence[Path]) -> Regeneration:
    """Read the rejected samples of dataset folders, and the run that generated them.

    Raises `UserError` for folders of different runs, or of a run of another program.
    """
    records = [read_record(folder) for folder in folders]
    first = _settings_of(records[0])
    for folder, record in zip(folders, records, strict=True):
        if lines := differences(first, _settings_of(record)):
            raise UserError(
                f"--regenerate {folder}: is of another run than {folders[0]} "
                f"({'; '.join(lines[:SHOWN_DIFFERENCES])}); name folders of one run"
            )
    return Regeneration(folders[0], records[0], read_rejected(folders))


def _settings_of(record: Row) -> Row:
    return {k: v for k, v in record["config"].items() if k != OWN_KEY}


def read_record(folder: Path) -> Row:
    """Return what run.json says of the generation run that the samples of a folder are from."""
    metadata_files(folder)  # says what is wrong with a folder that is none
    path = folder / "run.json"
    record = read_json(path, dict) if path.is_file() else {}
    record = record.get(RUN_OF_ORIGIN, record)
    config = record.get("config") if isinstance(record, dict) else None
    paths = record.get("paths") if isinstance(record, dict) else None
    named = isinstance(paths, dict) and all(isinstance(paths.get(name), str) for name in PATHS)
    if not (named and isinstance(config, dict) and isinstance(config.get("models"), dict)):
        raise UserError(
            f"{path}: names no run of generation/run.py; give its dataset folder, or one that "
            "generation/filter.py or generation/top_up.py made from it"
        )
    return {"config": config, "paths": paths}


def read_rejected(folders: Sequence[Path]) -> dict[int, Row]:
    """Return the rows of the samples that one of the folders rejects, by index, in order.

    Of several rows of a sample, the one of the highest attempt counts.
    """
    found: dict[int, Row] = {}
    for folder in folders:
        excluded = marks.excluded(marks.read_marks(folder))
        for key, row in read_rows(folder).items():
            if is_ok(row) and key not in excluded:
                continue
            _check_row(folder, row)
            index = int(key)
            if index not in found or row["attempt"] > found[index]["attempt"]:
                found[index] = row
    return dict(sorted(found.items()))


def _check_row(folder: Path, row: Row) -> None:
    """Raise `UserError` unless a row says all that a sample is generated from."""
    key, rare = row["id"], row.get("rare_class")
    sound = (
        key.isdecimal()
        and key == sample_id(int(key))
        and type(row.get("attempt")) is int
        and all(isinstance(row.get(word), str) for word in WORDS)
        and (rare is None or rare in CLASS_NAMES)
    )
    if not sound:
        raise UserError(
            f"{folder}: the row of sample {shortened(key, 60)} does not say where the sample came "
            "from (attempt, condition, time, place, source_label); only samples of "
            "generation/run.py can be generated again"
        )
