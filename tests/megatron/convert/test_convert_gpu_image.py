"""The CPU's model takes no kernel of apex or TransformerEngine where these are installed.

NVIDIA's images have both, and megatron-core then puts their norms into its own local layers.
"""

import subprocess
import sys

BUILD = """
from megatron.core.models import backends
from megatron.core.transformer import transformer_block

class OnGPUsOnly:
    def __init__(self, *args, **kwargs):
        raise RuntimeError("needs a GPU")

backends.LNImpl = transformer_block.LayerNormImpl = OnGPUsOnly
from convert_shapes import SHAPES
from toolkit.megatron.config import ModelConfig, ParallelConfig
from toolkit.megatron.distributed import process_groups
from toolkit.megatron.model import build_model

with process_groups(ParallelConfig()):
    for name in ("gpt2", "llama", "qwen3"):
        network = build_model(ModelConfig(**SHAPES[name]), vocab_size=300)
        print(name, type(network.decoder.final_layernorm).__name__)
"""


def test_norms_are_torchs_own() -> None:
    paths = [path for path in sys.path if path]
    code = f"import sys; sys.path[:0] = {paths!r}\n{BUILD}"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["gpt2", "LayerNorm", "llama", "RMSNorm", "qwen3", "RMSNorm"]
