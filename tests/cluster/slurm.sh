#!/usr/bin/env bash
# The list of run_all.sh through a real SLURM: bash tests/cluster/slurm.sh [FOLDER], as root
#
# Controller and node daemon on this machine, an array of 20 smoke runs. One of them is taken from its
# node in the middle and requeued: it goes on from its checkpoint.
set -eu
cd "$(dirname "$0")/../.."
. tests/cluster/start_slurm.sh "${1:-$(mktemp -d)}"

smoke='--smoke --teacher convnet4 --student convnet2'
for seeds in 1 2; do bash run_all.sh --list --quick --seeds $seeds -- $smoke; done |
    grep -v fairtune | awk '!seen[$0]++' | head -n 20 >"$work/commands"
sed "s|$| --out $work/runs|" "$work/commands" >"$work/list"
job=$(sbatch --parsable --array=1-20 --requeue --open-mode=append --output="$work/task-%a" \
    --wrap "sed -n \"\${SLURM_ARRAY_TASK_ID}p\" '$work/list' | bash")
until task=$(grep -sl ' 1/2:' "$work"/task-* | grep -m 1 -o '[0-9]*$'); do sleep 0.2; done
scontrol requeue "${job}_$task"  # in its second epoch, or soon
while squeue --noheader --array --format='%K %T %r' | grep .; do
    scontrol update jobid="${job}_$task" starttime=now 2>/dev/null || true  # or SLURM waits two minutes
    sleep 5
done >"$work/queue"

echo "task $task, which was requeued:"
grep -h 'REQUEUE\|[12]/2:' "$work/task-$task" | cut -c 1-80
[ "$(grep -l 'wrote .*result.json' "$work"/task-* | wc -l)" = 20 ]
python tests/cluster/same.py "$work/commands" "$work/runs" | tail -n 1
