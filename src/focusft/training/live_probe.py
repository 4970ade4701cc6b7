"""Attention dilution during training: on a fixed set of examples and on the batch itself.

The probe set is measured in eval mode without fast weights, under both masks. The batch is watched
in the training call itself, so with the fast weights of its outer loop, at the price of a few rows
of attention. Neither draws a random number nor changes the model.

Every rank measures the same set, so that no rank waits for a collective of another one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from focusft.analysis.dilution import Dilution, measure_documents, observing, probing
from focusft.analysis.recorder import QueryDilution, QuerySample, Recorder
from focusft.errors import UnsupportedModelError
from focusft.method.architectures import read_architecture
from focusft.method.config import ContextAttention, FocusConfig
from focusft.method.turns import TurnLayout

logger = logging.getLogger(__name__)

# Examples of the probe set, and queries of one document: they keep the probe cheap.
PROBE_EXAMPLES = 4
SAMPLE = QuerySample(response=64, context=0)
MASKS: tuple[ContextAttention, ...] = ("causal", "bidirectional")
FIGURES = ("sink_mass", "context_engagement", "needle_mass", "entropy")
# The batch does not tell template text from content.
BATCH_FIGURES = ("sink_mass", "context_mass", "entropy")


class LiveProbe:
    """Measures at every `steps`-th optimizer step.

    Attributes:
        steps: Optimizer steps from one measurement to the next.
        last_step: Step of the last measurement.
    """

    def __init__(
        self,
        model: nn.Module,
        config: FocusConfig,
        batches: Sequence[Mapping[str, Tensor]],
        steps: int,
        *,
        watches_batch: bool,
    ) -> None:
        """Set the probe up.

        Args:
            model: The model below DDP.
            config: Options of the method.
            batches: The probe set, see `measure_documents`; possibly empty.
            steps: Optimizer steps from one measurement to the next.
            watches_batch: Measure the batch too; the backend must be "segments" or "flex".
        """
        self.steps = steps
        self.last_step: int | None = None
        self._model = model
        self._config = config
        self._batches = [batch for batch in batches if (batch["labels"][:, 1:] != -100).any()]
        if len(self._batches) < len(batches):
            logger.warning(
                "the attention probe leaves out %d of %d examples: they have no label",
                len(batches) - len(self._batches),
                len(batches),
            )
        self._architecture = read_architecture(model, config) if watches_batch else None
        self._has_warned = False

    def is_due(self, step: int) -> bool:
        """Tell whether a step is to be measured and has not been."""
        return step % self.steps == 0 and step != self.last_step

    def measure_set(self, step: int) -> dict[str, float]:
        """Measure the probe set under both masks, for the log.

        Call it in the autocast context of training.

        Args:
            step: Number of the optimizer step.
        """
        self.last_step = step
        if not self._batches:
            return {}
        started = time.perf_counter()
        try:
            metrics = self._measure_both_masks()
        except UnsupportedModelError as error:
            # Plain SFT trains models that cannot be probed.
            logger.warning("the attention probe is off: %s", error)
            self._batches = []
            return {}
        metrics["probe/seconds"] = round(time.perf_counter() - started, 3)
        self._watch(step, metrics)
        return metrics

    def _measure_both_masks(self) -> dict[str, float]:
        metrics = {}
        with probing(self._model) as model:
            for mask in MASKS:
                found = [
                    document.response
                    for batch in self._batches
                    for document in measure_documents(
                        model, batch, mask, SAMPLE, self._config.context_blocks
                    )
                ]
                means = Dilution.of(found).means
                for figure in FIGURES:
                    if (value := means[figure]) is not None:
                        metrics[f"probe/{figure}_{mask}"] = value
        return metrics

    @contextmanager
    def watch_batch(self, batch: Mapping[str, Tensor]) -> Iterator[list[QueryDilution]]:
        """Watch the one training call inside.

        Args:
            batch: What the model is called with.

        Yields:
            A list that holds the response queries of each document after the call.
        """
        found: list[QueryDilution] = []
        if self._architecture is None:
            yield found
            return
        layout = TurnLayout.from_batch(batch, self._config.context_blocks)
        recorder = Recorder(batch, layout, self._config.context_attention, SAMPLE)
        with observing(self._architecture, recorder):
            yield found
        found += [document.response for document in recorder.documents()]

    def batch_metrics(
        self, found: Sequence[QueryDilution], gather: Callable[[Tensor], Tensor]
    ) -> dict[str, float]:
        """Means over the documents of all ranks, for the log.

        Args:
            found: The documents of this rank.
            gather: Stacks a tensor [1, n] of each rank.
        """
        if self._architecture is None:
            return {}
        sums = [float(len(found))]
        for figure in BATCH_FIGURES:
            sums.append(sum(value for d in found if (value := d.means()[figure]) is not None))
        device = next(self._model.parameters()).device
        totals = gather(torch.tensor([sums], dtype=torch.float32, device=device)).sum(dim=0)
        documents, *figures = totals.tolist()
        if documents == 0:
            return {}
        return {
            f"probe/batch_{figure}": value / documents
            for figure, value in zip(BATCH_FIGURES, figures, strict=True)
        }

    def _watch(self, step: int, metrics: Mapping[str, float]) -> None:
        """Warn, once, when training's mask does not relieve the sink."""
        if self._config.context_attention == "causal" or self._has_warned:
            return
        causal, bidirectional = (metrics.get(f"probe/sink_mass_{mask}") for mask in MASKS)
        if causal is None or bidirectional is None:
            # Nothing finite was measured: the loss of this step will say so.
            return
        if bidirectional >= causal:
            self._has_warned = True
            logger.warning(
                "step %d: the sink mass under the bidirectional mask (%.3g) is not below the "
                "causal one (%.3g), so the mask does not help this model on this data; see what "
                "is context with 'focusft data show FILE --row 1 --mask', or set "
                "context_attention=causal",
                step,
                bidirectional,
                causal,
            )
