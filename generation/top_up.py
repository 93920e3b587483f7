"""Generate the rejected samples of a set again until none is rejected, or the attempts end.

    python generation/top_up.py --data runs/mine/generated --segmenter runs/mine/segtrain/judge \\
        --reject-below 0.7 --output runs/mine/topped_up

Scores and filters --data, then repeats up to --attempts times: generate the rejected samples again
(the same label map, crop and prompt, other noise), score and filter these with the limits of the
original set. Samples that failed, and those that marks.json excludes, count as rejected. Without
--segmenter nothing is scored, and only these are generated again. --data is not changed.
OUTPUT/dataset is the dataset folder of all accepted samples; conditions and classes have the shares
of the plan. OUTPUT/top_up.md has the numbers, OUTPUT/top_up.json also lists the samples that no
round accepted. The same command continues a stopped run; a larger --attempts adds rounds.
Exit codes: 0 all samples accepted; 2 bad input or setting; 3 some were rejected in every round.
"""

import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from generation.quality import score_rows, segmenters
from generation.quality.filter_rules import FilterRules
from generation.regeneration import PATHS, RUN_OF_ORIGIN, Row, read_record, read_rejected
from generation.rounds import (
    SHOWN_SAMPLES,
    Round,
    markdown_of,
    round_of,
    summary_of,
    write_set,
)
from pipeline import files
from pipeline.claims import sole_writer
from pipeline.config import digest, parse, to_mapping
from pipeline.dataset import open_dataset
from pipeline.dataset_writer import DatasetWriter, write_card
from pipeline.errors import EXIT_INCOMPLETE, UserError, guard
from pipeline.identity import data_revision, model_revision
from pipeline.launching import (
    complaint,
    forward,
    has_accelerator,
    launch_prefix,
    stop_on_sigterm,
)
from pipeline.metadata import read_rows
from pipeline.origins import kept_by_copies
from pipeline.output_folders import (
    RUN,
    check_output,
    require_same,
    require_writable,
    stored_config,
    write_marker,
)
from pipeline.reading import read_json
from pipeline.setting_checks import require_between, require_positive

ROOT = Path(__file__).resolve().parent.parent
MOST_ATTEMPTS = 100
MOST_PROCESSES = 1024
RULES = tuple(field.name for field in fields(FilterRules))


@dataclass(frozen=True)
class Config(FilterRules):
    """Settings of a top-up."""

    data: Path = Path("runs/generated")
    """Dataset folder that generation/run.py wrote; nothing in it changes."""
    output: Path = Path("runs/topped_up")
    """Folder for the rounds and for the finished set, OUTPUT/dataset."""
    attempts: int = 3
    """Rounds in which rejected samples are generated again."""
    segmenter: Path | None = None
    """Network that measures label fidelity: output folder of segtrain/train.py, or folder of a
    transformers model. It must not be trained on this set. None: nothing is scored or filtered."""
    segmenter_class: str = ""
    """package.module:Class that loads it. Empty: ours, or transformers' by its config.json."""
    quality: Path | None = None
    """Output folder of generation/score.py with scores of --data by this network, with --costs.
    None: --data is scored in OUTPUT."""
    looks: Path | None = None
    """Dataset folder to train the classifier of --reject-attribute on."""
    base: str = ""
    """Where the base model of the run lies now; its contents are compared. Empty: where it was."""
    unet: str = ""
    """Where the U-Net of the run lies now; empty: where it was."""
    controlnet: str = ""
    """Where the ControlNet of the run lies now; empty: where it was."""
    label_maps: str = ""
    """Where the label maps of the run lie now; empty: where they were."""
    num_processes: int = 1
    """Processes of each program; on a machine with GPUs, at most one per GPU."""
    batch_size: int = 8
    """Images per call of the segmentation network."""


def check_inputs(config: Config) -> dict[str, Any]:
    """Find bad input before anything is written; return what makes two top-ups the same one."""
    config.check()
    require_between(config, 1, MOST_ATTEMPTS, "attempts")
    require_between(config, 1, MOST_PROCESSES, "num_processes")
    require_positive(config, "batch_size")
    named = {
        f"--{name}": path
        for name in ("data", "segmenter", "quality", "looks")
        if (path := getattr(config, name)) is not None
    }
    check_output(config.output, RUN, inputs=named)
    read_record(config.data)
    rejected = read_rejected([config.data])
    check_rules(config, is_rejecting=bool(rejected))
    samples = open_dataset(config.data, labelled=True, with_excluded=True)
    identity = {name: value for name, value in to_mapping(config).items() if name in RULES}
    identity |= {
        "data": data_revision(samples),
        "rejected": digest({index: row["attempt"] for index, row in rejected.items()}),
        "segmenter": model_revision(config.segmenter) if config.segmenter else None,
        "segmenter_class": config.segmenter_class,
        "looks": None,
    }
    if config.looks:
        identity["looks"] = data_revision(open_dataset(config.looks, labelled=False))
    if config.quality:
        check_quality(config, identity)
    require_same(config.output, RUN, identity)
    return identity


