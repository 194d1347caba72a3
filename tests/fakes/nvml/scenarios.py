"""Machines as their drivers tell them.

Names, memory totals, compute capabilities and link counts are those of the accelerators' profiles and of public
nvidia-smi logs; addresses, UUIDs and processes are made up.
"""

from __future__ import annotations

from tests.fakes.nvml.stub import MIB, TO_GPU, Gpu, LinuxHost, NvLink, Scenario

X86 = "fpu sse4_1 sse4_2 avx f16c avx2 fma"
AVX512 = f"{X86} avx512f avx512bw avx512vl avx512_vnni avx512_bf16 amx_bf16 amx_tile amx_int8"

BUSES = ("19:00", "3B:00", "4C:00", "5D:00", "9B:00", "BB:00", "CB:00", "DB:00")
TWO_SOCKETS = (0, 0, 0, 0, 1, 1, 1, 1)

SERVER = LinuxHost(
    brand="Intel(R) Xeon(R) Platinum 8480C",
    flags=AVX512,
    memory_total_kib=2_113_425_000,
    memory_available_kib=2_070_110_000,
    cores=224,
    disk_free_bytes=12_000_000_000_000,
    network="server",
)
WORKSTATION = LinuxHost(
    brand="AMD EPYC 7763 64-Core Processor",
    flags=X86,
    memory_total_kib=528_210_000,
    memory_available_kib=509_880_000,
    cores=128,
    disk_free_bytes=3_400_000_000_000,
    network="workstation",
)
SPARK = LinuxHost(
    brand=None,
    machine="aarch64",
    flags="fp asimd sve sve2 bf16 i8mm",
    memory_total_kib=125_513_000,
    memory_available_kib=118_400_000,
    cores=20,
    disk_free_bytes=3_300_000_000_000,
    kernel="6.11.0-1016-nvidia",
    network="spark",
)
SMALL = LinuxHost(
    brand="AMD Ryzen 9 7950X 16-Core Processor",
    flags=f"{X86} avx512f avx512_bf16",
    memory_total_kib=65_012_000,
    memory_available_kib=60_480_000,
    cores=32,
    disk_free_bytes=640_000_000_000,
    network="virtual",
)


def bus(place: int) -> str:
    return f"00000000:{BUSES[place]}.0"


def uuid(place: int, kind: str = "GPU") -> bytes:
    return f"{kind}-{0xA1B2C3D4 + place:08x}-1111-2222-3333-{place:012x}".encode()


def h100(place: int, **changes: object) -> Gpu:
    """An H100 of an HGX board: eighteen NVLinks of the fourth generation, all to the switches."""
    values: dict[str, object] = {
        "name": b"NVIDIA H100 80GB HBM3",
        "uuid": uuid(place),
        "bus": bus(place),
        "memory": (81_559 * MIB, 550 * MIB, 81_005 * MIB),
        "capability": (9, 0),
        "architecture": 9,
        "pcie": (5, 16),
        "links": (NvLink(version=6, speed=26_562),) * 18,
        "mig": False,
    }
    return Gpu(**{**values, **changes})  # type: ignore[arg-type]  # a test's overrides, checked by running


def h200(place: int) -> Gpu:
    return h100(place, name=b"NVIDIA H200", memory=(143_771 * MIB, 568 * MIB, 143_200 * MIB))


def a100(place: int, free_mib: int, *compute: tuple[int, int]) -> Gpu:
    """An A100 with 80 GB on a board with switches: twelve links of the third generation."""
    return Gpu(
        name=b"NVIDIA A100-SXM4-80GB",
        uuid=uuid(place),
        bus=bus(place),
        memory=(81_920 * MIB, 626 * MIB, free_mib * MIB),
        capability=(8, 0),
        architecture=7,
        pcie=(4, 16),
        links=(NvLink(version=4, speed=25_000),) * 12,
        compute=compute,
        mig=False,
    )


def rtx4090(place: int, **changes: object) -> Gpu:
    values: dict[str, object] = {
        "name": b"NVIDIA GeForce RTX 4090",
        "uuid": uuid(place),
        "bus": bus(place),
        "memory": (24_564 * MIB, 354 * MIB, 24_204 * MIB),
        "capability": (8, 9),
        "architecture": 8,
        "pcie": (4, 16),
    }
    return Gpu(**{**values, **changes})  # type: ignore[arg-type]  # a test's overrides, checked by running


