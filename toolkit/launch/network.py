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
        # NCCL User Guide, Environment Variables: with NCCL_NET=IB a job without verbs devices
        # ends with an error, where it would fall back to TCP at a tenth of the speed.
        "NCCL_NET": "IB",
        # NCCL User Guide, NCCL_IB_TIMEOUT: the time-out is 4.096 us * 2^value; 22 (17 s) rides
        # out a link that flaps on a large fabric. The default was 18 before NCCL 2.23, then 20.
        "NCCL_IB_TIMEOUT": "22",
    },
    "roce": {
        # As for InfiniBand: RoCE goes through NCCL's verbs transport, too.
        "NCCL_NET": "IB",
        "NCCL_IB_TIMEOUT": "22",
        # NCCL User Guide, NCCL_IB_ROCE_VERSION_NUM: the GID index is then chosen by version
        # (NCCL_IB_GID_INDEX, -1 since 2.21); 2 is RoCE v2, which is routable.
        "NCCL_IB_ROCE_VERSION_NUM": "2",
    },
    "efa": {
        # libfabric's fi_efa(7), aws-ofi-nccl's wiki (Environment Variables): the provider that
        # speaks EFA. No NCCL_NET: the plugin's name differs between its versions.
        "FI_PROVIDER": "efa",
        # awslabs/awsome-distributed-training, EFA cheat sheet: huge pages fail in forked data
        # loaders (os.fork: cannot allocate memory).
        "FI_EFA_USE_HUGE_PAGE": "0",
        # ibid.: bootstrap over any interface but those of containers and the loopback.
        "NCCL_SOCKET_IFNAME": "^docker,lo,veth",
    },
    "gke-gib": {
        # Google Cloud, "Maximize GPU network bandwidth" (A3 Ultra, A4: GPUDirect RDMA), what
        # /usr/local/gib/scripts/set_nccl_env.sh sets; the plugin itself comes from the node.
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
