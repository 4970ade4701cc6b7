"""FocuSFT in TRL's SFTTrainer: change the class, keep everything else.

Written for trl 1.14 to 1.16.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from trl import SFTTrainer

from focusft.errors import ConfigError
from focusft.method.config import FocusConfig
from focusft.method.engine import FocusEngine
from focusft.method.inner_loop import InnerTrace, NonFiniteLossError, mean_losses
from focusft.training.parallelism import refuse_data_parallel, refuse_parallelism


class FocuSFTSFTTrainer(SFTTrainer):
    """TRL's SFTTrainer whose training steps run the inner loop (arXiv 2605.09932, algorithm 1).

    Data, collator, PEFT, evaluation and saving are TRL's. The turns are read from the labels:
    runs of -100 are context. Training logs get `inner_loss_0`, `inner_loss_1`, ... in place of
    TRL's entropy and token accuracy, which would need all logits.
    """

    def __init__(self, *args: Any, focus_config: FocusConfig | None = None, **kwargs: Any) -> None:
        """Set up TRL's trainer and attach FocuSFT to its model.

        Args:
            args: As for `trl.SFTTrainer`.
            focus_config: Options of the method; the published settings by default.
            kwargs: As for `trl.SFTTrainer`.

        Raises:
            ConfigError: An option of TRL asks for another loss, or for a parallelism that the
                method does not cover.
            UnsupportedModelError: The model has a part that the method does not cover.
        """
        super().__init__(*args, **kwargs)
        _refuse_other_losses(self)
        refuse_data_parallel(self.args.n_gpu)
        refuse_parallelism(self.accelerator)
        model: Any = self.model
        self.engine = FocusEngine(model, focus_config or FocusConfig())
        # One process that stops alone would leave the others waiting.
        self.engine.stops_on_non_finite = self.args.world_size == 1
        self._traces: list[InnerTrace] = []

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The outer loss in training, TRL's own in evaluation."""
        is_stock = self.engine.attention_backend == "stock"
        if is_stock or return_outputs or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self.engine.step = self.state.global_step
        loss = model(**inputs, num_items_in_batch=num_items_in_batch).loss
        if self.engine.trace is not None:
            self._traces.append(self.engine.trace)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # DDP averages gradients over ranks; the number counts the tokens of all of them.
            loss = loss * self.accelerator.num_processes
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        # All processes have the same norm, and stop together. With fp16 an overflow is part of the
        # search for the loss scale.
        if self.accelerator.scaler is None and not math.isfinite(float(norm)):
            raise NonFiniteLossError(
                f"step {self.state.global_step + 1}: the gradient norm is {float(norm)}; lower "
                "learning_rate or inner_lr, or set inner_step=backtracking"
            )
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the inner losses since the last line."""
        traces = [trace for trace in self._traces if trace.has_targets.any()]
        if "loss" in logs and traces:
            self._traces = []
            means = enumerate(mean_losses(traces))
            logs = {**logs, **{f"inner_loss_{step}": mean for step, mean in means}}
        super().log(logs, start_time)


def _refuse_other_losses(trainer: SFTTrainer) -> None:
    args: Any = trainer.args
    if args.loss_type != "nll":
        raise ConfigError(f"loss_type: {args.loss_type!r} is not defined for FocuSFT; use 'nll'")
    if args.label_smoothing_factor > 0:
        raise ConfigError("label_smoothing_factor: not defined for FocuSFT; set it to 0")
    if trainer.compute_loss_func is not None:
        raise ConfigError("compute_loss_func: FocuSFT computes the loss itself; leave it out")
    if args.use_liger_kernel:
        raise ConfigError("use_liger_kernel: replaces the loss that FocuSFT computes; turn it off")
