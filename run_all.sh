#!/usr/bin/env bash
# Every run behind every table and figure, then the tables and figures.
#
#     bash run_all.sh              five seeds of everything on the embedded toy data, on a laptop's CPU
#     bash run_all.sh --seeds 1    one seed
#     bash run_all.sh --jobs 4     four runs at a time (default: one for each core)
#     bash run_all.sh --list       only print the commands, one a line, for other schedulers
#
# Each run has one thread: two with a core each are faster than one with two, and the number of
# threads changes the last digits of a sum, hence, after some thousand steps, the result. A run whose
# result is there is skipped, a killed one goes on from its last epoch, a failed one stops no other
# and is named at the end.
set -u
cd "$(dirname "$0")" || exit 1
seeds=5 jobs=$(nproc 2>/dev/null || echo 2) list=no
while [ $# -gt 0 ]; do
    case $1 in
        --seeds) seeds=${2:?--seeds needs a number}; shift 2 ;;
        --jobs) jobs=${2:?--jobs needs a number}; shift 2 ;;
        --list) list=yes; shift ;;
        *) echo "run_all.sh: unknown option $1; see the top of this file" >&2; exit 2 ;;
    esac
done

for_each_seed() {
    for ((seed = 0; seed < seeds; seed++)); do
        echo "OMP_NUM_THREADS=1 python methods/$1 --seed $seed"
    done
}

runs() {
    # without distillation: ERM (these also train the teachers) and re-balancing
    for_each_seed "ckd.py --alpha 0"
    for_each_seed "ckd.py --alpha 0 --balance"
    # classic distillation
    for method in ckd rkd ctkd kdpp fitnet at; do for_each_seed "$method.py"; done
    for_each_seed "ckd.py --temperature 1"  # does CKD's bias come from its temperature?
    # debiasing while distilling; AD is the adversary without a teacher
    for method in adversarial_kd bird mfd; do for_each_seed "$method.py"; done
    for_each_seed "adversarial_kd.py --alpha 0"
    # fine-tuning without a teacher: FairTune, all parts, the head alone
    for mask in search all none; do for_each_seed "fairtune.py --mask $mask"; done
    # how strong an adversary? λ = 5, the default, stands above
    for strength in 0 0.1 0.5 1 2 10 15 20 50 150; do
        for_each_seed "adversarial_kd.py --adversary-weight $strength"
    done
}

if [ $list = yes ]; then runs; exit; fi
failures=$(mktemp)
trap 'rm -f "$failures"' EXIT
one() {
    echo "=== $2"
    bash -c "$2" </dev/null || echo "$2" >>"$1"
}
export -f one
runs | xargs -P "$jobs" -I{} bash -c 'one "$1" "$2"' _ "$failures" {}
python report.py || echo "python report.py" >>"$failures"
if [ -s "$failures" ]; then
    echo "$(wc -l <"$failures") failed:"
    cat "$failures"
    exit 1
fi
