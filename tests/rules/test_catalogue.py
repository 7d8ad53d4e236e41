import pytest

from vectordash.server.catalogue.figures import GPU_TYPES, IMAGES, GpuType
from vectordash.server.catalogue.naming import LONGEST_NAME, RULES, tidy, type_of, unknown_type

BY_NAME = {gpu_type.name: gpu_type for gpu_type in GPU_TYPES}

KNOWN = [
    # The driver's name, the memory it shows (GB; 0: none shown), the type.
    ("GeForce GTX 1060 6GB", 5, "1060 6GB"),
    ("NVIDIA GeForce GTX 1060 6GB", 6, "1060 6GB"),
    ("GP106 [GeForce GTX 1060 6GB Rev. 2]", 0, "1060 6GB"),
    ("GeForce GTX 1070", 8, "1070"),
    ("NVIDIA GeForce GTX 1070 Ti", 8, "1070 ti"),
    ("NVIDIA GeForce GTX 1080", 7, "1080"),
    ("NVIDIA GeForce GTX 1080 Ti", 11, "1080 ti"),
    ("GeForce GTX 1080 Ti", 10, "1080 ti"),
    ("NVIDIA TITAN X (Pascal)", 12, "Titan X"),
    ("TITAN X (Pascal)", 11, "Titan X"),
    ("GP102 [TITAN X]", 0, "Titan X"),
    ("GP102 [TITAN X Pascal]", 0, "Titan X"),
    ("TITAN Xp", 11, "Titan Xp"),
    ("NVIDIA TITAN Xp", 12, "Titan Xp"),
    ("NVIDIA TITAN V", 12, "Titan V"),
    ("Tesla V100-SXM2-16GB", 15, "Tesla V100"),
    ("Tesla V100-SXM2-32GB", 32, "Tesla V100"),
    ("Tesla V100-PCIE-16GB", 16, "Tesla V100"),
    ("Tesla V100-PCIE-32GB", 32, "Tesla V100"),
    ("GV100GL [Tesla V100 SXM2 32GB]", 0, "Tesla V100"),
    ("NVIDIA GeForce RTX 2080 Ti", 11, "RTX 2080 ti"),
    ("TU102 [GeForce RTX 2080 Ti Rev. A]", 0, "RTX 2080 ti"),
    ("NVIDIA GeForce RTX 3090", 24, "RTX 3090"),
    ("NVIDIA GeForce RTX 4090", 23, "RTX 4090"),
    ("NVIDIA GeForce RTX 5090", 31, "RTX 5090"),
    ("Tesla T4", 14, "T4"),
    ("NVIDIA A10", 22, "A10"),
    ("NVIDIA L4", 22, "L4"),
    ("NVIDIA L40S", 44, "L40S"),
    ("NVIDIA A100-SXM4-40GB", 40, "A100 40GB"),
    ("NVIDIA A100-PCIE-40GB", 39, "A100 40GB"),
    ("A100-SXM4-80GB", 80, "A100 80GB"),
    ("NVIDIA A100 80GB PCIe", 80, "A100 80GB"),
    ("GA100 [A100 PCIe 80GB]", 0, "A100 80GB"),
    ("NVIDIA H100 PCIe", 79, "H100 PCIe"),
    ("NVIDIA H100 80GB HBM3", 79, "H100 SXM"),
    ("GH100 [H100 SXM5 80GB]", 0, "H100 SXM"),
    ("NVIDIA H200", 140, "H200"),
    ("GH100 [H200 SXM 141GB]", 0, "H200"),
    ("NVIDIA B200", 178, "B200"),
    ("NVIDIA RTX A6000", 44, "RTX A6000"),
    ("NVIDIA RTX 6000 Ada Generation", 47, "RTX 6000 Ada"),
    ("AMD Instinct MI300X", 191, "MI300X"),
    ("AMD Instinct MI300X OAM", 192, "MI300X"),
    ("AMD Instinct(TM) MI300X", 192, "MI300X"),
    ("AMD_Instinct_MI300X_OAM", 192, "MI300X"),
    (
        "Advanced Micro Devices, Inc. [AMD/ATI] Aqua Vanjaram [Instinct MI300X]",
        0,
        "MI300X",
    ),
]

