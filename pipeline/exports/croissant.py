"""Croissant 1.0: metadata of a released set as JSON-LD, for catalogues and for `mlcroissant`.

The format: docs.mlcommons.org/croissant. Files are named relative to croissant.json, with the
hashes of SHA256SUMS.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.exports.job import TEXTS

CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
KINDS = {
    ".tar": "application/x-tar", ".parquet": "application/x-parquet", ".json": "application/json",
    ".jsonl": "application/jsonlines", ".md": "text/markdown", ".png": "image/png",
    ".jpg": "image/jpeg", ".jpeg": "image/jpeg",
}  # fmt: skip


def describe(
    fields: Mapping[str, str],
    sums: Mapping[str, str],
    sizes: Mapping[str, int],
    suffixes: Sequence[str],
) -> dict[str, Any]:
    """Return the JSON-LD of a release.

    `fields`: name, description, licence, version, url, cite_as, date. `sums`, `sizes`: SHA-256 and
    bytes of the files to list by name. `suffixes`: those of the images.
    """
    files = [_file(name, digest, sizes[name]) for name, digest in sums.items()]
    shards = [name for name in sums if name.startswith("webdataset/")]
    tables = [name for name in sums if name.startswith("parquet/")]
    sets, records = [], []
    if shards:
        sets += [_members("images", [f"*.image{suffix}" for suffix in suffixes], shards)]
        sets += [_members("labels", ["*.label.png"], shards)]
        records += [_pixels("images"), _pixels("labels"), _rows("metadata.jsonl")]
    if tables:
        sets.append(
            {
                "@type": "cr:FileSet",
                "@id": "parquet-files",
                "name": "parquet-files",
                "encodingFormat": "application/x-parquet",
                "includes": "parquet/data/*.parquet",
            }
        )
        records.append(_table())
    found = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": fields["name"],
        "description": fields["description"],
        "license": fields["licence"],
        "version": fields["version"],
        "url": fields["url"],
        "citeAs": fields["cite_as"],
        "distribution": [*files, *sets],
        "recordSet": records,
    }
    return found | ({"datePublished": fields["date"]} if fields["date"] else {})


def _file(name: str, digest: str, num_bytes: int) -> dict[str, Any]:
    suffix = "." + name.rpartition(".")[2]
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "contentSize": f"{num_bytes} B",
        "encodingFormat": KINDS.get(suffix, "application/octet-stream"),
        "sha256": digest,
    }


def _members(name: str, patterns: list[str], shards: list[str]) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": f"{name}-files",
        "name": f"{name}-files",
        "containedIn": [{"@id": shard} for shard in shards],
        "encodingFormat": KINDS["." + patterns[0].rpartition(".")[2]],
        "includes": patterns if len(patterns) > 1 else patterns[0],
    }


def _pixels(name: str) -> dict[str, Any]:
    """Return the record set of the images, or of the labels: key and pixels."""
    kind = name.removesuffix("s")
    source = {"fileSet": {"@id": f"{name}-files"}}
    pattern = rf"^(?:.*/)?([A-Za-z0-9_-]+)\.{kind}\.[a-z]+$"
    key = {**source, "extract": {"fileProperty": "filename"}, "transform": {"regex": pattern}}
    pixels = {**source, "extract": {"fileProperty": "content"}}
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "key": {"@id": f"{name}/id"},
        "field": [
            _field(f"{name}/id", "sc:Text", key),
            _field(f"{name}/{kind}", "sc:ImageObject", pixels),
        ],
    }


def _rows(name: str) -> dict[str, Any]:
    """Return the record set of metadata.jsonl: what is said of each sample."""
    columns = {"image_file_name": "sc:Text", "height": "sc:Integer",
               "width": "sc:Integer", "image_sha256": "sc:Text"}  # fmt: skip
    fields = [
        _field(f"rows/{c}", kind, {"fileObject": {"@id": name}, "extract": {"column": c}})
        for c, kind in columns.items()
    ]
    return {"@type": "cr:RecordSet", "@id": "rows", "name": "rows", "field": fields}


def _table() -> dict[str, Any]:
    kinds = {name: "sc:Text" for name in (*TEXTS, "attributes")}
    kinds |= {"height": "sc:Integer", "width": "sc:Integer"}
    fields = [
        _field(f"table/{c}", kind, {"fileSet": {"@id": "parquet-files"}, "extract": {"column": c}})
        for c, kind in kinds.items()
    ]
    for name in ("image", "label"):
        source = {"fileSet": {"@id": "parquet-files"}, "extract": {"column": name}}
        source["transform"] = {"jsonPath": "bytes"}
        fields.append(_field(f"table/{name}", "sc:ImageObject", source))
    return {"@type": "cr:RecordSet", "@id": "table", "name": "table", "field": fields}


def _field(name: str, kind: str, source: dict[str, Any]) -> dict[str, Any]:
    return {"@type": "cr:Field", "@id": name, "name": name, "dataType": kind, "source": source}
