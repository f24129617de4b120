#!/usr/bin/env bash
# Every run behind every table and figure, then the tables and figures.
#
#     bash run_all.sh              five seeds of everything on the embedded toy data, on a laptop's CPU
#     bash run_all.sh --seeds 1    one seed
#     bash run_all.sh --list       only print the commands, one a line
#
# A run whose result is there is skipped, a killed one goes on from its last epoch, a failed one stops
# no other and is named at the end. Several workers may share the list, here two with a core each:
#
#     bash run_all.sh --list | OMP_NUM_THREADS=1 xargs -P 2 -I{} sh -c '{}'; python report.py
set -u
cd "$(dirname "$0")" || exit 1
seeds=5 list=no
while [ $# -gt 0 ]; do
    case $1 in
        --seeds) seeds=${2:?--seeds needs a number}; shift 2 ;;
        --list) list=yes; shift ;;
        *) echo "run_all.sh: unknown option $1; see the top of this file" >&2; exit 2 ;;
    esac
done

runs() {
    for ((seed = 0; seed < seeds; seed++)); do
        # without distillation: ERM and re-balancing
        echo "python methods/ckd.py --alpha 0 --seed $seed"
        echo "python methods/ckd.py --alpha 0 --balance --seed $seed"
        # classic distillation
        for method in ckd rkd ctkd kdpp fitnet at; do
            echo "python methods/$method.py --seed $seed"
        done
        # debiasing while distilling; AD is the adversary without a teacher
        for method in adversarial_kd bird mfd; do
            echo "python methods/$method.py --seed $seed"
        done
        echo "python methods/adversarial_kd.py --alpha 0 --seed $seed"
        # how strong an adversary? λ = 5, the default, stands above
        for strength in 0 0.1 0.5 1 2 10 15 20 50 150; do
            echo "python methods/adversarial_kd.py --adversary-weight $strength --seed $seed"
        done
    done
}

if [ $list = yes ]; then runs; exit; fi
total=$(runs | wc -l) number=0 failed=()
while read -r command; do
    number=$((number + 1))
    echo "=== $number of $total, $((SECONDS / 60)) minutes so far: $command"
    $command </dev/null || failed+=("$command")
done < <(runs)
python report.py || failed+=("python report.py")
if [ ${#failed[@]} -gt 0 ]; then
    echo "${#failed[@]} failed:"
    printf '    %s\n' "${failed[@]}"
    exit 1
fi
