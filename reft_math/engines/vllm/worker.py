"""vLLM's worker, extended: it edits the tokens of requests that ask for it, and measures divergences where logits are.

Given as ``worker_extension_cls`` vLLM mixes `ReftWorker` into its own worker; its methods are called by
``collective_rpc``. Nothing of vLLM's is replaced: the edits are forward hooks on the model's modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from vllm.distributed import get_pp_group, get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.distributed.communication_op import tensor_model_parallel_all_gather

from interventions.gates import Direction, kl_divergence
from reft_math.engines.vllm.edits import (
    LAYERS,
    MODULES,
    SLICED,
    Asked,
    KeptStates,
    Row,
    ShardedEdit,
    acting_tokens,
    apply,
    part_of,
)
from reft_math.errors import UserError
from reft_math.models.standalone import read_adapter

LOGIT_ROWS = 64  # rows of logits at a time: 32 MiB at 128,000 tokens in float32


class ReftWorker:
    """Methods added to vLLM's worker."""

    model_runner: Any
    vllm_config: Any

    def reft_load(self, name: str, source: str, revision: str | None = None) -> str | None:
        """Loads an adapter from a folder or the hub; returns why it cannot be, in one line."""
        try:
            self._reft().load(name, source, revision)
        except UserError as error:
            return str(error)
        return None

    def reft_divergences(
        self, measured: Sequence[tuple[str, str, int, int, Direction]]
    ) -> list[list[float] | None] | None:
        """Returns ``D_t`` in nats, and forgets what was kept for it; None from ranks that hold no logits.

        A draft's are None if the base found some of its tokens in the cache, where another request had left them: their
        states were not kept, and the draft has to be read once more, without the cache.

        Args:
            measured: For each draft its key, its verification's, the position of the token before its first, the
                number of its tokens, and the direction.
        """
        return self._reft().divergences(measured)

    def reft_forget(self, keys: Sequence[str]) -> None:
        """Forgets what was kept for requests that will not be verified."""
        for key in keys:
            self._reft().states.forget(key)

    def _reft(self) -> StepEdits:
        if not hasattr(self, "_reft_edits"):
            self._reft_edits = StepEdits(self.model_runner, self.vllm_config)
        return self._reft_edits


