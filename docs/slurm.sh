#!/bin/bash
# A run on a SLURM cluster: sbatch docs/slurm.sh NAME --preset full data.root=/shared/coco
# 120 s before the time is up, or when a better job needs the nodes, every process is told; the run saves and the job
# queues again. The folder of the job, data.root and the environment must be on a disk that all nodes share.
#SBATCH --job-name=clipcoco
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
name=$1
shift
head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$head_node:${PORT:-29400}" \
    -m clipcoco train --name "$name" --or-resume --plain "$@" &
trap 'kill -TERM $!' TERM # where SLURM tells the script and not the processes
wait $! || wait $!        # the first wait ends with the trap
code=$?
# torchrun makes 1 of every exit code; what became of the run is in its own folder.
if grep -q '"state": "stopped"' "runs/$name/status.json"; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
