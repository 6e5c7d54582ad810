"""`llmgym convert`: a profile out of the kernel tables of another simulator."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from llmgym.core.checks import number, output_folder
from llmgym.core.told import Told
from llmgym.errors import InvalidArgument
from llmgym.profiles.llmservingsim import Link, from_llmservingsim

GIB = 2**30


@dataclass(frozen=True)
class Convert(Told):
    """Make a profile, which every environment takes, out of the kernel tables of LLMServingSim."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Tables of one GPU, such as profiler/perf/RTXPRO6000 of LLMServingSim."""
    out: Annotated[Path, tyro.conf.Positional]
    """Folder to write."""
    model: str
    """Model as the files name it, such as Qwen/Qwen3-32B."""
    shape: str
    """Shape of the model: the path of its Hugging Face config.json, or the name of one that ships, such as llama-3.1-8b."""
    tensor_parallel: int = 1
    """GPUs that share each layer."""
    link_gb_per_s: float | None = None
    """Bandwidth between the GPUs, GB/s; needed where there are several."""
    link_us: float | None = None
    """Latency of one collective between the GPUs, us; needed where there are several."""
    expert_ranks: int = 1
    """Data-parallel engines that share the experts."""
    memory_gib: float = 0.0
    """Memory of one GPU, GiB; 0 if it is not known."""
    host_from: str = "h100/llama-3.1-8b"
    """Profile whose host time is taken over: the tables do not have it."""

    def run(self, console: Console) -> dict[str, Any]:
        """Write the profile.

        Returns:
            Its name and folder.

        Raises:
            LlmgymError: a name, file or number that does not do.
        """
        link = None
        if self.link_gb_per_s is not None and self.link_us is not None:
            link = Link(self.link_gb_per_s, self.link_us)
        elif max(self.tensor_parallel, self.expert_ranks) > 1 or (self.link_gb_per_s, self.link_us) != (
            None,
            None,
        ):
            raise InvalidArgument(
                f"link_gb_per_s={self.link_gb_per_s}, link_us={self.link_us}: a link between GPUs needs both"
            )
        memory = number("memory_gib", self.memory_gib, zero=True, high=2**20)
        profile = from_llmservingsim(
            self.folder,
            self.model,
            self.shape,
            tensor_parallel=self.tensor_parallel,
            link=link,
            expert_ranks=self.expert_ranks,
            memory_bytes=int(memory * GIB),
            host_from=self.host_from,
        )
        profile.save(output_folder("out", self.out))
        console.print(
            f"Written: {self.out} ({profile.name}). `llmgym profiles {self.out}` shows it.", soft_wrap=True
        )
        return {"profile": profile.name, "written": [self.out]}
