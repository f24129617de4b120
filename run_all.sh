#!/usr/bin/env bash
# Every run behind every table, then the tables.
#
#     bash run_all.sh              five seeds on the embedded toy data, on a laptop's CPU
#     bash run_all.sh --seeds 1    one seed
#     bash run_all.sh --list       the commands only, one a line, for xargs, GNU parallel or a job array
#
# A run whose result is there is skipped, a killed one goes on from its last epoch, a failed one stops
# no other and is named at the end.
set -u
cd "$(dirname "$0")"
seeds=5 list=no
while [ $# -gt 0 ]; do
    case $1 in
        --seeds) seeds=$2; shift 2 ;;
        --list) list=yes; shift ;;
        *) echo "run_all.sh: unknown option $1; see the top of this file" >&2; exit 2 ;;
    esac
done

runs() {
    for ((seed = 0; seed < seeds; seed++)); do
        echo "python methods/ckd.py --alpha 0 --seed $seed"            # ERM: no distillation
        echo "python methods/ckd.py --alpha 0 --balance --seed $seed"  # re-balancing
        for method in ckd rkd ctkd kdpp fitnet at; do
            echo "python methods/$method.py --seed $seed"
        done
    done
}

if [ $list = yes ]; then runs; exit; fi
total=$(runs | wc -l) done=0 failed=()
while read -r command; do
    done=$((done + 1))
    echo "=== $done/$total, $((SECONDS / 60)) min so far: $command"
    $command </dev/null || failed+=("$command")
done < <(runs)
python report.py || failed+=("python report.py")
if [ ${#failed[@]} -gt 0 ]; then
    printf '%s failed:\n' "${#failed[@]}"
    printf '    %s\n' "${failed[@]}"
    exit 1
fi
