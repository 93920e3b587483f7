"""Weights spread over two processes by FSDP train and resume to the same bits as copies do."""

import shutil

# accelerate offers FSDP on GPUs only; here two CPU processes are passed off as GPU processes.
AS_GPUS = """
import os, runpy, sys
from accelerate.state import PartialState
from accelerate.utils import DistributedType
start = PartialState.__init__
def start_as_gpus(self, *arguments, **options):
    start(self, *arguments, **options)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU
PartialState.__init__ = start_as_gpus
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "BasicTransformerBlock",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


def test_spread_weights_equal_copies(
    run_program, same_weights, family_base, tiny_dataset, tmp_path
):
    (tmp_path / "as_gpus.py").write_text(AS_GPUS)
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--")
    command = (
        "finetune/unet.py", "--data", tiny_dataset(n=3), "--base", family_base("sdxl"),
        "--crop.size-px", "32", "64", "--crop.scales", "0.5", "--training.steps", "4",
        "--training.checkpoint-interval", "2", "--training.learning-rate", "1e-3",
        "--training.clip-norm", "1e6",  # norms of shards add up in another order
    )  # fmt: skip
    copies, spread = tmp_path / "copies", tmp_path / "spread"
    run_program(*launch, *command, "--output", copies)
    run_program(*launch, tmp_path / "as_gpus.py", *command, "--output", spread, **FSDP)
    assert same_weights(copies / "unet", spread / "unet")
    for path in ("checkpoints/step-00000004", "unet"):
        shutil.rmtree(spread / path)
    (spread / "finished.json").unlink()
    run_program(*launch, tmp_path / "as_gpus.py", *command, "--output", spread, **FSDP)
    assert same_weights(copies / "unet", spread / "unet")
    refused = run_program(
        *launch, tmp_path / "as_gpus.py", *command, "--training.ema-decay", "0.9", "--output",
        tmp_path / "averaged", check=False, **FSDP,
    )  # fmt: skip
    assert "set it to 0 with FSDP" in refused.stderr
