"""Which catalogue type a card is, judged by the name that its driver gives it.

Pure rules, apart from the store: a list of patterns, each for the whole name, and memory as a second
witness. Names come from NVML, from `rocm-smi` and `amd-smi`, and from the PCI database that Incus reads
(`GP102 [TITAN X]`). A card is never taken for a better one: Laptop, Max-Q, cut-down, partitioned and virtual
cards carry names of their own, match no rule, and are listed under those names with no speed claimed.

To add a rule: put the type into `figures.py`, then one line into `RULES` with the names that drivers give
that card and no other, tidied as `tidy` does it (no maker's name, no chip's name). The pattern must match
from end to end; case does not count. Add the names, and those of its near relations, to the tests.
Called when a machine's GPUs are recorded.
"""

import re

from vectordash.server.catalogue.figures import GPU_TYPES, GpuType

LONGEST_NAME = 60


def _rule(pattern: str, name: str) -> tuple[re.Pattern[str], str]:
    return re.compile(pattern, re.IGNORECASE), name


RULES: tuple[tuple[re.Pattern[str], str], ...] = (
    # Drivers name the desktop card with its memory; plain `GTX 1060` is the laptop's.
    _rule(r"(GeForce )?(GTX )?1060 6GB( Rev\. 2)?", "1060 6GB"),
    _rule(r"(GeForce )?(GTX )?1070", "1070"),
    _rule(r"(GeForce )?(GTX )?1070 Ti", "1070 ti"),
    _rule(r"(GeForce )?(GTX )?1080", "1080"),
    # `GeForce GTX TITAN X` is the slower one of the Maxwell generation.
    _rule(r"TITAN X( Pascal| \(Pascal\))?", "Titan X"),
    _rule(r"(GeForce )?(GTX )?1080 Ti", "1080 ti"),
    _rule(r"TITAN Xp", "Titan Xp"),
    _rule(r"TITAN V", "Titan V"),
    # FHHL is slower; V100S, DGXS and SXM3 are other cards.
    _rule(r"(Tesla )?V100([- ](SXM2|PCIe)[- ](16|32)GB)?", "Tesla V100"),
    _rule(r"(GeForce )?RTX 2080 Ti( Rev\. A)?", "RTX 2080 ti"),
    _rule(r"(GeForce )?RTX 3090", "RTX 3090"),
    _rule(r"(GeForce )?RTX 4090", "RTX 4090"),
    _rule(r"(GeForce )?RTX 5090", "RTX 5090"),
    _rule(r"(Tesla )?T4", "T4"),
    _rule(r"A10", "A10"),
    _rule(r"L4", "L4"),
    _rule(r"L40S", "L40S"),
    _rule(r"A100([- ](SXM4|PCIe))?[- ]40GB( PCIe)?", "A100 40GB"),
    _rule(r"A100([- ](SXM4|PCIe))?[- ]80GB( PCIe)?", "A100 80GB"),
    _rule(r"H100[- ]PCIe([- ]80GB)?", "H100 PCIe"),
    # With 64, 94 or 96 GB it is another card, and so is plain `H100`.
    _rule(r"H100( 80GB HBM3|[- ]SXM5?([- ]80GB)?)", "H100 SXM"),
    # H200 NVL is slower.
    _rule(r"H200( SXM5?( 141GB)?)?", "H200"),
    _rule(r"B200", "B200"),
    _rule(r"RTX A6000", "RTX A6000"),
    _rule(r"RTX 6000 Ada( Generation)?", "RTX 6000 Ada"),
    # VF is a virtual function, perhaps of many; HF is another card.
    _rule(r"(Instinct )?MI300X( OAM|-O)?", "MI300X"),
)
"""A driver's name, and the type it stands for."""

MEMORY_DECIDES: tuple[tuple[re.Pattern[str], str], ...] = (
    _rule(r"A100([- ](SXM4|PCIe))?", "A100 40GB"),
    _rule(r"A100([- ](SXM4|PCIe))?", "A100 80GB"),
)
"""Names that leave the memory out: the type counts only where the driver reports that much memory."""

_VRAM = {gpu_type.name: gpu_type.vram for gpu_type in GPU_TYPES}
_TAKEN = {gpu_type.name.casefold() for gpu_type in GPU_TYPES}
_MAKER = re.compile(
    r"^(NVIDIA( Corporation)?|Advanced Micro Devices, Inc\.( \[AMD/ATI\])?|AMD(/ATI)?|Intel Corporation) ",
    re.IGNORECASE,
)
_PCI_NAME = re.compile(r"[^\[\]]+ \[([^\[\]]+)\]")
"""As the PCI database writes it: the chip, then the card in brackets."""
_TRADE_MARKS = re.compile(r"\((R|TM|C)\)|[™®©]", re.IGNORECASE)


def type_of(model: str, vram: int) -> str:
    """Return the catalogue type of a card, or its own tidied name where no rule knows it.

    `vram` is in GB, however the driver rounds it; 0 where it does not say.
    """
    name = tidy(model)
    for pattern, known in RULES:
        if pattern.fullmatch(name) and (vram == 0 or _has_at_least(_VRAM[known], vram)):
            return known
    for pattern, known in MEMORY_DECIDES:
        if pattern.fullmatch(name) and _has_about(_VRAM[known], vram):
            return known
    return _own_name(name, vram)


def unknown_type(model: str, vram: int) -> GpuType:
    """Return the row for a card that no rule knows: its own name, and only what its driver reports."""
    name = _own_name(tidy(model), vram)
    return GpuType(name, gigaflops=0, vram=vram, generation="", source="reported by the driver")


def tidy(model: str) -> str:
    """Return a driver's name on one printable line, without the maker's and the chip's names."""
    printable = "".join(c if c.isprintable() and c != "_" else " " for c in _TRADE_MARKS.sub("", model))
    name = _MAKER.sub("", " ".join(printable.split()))
    from_pci = _PCI_NAME.fullmatch(name)
    return from_pci[1].strip() if from_pci else name


def _own_name(name: str, vram: int) -> str:
    """Keep the name of an unknown card apart from every type's: nobody may take it for one."""
    name = name[:LONGEST_NAME].strip() or "unknown GPU"
    return f"{name} ({vram} GB)" if name.casefold() in _TAKEN else name


def _has_at_least(promised: int, vram: int) -> bool:
    """Drivers round down and hold some memory back: a T4 of 16 GB shows 14. More than promised is fine."""
    return vram + 1 >= promised * 0.9


def _has_about(promised: int, vram: int) -> bool:
    return _has_at_least(promised, vram) and vram <= promised * 1.1
