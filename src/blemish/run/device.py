"""Where networks run and how they compute: each automatic choice carries its reason."""

import contextlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from blemish.errors import ConfigError
from blemish.run.files import check_threads

PrecisionName = Literal["auto", "fp32", "bf16"]

# A forked child has the state of torch's threads and not the threads: it would wait for them for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


@dataclass(frozen=True)
class Precision:
    """How networks compute, and why. Losses, norms, distances and maps are float32 whatever ``dtype`` is."""

    dtype: torch.dtype
    channels_last: bool
    reason: str

    @property
    def name(self) -> str:
        """``bf16`` or ``fp32``."""
        return "bf16" if self.dtype == torch.bfloat16 else "fp32"

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context in which convolutions run."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)


def has_bf16_units(device: torch.device) -> bool:
    """Whether bf16 products are faster than fp32 ones here: AMX tiles on a CPU, tensor cores on a GPU."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    supported = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return device.type == "cpu" and bool(supported())


def choose_precision(device: torch.device, wanted: PrecisionName = "auto", dense: bool = True) -> Precision:
    """The precision wanted, or that this processor gains from. ``dense``: False for depthwise convolutions.

    It is not timed at each start: on a busy machine the same seed would give other bits.
    """
    if wanted not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"precision {wanted!r} is unknown: choose auto, fp32 or bf16")
    if wanted != "auto":
        dtype = torch.bfloat16 if wanted == "bf16" else torch.float32
        return Precision(dtype, channels_last=True, reason="as asked")
    if not has_bf16_units(device):
        return Precision(torch.float32, True, f"this {device.type} has no bf16 matrix units")
    if not dense:
        return Precision(torch.float32, True, "depthwise convolutions gain little from bf16")
    return Precision(torch.bfloat16, True, f"this {device.type} has bf16 matrix units")


def choose_device(wanted: str = "auto") -> torch.device:
    """What was asked for, or ``cuda`` where there is one, else ``cpu``; ``ConfigError`` where it is unknown or absent.

    A GPU is told to compute alike each time, and fp32 where fp32 is said: by itself it rounds inputs to TF32, ten bits.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise ConfigError(f"device {wanted!r} is unknown: choose auto, cpu or cuda") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(f"device {wanted!r} was asked for, but torch sees no GPU: use --device cpu")
        if device.index is not None:
            torch.cuda.set_device(device)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may sum in any order
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return device


def device_name(device: torch.device) -> str:
    """``cpu``, or what a graphics card calls itself."""
    return device.type if device.type == "cpu" else torch.cuda.get_device_name(device)


@contextlib.contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """A block in which a GPU sums in a fixed order wherever torch knows how to; slower, so for training alone."""
    if device.type != "cuda":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*deterministic", category=UserWarning)
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def set_threads(threads: int | None) -> int:
    """Set torch's thread count where one is given; the count in force."""
    if threads is not None:
        check_threads(threads)
        torch.set_num_threads(threads)
    return torch.get_num_threads()
