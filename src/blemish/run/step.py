"""One update of weights: computed as written or, on a graphics card, recorded once and replayed.

A student's step is some hundreds of small kernels, which a card has done before Python has asked for the next one. A
recording (CUDA graph) asks for all of them at once; they are the same kernels, so the numbers are the same.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from blemish.run.run import Run

RECORDED = 3  # shapes at most: a recording takes as long as many steps
UNRECORDED = 3  # steps of each shape before it is recorded: what libraries set up at first must not be in a recording


class Step:
    """Takes weights down the gradient of the first of the numbers ``loss_of(*tensors)``; the others are only given.

    On a card ``loss_of`` is called a few times for tensors of each shape and never again: whatever else it depends on
    must stay the same, and it may not wait for the card.
    """

    _can_record = True  # until a recording fails, which leaves what allocates memory as it was in the middle of it

    def __init__(
        self, run: Run, optimisers: Sequence[torch.optim.Optimizer], loss_of: Callable[..., Sequence[Tensor]]
    ) -> None:
        self._optimisers, self._loss_of, self._run = optimisers, loss_of, run
        self._stream = torch.cuda.Stream(run.device) if run.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.forget()

    def forget(self) -> None:
        """Record anew: for whoever gives an optimiser another state than its own."""
        self._seen: dict[str, int] = {}
        self._recorded: dict[str, tuple[torch.cuda.CUDAGraph, list[list[Tensor]], list[list[Tensor]]]] = {}

    def __call__(self, *batches: Sequence[Tensor], plainly: bool = False) -> list[list[Tensor]]:
        """Update by the sum of the batches' gradients; each one's numbers, detached, valid until the next step."""
        if self._stream is not None and Step._can_record and not plainly:
            return self._on_card(batches, self._stream)
        found = []
        for tensors in batches:
            numbers = self._loss_of(*tensors)
            numbers[0].backward()  # type: ignore[no-untyped-call]
            found.append([number.detach() for number in numbers])
        for optimiser in self._optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        return found

    def _on_card(self, batches: Sequence[Sequence[Tensor]], stream: torch.cuda.Stream) -> list[list[Tensor]]:
        kind = str([[(*tensor.shape, tensor.dtype) for tensor in tensors] for tensors in batches])
        seen = self._seen[kind] = self._seen.get(kind, 0) + 1
        is_full = len(self._recorded) == RECORDED and kind not in self._recorded
        if seen <= UNRECORDED or is_full:  # as CUDA graphs ask for: on another stream
            main = torch.cuda.current_stream()
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                found = self(*batches, plainly=True)
            main.wait_stream(stream)
            return found
        if kind not in self._recorded:
            try:
                self._recorded[kind] = self._record([[tensor.clone() for tensor in tensors] for tensors in batches])
            except RuntimeError as error:  # an operation that waits for the card, or no memory left for a recording
                why = str(error).splitlines()[0]
                self._run.progress.note(f"note: steps cannot be recorded on this card ({why}): they take longer")
                Step._can_record = False
                for optimiser in self._optimisers:
                    optimiser.zero_grad(set_to_none=True)
                return self(*batches)
        graph, inputs, found = self._recorded[kind]
        for ours, given in zip(inputs, batches, strict=True):
            for tensor, value in zip(ours, given, strict=True):
                tensor.copy_(value)
        graph.replay()
        return found

    def _record(
        self, inputs: list[list[Tensor]]
    ) -> tuple[torch.cuda.CUDAGraph, list[list[Tensor]], list[list[Tensor]]]:
        """Recording computes nothing. All recordings share their memory: no two are replayed at once."""
        graph, main = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        groups = [group for optimiser in self._optimisers for group in optimiser.param_groups]
        for group in groups:
            group["capturable"] = True
        try:
            with torch.cuda.graph(graph, pool=_pool()):
                return graph, inputs, self(*inputs, plainly=True)
        finally:
            torch.cuda.set_stream(main)  # a recording that fails leaves its own in force
            for group in groups:  # what is not recorded is computed the usual way
                group["capturable"] = False


@cache
def _pool() -> Any:
    return torch.cuda.graph_pool_handle()
