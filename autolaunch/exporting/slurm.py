"""A batch script for Slurm: one job, or an array of them, one a replica; several nodes where the plan has them."""

from __future__ import annotations

from autolaunch.exporting import shell
from autolaunch.exporting.header import header
from autolaunch.exporting.values import File
from autolaunch.exporting.work import Work

#: Threads of a rank beside the one that feeds its device; assumed.
CORES_A_RANK, CORES_BESIDE = 4, 4
#: What is taken of main memory beside what was planned: page cache of the weights as they are read; assumed.
MEMORY_FACTOR = 1.25

#: A step does not take over the job's processors by itself (https://slurm.schedmd.com/srun.html, since 22.05).
_SRUN = 'srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1'

#: What every node of a job does: the first one serves, the others hold their ranks. One word of the script, in quotes.
_NODE = """\
    set -- "$@" --node-rank "$SLURM_NODEID" --master-addr "$MASTER_ADDR"
    if [[ $SLURM_NODEID != 0 ]]; then set -- "$@" --headless; fi
    exec "$@"
  """


def slurm(work: Work) -> tuple[File, ...]:
    """``NAME.sbatch``."""
    name = f"{work.slug}.sbatch"
    several = work.candidate.parallel.nodes > 1
    how = (
        f"  bash {name} prepare    once, where the network is: environment and weights",
        f"  sbatch {name}          " + (f"{work.replicas} jobs, one a replica" if work.replicas > 1 else "the job"),
    )
    told = (
        *shell.told(work),
        "ROOT has to be on a file system that every node sees. The devices are those that Slurm gives the job.",
        "PyTorch is PyPI's build for CUDA, whatever the node that prepares has; UV_TORCH_BACKEND names another.",
        "Partition, account and time are the site's: add them above, or to sbatch.",
        f"Clients reach it at port {work.options.port} of the job's first node (squeue --format=%N)"
        + (", the next replicas at the ports after it." if work.replicas > 1 else "."),
    )
    text = f"""\
#!/usr/bin/env bash
{_directives(work)}
{header(work, "A job for Slurm that serves", how, told)}
{shell.settings(work)}
{shell.prepare(work)}
{shell.serve(work, _launch(several=several), choose_devices=False)}
case "${{1:-job}}" in
  prepare) prepare ;;
  job)
    if [[ -z ${{SLURM_JOB_ID:-}} ]]; then
      echo "this is a job's script: sbatch $0" >&2
      exit 64
    fi
    serve "${{SLURM_ARRAY_TASK_ID:-1}}"
    ;;
  *)
    echo "usage: bash $0 prepare, or sbatch $0" >&2
    exit 64
    ;;
esac
"""
    return (File(name=name, text=text, mode=0o755),)


def _directives(work: Work) -> str:
    parallel = work.candidate.parallel
    ranks = parallel.ranks // parallel.nodes
    memory_gib = -(-int(work.candidate.memory.host_bytes * MEMORY_FACTOR) // 2**30)
    rows = [
        f"--job-name={work.slug}",
        f"--nodes={parallel.nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={CORES_A_RANK * ranks + CORES_BESIDE}",
        f"--mem={memory_gib}G",
        "--output=%x-%A_%a.log" if work.replicas > 1 else "--output=%x-%j.log",
    ]
    if work.kind != "cpu":
        rows.insert(3, f"--gpus-per-node={ranks}")
    if work.replicas > 1:
        rows.append(f"--array=1-{work.replicas}")
    return "\n".join(f"#SBATCH {row}" for row in rows) + "\n#"


def _launch(*, several: bool) -> str:
    if not several:
        return f'exec {_SRUN} "$@"'
    return f"""\
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  export MASTER_ADDR
  # shellcheck disable=SC2016 # what is in quotes is each node's to read
  exec {_SRUN} bash -c '
{_NODE}' node "$@\""""