def rtx3090(place: int, peer: int) -> Gpu:
    """A bridged pair: four links, slower than their generation allows."""
    return rtx4090(
        place,
        name=b"NVIDIA GeForce RTX 3090",
        memory=(24_576 * MIB, 300 * MIB, 24_240 * MIB),
        capability=(8, 6),
        architecture=7,
        links=(NvLink(version=4, speed=14_062, remote=TO_GPU, bus=bus(peer)),) * 4,
    )


def sliced_h100(place: int) -> Gpu:
    """An H100 in MIG mode with a slice of 40 GB and one of 20 GB."""
    sizes = (("3g.40gb", 40_448), ("2g.20gb", 20_096))
    return h100(
        place,
        mig=True,
        slices=tuple(
            Gpu(
                name=f"NVIDIA H100 80GB HBM3 MIG {profile}".encode(),
                uuid=uuid(place * 10 + number, "MIG"),
                memory=(mib * MIB, 0, (mib - 20) * MIB),
            )
            for number, (profile, mib) in enumerate(sizes)
        ),
    )


EIGHT_H100 = Scenario(gpus=tuple(h100(place) for place in range(8)), numa=TWO_SOCKETS)
EIGHT_H200 = Scenario(gpus=tuple(h200(place) for place in range(8)), numa=TWO_SOCKETS)
FOUR_A100_BUSY = Scenario(
    gpus=(
        a100(0, 18_400, (4242, 62_500 * MIB)),
        a100(1, 81_000),
        a100(2, 81_000),
        a100(3, 51_100, (4243, 29_700 * MIB), (9_999_999, (1 << 64) - 1)),
    ),
    numa=(0, 0, 1, 1),
    driver=b"535.183.06",
    cuda=12020,
    process_names={4242: "VLLM::EngineCore", 4243: "python3"},
)
EIGHT_4090 = Scenario(gpus=tuple(rtx4090(place) for place in range(8)), numa=TWO_SOCKETS)
MIG_ON_ONE_OF_TWO = Scenario(gpus=(sliced_h100(0), h100(1)), numa=(0, 0))
GB10 = Scenario(
    gpus=(
        Gpu(
            name=b"NVIDIA GB10",
            uuid=uuid(0),
            bus="0000000F:01:00.0",
            capability=(12, 1),
            architecture=10,
            pcie=(1, 1),
        ),
    ),
    driver=b"580.95.05",
    cuda=13000,
)
HOSTILE = Scenario(
    gpus=(
        Gpu(name=b"NVIDIA H100 80GB HBM3", uuid=uuid(0), bus=bus(0), memory=(0, 0, 0), capability=(9, 0)),
        Gpu(name=b"NVIDIA H100 80GB HBM3", uuid=uuid(1), bus=bus(1), memory=(81_559 * MIB, 0, 1 << 63)),
        Gpu(name=b"\xff\xfe\x80 binary", uuid=b"\xff\xff", bus=bus(2), memory=(24_564 * MIB, 0, 24_000 * MIB)),
        Gpu(name=b"N" * 10_000, uuid=b"GPU-1,0,2", bus=bus(3), memory=((1 << 64) - 1, 0, 1)),
        Gpu(name=b"\x1b[31mred\x07\r\nH100\x1b[0m", uuid=uuid(4), bus="../../../etc", capability=(0, -7)),
        Gpu(),
    ),
    driver=b"\x1b]0;title\x07" * 6,
    cuda=-5,
)

#: The machines that are kept as reports in tests/data/machines, beside the Macs.
RECORDED: dict[str, tuple[Scenario | None, LinuxHost]] = {
    "8xh100": (EIGHT_H100, SERVER),
    "8xh200": (EIGHT_H200, SERVER),
    "4xa100-busy": (FOUR_A100_BUSY, WORKSTATION),
    "8x4090": (EIGHT_4090, WORKSTATION),
    "gb10": (GB10, SPARK),
    "mig": (MIG_ON_ONE_OF_TWO, SERVER),
    "cpu-only": (None, SMALL),
}
