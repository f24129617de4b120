#!/usr/bin/env bash
# Every run behind every table and figure, then the tables and figures.
#
#     bash run_all.sh                        the toy, three seeds, also masks
#     bash run_all.sh --quick                a first look at the toy: one seed,
#                                            four epochs each, the main rows,
#                                            no masks
#     bash run_all.sh --dataset NAME --data-dir DIR
#                                            real pictures; ham10000: five folds,
#                                            by sex and by age, or as -- says
#     ... --task segment                     masks alone; classify: labels
#     ... --source-dir DIR2                  FairTune first learns DIR2, not drawn
#                                            stars: a csv folder, or as --source
#                                            says, cifar10s
#     ... --seeds 5                          five seeds of each run
#     ... --folds                            five folds (csv; ham10000 has them)
#     ... --jobs 4                           four at a time (usual: all cores)
#     ... --only ckd bird                    these scripts alone
#     ... -- --epochs 3                      what follows -- goes to every run
#     bash run_all.sh --list                 only print the commands, one a line
#     bash run_all.sh --help                 this
#
# A killed run goes on from its last epoch, a failed one stops no other and is
# named at the end. Commands that have ended well stand in runs/finished and are
# skipped, also where pictures or a network's file have changed since: remove it
# then. What a run prints goes to runs/logs/. Each has one thread: two runs on
# two cores are faster, and the number of threads changes the last digits. The
# pages in results/ tell how many hours their runs took, one after the other.

