"""The summary of a scoring as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.markdown import code, plain

SHOWN_GROUPS, SHOWN_IDS = 10, 3  # of near-duplicates


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table; the first column is text, the others are numbers or None."""
    lines = ["| " + " | ".join(map(plain, head)) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for first, *others in rows:
        lines.append("| " + " | ".join([plain(first), *map(cell, others)]) + " |")
    return "\n".join(lines)


def cell(value: Any) -> str:
    """Return a number for a table, a dash for none."""
    if value is None:
        return "-"
    return f"{value:.1f}" if isinstance(value, float) else plain(value)


def markdown(summary: Mapping[str, Any]) -> str:
    """Return the whole summary as Markdown."""
    groups = {"all": summary["all"], **summary["conditions"]}
    parts = [f"# Quality of {code(summary['data'])}", plain(summary["warning"])]
    parts += [_statistics(groups), *_fidelity(summary, groups), *_attributes(summary, groups)]
    parts += _sets(summary)
    return "\n\n".join(parts) + "\n"


def _statistics(groups: Mapping[str, Any]) -> str:
    names = ("brightness", "contrast", "sharpness")
    rows = [[name, g["images"], *(g[n]["mean"] for n in names)] for name, g in groups.items()]
    return table(["images", "n", *names], rows)


def _fidelity(summary: Mapping[str, Any], groups: Mapping[str, Any]) -> list[str]:
    parts = []
    columns = {
        "mIoU %": "miou", "ceiling": "ceiling_miou", "share of it %": "share_of_ceiling",
        "band mIoU %": "band_miou", "band share %": "band_share_of_ceiling",
        "small objects found %": "small_recall",
    }  # fmt: skip
    by_class = {
        "IoU %": "iou", "ceiling": "ceiling_iou", "share of it %": "share_of_ceiling",
        "recall %": "recall", "band recall %": "band_recall",
        "small objects found %": "small_recall", "small objects": "small_objects",
    }  # fmt: skip
    for name, classes in summary["classes"].items():
        parts.append(f"## Labels under {code(name)}")
        if summary["source_images"]:
            parts.append(
                f"Ceiling: the same network on {summary['source_images']} source images. A share "
                "compares the classes that both have."
            )
        else:
            parts.append("No ceiling is known: pass source images by `--source`.")
        found = [(group, g["fidelity"][name]) for group, g in groups.items()]
        rows = [[group, *(f.get(key) for key in columns.values())] for group, f in found]
        parts.append(table(["images", *columns], rows))
        rows = [
            [c, *(scores.get(key) for key in by_class.values())] for c, scores in classes.items()
        ]
        parts.append(table(["class", *by_class], rows))
    return parts


def _attributes(summary: Mapping[str, Any], groups: Mapping[str, Any]) -> list[str]:
    heldout = summary.get("heldout", {})
    if not heldout:
        return []
    rows = [["held-out images", *(heldout[name]["top1"] for name in heldout)]]
    for group, summarised in groups.items():
        rows.append([group, *(summarised["attributes"][name]["accuracy"] for name in heldout)])
    head = ["images classified as their row states, %", *heldout]
    return ["## Attributes", table(head, rows)]


def _sets(summary: Mapping[str, Any]) -> list[str]:
    found = summary["duplicates"]
    parts = [
        "## Between images",
        f"{found['images']} images have a near-duplicate, in {found['groups']} groups.",
    ]
    if found["largest"]:
        rows = [
            [", ".join(map(str, group["ids"][:SHOWN_IDS])), group["images"]]
            for group in found["largest"][:SHOWN_GROUPS]
        ]
        parts.append(table(["largest groups of near-duplicates, by their first ids", "n"], rows))
    if known := {k: v for k, v in summary.get("diversity", {}).items() if v}:
        head = ["variety of one label map (1 - cosine)", "mean", "deviation", "label maps"]
        rows = [
            [name, f"{values['mean']:.3f}", f"{values['deviation']:.3f}", values["label_maps"]]
            for name, values in known.items()
        ]
        parts.append(table(head, rows))
    if known := {k: v for k, v in summary.get("distances", {}).items() if v}:
        columns = ("kernel", "kernel_deviation", "gaussian", "frechet", "precision", "recall")
        rows = [
            [name, f"{values['n'][1]} / {values['n'][0]}", *(f"{values[c]:g}" for c in columns)]
            for name, values in known.items()
        ]
        parts.append(table(["distance from the reference", "n / reference", *columns], rows))
    return parts
