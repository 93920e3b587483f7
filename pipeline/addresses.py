"""Addresses that fsspec opens, as `s3://bucket/set`: how they are spelt and opened."""

import re
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)")
EXTRAS = {"s3": "s3", "gs": "gs", "gcs": "gs"}


def address_of(path: str | Path) -> str | None:
    """Return the address that a path spells, None for a path of this machine.

    `pathlib` keeps one slash of the two in `s3://bucket`.
    """
    match = ADDRESS.fullmatch(str(path))
    return f"{match[1]}://{match[2]}" if match else None


def missing_folder(folder: str | Path, remedy: str, what: str = "folder") -> UserError:
    """Return what to say of a folder that is not there, or that is not on this machine."""
    if address := address_of(folder):
        return UserError(f"{address}: is an address; name a {what} of this machine")
    return UserError(f"{folder}: no such {what}; {remedy}")


def open_address(address: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path of the address in it.

    Raises `UserError` if the address is not valid, a package is missing, or the store refuses.

    Options of a file system are those of fsspec's own config files and variables, as
    `AWS_ENDPOINT_URL` or `FSSPEC_S3_ENDPOINT_URL`.
    """
    import fsspec

    scheme = address.partition("://")[0]
    try:
        if "::" in address:
            raise ValueError("chains of file systems are not read")
        return fsspec.url_to_fs(address)
    except ImportError as error:
        extra = EXTRAS.get(scheme)
        remedy = f"pip install -e '.[{extra}]'" if extra else "pip install what it names"
        raise UserError(f"{address}: {scheme}:// needs a package ({error}); {remedy}") from None
    except ValueError as error:
        raise UserError(f"{address}: {error}; use s3://, gs://, https:// or a path") from None
    except Exception as error:  # some clients connect at once
        raise store_failure(address, "opened", error) from None


def store_failure(address: str, what: str, error: Exception) -> UserError:
    """Return what to say of an error of a store's client; `what` could not be done."""
    reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return UserError(
        f"{address}: cannot be {what} ({reason.splitlines()[0]}); check the address, your "
        "credentials and the connection"
    )
