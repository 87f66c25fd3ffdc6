"""What Slurm's states and reasons mean for a run, and what to do about them.

The words are those of squeue(1), sacct(1) and slurm_errno: "JOB STATE CODES", "JOB REASON CODES".
"""

from __future__ import annotations

KILLED = {
    "OUT_OF_MEMORY": "it took more memory than it asked for: raise resources.memory_per_node,"
    " or let each rank hold less",
    "TIMEOUT": "the time limit ended it: raise resources.time_limit, or let it go on by itself"
    " (requeue, or chain, in the cluster's profile)",
    "NODE_FAIL": "a node was lost: where it is always the same one, name it in the profile's"
    " exclude",
    "BOOT_FAIL": "its nodes did not start: sinfo -R says why",
    "DEADLINE": "it could not end before its deadline",
    "PREEMPTED": "a job of a higher partition or QOS took its nodes",
}
"""By the state that Slurm ended a job with, against the job's own will: what to do."""
FAILED = {
    "JobLaunchFailure": "its node could not start its script, and so there is no log of it: is the"
    " run's folder mounted there, and may you write in it? slurmd's log on the node says more",
}
"""By the reason for which a job failed, where no log of its own can say it: what to do."""
WAITING = {
    "DependencyNeverSatisfied": "what it waits for failed or was cancelled",
    "JobHeldUser": "it is held: scontrol release {job} lets it go on",
    "JobHeldAdmin": "an administrator holds it: ask why",
    "launch_failed_requeued_held": "it could not start on its nodes, and is held: see sinfo -R,"
    " then scontrol release {job}",
    "user_env_retrieval_failed_requeued_held": "its node got no environment from your login shell"
    " in time, and it is held: see what ~/.bash_profile and the like wait for, then"
    " scontrol release {job}",
    "ReqNodeNotAvail": "nodes that it needs are down, drained or reserved: sinfo -R says which",
    "BadConstraints": "no node has what it asks for: look at constraint, gpu_type and GPUs",
    "PartitionTimeLimit": "the partition's time limit is shorter: it will never start",
    "PartitionNodeLimit": "the partition allows fewer nodes: it will never start",
    "PartitionDown": "the partition is down: sinfo -s",
    "PartitionInactive": "the partition is inactive: sinfo -s",
    "NodeDown": "a node that it needs is down: sinfo -R",
    "InvalidAccount": "Slurm doesn't know the account: look at account in the profile",
    "InvalidQOS": "Slurm doesn't know the QOS, or the account may not use it",
    "Reservation": "its reservation has not begun: scontrol show reservation",
    "BeginTime": "Slurm waits a moment before it starts a job again",
}
"""By the reason (its first letters) for which a job waits: what to do."""
LIMITS = ("Assoc", "QOS")
"""How reasons begin that are limits of an account or a QOS."""


def meaning(state: str, reason: str, job: str) -> str:
    """What a job's state and reason mean, and what to do; empty where they speak for themselves.

    Args:
        state: as squeue's %T.
        reason: as squeue's %r.
        job: its id, for commands.
    """
    if state in KILLED:
        return KILLED[state]
    if reason in FAILED:
        return FAILED[reason]
    compact = reason.replace(" ", "_")
    for begin, text in WAITING.items():
        if compact.startswith(begin):
            return text.format(job=job)
    if compact.startswith(LIMITS):
        return "a limit of your account or QOS: sacctmgr show assoc, sacctmgr show qos"
    return ""
