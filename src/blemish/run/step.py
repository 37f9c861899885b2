"""One update of weights: computed as written or, on a graphics card, recorded once and replayed.

A student's step is some hundreds of small kernels, which a card has done before Python has asked for the next one. A
recording (CUDA graph) asks for all of them at once; they are the same kernels, so the numbers are the same.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from blemish.run.run import Run

RECORDED = 3  # shapes at most: each recording keeps memory of its own, as much as a step takes
UNRECORDED = 3  # steps of each shape before it is recorded: what libraries set up at first must not be in a recording


class Step:
    """Takes weights down the gradient of the first of the numbers ``loss_of(*tensors)``; the others are only given.

    On a card ``loss_of`` is called a few times for tensors of each shape and never again: whatever else it depends on
    must stay the same, and it may not wait for the card.
    """

    def __init__(
        self, run: Run, optimisers: Sequence[torch.optim.Optimizer], loss_of: Callable[..., Sequence[Tensor]]
    ) -> None:
        self._optimisers, self._loss_of, self._note = optimisers, loss_of, run.progress.note
        self._is_recorded = run.device.type == "cuda"
        self.forget()

    def forget(self) -> None:
        """Record anew: for whoever gives an optimiser another state than its own."""
        self._seen: dict[str, int] = {}
        self._recorded: dict[str, tuple[torch.cuda.CUDAGraph, list[list[Tensor]], list[list[Tensor]]]] = {}

    def __call__(self, *batches: Sequence[Tensor], plainly: bool = False) -> list[list[Tensor]]:
        """Update by the sum of the batches' gradients; each one's numbers, detached, valid until the next call."""
        if self._is_recorded and not plainly:
            return self._on_card(batches)
        found = []
        for tensors in batches:
            numbers = self._loss_of(*tensors)
            numbers[0].backward()  # type: ignore[no-untyped-call]
            found.append([number.detach() for number in numbers])
        for optimiser in self._optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        return found

    def _on_card(self, batches: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
        shapes = str([[tuple(tensor.shape) for tensor in tensors] for tensors in batches])
        seen = self._seen[shapes] = self._seen.get(shapes, 0) + 1
        is_full = len(self._recorded) == RECORDED and shapes not in self._recorded
        if seen <= UNRECORDED or is_full:  # as CUDA graphs ask for: on another stream
            main, stream = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                found = self(*batches, plainly=True)
            main.wait_stream(stream)
            return found
        if shapes not in self._recorded:  # recording computes nothing
            graph, inputs = torch.cuda.CUDAGraph(), [[tensor.clone() for tensor in tensors] for tensors in batches]
            groups = [group for optimiser in self._optimisers for group in optimiser.param_groups]
            for group in groups:
                group["capturable"] = True
            try:
                with torch.cuda.graph(graph):
                    found = self(*inputs, plainly=True)
            except RuntimeError as error:  # an operation that waits for the card, or no memory left for a recording
                self._note(
                    f"note: steps cannot be recorded on this card ({str(error).splitlines()[0]}): they take longer"
                )
                self._is_recorded = False
            finally:
                for group in groups:  # what is not recorded is computed the usual way
                    group["capturable"] = False
            if not self._is_recorded:
                for optimiser in self._optimisers:
                    optimiser.zero_grad(set_to_none=True)
                return self(*batches)
            self._recorded[shapes] = graph, inputs, found
        graph, inputs, found = self._recorded[shapes]
        for ours, given in zip(inputs, batches, strict=True):
            for tensor, value in zip(ours, given, strict=True):
                tensor.copy_(value)
        graph.replay()
        return found
