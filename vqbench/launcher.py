"""Start the processes of one step: torchrun's agent on each node, and srun for an agent on each of several nodes."""

from __future__ import annotations

import os
import subprocess
import sys

from vqbench.errors import SpecError
from vqbench.notice import CALLER

MEETING = "VQBENCH_RENDEZVOUS"  # host:port where the agents of several nodes meet


def launch(processes: int, nodes: int) -> int:
    """Run this very command in `processes` processes on each of `nodes` nodes; returns the exit status for all.

    Raises:
        SpecError: more than one node outside of a Slurm job, or more processes than the node has GPUs.
    """
    if nodes > 1 and MEETING not in os.environ:
        return _on_each_node(nodes)
    from torch import cuda
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if cuda.is_available() and processes > cuda.device_count():
        raise SpecError(f"--processes {processes} needs as many GPUs, this node shows {cuda.device_count()}")
    config = LaunchConfig(min_nodes=nodes, max_nodes=nodes, nproc_per_node=processes, max_restarts=0, monitor_interval=0.1,
                          run_id=os.environ.get("SLURM_JOB_ID", "vqbench"), rdzv_backend="c10d",
                          rdzv_endpoint=os.environ.get(MEETING, "localhost:0"))  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", "vqbench.cli", *sys.argv[1:])
    except ChildFailedError as error:  # the processes have said what went wrong
        statuses = [failure.exitcode for failure in error.failures.values()]
        return os.EX_TEMPFAIL if os.EX_TEMPFAIL in statuses else max([s for s in statuses if s > 0], default=1)
    return 0


def _on_each_node(nodes: int) -> int:
    """The same command once on each node of the Slurm job, where the agents meet on its first one."""
    job, names = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_JOB_NODELIST")
    if not job or not names:
        raise SpecError(f"--nodes {nodes} needs a Slurm job of {nodes} nodes; on one machine use --processes alone")
    hosts = subprocess.run(["scontrol", "show", "hostnames", names], capture_output=True, text=True, check=True).stdout
    place = {
        **os.environ,
        MEETING: f"{hosts.split()[0]}:{29500 + int(job) % 1000}",
        CALLER: "",
    }  # it runs on one node only
    command = ["srun", "--overlap", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", sys.executable,
               "-m", "vqbench.cli", *sys.argv[1:]]  # fmt: skip
    return subprocess.run(command, env=place).returncode