every() {  # each WHEN (always; in a full run; or in one of a data set) SCRIPT SETTINGS
    [ "$task" = segment ] || labels
    case $task$dataset$quick in segment* | toy) masks ;; esac
}
labels() {
    each always ckd --alpha 0  # ERM: plain training
    each always ckd --alpha 0 --balance  # re-balancing
    for file in methods/*.py; do each always "$(basename "$file" .py)"; done  # with its usual settings
    grids ''
    grid bird --fair-weight 0.1 0.3 1 3
    for flag in '' '--balance '; do  # authors of these two draw all cells equally often
        grid mfd "$flag--mfd-weight" 0.1 0.3 1 3
        grid groupdro "--by-class $flag--weight-step" 0.001 0.01 0.1 1
    done
    for flags in --balance --teacher-balance '--balance --teacher-balance'; do  # whose bias counts?
        each full ckd $flags
    done
    each always ckd --temperature 1  # does CKD's bias come from its temperature?
    for t in 2 10 20 40; do each full ckd --temperature $t; done  # is a softer teacher fairer?
    each always adversarial_kd --alpha 0  # AD: the adversary without a teacher
    each always groupdro --by-class  # the groups of its own paper
    for script in mfd 'groupdro --by-class'; do each full $script --balance; done
    each full rkd --normalize  # features of length 1, as in its authors' script
    each full ctkd --ramp-epochs 1  # what does its curriculum add?
    each full kdpp --nd-weight 0  # what does L_ND add?
    for change in --balance --train-backbone; do each full fairdi $change; done
    each full fairdi --alpha 0  # what do its teachers add?
    each full fairdi --step0-epoch last  # is an epoch chosen on validation too early?
    each full bird --phi-lr 0  # what do its gates add?
    for mask in full all none; do each full fairtune --mask $mask; done  # all weights, every bit, the head
    for l in 0 0.1 0.5 1 2 5 10 50 150; do  # how strong an adversary?
        each 'toy|celeba|wider' adversarial_kd --adversary-weight $l
    done
}
masks() {  # by the methods that have a meaning for them
    each always ckd --task segment --alpha 0
    for script in ckd fairdi; do each always $script --task segment; done
    for by in cells groups classes; do each full ckd --task segment --alpha 0 --balance $by; done
    for script in at ctkd fitnet adversarial_kd bird groupdro swad; do each full $script --task segment; done
    for first in febs febs-mended; do each full fairdi --task segment --step0 $first; done  # in place of FIS
    [ -z "$task" ] || {
        grids '--task segment '
        grid bird '--task segment --feature-weight' 0.01 0.1 1 10
        grid at '--task segment --attention-weight' 1 10 100 1000
        grid fitnet '--task segment --hint-weight' 0.1 1 10 100
    }
}

grids() {  # the weight of each fairness method: of four, validation chooses, on the first seed (and fold)
    grid adversarial_kd "$1--adversary-weight" 0.5 1 2 5
    grid groupdro "$1--weight-step" 0.001 0.01 0.1 1
    grid fairdi "$1--fis-temperature" 1 3 10 30
    grid swad "$1--threshold" 0.05 0.3 1 3
}
grid() {  # SCRIPT SETTING VALUE ...
    local value once=yes
    for value in "${@:3}"; do each full "$1" "$2" "$value"; done
}
each() {  # print the command for every part of the data and every seed
    local script=$2 settings=${*:3} last=$extra part seed
    [[ "always ${quick:-full $dataset}" =~ $1 && " ${only:-$script} " = *" $script "* ]] || return 0
    if [ "$script" = fairtune ]; then  # it tunes a transformer, whatever network the others train
        settings+=${quick:+ --trials 4}${source:+ --source $source}${source_dir:+ --source-dir $source_dir}
        case $extra in *--student?vit_*) ;; *--student*) last+=' --student vit_tiny' ;; esac
    fi
    for part in "${parts[@]}"; do for ((seed = 0; seed < ${seeds:-$usual}; seed++)); do
        echo OMP_NUM_THREADS=1 $state python "methods/$script.py" $settings $part --seed $seed $data $last
        [ -z "$once" ] || return 0
    done; done
}
commands() { every | awk '!seen[$0]++'; }
unfinished() { commands | grep -vxFf runs/finished; }
run() {  # run a command, say that it runs and how it ended
    echo "running: ${1#*methods/}"
    local log=runs/logs/$(printf %s "${1#*methods/}" | tr -c 'A-Za-z0-9._=-' _ | cut -c 1-150).log
    bash -c "$1" </dev/null >"$log" 2>&1 && echo "$1" >>runs/finished && echo "done: $1" && return
    echo "FAILED ($(tail -n 1 "$log")): $1"
}
fail() { echo "run_all.sh: $1; see bash run_all.sh --help" >&2; exit 2; }

here=$PWD
cd "$(dirname "$0")" && export -f run || exit 1
jobs=$(getconf _NPROCESSORS_ONLN) dataset=toy parts=('') usual=3 seeds='' quick='' list='' task=''
only='' data='' data_dir='' source='' source_dir='' extra='' folds='' state=''
while [ $# -gt 0 ]; do case $1 in
    --quick) quick=quick usual=1 extra=' --epochs 4 --teacher-epochs 4' ;;
    --list) list=yes ;;
    --folds) folds=yes ;;
    -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "${0##*/}"; exit ;;
    --only) [[ $# -gt 1 && $2 != --* ]] || fail "--only needs a script"
        while [[ $# -gt 1 && $2 != --* ]]; do only+=" ${2%.py}" && shift; done ;;
    --) [ $# = 1 ] || extra+=$(printf ' %q' "${@:2}"); break ;;
    --seeds | --jobs | --dataset | --data-dir | --source | --source-dir | --task)
        [ $# -gt 1 ] || fail "$1 needs a value"
        name=${1#--} value=$2
        case $1,$2 in *-dir,[!/]*) [ "$here" = "$PWD" ] || value=$here/$2 ;; esac  # a relative one
        printf -v "${name/-/_}" %q "$value" && shift ;;
    *) fail "unknown option $1" ;;
esac; shift; done
[ -z "$source_dir" ] || source=${source:-csv}
[[ "$jobs ${seeds:-1}" =~ ^[1-9][0-9]*\ [1-9][0-9]*$ ]] || fail "--seeds and --jobs are whole numbers"
[[ "$task" =~ ^(|classify|segment)$ ]] || fail "--task is classify or segment"
for name in $dataset $source; do
    [ -f "datasets/${name//-/_}.py" ] || fail "there is no data set $name: see datasets/"
done
for script in $only; do [ -f "methods/$script.py" ] || fail "there is no methods/$script.py"; done
[[ -z $folds && $dataset$quick != ham10000 ]] || {
    usual=1 parts=('--fold '{0..4})
    [[ $dataset != ham10000 || $extra = *--sensitive* ]] || parts+=('--sensitive age --fold '{0..4})
}
# With other rows in the user's own table, a command is another one: a variable in front tells.
table=${data_dir:-data/csv}
[ "$dataset" != csv ] || state="TABLE=$(eval "cat $table $table/labels.csv" 2>/dev/null | cksum | tr ' ' -)"
[[ $state != *-0 ]] || state=''
[ "$dataset" = toy ] || data="--dataset $dataset${data_dir:+ --data-dir $data_dir}"
if [ -n "$list" ]; then commands; exit; fi
[[ $extra != *--out* ]] || fail "-- --out is for --list alone: tables are made of runs/"
mkdir -p runs/logs && touch runs/finished || exit 1
# Linux's glibc gives large activations back to the system at every step, and gets them cleared
# anew, unless told not to: a step of EfficientNet-Lite0 at 128 pixels then takes a third less.
export MALLOC_MMAP_THRESHOLD_=1000000000 MALLOC_TRIM_THRESHOLD_=1000000000
echo "$(commands | wc -l) runs, $(unfinished | wc -l) to do (not those in runs/finished), $jobs at a time"
unfinished | tr '\n' '\0' | xargs -0 -n 1 -P "$jobs" bash -c '[ -z "$1" ] || run "$1"' _
python report.py; ended=$?
[ -z "$(unfinished)" ] || { echo "these failed:"; unfinished; exit 1; } >&2
exit $ended
