"""What a model was trained and measured on, for the provenance of its tables."""

import platform
import subprocess
from typing import Any

import numpy as np
import torch


def machine(device: torch.device) -> dict[str, Any]:
    """Device, driver and versions, by name."""
    about: dict[str, Any] = {
        "device": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        about["device"] = torch.cuda.get_device_name(device)
        about["cuda"] = torch.version.cuda
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        about["driver"] = (
            subprocess.run(query, capture_output=True, text=True, check=False).stdout.split("\n")[0].strip()
        )
    return about
