"""What NCCL is told about the network between nodes: one preset for each kind of fabric.

What belongs to one site (which interface, which adapters) is left to a profile's ``environment``,
which wins over a preset.
"""

from __future__ import annotations

from typing import Literal

Network = Literal["none", "infiniband", "roce", "efa", "gke-gib"]

PRESETS: dict[Network, dict[str, str]] = {
    "none": {},
    "infiniband": {
        # NCCL User Guide, NCCL_IB_TIMEOUT: 4.096 us * 2^value, more of it for very large networks;
        # 22 (17 s) rides out a link that flaps, where the default of 20 (NCCL's
        # src/transport/net_ib/connect.cc) gives up after 4 s. No NCCL_NET=IB: it would shut out
        # the plugin that NVIDIA's images bring with HPC-X (src/plugin/net.cc: the names must be
        # equal, and the plugin's is IBext_v8 and the like), and SHARP with it.
        "NCCL_IB_TIMEOUT": "22",
    },
    "roce": {
        # RoCE goes through NCCL's verbs transport, as InfiniBand does.
        "NCCL_IB_TIMEOUT": "22",
        # NCCL User Guide, NCCL_IB_ROCE_VERSION_NUM: 2 is RoCE v2, which is routable; the GID's
        # index is looked up by it since NCCL 2.21 (NCCL_IB_GID_INDEX: -1).
        "NCCL_IB_ROCE_VERSION_NUM": "2",
        # NCCL User Guide, NCCL_IB_QPS_PER_CONNECTION: several queue pairs give the hashes of a
        # multi-level fabric something to spread; 4 is what Google publishes for its RoCE fabric
        # (see gke-gib). The traffic class (NCCL_IB_TC) is the switches' own, and so the site's.
        "NCCL_IB_QPS_PER_CONNECTION": "4",
    },
    "efa": {
        # aws/aws-ofi-nccl, doc/efa-env-var.md: huge pages fail in forked data loaders (os.fork:
        # cannot allocate memory). The provider (FI_PROVIDER) and fork safety the plugin sets
        # itself (src/platform-aws.cpp), and since 1.7 it needs no other setting.
        "FI_EFA_USE_HUGE_PAGE": "0",
        # aws-samples/awsome-distributed-training, micro-benchmarks/nccl-tests: bootstrap over
        # any interface but those of containers and the loopback.
        "NCCL_SOCKET_IFNAME": "^docker,lo,veth",
    },
    "gke-gib": {
        # GoogleCloudPlatform/cluster-toolkit, examples/machine-learning/a3-ultragpu-8g (the
        # Dockerfile of nemo-framework) and a4-highgpu-8g: what set_nccl_env.sh of the plugin sets
        # for A3 Ultra and A4. The plugin comes from the node: mount /usr/local/gib, and put its
        # lib64 into LD_LIBRARY_PATH and the machine's tuner file into NCCL_TUNER_CONFIG_PATH.
        "NCCL_NET": "gIB",
        "NCCL_CROSS_NIC": "0",
        "NCCL_NET_GDR_LEVEL": "PIX",
        "NCCL_P2P_NET_CHUNKSIZE": "131072",
        "NCCL_NVLS_CHUNKSIZE": "524288",
        "NCCL_IB_ADAPTIVE_ROUTING": "1",
        "NCCL_IB_QPS_PER_CONNECTION": "4",
        "NCCL_IB_TC": "52",
        "NCCL_IB_FIFO_TC": "84",
    },
}
"""By the name a profile gives it, the environment of every rank; each value with its source."""
