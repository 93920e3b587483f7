"""The network of a folder of transformers, in which no weight is random.

transformers fills tensors that a file lacks with random numbers, drops those that the network does
not have, and reports both by a warning. Here they are errors that name the first three.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.model_files import require_stock_classes
from pipeline.paths import check_relative
from pipeline.reading import read_json, shortened

SHOWN = 3  # mismatches in a message
UNUSED = ("mask_token", "num_batches_tracked")  # do not change what a trained network computes


def load_network(
    kind: Any,
    folder: str | Path,
    *,
    name: str,
    what: str,
    model_type: str = "",
    exact: bool = False,
) -> Any:
    """Return the network of `folder` by its class or an auto class of transformers, in float32.

    `name` (the file or setting) and `what` (such as "vision model") are for messages.
    `model_type`: the one that config.json must state; empty for any. `exact`: tensors that the
    network does not have are errors too; a head beside a backbone is one. Raises `UserError`
    unless the weights fill the whole network.
    """
    path = Path(folder) / "config.json"
    require_stock_classes(folder)
    _require_own_weights(Path(folder))
    if model_type and path.is_file():
        found = read_json(path, dict).get("model_type")
        if found != model_type:
            shown = shortened(repr(found), 60)
            raise UserError(
                f"{name}: config.json states the model_type {shown}, needed is {model_type!r}; "
                "give weights of that architecture"
            )
    try:
        with _without_report():
            network, report = kind.from_pretrained(
                str(folder),
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype="float32",
                ignore_mismatched_sizes=True,  # they are errors below, with their names
                output_loading_info=True,
            )
    except Exception as error:  # a config of strange values raises all kinds
        reason = shortened(" ".join(str(error).split()) or type(error).__name__)
        raise UserError(
            f"{name}: is not a {what} ({reason}); give a folder that save_pretrained of "
            "transformers wrote"
        ) from None
    wrong = _mismatches(report, exact)
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise UserError(
            f"{name}: its weights do not fit the {what} of its config.json "
            f"({'; '.join(wrong[:SHOWN])}{more}); give weights and config of one whole model"
        )
    return network


def _require_own_weights(folder: Path) -> None:
    """Raise `UserError` for weights that come from, or through, anything but the folder's files."""
    adapter, index = folder / "adapter_config.json", folder / "model.safetensors.index.json"
    if adapter.is_file():
        raise UserError(f"{adapter}: makes the folder an adapter; give the merged network")
    if not index.is_file():
        return
    record = read_json(index, dict)
    if not all(isinstance(record.get(key), dict) for key in ("weight_map", "metadata")):
        raise UserError(f"{index}: has no mappings weight_map and metadata; fetch it again")
    for name in record["weight_map"].values():
        try:
            check_relative(name)
        except ValueError as error:
            raise UserError(f"{index}: a file of weights {error}; fetch it again") from None


def _mismatches(report: dict[str, Any], exact: bool) -> list[str]:
    """Return a phrase per tensor of a loading report that is not what the network needs."""
    shapes = {name: f"{name} is {list(has)}, expected {list(wants)}"
              for name, has, wants in report["mismatched_keys"]}  # fmt: skip
    missing = {name for name in report["missing_keys"] if name.rpartition(".")[2] not in UNUSED}
    return [
        *(f"{name} is missing" for name in sorted(missing - set(shapes))),
        *(shapes[name] for name in sorted(shapes)),
        *(f"{name} is unexpected" for name in sorted(report["unexpected_keys"]) if exact),
    ]


@contextlib.contextmanager
def _without_report() -> Iterator[None]:
    """Keep transformers from printing the report: what is wrong in it becomes one line."""
    logger = logging.getLogger("transformers.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
