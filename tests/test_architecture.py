"""The rules of the code base: who imports whom, what may stand where, how large things grow."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pipeline", "finetune", "generation", "segtrain")
SOURCES = sorted(p for name in PACKAGES for p in (ROOT / name).rglob("*.py"))
PROLOGUE = ast.dump(
    ast.parse(
        "if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):\n"
        "    sys.path[0] = str(Path(__file__).resolve().parent.parent)\n"
    ).body[0]
)


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def guards_main(tree: ast.Module) -> bool:
    """Tell whether the module runs `guard(main)` under `__main__`."""
    last = tree.body[-1] if tree.body else None
    return isinstance(last, ast.If) and "__main__" in ast.dump(last.test)


def imported_modules(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports fail in files run by path"
            names.add(node.module or "")
    return names


ENTRIES = [p for p in SOURCES if p.name != "__main__.py" and guards_main(tree_of(p))]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_stages_import_only_themselves_and_pipeline(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    allowed = {package, "pipeline"}
    ours = {n.partition(".")[0] for n in imported_modules(tree_of(path))} & set(PACKAGES)
    assert ours <= allowed, f"{name_of(path)} imports {sorted(ours - allowed)}"


MMSEG_USERS = {
    "segtrain/latent_regression.py",
    "segtrain/registry.py", "segtrain/mmcv_stand_in.py", "segtrain/heads.py", "segtrain/recipes.py",
    "segtrain/transforms.py", "segtrain/self_training.py", "segtrain/segmenter.py",
    "segtrain/export.py", "segtrain/import_network.py", "segtrain/diffusion/segmentor.py",
    "segtrain/pretrained.py", "segtrain/generalization/segmentor.py",
    "segtrain/generalization/hrda.py",
}  # fmt: skip


def test_diffusion_features_know_nothing_of_mmsegmentation() -> None:
    """Everything that makes features of a diffusion model works without mmsegmentation."""
    users = {
        name_of(path)
        for path in SOURCES
        for name in imported_modules(tree_of(path))
        if name.partition(".")[0] in ("mmcv", "mmengine", "mmseg")
    }
    assert users <= MMSEG_USERS, sorted(users - MMSEG_USERS)
    free = [p for p in (ROOT / "segtrain/diffusion").glob("*.py") if p.stem != "segmentor"]
    for path in free:
        ours = {n for n in imported_modules(tree_of(path)) if n.startswith("segtrain.")}
        assert all(name.startswith("segtrain.diffusion.") for name in ours), name_of(path)
        assert "segtrain.diffusion.segmentor" not in ours, name_of(path)


# Rooms, and who may look into them from outside. All else of a package is open to its package,
# and the top of `pipeline/` to everybody.
ROOMS: dict[str, set[str]] = {
    "pipeline/catalogue": {
        "pipeline/download.py", "pipeline/origins.py", "pipeline/prepare.py",
        "pipeline/preflight.py", "segtrain/protocol.py",
    },
    "pipeline/browsing": {"pipeline/browse.py"},
    "pipeline/exports": {"pipeline/export.py", "pipeline/prepare.py", "pipeline/release.py"},
    "pipeline/reporting": {"pipeline/report.py", "pipeline/browsing/index.py"},
    "pipeline/image_files": {"pipeline/images.py"},
    "pipeline/pocket": {"pipeline/pocket_city.py"},
    "generation/sampler": {
        "generation/run.py", "generation/worker.py", "generation/street_pipeline.py",
    },
    "segtrain/backbones": {"segtrain/pretrained.py", "segtrain/registry.py"},
    "segtrain/diffusion": {"segtrain/registry.py", "segtrain/visualise.py"},
    "segtrain/evaluation": {"segtrain/score.py", "segtrain/compare.py", "segtrain/stress_test.py"},
    "segtrain/generalization": {"segtrain/registry.py"},
    "finetune/tasks": {
        "finetune/unet.py", "finetune/controlnet.py", "finetune/prior.py", "finetune/vae.py",
        "finetune/backbone.py",
    },
}  # fmt: skip
# Files that may import torch and its kind at the top: these rooms and files. All others come
# without it, so that help, dry runs and errors in settings take a second.
TORCH_ROOMS = (
    "generation/sampler",
    "generation/quality",
    "segtrain/backbones",
    "segtrain/diffusion",
    "segtrain/generalization",
    "finetune/tasks",
)
TORCH_FILES = {
    "finetune/autoencoder.py", "finetune/averages.py", "finetune/base_model.py",
    "finetune/cache.py", "finetune/data.py", "finetune/denoised_latents.py",
    "finetune/diffusion.py", "finetune/loop.py", "finetune/losses.py",
    "finetune/previews.py", "finetune/strategies.py", "finetune/tokenizer.py",
    "generation/pipeline_inputs.py", "generation/street_pipeline.py",
    "pipeline/averages.py",
    "pipeline/checkpoint_files.py", "pipeline/checkpoints.py", "pipeline/efficientnet.py",
    "pipeline/runs.py", "pipeline/segmentation_head.py", "pipeline/transformers_segmenter.py",
    "segtrain/adaptation.py",
    "segtrain/heads.py", "segtrain/loop.py", "segtrain/losses.py", "segtrain/registry.py",
    "segtrain/segmenter.py", "segtrain/self_training.py", "segtrain/transforms.py",
    "segtrain/weight_average.py", "segtrain/latent_regression.py",
}  # fmt: skip
TORCH = {"torch", "diffusers", "transformers", "accelerate", "peft", "mmseg", "mmengine", "mmcv"}


def imported_at_the_top(tree: ast.Module) -> set[str]:
    """Return what importing the module imports; not what its functions or type checkers do."""
    body = ast.Module([], [])
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            body.body.append(node)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)
    return imported_names(body)


def imported_names(tree: ast.Module) -> set[str]:
    """Return imported modules and, of `from a import b`, `a.b` too, which may be a module."""
    names = imported_modules(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in SOURCES
}
IMPORTS = {
    name_of(path): {name_of(FILES[n]) for n in imported_names(tree_of(path)) & set(FILES)}
    for path in SOURCES
}


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_are_entered_by_their_programs_alone(room: str) -> None:
    assert (ROOT / room).is_dir()
    guests = {
        name
        for name, targets in IMPORTS.items()
        if not name.startswith(f"{room}/")
        and any(t.startswith(f"{room}/") and not t.endswith("__init__.py") for t in targets)
    }
    assert guests <= ROOMS[room], sorted(guests - ROOMS[room])


def test_imports_form_no_circle() -> None:
    """Not even through imports inside functions."""
    left = {name: set(targets) - {name} for name, targets in IMPORTS.items()}
    while leaves := {name for name, targets in left.items() if not targets}:
        left = {name: targets - leaves for name, targets in left.items() if name not in leaves}
    assert not left, sorted(left)


def test_nothing_imports_a_program_but_for_its_parts() -> None:
    """A program may share a function with another one until a third needs it."""
    known = {
        ("pipeline/prepare.py", "pipeline/preflight.py"),
        ("generation/sampler/structure_control.py", "pipeline/convert_weights.py"),
    }
    programs = {name_of(path) for path in ENTRIES}
    found = {(name, t) for name, targets in IMPORTS.items() for t in targets & programs}
    assert found <= known, sorted(found - known)


def test_torch_is_imported_in_its_rooms_alone() -> None:
    top = {name_of(path): imported_at_the_top(tree_of(path)) for path in SOURCES}
    with_torch = {n for n, found in top.items() if {m.partition(".")[0] for m in found} & TORCH}
    outside = {n for n in with_torch if not n.startswith(TORCH_ROOMS)}
    assert outside <= TORCH_FILES, sorted(outside - TORCH_FILES)
    assert not {name_of(path) for path in ENTRIES} & with_torch
    for name in sorted(set(top) - with_torch):
        through = {name_of(FILES[m]) for m in top[name] & set(FILES)} & with_torch
        assert not through, f"{name} imports torch through {sorted(through)}"


def names_in(body: list[ast.stmt]) -> tuple[set[str], set[str]]:
    """Return the names that statements of a module define, and those that they import."""
    defined: set[str] = set()
    imported: set[str] = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imported |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.If | ast.Try | ast.For | ast.With):
            inner = [*node.body, *getattr(node, "orelse", []), *getattr(node, "finalbody", [])]
            inner += [line for handler in getattr(node, "handlers", []) for line in handler.body]
            more = names_in(inner)
            defined, imported = defined | more[0], imported | more[1]
        else:
            stored = (n for n in ast.walk(node) if isinstance(n, ast.Name))
            defined |= {n.id for n in stored if isinstance(n.ctx, ast.Store)}
    return defined, imported


NAMES = {module: names_in(tree_of(path).body) for module, path in FILES.items()}
IMPORTERS = [*SOURCES, *sorted((ROOT / "benchmarks").glob("*.py")),
             *sorted((ROOT / "experiments").glob("*.py"))]  # fmt: skip


@pytest.mark.parametrize("path", IMPORTERS, ids=name_of)
def test_names_are_imported_from_the_module_that_defines_them(path: Path) -> None:
    """No module hands on what it imported itself, by `from m import name` or as `m.name`."""
    tree = tree_of(path)
    modules, strange = {}, []
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom):
            continue
        for alias in node.names:
            if (whole := f"{node.module}.{alias.name}") in FILES:
                modules[alias.asname or alias.name] = whole
            elif node.module in FILES and alias.name not in NAMES[node.module][0]:
                strange.append(f"line {node.lineno}: {whole}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            defined, imported = NAMES.get(modules.get(node.value.id, ""), (set(), set()))
            is_read = isinstance(node.ctx, ast.Load)  # benchmarks replace functions in a module
            if is_read and node.attr in imported - defined:
                strange.append(f"line {node.lineno}: {modules[node.value.id]}.{node.attr}")
    assert not strange, strange


# Where a run of generation is put together. All else takes values or small groups of settings.
TAKE_ALL_SETTINGS = {
    "generation/run.py", "generation/inputs.py", "generation/card.py", "generation/dry_run.py",
    "generation/worker.py", "generation/regeneration.py", "generation/tar_output.py",
    "generation/ray_workers.py",
    "generation/street_pipeline.py", "generation/sampler/networks.py",
    "generation/sampler/precision.py", "generation/sampler/sampler.py",
}  # fmt: skip


def test_settings_of_generation_stop_where_a_run_is_put_together() -> None:
    users = {
        name_of(path)
        for path in SOURCES
        if "generation.settings.Config" in imported_names(tree_of(path))
    }
    assert users == TAKE_ALL_SETTINGS, sorted(users ^ TAKE_ALL_SETTINGS)


def test_datasets_folder_holds_no_python() -> None:
    assert not list((ROOT / "datasets").rglob("*.py")), "it would hide Hugging Face `datasets`"


def test_entry_files_are_found() -> None:
    names = {name_of(p) for p in ENTRIES}
    assert {"pipeline/run.py", "pipeline/doctor.py", "pipeline/report.py"} <= names


@pytest.mark.parametrize("path", ENTRIES, ids=name_of)
def test_entry_files_carry_the_prologue_before_our_imports(path: Path) -> None:
    body = tree_of(path).body
    places = [i for i, node in enumerate(body) if ast.dump(node) == PROLOGUE]
    assert len(places) == 1, "every file that is run by path carries the same prologue once"
    before = imported_modules(ast.Module(body[: places[0]], []))
    early = {n.partition(".")[0] for n in before} & set(PACKAGES)
    assert not early, f"{sorted(early)} imported before the prologue"
    assert ast.unparse(body[-1]) == "if __name__ == '__main__':\n    guard(main)"


@pytest.mark.parametrize("path", [p for p in SOURCES if p not in ENTRIES], ids=name_of)
def test_nobody_else_touches_sys_path(path: Path) -> None:
    touched = [
        node
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path"
    ]
    assert not touched


MAX_FILE_LINES, USUAL_FILE_LINES = 400, 300
MAX_FUNCTION_LINES, USUAL_FUNCTION_LINES = 60, 45


def functions_of(tree: ast.Module) -> list[tuple[str, int]]:
    """Return name and lines of every function."""
    return [
        (node.name, (node.end_lineno or 0) - node.lineno + 1)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_sizes_stay_small(path: Path) -> None:
    assert path.read_text().count("\n") <= MAX_FILE_LINES, "split the file"
    for name, lines in functions_of(tree_of(path)):
        assert lines <= MAX_FUNCTION_LINES, f"{name} has {lines} lines"


def test_long_files_and_functions_stay_rare() -> None:
    """A few may be long, where splitting would tear a table or an algorithm apart."""
    files = [path.read_text().count("\n") for path in SOURCES]
    assert sum(lines > USUAL_FILE_LINES for lines in files) <= 0.08 * len(files)
    lengths = [lines for path in SOURCES for _, lines in functions_of(tree_of(path))]
    assert sum(lines > USUAL_FUNCTION_LINES for lines in lengths) <= 0.01 * len(lengths)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_modules_are_ascii_and_documented(path: Path) -> None:
    text = path.read_text()
    assert text.isascii()
    assert ast.get_docstring(tree_of(path)) or not text.strip()


def test_image_files_are_opened_by_one_reader() -> None:
    """So every program sees the same pixels, and none opens a pipe, a bomb or a cut file.

    `pipeline/image_files/jpeg.py` decodes for that reader, to hear what the decoder says.
    """
    decoders = {"Image.open", "cv2.imread", "cv2.imdecode", "mmcv.imread", "imageio.imread"}
    found = {
        name_of(path)
        for path in SOURCES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in decoders
    }
    assert found == {"pipeline/images.py", "pipeline/image_files/jpeg.py"}
