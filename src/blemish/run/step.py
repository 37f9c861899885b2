"""One update of weights: computed as written or, on a graphics card, recorded once and replayed.

A student's step is some hundreds of small kernels, which a card has done before Python has asked for the next one. A
recording (CUDA graph) asks for all of them at once; they are the same kernels, so the numbers are the same.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from blemish.run.run import Run

UNRECORDED = 3  # steps of each shape before it is recorded: what libraries set up at first must not be in a recording


class Step:
    """Takes weights down the gradient of ``loss_of(*tensors)``: a scalar, or several losses whose sum it is.

    On a card ``loss_of`` is called a few times for tensors of each shape and never again: whatever else it depends on
    must stay the same, and it may not wait for the card. The losses given are valid until the next call.
    """

    def __init__(self, run: Run, optimiser: torch.optim.Optimizer, loss_of: Callable[..., Tensor]) -> None:
        self._optimiser, self._loss_of, self._is_recorded = optimiser, loss_of, run.device.type == "cuda"
        self.forget()

    def forget(self) -> None:
        """Record anew: for whoever gives the optimiser another state than its own."""
        self._seen: dict[tuple[torch.Size, ...], int] = {}
        self._recorded: dict[tuple[torch.Size, ...], tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]] = {}

    def __call__(self, *tensors: Tensor, plainly: bool = False) -> Tensor:
        """The losses before the update, detached; tensors are neither changed nor kept. ``plainly``: as written."""
        if self._is_recorded and not plainly:
            return self._on_card(tensors)
        losses = self._loss_of(*tensors)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        return losses.detach()

    def _on_card(self, tensors: tuple[Tensor, ...]) -> Tensor:
        shapes = tuple(tensor.shape for tensor in tensors)
        seen = self._seen[shapes] = self._seen.get(shapes, 0) + 1
        if seen <= UNRECORDED:  # as CUDA graphs ask for: on another stream
            main, stream = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                losses = self(*tensors, plainly=True)
            main.wait_stream(stream)
            return losses
        if shapes not in self._recorded:  # recording computes nothing
            graph, inputs = torch.cuda.CUDAGraph(), [tensor.clone() for tensor in tensors]
            for group in self._optimiser.param_groups:
                group["capturable"] = True
            with torch.cuda.graph(graph):
                losses = self(*inputs, plainly=True)
            for group in self._optimiser.param_groups:  # what is not recorded is computed the usual way
                group["capturable"] = False
            self._recorded[shapes] = graph, inputs, losses
        graph, inputs, losses = self._recorded[shapes]
        for ours, given in zip(inputs, tensors, strict=True):
            ours.copy_(given)
        graph.replay()
        return losses
