"""Inside of a SLURM job: which of its machines this is, and where they meet.

    srun, one task a node -> python -m dumbo … launch.num_nodes=2 -> the ranks of that node

The first node holds the meeting place; its port comes from the job's number, so that two jobs on one node do not take
the same. Nothing of it is looked at outside of a step of a job.

Source: https://slurm.schedmd.com/srun.html (output environment variables)
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
from dataclasses import replace

from dumbo.errors import UserError
from dumbo.launch.addresses import Meeting, meeting_at

FIRST_PORT, PORTS = 20000, 20000
"""Ports of meeting places: 20000 + job number % 20000."""


def several_nodes() -> int:
    """The nodes of the SLURM step that this process is a task of; 0 where it is none, or of one node."""
    nodes = int(os.environ.get("SLURM_NNODES", "1")) if "SLURM_PROCID" in os.environ else 1
    return nodes if nodes > 1 else 0


def node_number() -> int:
    """This node among those of the step, from 0."""
    return int(os.environ.get("SLURM_NODEID", "0"))


def refuse_other_shape(num_nodes: int) -> None:
    """Holds `launch.num_nodes` against what SLURM gave.

    Raises:
        UserError: another number of nodes, or several tasks on a node.
    """
    nodes, tasks = several_nodes(), int(os.environ.get("SLURM_NTASKS", "1"))
    if nodes and num_nodes not in (1, nodes):
        raise UserError(
            f"launch.num_nodes={num_nodes}, but SLURM gave this step {nodes} nodes.\n  Write launch.num_nodes={nodes}"
        )
    if nodes and num_nodes == nodes and tasks != nodes:
        raise UserError(
            f"SLURM started {tasks} tasks on {nodes} nodes: dumbo wants one a node, and starts the ranks there itself.\n"
            "  Write --ntasks-per-node=1, and launch.num_processes=N for the ranks of each node."
        )


def meeting() -> Meeting:
    """Where the nodes of this step meet: on its first one."""
    port = FIRST_PORT + int(os.environ["SLURM_JOB_ID"]) % PORTS
    # Two node daemons on one machine (tests) have one address: who hosts is said by number.
    return replace(meeting_at(f"{_first_host()}:{port}"), hosts=node_number() == 0)


def _first_host() -> str:
    """A name or address of the first node that resolves to no loopback, as far as there is one."""
    first = _said("scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]).split()[0]
    named = re.search(r"\bNodeAddr=(\S+)", _said("scontrol", "show", "node", first))
    told = os.environ.get("SLURM_LAUNCH_NODE_IPADDR")
    candidates = [host for host in (named and named.group(1), first, told) if host]
    resolved = {host: address for host in candidates if (address := _address(host))}
    return next((host for host, address in resolved.items() if not address.startswith("127.")), candidates[0])


def _address(host: str) -> str | None:
    try:
        return socket.gethostbyname(host)
    except OSError:
        return None


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(
            f"launch: SLURM does not say where the nodes meet ({' '.join(command)}: {error}).\n"
            "  Write launch.rdzv_endpoint=HOST:PORT, HOST being the first of them."
        ) from error
