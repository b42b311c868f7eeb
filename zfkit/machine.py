"""What a computation runs on: processor, threads, the precision that pays there."""

import os
from pathlib import Path

import torch


def precision_on(device, wanted: str) -> str:
    """The precision to run in: bfloat16 only where there are units for it, else float32.

    Without units bfloat16 is many times slower.
    """
    if torch.device(device).type == "cuda":
        units = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        units = {"amx_bf16", "avx512_bf16"} & set(_cpuinfo("flags").split())
    return wanted if units else "float32"


def machine(device="cpu") -> dict:
    """What a training runs on: device, processor, cores, threads and version of torch."""
    cuda = torch.device(device).type == "cuda"
    named = dict(gpu=torch.cuda.get_device_name(device)) if cuda else {}
    counts = dict(cores=os.cpu_count(), threads=torch.get_num_threads())
    counts |= dict(torch=torch.__version__)
    processor = _cpuinfo("model name") or "unknown"
    return dict(device=str(device), processor=processor) | named | counts


def _cpuinfo(name: str) -> str:
    """A line of what Linux tells of the first processor; "" elsewhere."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
