#!/usr/bin/env bash
# The list of run_all.sh through a real SLURM: bash tests/cluster/slurm.sh [FOLDER], as root
#
# Controller and node daemon on this machine, an array of 20 smoke runs. One of them is taken from its
# node in the middle and requeued: it goes on from its checkpoint.
set -eu
cd "$(dirname "$0")/../.."
. tests/cluster/start_slurm.sh "${1:-$(mktemp -d)}"

smoke='--smoke --teacher convnet4 --student convnet2'
bash run_all.sh --list --quick -- $smoke | grep -v fairtune | head -n 20 >"$work/commands"
sed "s|$| --out $work/runs|" "$work/commands" >"$work/list"
job=$(sbatch --parsable --array=1-20 --requeue --open-mode=append --output="$work/task-%a" \
    --wrap "sed -n \"\${SLURM_ARRAY_TASK_ID}p\" '$work/list' | bash")
until checkpoint=$(find "$work/runs" -path '*seed*/checkpoint.pt' 2>/dev/null | grep .); do sleep 0.2; done
task=$(squeue --noheader --array --states=running --format=%K | head -n 1)  # the oldest that runs
scontrol requeue "${job}_$task"
echo "task $task was requeued; there was ${checkpoint#"$work/"}"
while squeue --noheader --array --format='%i %K %T %r' | grep .; do
    scontrol update jobid="${job}_$task" starttime=now 2>/dev/null || true  # or SLURM waits two minutes
    sleep 5
done >"$work/queue"

cat "$work/log-controller" | grep -c 'Requeuing\|requeue' || true
grep -l 'wrote .*result.json' "$work"/task-* | wc -l | grep -qx 20
python tests/cluster/same.py "$work/commands" "$work/runs" | tail -n 1
