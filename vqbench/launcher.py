"""Start the processes of one step: torchrun's agent on each node, and srun for an agent on each of several nodes."""

from __future__ import annotations

import logging
import os
import platform
import signal
import subprocess
import sys
from types import FrameType

import psutil

from vqbench.errors import SpecError
from vqbench.notice import CALLER, SIGNALS, queue_again

MEETING = "VQBENCH_RENDEZVOUS"  # host:port where the agents of several nodes meet


def launch(processes: int, nodes: int) -> int:
    """Run this very command in `processes` processes on each of `nodes` nodes; returns the exit status for all.

    A notice is passed on to the processes, which save together and end; a Slurm job is then queued again, once for all.

    Raises:
        SpecError: more than one node outside of a Slurm job, or more processes than the node has GPUs.
    """
    first = MEETING not in os.environ
    status = _on_each_node(nodes) if nodes > 1 and first else _here(processes, nodes)
    if status == os.EX_TEMPFAIL and first:
        queue_again()
    return status


def _here(processes: int, nodes: int) -> int:
    """torchrun's agent, in this process."""
    from torch import cuda
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if cuda.is_available() and processes > cuda.device_count():
        raise SpecError(f"--processes {processes} needs as many GPUs, this node shows {cuda.device_count()}")
    config = LaunchConfig(min_nodes=nodes, max_nodes=nodes, nproc_per_node=processes, max_restarts=0, monitor_interval=0.1,
                          run_id=os.environ.get("SLURM_JOB_ID", "vqbench"), rdzv_backend="c10d",
                          rdzv_endpoint=os.environ.get(MEETING, "localhost:0"),
                          signals_to_handle="SIGINT,SIGHUP,SIGQUIT")  # fmt: skip
    for number in SIGNALS:
        signal.signal(number, _pass_on)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes speak for themselves
    try:
        elastic_launch(config, sys.executable)("-m", "vqbench.cli", *sys.argv[1:])
    except ChildFailedError as error:
        statuses = [failure.exitcode for failure in error.failures.values()]
        return os.EX_TEMPFAIL if os.EX_TEMPFAIL in statuses else max([s for s in statuses if s > 0], default=1)
    return 0


def _pass_on(number: int, _frame: FrameType | None) -> None:
    """The agent itself would give its processes 30 seconds and then kill them."""
    for child in psutil.Process().children():
        child.send_signal(number)


def _on_each_node(nodes: int) -> int:
    """The same command once on each node of the Slurm job; the agents meet on this one, where the job's script runs."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job or os.environ.get("SLURM_JOB_NUM_NODES") != str(nodes):
        raise SpecError(f"--nodes {nodes} needs a Slurm job of {nodes} nodes (sbatch --nodes={nodes}); on one machine use "
                        "--processes alone")  # fmt: skip
    meeting = f"{platform.node()}:{29500 + int(job) % 1000}"
    place = {**os.environ, MEETING: meeting, CALLER: ""}  # who called runs on one of the nodes only
    command = ["srun", "--overlap", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", sys.executable,
               "-m", "vqbench.cli", *sys.argv[1:]]  # fmt: skip
    return subprocess.run(command, env=place).returncode