UNKNOWN = [
    # The driver's name, the memory it shows, the name that it is listed under.
    ("NVIDIA GeForce GTX 1060 3GB", 3, "GeForce GTX 1060 3GB"),
    ("GeForce GTX 1060 5GB", 5, "GeForce GTX 1060 5GB"),
    ("GeForce GTX 1060", 6, "GeForce GTX 1060"),
    ("GeForce GTX 1070 with Max-Q Design", 8, "GeForce GTX 1070 with Max-Q Design"),
    ("GeForce GTX 1080 with Max-Q Design", 8, "GeForce GTX 1080 with Max-Q Design"),
    ("GP104M [GeForce GTX 1080 Mobile]", 0, "GeForce GTX 1080 Mobile"),
    ("GP102 [GeForce GTX 1080 Ti 10GB]", 0, "GeForce GTX 1080 Ti 10GB"),
    ("GeForce GTX TITAN X", 12, "GeForce GTX TITAN X"),
    ("NVIDIA GeForce GTX TITAN X", 12, "GeForce GTX TITAN X"),
    ("GM200 [GeForce GTX TITAN X]", 0, "GeForce GTX TITAN X"),
    ("NVIDIA TITAN V CEO Edition", 32, "TITAN V CEO Edition"),
    ("NVIDIA TITAN RTX", 24, "TITAN RTX"),
    ("Tesla V100-FHHL-16GB", 16, "Tesla V100-FHHL-16GB"),
    ("Tesla V100S-PCIE-32GB", 32, "Tesla V100S-PCIE-32GB"),
    ("TU102 [GeForce RTX 2080 Ti 12GB]", 0, "GeForce RTX 2080 Ti 12GB"),
    ("NVIDIA GeForce RTX 3090 Ti", 24, "GeForce RTX 3090 Ti"),
    ("NVIDIA GeForce RTX 4090 D", 24, "GeForce RTX 4090 D"),
    ("NVIDIA GeForce RTX 4090 Laptop GPU", 16, "GeForce RTX 4090 Laptop GPU"),
    ("NVIDIA GeForce RTX 5090 D", 32, "GeForce RTX 5090 D"),
    ("NVIDIA T4G", 16, "T4G"),
    ("NVIDIA A10G", 22, "A10G"),
    ("NVIDIA A10-24Q", 24, "A10-24Q"),
    ("NVIDIA L40", 44, "L40"),
    ("NVIDIA A100-SXM-64GB", 64, "A100-SXM-64GB"),
    ("NVIDIA A100X", 80, "A100X"),
    ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 4, "A100-SXM4-40GB MIG 1g.5gb"),
    ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", 40, "H100 80GB HBM3 MIG 3g.40gb"),
    ("NVIDIA H100", 80, "H100"),
    ("NVIDIA H100 NVL", 93, "H100 NVL"),
    ("GH100 [H100 SXM5 64GB]", 0, "H100 SXM5 64GB"),
    ("NVIDIA H200 NVL", 140, "H200 NVL"),
    ("NVIDIA GH200 480GB", 94, "GH200 480GB"),
    ("NVIDIA GB200", 185, "GB200"),
    ("GB100 [HGX B200 168GB]", 0, "HGX B200 168GB"),
    ("Quadro RTX 6000", 24, "Quadro RTX 6000"),
    ("AMD Instinct MI300A", 128, "Instinct MI300A"),
    ("AMD Instinct MI300X VF", 192, "Instinct MI300X VF"),
    ("AMD Instinct MI300X HF", 192, "Instinct MI300X HF"),
    ("AMD Radeon RX 7900 XTX", 24, "Radeon RX 7900 XTX"),
]


@pytest.mark.parametrize(("model", "vram", "name"), KNOWN, ids=[row[0] for row in KNOWN])
def test_a_driver_name_stands_for_its_type(model: str, vram: int, name: str):
    """Whatever the spelling and however the memory is rounded, the card finds its row."""
    assert type_of(model, vram) == name


@pytest.mark.parametrize(("model", "vram", "name"), UNKNOWN, ids=[row[0] for row in UNKNOWN])
def test_a_related_card_keeps_its_own_name(model: str, vram: int, name: str):
    """A near relation of a catalogue card is never sold as that card."""
    assert type_of(model, vram) == name
    assert name.casefold() not in {known.casefold() for known in BY_NAME}


@pytest.mark.parametrize("name", BY_NAME)
def test_every_type_is_reached_from_a_driver_name(name: str):
    """No row of the catalogue is dead."""
    assert name in {known for _, _, known in KNOWN}


@pytest.mark.parametrize("name", BY_NAME)
def test_a_type_name_stands_for_itself(name: str):
    """What was once named by rule is named the same again."""
    assert type_of(name, BY_NAME[name].vram) == name


@pytest.mark.parametrize("model", [row[0] for row in KNOWN])
def test_case_and_blanks_do_not_count(model: str):
    """Drivers differ in both."""
    assert type_of(f"  {model.lower().replace(' ', '  ')}\n", 0) == type_of(model, 0)


@pytest.mark.parametrize("model", [row[0] for row in KNOWN])
def test_no_two_rules_claim_a_driver_name(model: str):
    """The order of the rules carries no meaning."""
    assert sum(1 for pattern, _ in RULES if pattern.fullmatch(tidy(model))) == 1


def test_every_rule_leads_to_a_type():
    """A rule cannot name a row that is not there."""
    assert {name for _, name in RULES} == set(BY_NAME)