def check_quality(config: Config, identity: dict[str, Any]) -> None:
    """Raise `UserError` unless --quality has scores by the networks that score further rounds."""
    assert config.quality and config.segmenter
    found = score_rows.network_of(config.quality, config.segmenter.resolve().name)
    if found != {"revision": identity["segmenter"], "class": config.segmenter_class}:
        raise UserError(
            f"--quality {config.quality}: its scores are not of the network --segmenter "
            f"{config.segmenter}, loaded by the same --segmenter-class; leave --quality out, or "
            "run generation/score.py with this network"
        )
    looks = (stored_config(config.quality, RUN) or {}).get("looks")
    if config.looks and looks != identity["looks"]:
        raise UserError(
            f"--quality {config.quality}: its classifiers were not trained on --looks "
            f"{config.looks}; leave --quality out, or run generation/score.py with --looks"
        )


def check_rules(config: Config, *, is_rejecting: bool) -> None:
    """Raise `UserError` for rules that lack a network, or that reject nothing.

    `is_rejecting`: samples of --data have failed or are excluded.
    """
    has_rule = bool(config.reject_below or config.reject_attribute)
    if config.segmenter is None:
        for name in ("reject_below", "reject_attribute", "quality", "looks", "segmenter_class"):
            if getattr(config, name):
                raise UserError(
                    f"--{name.replace('_', '-')}: needs --segmenter, the network that measures "
                    "label fidelity; name its folder"
                )
    else:
        segmenters.class_for(config.segmenter, config.segmenter_class)
    if not has_rule and not is_rejecting:
        raise UserError(
            f"{config.data}: nothing in it is rejected; set --segmenter with --reject-below or "
            "--reject-attribute, or exclude samples in pipeline/browse.py"
        )
    if bool(config.reject_attribute) != bool(config.looks):
        raise UserError(
            "--reject-attribute, --looks: belong together; name the attribute and the dataset "
            "folder that its classifier is trained on"
        )


def run(config: Config, identity: dict[str, Any]) -> int:
    """Run all rounds, write the set and its summary; return the exit code."""
    record = config.output / "top_up.json"
    if record.exists() and not (config.output / "rounds").exists():
        return tell(config, read_json(record, dict))  # finished, then tidied up
    require_writable(config.output)
    with sole_writer(config.output):
        write_marker(config.output, RUN, identity)
        rounds = [first_round(config)]
        judge(config, rounds[0], rounds[0])
        while len(rounds) <= config.attempts and (rejected := rounds[-1].rejected()):
            rounds.append(next_round(config, rounds[-1], rejected))
            judge(config, rounds[-1], rounds[0])
        summary = finish(config, identity, rounds)
    return tell(config, summary)


def first_round(config: Config) -> Round:
    """Return round 0, of the original samples."""
    return round_of(config.output, 0, config.data, is_filtered=config.segmenter is not None)


def next_round(config: Config, last: Round, rejected: dict[int, Row]) -> Round:
    """Generate the rejected samples of a round again."""
    new = round_of(config.output, last.number + 1, config.data, is_filtered=bool(config.segmenter))
    run_program(
        config,
        f"round-{new.number}-generate",
        generation_words(config, last, new),
        lambda: rejected.keys() <= {int(key) for key in read_rows(new.data)},
    )
    return new


def generation_words(config: Config, last: Round, new: Round) -> list[str]:
    """Return the command that generates the rejected samples of a round again."""
    filtered = [last.filtered] if last.filtered and last.filtered.is_dir() else []
    folders = map(str, (last.data, *filtered))
    words = ["run.py", "--regenerate", *folders, "--output", str(new.data)]
    for name in PATHS:
        if moved := getattr(config, name):
            words += [f"--{name.replace('_', '-')}", moved]
    return words


def judge(config: Config, one: Round, original: Round) -> None:
    """Score and filter the samples of a round with the limits of the original ones."""
    if one.filtered is None or not one.can_be_judged():
        return
    filtered, name = one.filtered, f"round-{one.number}"
    if one.number or config.quality is None:
        done = (one.quality / "summary.json").exists
        run_program(config, f"{name}-score", scoring_words(config, one), done)
    words = filter_words(config, one, original)
    run_program(config, f"{name}-filter", words, (filtered / "filter.json").exists)


