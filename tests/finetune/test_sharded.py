"""Weights spread over two processes by FSDP train and resume to the same bits as copies do."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

from finetune.strategies import ParameterGroup, ShardedStrategy
from pipeline.errors import UserError

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


@pytest.fixture
def mesh(tmp_path):
    """One process that stands for all."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def strategy(folder, others: float = 1.0) -> ShardedStrategy:
    """A strategy whose other processes found gradients that are finite (1) or not (0)."""
    found = ShardedStrategy.__new__(ShardedStrategy)
    found.folder = folder
    found.accelerator = SimpleNamespace(
        scaler=None, device=torch.device("cpu"), reduce=lambda own, kind: (own + others) / 2
    )
    return found


def test_spread_gradients_that_are_not_finite_stop_the_run(mesh, tmp_path):
    weight = torch.nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)]))
    weight.grad = distribute_tensor(torch.tensor([1.0, 2.0, float("nan"), 4.0]), mesh, [Shard(0)])
    norm = torch.nn.utils.clip_grad_norm_([weight], 1.0)
    with pytest.raises(UserError, match="the gradient norm is nan; no update was made"):
        strategy(tmp_path).check_norm(norm, 3)


def test_a_spread_network_beside_is_left_out_if_any_part_is_not_finite(mesh, tmp_path):
    for others, value, dropped in ((1, 2.0, False), (1, float("inf"), True), (0, 2.0, True)):
        weight = torch.nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)]))
        weight.grad = distribute_tensor(torch.full((4,), value), mesh, [Shard(0)])
        group = ParameterGroup([weight])
        assert strategy(tmp_path, others).drop_unless_finite(group) == dropped
        assert (weight.grad is None) == dropped