class StepEdits:
    """The hooks of one worker.

    Raises:
        UserError: vLLM runs in a way in which hooks do not act, or see other tokens than their requests'.
    """

    def __init__(self, runner: Any, config: Any) -> None:
        check_config(runner, config)
        self.runner, self.model = runner, runner.get_model()
        self.states = KeptStates()
        self.rank, self.ranks = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
        self.rows: list[Row] = []
        self.acting: dict[str, torch.Tensor] = {}
        self._edits: dict[tuple[str, int], dict[str, ShardedEdit]] = {}  # site and layer, then adapter
        self.model.register_forward_pre_hook(self._begin)
        self.model.register_forward_hook(self._end)

    def load(self, name: str, source: str, revision: str | None) -> None:
        config, interventions = read_adapter(source, revision)
        if config.site not in MODULES:
            raise UserError(
                f"the sites that vLLM's modules show are {', '.join(MODULES)}; the adapter is at {config.site}"
            )
        assert config.width is not None
        modules = {layer: self._module(config.site, layer) for layer in interventions}
        size = self.runner.model_config.get_hidden_size()
        columns = {
            layer: part_of(config.site, module, size, config.width, self.ranks) for layer, module in modules.items()
        }
        gather = partial(tensor_model_parallel_all_gather, dim=-1)
        for edits in self._edits.values():  # of an adapter that had the name before
            edits.pop(name, None)
        for layer, intervention in interventions.items():
            if hasattr(intervention, "rotate_layer"):  # the rotation, once: it is not trained here
                parametrize.remove_parametrizations(intervention.rotate_layer, "weight")
            edit = ShardedEdit(
                intervention.to(self.runner.device), self.rank, self.ranks, config.site in SLICED, gather
            )
            place = (config.site, layer)
            if place not in self._edits:
                self._edits[place] = {}
                hook = partial(self._edit, site=config.site, columns=columns[layer], edits=self._edits[place])
                modules[layer].register_forward_hook(hook)
            self._edits[place][name] = edit

    def _module(self, site: str, layer: int) -> nn.Module:
        path = f"model.layers.{layer}"
        try:
            block = self.model.get_submodule(path)
        except AttributeError:
            raise UserError(f"the adapter has a layer {layer}; {type(self.model).__name__} has no {path}") from None
        if type(block).__name__ not in LAYERS:
            raise UserError(
                f"adapters act in vLLM's layers of {', '.join(name.removesuffix('DecoderLayer') for name in LAYERS)};"
                f" this model has {type(block).__name__}"
            )
        return block.get_submodule(MODULES[site])  # type: ignore[no-any-return]

    def _edit(
        self, module: nn.Module, args: Any, output: Any, site: str, columns: slice, edits: dict[str, ShardedEdit]
    ) -> Any:
        return apply(output, site, columns, edits, self.acting) if self.acting else None

    def _begin(self, module: nn.Module, args: Any) -> None:
        self.rows = list(self._asked_rows())
        acting = acting_tokens(self.rows) if self.rows else {}
        self.acting = {name: index.to(self.runner.device) for name, index in acting.items()}

    def _end(self, module: nn.Module, args: Any, hidden: torch.Tensor) -> None:
        self.states.keep(self.rows, hidden)
        self.rows, self.acting = [], {}

    def _asked_rows(self) -> Sequence[Row]:
        batch = self.runner.input_batch
        starts = self.runner.query_start_loc.np
        rows = []
        for index, request_id in enumerate(batch.req_ids):
            params = self.runner.requests[request_id].sampling_params
            asked = (params.extra_args or {}).get("reft") if params is not None else None
            if isinstance(asked, dict):
                start, end = int(starts[index]), int(starts[index + 1])
                rows.append(Row(Asked(**asked), start, end - start, int(batch.num_computed_tokens_cpu[index])))
        return rows

    @torch.no_grad()
    def divergences(self, measured: Sequence[tuple[str, str, int, int, Direction]]) -> list[list[float] | None] | None:
        found: list[list[float] | None] = []
        for draft, verification, first, count, direction in measured:
            positions = range(first, first + count)
            if not self.states.has(verification, positions):
                self.states.forget(verification)
                found.append(None)
                continue
            mod, base = self.states.take(draft, positions), self.states.take(verification, positions)
            kl: list[float] = []
            for rows in torch.arange(count).split(LOGIT_ROWS):
                logits = [self.model.compute_logits(states[rows]) for states in (mod, base)]
                if logits[0] is not None:
                    kl += kl_divergence(logits[0], logits[1], direction).tolist()
            found.append(kl)
        return found if self.rank == 0 else None


def check_config(runner: Any, config: Any) -> None:
    """Raises `UserError` unless hooks see every forward pass and all of a request's tokens in it."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    is_parallel = config.parallel_config.data_parallel_size > 1
    refused = {
        "VLLM_USE_V2_MODEL_RUNNER=0: adapters act in vLLM's V1 model runner": not isinstance(runner, GPUModelRunner),
        "enforce_eager=True: compiled code and CUDA graphs leave adapters out": not config.model_config.enforce_eager,
        "pipeline_parallel_size=1": get_pp_group().world_size > 1,
        "data_parallel_size=1: a draft and its verification must meet in one engine": is_parallel,
        "no speculative decoding": config.speculative_config is not None,
        "no LoRA adapters": config.lora_config is not None,
    }
    for rule, is_broken in refused.items():
        if is_broken:
            raise UserError(f"a gate inside vLLM needs {rule}")