def scoring_words(config: Config, one: Round) -> list[str]:
    """Return the command that scores a round."""
    words = ["score.py", "--data", str(one.data), "--output", str(one.quality)]
    words += ["--segmenters", str(config.segmenter), "--batch-size", str(config.batch_size)]
    if config.segmenter_class:
        words += ["--segmenter-class", config.segmenter_class]
    if config.preset != "none":
        words += ["--costs"]
    if config.looks:
        words += ["--looks", str(config.looks), "--attributes", config.reject_attribute]
    return words


def filter_words(config: Config, one: Round, original: Round) -> list[str]:
    """Return the command that filters a round."""
    assert config.segmenter
    first = config.quality or original.quality
    words = ["filter.py", "--data", str(one.data), "--output", str(one.filtered)]
    words += ["--quality", str(one.quality if one.number else first)]
    if one.number:
        words += ["--calibration", str(first), "--calibration-data", str(config.data)]
    words += ["--segmenter", config.segmenter.resolve().name]
    for name in RULES:
        if (value := getattr(config, name)) != getattr(FilterRules(), name):
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def command_of(config: Config, words: Sequence[str]) -> list[str]:
    """Return the command line of a program of this folder and its arguments."""
    count = config.num_processes
    launcher = "python" if count == 1 else "accelerate"
    program, *arguments = words
    prefix = launch_prefix(launcher, count, has_accelerator())
    return [*prefix, str(ROOT / "generation" / program), *arguments]


def run_program(
    config: Config, name: str, words: Sequence[str], is_done: Callable[[], bool]
) -> None:
    """Run a program unless its result is there; raise `UserError` if it stops without one."""
    if is_done():
        return
    print(f"{name}: generation/{words[0]}", flush=True)
    log = config.output / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // config.num_processes)
    code, _ = forward(command_of(config, words), log, threads)
    if not is_done():
        raise UserError(
            f"{name}: generation/{words[0]} stopped with exit code {code}{complaint(log)}; its log "
            f"is {log}; fix the cause and repeat the command"
        )


def finish(config: Config, identity: dict[str, Any], rounds: Sequence[Round]) -> Row:
    """Write the set of all accepted samples and the summary; return the latter."""
    origin = {**kept_by_copies(config.data), RUN_OF_ORIGIN: read_record(config.data)}
    writer = DatasetWriter(config.output / "dataset", config=identity, provenance=origin)
    added = write_set(writer, rounds)
    summary = summary_of(read_rows(config.data), rounds, added)
    text = markdown_of(summary)
    write_card(writer.folder, "Generated street scenes, rejected samples generated again", text)
    files.write_bytes(config.output / "top_up.md", text.encode())
    files.write_json(config.output / "top_up.json", summary)
    return summary


def tell(config: Config, summary: Row) -> int:
    """Print how the top-up ended; return the exit code."""
    print(markdown_of(summary))
    print(f"{config.output / 'dataset'}: {summary['accepted']} of {summary['samples']} samples")
    missing = list(summary["missing"])
    if not missing:
        return 0
    way = "a larger --attempts goes on"
    if not (config.output / "rounds").exists():
        way = f"the rounds are deleted; to go on, give {config.output / 'dataset'} as --data"
    print(
        f"streetforge: {len(missing)} samples were rejected in every round "
        f"({', '.join(missing[:SHOWN_SAMPLES])}); {config.output / 'top_up.json'} lists them; "
        f"{way}",
        file=sys.stderr,
    )
    return EXIT_INCOMPLETE


def main() -> int | None:
    """Run the command line."""
    config, call = parse(Config, __doc__)
    identity = check_inputs(config)
    if call.dry_run:
        first = first_round(config)
        second = round_of(config.output, 1, config.data, is_filtered=bool(config.segmenter))
        if first.filtered is None:
            plan = [generation_words(config, first, second)]
        else:
            plan = [scoring_words(config, first)] if config.quality is None else []
            plan += [filter_words(config, first, first)]
            plan += [generation_words(config, first, second)]
            plan += [scoring_words(config, second), filter_words(config, second, first)]
        print(f"would run, then repeat the last ones up to {config.attempts} times in all:")
        for words in plan:
            print(f"  {shlex.join([f'generation/{words[0]}', *words[1:]])}")
        return 0
    signal.signal(signal.SIGTERM, stop_on_sigterm)
    return run(config, identity)


if __name__ == "__main__":
    guard(main)
