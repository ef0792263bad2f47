"""Shards a frozen base over processes by FSDP2, when ``accelerate launch`` requests it (``configs/fsdp2.yaml``).

Only the base is sharded. The trained part is small: it stays whole in every process and DDP averages its gradient, so
controllers, clipping, checkpoints and adapters work as in any other run. accelerate itself would shard both, and does
not support FSDP without an accelerator.
"""

from __future__ import annotations

import os

import torch
from accelerate.utils import FullyShardedDataParallelPlugin, parse_flag_from_env
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import distribute_tensor
from transformers import PreTrainedModel

from reft_math.commands.processes import process_state
from reft_math.errors import UserError

_SWITCH = "ACCELERATE_USE_FSDP"


def fsdp_requested() -> bool:
    """Returns whether the launcher asks for FSDP.

    Raises:
        UserError: It asks for settings that `shard` does not support.
    """
    if not parse_flag_from_env(_SWITCH):
        return False
    plugin = FullyShardedDataParallelPlugin()
    asked = {
        "num_processes": process_state().num_processes,
        "fsdp_version": plugin.fsdp_version,
        "fsdp_offload_params": parse_flag_from_env("FSDP_OFFLOAD_PARAMS"),
        "fsdp_activation_checkpointing": plugin.activation_checkpointing,
    }
    if asked["num_processes"] == 1 or list(asked.values())[1:] != [2, False, False]:
        raise UserError(
            "FSDP is version 2 over several processes, as configs/fsdp2.yaml has it, with --gradient-checkpointing to"
            f" recompute activations; got {', '.join(f'{name} {value}' for name, value in asked.items())}"
        )
    return True


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


@torch.no_grad()
def shard(model: PreTrainedModel) -> None:
    """Keeps 1/n of every weight on the device of each of n processes, and gathers a decoder layer while it runs.

    Embeddings, last norm and head stay gathered from a forward to its backward pass. From then on every process must
    run the model as often as the others.

    Args:
        model: Frozen model off the device; whole in the main process, possibly empty in the others (`load_model`).
    """
    state = process_state()
    weights, buffers = model.state_dict(), dict(model.named_buffers())
    model.to("meta")  # so that a device never holds more than its shares and the tensor being distributed
    model.tie_weights()
    reshard = FullyShardedDataParallelPlugin().reshard_after_forward
    for layer in [module for module in model.modules() if type(module).__name__ in model._no_split_modules]:
        fully_shard(layer, reshard_after_forward=reshard)
    fully_shard(model)
    model.to_empty(device=state.device)
    for name, share in model.named_parameters():
        whole = weights[name] if state.is_main_process else torch.empty(share.shape, dtype=share.dtype)
        share.copy_(distribute_tensor(whole.to(state.device), share.device_mesh, share.placements))
    for name, buffer in model.named_buffers():  # such as rotary frequencies, which no state dict holds
        if state.is_main_process:
            buffer.copy_(buffers[name])
        torch.distributed.broadcast(buffer, src=0)
    # accelerate and the trainer then only do plain data parallelism.
    os.environ[_SWITCH] = "false"
