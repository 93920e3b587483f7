"""Folders of transformers with values that no network has: one line each, no traceback."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    ViTConfig,
    ViTModel,
)

from generation.quality import features, score_rows
from pipeline.errors import UserError
from pipeline.transformers_folder import load_network
from pipeline.transformers_segmenter import TransformersSegmenter

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    ViTModel(ViTConfig(**SMALL)).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


@pytest.fixture
def segformer(tmp_path: Path) -> Path:
    config = SegformerConfig(
        hidden_sizes=[8] * 4, depths=[1] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8,
        id2label={0: "road", 1: "car"},
    )  # fmt: skip
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "segformer")
    return tmp_path / "segformer"


def change(path: Path, **values: object) -> None:
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, **values}))


def load(folder: Path):
    return load_network(AutoModel, folder, name=str(folder), what="vision model")


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_size": [16]}, {"image_size": "abc"}, {"hidden_act": ["a"]}, {"id2label": ["a"]},
        {"model_type": ["vit"]}, {"num_attention_heads": 0}, {"patch_size": 0},
    ],
)  # fmt: skip
def test_strange_values_are_one_line(values, vit):
    change(vit / "config.json", **values)
    with pytest.raises(UserError, match="is not a vision model .*save_pretrained") as found:
        load(vit)
    assert "\n" not in str(found.value)


def test_empty_weights_are_one_line(vit):
    (vit / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="is not a vision model"):
        load(vit)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight_map": {"a": "../other/model.safetensors"}, "metadata": {}}, "below the folder"),
        ({"weight_map": [], "metadata": {}}, "has no mappings"),
        ({"weight_map": {}, "metadata": []}, "has no mappings"),
    ],
)
def test_index_of_weights_stays_in_the_folder(values, message, vit):
    (vit / "model.safetensors").rename(vit / "model-1.safetensors")
    change(vit / "model.safetensors.index.json", **values)
    with pytest.raises(UserError, match=f"index.json: .*{message}"):
        load(vit)


def test_an_adapter_is_refused(vit):
    change(vit / "adapter_config.json", base_model_name_or_path="elsewhere")
    with pytest.raises(UserError, match="give the merged network"):
        load(vit)


def test_code_is_refused_in_a_network_within_a_network(vit):
    change(vit / "config.json", vision_config={"layers": [{"auto_map": {"AutoModel": "x.Y"}}]})
    with pytest.raises(UserError, match="auto_map asks for more than stock classes"):
        load(vit)


def test_a_text_model_gives_no_features(tmp_path):
    BertModel(BertConfig(vocab_size=9, **SMALL)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="gives no features of an image"):
        features.load(str(tmp_path), torch.device("cpu"))


def test_a_vision_model_gives_features_of_any_images(vit):
    extract = features.load(str(vit), torch.device("cpu"))
    images = [np.full((30, 60, 3), level, np.uint8) for level in (0, 200)]
    found = extract(images)
    assert found.shape == (2, SMALL["hidden_size"]) and not np.allclose(*found)


@pytest.mark.parametrize(
    "values",
    [
        {"image_mean": "abc"}, {"image_mean": [1, 2]}, {"image_mean": [0, 0, None]},
        {"image_std": {"a": 1}}, {"image_std": [0, 0, 0]}, {"image_std": [1, 1, True]},
    ],
)  # fmt: skip
def test_strange_normalisation_is_one_line(values, segformer):
    change(segformer / "preprocessor_config.json", **values)
    (name,) = values
    with pytest.raises(UserError, match=f"preprocessor_config.json: {name} must be three numbers"):
        TransformersSegmenter.from_pretrained(segformer)


def test_classes_have_the_numbers_from_0(segformer):
    change(segformer / "config.json", id2label={"0": "road", "5": "car"})
    with pytest.raises(UserError, match="must name the classes 0 to 1"):
        TransformersSegmenter.from_pretrained(segformer)


@pytest.mark.parametrize(
    ("array", "is_sound"),
    [
        (np.ones((2, 3), np.float32), True), (np.ones((2, 0), np.float32), False),
        (np.full((2, 3), np.nan, np.float32), False), (np.array([["a"], ["b"]]), False),
        (np.ones((3, 3), np.float32), False), (np.ones(2, np.float32), False),
    ],
)  # fmt: skip
def test_features_are_finite_numbers_of_all_samples(array, is_sound):
    assert score_rows._are_features(array, 2) is is_sound
