"""The figures of the catalogue: which GPU types and images every store knows.

Apart from the tables, so that a figure can be looked up and corrected without a database. Every figure is
its maker's, but for the two that the API reference gives, and every row names its document. Speed is FP32
outside tensor cores, at boost clock. Where NVIDIA prints no such figure for a GeForce or TITAN card, it is
2 x cores x boost clock, both from its specifications. Where a type comes in several clocks,
`source` says which one counts.

`store.py` brings a store up to date with these rows; `naming.py` maps drivers' names to them. Types of
unknown cards and an operator's own images live in the store alone.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GpuType:
    """A catalogue row: what all cards sold under one name have in common."""

    name: str
    """As the API spells it; unique without case."""
    gigaflops: int
    """FP32; 15.0 teraflops is 15000. 0: not known."""
    vram: int
    """GB, as the maker counts them."""
    generation: str
    """The maker's name of the architecture. Empty: not known."""
    source: str
    """The document that the figures stand in."""
    asic: bool = False


@dataclass(frozen=True, slots=True)
class Image:
    """What an instance can start with."""

    name: str
    description: str


GPU_TYPES: tuple[GpuType, ...] = (
    # The types of the published API reference, in its order. It gives Titan V and 1080 ti itself.
    GpuType("1060 6GB", 4370, 6, "Pascal", "NVIDIA GeForce GTX 1060 specifications: 1280 cores, 1708 MHz"),
    GpuType("1070", 6460, 8, "Pascal", "NVIDIA GeForce GTX 1070 specifications: 1920 cores, 1683 MHz"),
    GpuType("1070 ti", 8190, 8, "Pascal", "NVIDIA GeForce GTX 1070 Ti specifications: 2432 cores, 1683 MHz"),
    GpuType("1080", 8870, 8, "Pascal", "NVIDIA GeForce GTX 1080 Whitepaper"),
    GpuType("Titan X", 10970, 12, "Pascal", "NVIDIA TITAN X specifications: 3584 cores, 1531 MHz"),
    GpuType("1080 ti", 11340, 11, "Pascal", "Vectordash API reference"),
    GpuType("Titan Xp", 12150, 12, "Pascal", "NVIDIA TITAN Xp specifications: 3840 cores, 1582 MHz"),
    GpuType("Titan V", 15000, 12, "Volta", "Vectordash API reference"),
    GpuType("Tesla V100", 15700, 16, "Volta", "NVIDIA Tesla V100 Data Sheet, SXM2 (PCIe: 14.0), 16 GB"),
    # What came after it.
    GpuType("RTX 2080 ti", 13400, 11, "Turing", "NVIDIA Turing GPU Architecture Whitepaper, reference card"),
    GpuType("RTX 3090", 35600, 24, "Ampere", "NVIDIA Ampere GA102 GPU Architecture Whitepaper"),
    GpuType("RTX 4090", 82600, 24, "Ada Lovelace", "NVIDIA Ada GPU Architecture Whitepaper"),
    GpuType("RTX 5090", 104800, 32, "Blackwell", "NVIDIA RTX Blackwell GPU Architecture Whitepaper"),
    GpuType("T4", 8100, 16, "Turing", "NVIDIA T4 Datasheet"),
    GpuType("A10", 31200, 24, "Ampere", "NVIDIA A10 Tensor Core GPU Datasheet"),
    GpuType("L4", 30300, 24, "Ada Lovelace", "NVIDIA L4 Tensor Core GPU Datasheet"),
    GpuType("L40S", 91600, 48, "Ada Lovelace", "NVIDIA L40S Datasheet"),
    GpuType("A100 40GB", 19500, 40, "Ampere", "NVIDIA A100 Tensor Core GPU Datasheet"),
    GpuType("A100 80GB", 19500, 80, "Ampere", "NVIDIA A100 Tensor Core GPU Datasheet"),
    GpuType("H100 PCIe", 51000, 80, "Hopper", "NVIDIA H100 Tensor Core GPU Datasheet, editions with PCIe"),
    GpuType("H100 SXM", 67000, 80, "Hopper", "NVIDIA H100 Tensor Core GPU Datasheet"),
    GpuType("H200", 67000, 141, "Hopper", "NVIDIA H200 Tensor Core GPU Datasheet, SXM"),
    # Earlier papers say 80 teraflops and 192 GB; what is sold has these.
    GpuType("B200", 75000, 180, "Blackwell", "NVIDIA Blackwell Datasheet, a GPU of HGX B200"),
    GpuType("RTX A6000", 38700, 48, "Ampere", "NVIDIA RTX A6000 Datasheet"),
    GpuType("RTX 6000 Ada", 91100, 48, "Ada Lovelace", "NVIDIA RTX 6000 Ada Generation Datasheet"),
    GpuType("MI300X", 163400, 192, "CDNA 3", "AMD Instinct MI300X Accelerator Data Sheet, FP32 vector"),
)

IMAGES: tuple[Image, ...] = (
    # The first is what an instance gets when none is asked for.
    Image("deep-learning-box", "Ubuntu with the common tools for deep learning"),
    Image("fastai", "Ubuntu with the fastai library and what its courses need"),
)
