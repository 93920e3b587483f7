"""The link to mmsegmentation: importing this module registers our parts with it.

A recipe reaches it through `custom_imports`.
"""

from collections.abc import Sequence
from typing import Any

from pipeline.errors import UserError
from segtrain.mmcv_stand_in import install_stand_in


def import_mmsegmentation() -> None:
    """Import mmsegmentation and fill its registries. Safe to call again."""
    try:
        import mmcv  # noqa: F401
        import mmengine  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"segtrain needs mmsegmentation ({error}); pip install mmsegmentation==1.2.2 "
            "mmengine==0.10.7 mmcv-lite==2.1.0 ftfy regex"
        ) from None
    install_stand_in()
    from mmseg.utils import register_all_modules

    register_all_modules(init_default_scope=False)


import_mmsegmentation()

from mmseg.datasets import BaseSegDataset  # noqa: E402
from mmseg.registry import DATASETS, MODELS, TRANSFORMS  # noqa: E402

from pipeline import labels  # noqa: E402
from pipeline.dataset import open_dataset  # noqa: E402
from segtrain.backbones.efficientnet import EfficientNetBackbone  # noqa: E402
from segtrain.backbones.foundation import FoundationBackbone  # noqa: E402
from segtrain.diffusion.backbone import DiffusionBackbone  # noqa: E402
from segtrain.diffusion.segmentor import DiffusionSegmentor  # noqa: E402
from segtrain.generalization.hrda import HRDASegmentor  # noqa: E402
from segtrain.generalization.segmentor import Segmentor  # noqa: E402
from segtrain.heads import DAFormerHead, DeepLabV2Head, Mask2FormerHead  # noqa: E402
from segtrain.latent_regression import LatentRegressionHead  # noqa: E402
from segtrain.transforms import Resize, prepare, with_reader  # noqa: E402

PARTS = (
    DAFormerHead,
    DeepLabV2Head,
    DiffusionBackbone,
    DiffusionSegmentor,
    EfficientNetBackbone,
    FoundationBackbone,
    HRDASegmentor,
    LatentRegressionHead,
    Mask2FormerHead,
    Segmentor,
)
for part in PARTS:
    MODELS.register_module(name=f"Streetforge{part.__name__}", module=part, force=True)
TRANSFORMS.register_module(name="StreetforgeResize", module=Resize, force=True)


@DATASETS.register_module(force=True)
class StreetforgeDataset(BaseSegDataset):
    """A labelled dataset folder of the contract (`pipeline.dataset`), named by `data_root`.

    `scale_factor`: the scale at which objects of this set appear, for the `StreetforgeResize` of
    the pipeline; None leaves the pipeline's own.
    """

    METAINFO = {"classes": labels.CLASS_NAMES, "palette": labels.PALETTE.tolist()}

    def __init__(
        self, *, pipeline: Sequence[Any] = (), scale_factor: Any = None, **options: Any
    ) -> None:
        options.setdefault("data_prefix", {})
        options["pipeline"] = with_reader(prepare(pipeline, scale_factor))
        super().__init__(**options)

    def load_data_list(self) -> list[dict[str, Any]]:
        """List the folder's finished samples in id order, as mmsegmentation wants them."""
        return [
            {
                "img_path": str(sample.image),
                "seg_map_path": str(sample.label),
                "label_map": self.label_map,
                "reduce_zero_label": False,
                "seg_fields": [],
                "sample_id": sample.id,
                "condition": str(sample.row.get("condition", "")),
            }
            for sample in open_dataset(self.data_root, labelled=True)
        ]