@pytest.mark.parametrize(
    ("vram", "name"),
    [
        (39, "A100 40GB"),
        (43, "A100 40GB"),
        (64, "A100-SXM4"),
        (79, "A100 80GB"),
        (86, "A100 80GB"),
        (0, "A100-SXM4"),
    ],
    ids=[
        "40 rounded down",
        "40 in powers of ten",
        "neither",
        "80 rounded down",
        "80 in powers of ten",
        "not told",
    ],
)
def test_memory_decides_where_the_name_leaves_it_out(vram: int, name: str):
    """A name that fits two types counts only together with the memory of one."""
    assert type_of("NVIDIA A100-SXM4", vram) == name


@pytest.mark.parametrize(
    ("model", "vram", "name"),
    [
        ("NVIDIA GeForce RTX 4090", 12, "GeForce RTX 4090"),
        ("AMD Instinct MI300X", 24, "Instinct MI300X"),
        ("NVIDIA L40S", 24, "L40S (24 GB)"),
        ("NVIDIA A100-SXM4-80GB", 40, "A100-SXM4-80GB"),
    ],
    ids=["fewer chips", "a partition", "its name is the type's", "half"],
)
def test_a_card_with_less_memory_than_its_type_is_unknown(model: str, vram: int, name: str):
    """A slice of a card must not be sold as the whole one, not even by its name."""
    assert type_of(model, vram) == name


def test_a_card_with_more_memory_keeps_its_type():
    """The type promises at least, so a rebuilt card with twice the memory breaks no promise."""
    assert type_of("NVIDIA GeForce RTX 2080 Ti", 22) == "RTX 2080 ti"


def test_an_unknown_card_claims_nothing_but_its_memory():
    """Speed and generation stay open where only the driver speaks for the card."""
    assert unknown_type("NVIDIA A10G", 22) == GpuType("A10G", 0, 22, "", "reported by the driver")


@pytest.mark.parametrize(("model", "vram"), [row[:2] for row in UNKNOWN], ids=[row[0] for row in UNKNOWN])
def test_the_row_of_an_unknown_card_bears_the_name_it_is_listed_under(model: str, vram: int):
    """GPUs refer to their type by name, so the two must agree."""
    assert unknown_type(model, vram).name == type_of(model, vram)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("x" * 100, "x" * LONGEST_NAME),
        ("y" * (LONGEST_NAME - 1) + " z", "y" * (LONGEST_NAME - 1)),
        ("NVIDIA\tRTX\x1b[31m 9090\u202e\n", "RTX [31m 9090"),
        ("NVIDIA Corporation AD999 [GeForce RTX 9090]", "GeForce RTX 9090"),
        ("Radeon™ Pro® W9999 (R)", "Radeon Pro W9999"),
        (" \x00\n", "unknown GPU"),
        ("", "unknown GPU"),
    ],
    ids=[
        "too long",
        "cut at a blank",
        "not printable",
        "from the PCI database",
        "trade marks",
        "blank",
        "empty",
    ],
)
def test_an_unknown_name_is_tidied(model: str, name: str):
    """It is shown in tables and typed into requests: short, printable, one line."""
    assert type_of(model, 8) == name
    assert name.isprintable()
    assert len(name) <= LONGEST_NAME


def test_type_names_are_unique_without_case():
    """Requests name a type in any case."""
    assert len({name.casefold() for name in BY_NAME}) == len(GPU_TYPES)


def test_the_types_of_the_api_reference_come_first_in_its_order():
    """Its list and ours begin alike."""
    assert [gpu_type.name for gpu_type in GPU_TYPES[:9]] == [
        "1060 6GB",
        "1070",
        "1070 ti",
        "1080",
        "Titan X",
        "1080 ti",
        "Titan Xp",
        "Titan V",
        "Tesla V100",
    ]


@pytest.mark.parametrize(
    ("name", "gigaflops", "vram", "generation"),
    [("Titan V", 15000, 12, "Volta"), ("1080 ti", 11340, 11, "Pascal")],
    ids=["Titan V", "1080 ti"],
)
def test_the_figures_of_the_api_reference_stand(name: str, gigaflops: int, vram: int, generation: str):
    """Clients of the published API know these two rows."""
    row = BY_NAME[name]

    assert (row.gigaflops, row.vram, row.generation, row.asic) == (gigaflops, vram, generation, False)


@pytest.mark.parametrize("gpu_type", GPU_TYPES, ids=BY_NAME)
def test_figures_are_within_reason(gpu_type: GpuType):
    """A slipped digit or a tensor-core figure shows here."""
    generations = {"Pascal", "Volta", "Turing", "Ampere", "Ada Lovelace", "Hopper", "Blackwell", "CDNA 3"}

    assert 4_000 <= gpu_type.gigaflops <= 200_000
    assert 6 <= gpu_type.vram <= 192
    assert gpu_type.generation in generations
    assert gpu_type.source
    assert len(gpu_type.name) <= LONGEST_NAME


def test_images_are_the_reference_s_with_its_default_first():
    """An instance without an image gets the first."""
    assert [image.name for image in IMAGES] == ["deep-learning-box", "fastai"]
    assert all(image.description for image in IMAGES)
