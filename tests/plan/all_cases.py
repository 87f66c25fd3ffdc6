"""Both sides of every rule's boundary: each wrong configuration, and the same one repaired."""

from experts_cases import DISPATCH, ROUTING
from fsdp_cases import FSDP_CASES
from hardware_cases import HARDWARE
from kernels_cases import KERNELS
from memory_cases import MEMORY
from pipeline_cases import LAYOUTS, PIPELINE
from precision_cases import PRECISION
from ranks_cases import MATRICES, RANKS
from sequence_cases import SEQUENCE
from userbuffers_cases import USER_BUFFERS

CASES = [
    *USER_BUFFERS, *KERNELS, *RANKS, *MATRICES, *PIPELINE, *LAYOUTS, *SEQUENCE, *ROUTING, *DISPATCH,
    *MEMORY, *PRECISION, *HARDWARE, *FSDP_CASES,
]  # fmt: skip
