#!/usr/bin/env bash
# Every run behind every table and figure, then the tables and figures.
#
#     bash run_all.sh                                     the embedded toy data, three seeds
#     bash run_all.sh --quick                             one seed, six epochs, three strengths λ
#     bash run_all.sh --seeds 5                           as in the README
#     bash run_all.sh --dataset NAME --data-dir DIR       real pictures; ham10000: five folds, sex and age
#     ... --source-dir DIR2                               and FairTune, first trained on DIR2 (--dataset csv)
#     bash run_all.sh --only ckd bird                     some of the scripts in methods/
#     bash run_all.sh --jobs 4                            four runs at a time (default: one for each core)
#     bash run_all.sh --only ckd -- --epochs 3            what stands after -- goes to every run
#     bash run_all.sh --list                              only print the commands, one a line
#
# Each run has one thread: two with a core each are faster than one with two, and the number of
# threads changes the last digits of a sum, hence, after some thousand steps, the result. A finished
# run is skipped, a killed one goes on from its last epoch, a failed one stops no other and is named
# at the end. What a run prints goes to runs/logs/. The lines of --list depend on nothing but each
# other's files: GNU parallel, xargs or a SLURM array may run them in any order, on many machines.
set -u
cd "$(dirname "$0")" || exit 1
fail() { echo "run_all.sh: $1; see the top of this file" >&2; exit 2; }
jobs=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
seeds='' quick=no list=no dataset=toy data=() only=() extra=() source=()
while [ $# -gt 0 ]; do
    option=$1
    case $1 in --seeds | --jobs | --dataset | --data-dir | --source-dir) [ $# -gt 1 ] || fail "$1 needs a value" ;; esac
    shift
    case $option in
        --quick) quick=yes ;;
        --list) list=yes ;;
        --seeds) seeds=$1; shift ;;
        --jobs) jobs=$1; shift ;;
        --dataset) dataset=$1; shift ;;
        --data-dir) data=(--data-dir "$1"); shift ;;
        --source-dir) source=(--source csv --source-dir "$1"); shift ;;
        --only)
            while [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; do
                [ -f "methods/${1%.py}.py" ] || fail "--only $1: there is no methods/${1%.py}.py"
                only+=("${1%.py}"); shift
            done ;;
        --) extra=("$@"); break ;;
        *) fail "unknown option $option" ;;
    esac
done
case $jobs in '' | *[!0-9]* | 0) fail "--jobs must be a number, at least 1" ;; esac
case $seeds in *[!0-9]* | 0) fail "--seeds must be a number, at least 1" ;; esac
[ "$dataset" = toy ] || data=(--dataset "$dataset" ${data[@]+"${data[@]}"})

# FairTune tunes a transformer, whatever student the others train; it must have learnt something
# before, for which the toy has a source of its own
tuned=yes vit=()
[ "$dataset" = toy ] || [ ${#source[@]} -gt 0 ] || tuned=no
case " ${extra[*]-} " in *" --student"[\ =]vit_*) ;; *" --student"[\ =]*) vit=(--student vit_tiny) ;; esac

# ----- the runs -----------------------------------------------------------------------------------

folds=('') groups=('')  # of ham10000: every picture is tested once, groups by sex and by age
if [ "$dataset" = ham10000 ] && [ $quick = no ]; then
    folds=(0 1 2 3 4) groups=('' age)
    seeds=${seeds:-1}  # a fold is a repetition, too
fi
[ $quick = no ] || { seeds=1; extra=(--epochs 6 ${extra[@]+"${extra[@]}"}); }

each() {  # a script with some settings, for every group, fold and seed: one command a line
    local script=$1 group fold seed last=()
    [ "$script" != fairtune ] || last=(${vit[@]+"${vit[@]}"})
    shift
    if [ ${#only[@]} -gt 0 ]; then
        case " ${only[*]} " in *" $script "*) ;; *) return ;; esac
    fi
    for group in "${groups[@]}"; do for fold in "${folds[@]}"; do
        for ((seed = 0; seed < ${seeds:-3}; seed++)); do
            printf 'OMP_NUM_THREADS=1 python methods/%s.py' "$script"
            printf ' %q' "$@" ${data[@]+"${data[@]}"} ${group:+--sensitive "$group"} \
                ${fold:+--fold "$fold"} --seed "$seed" ${extra[@]+"${extra[@]}"} ${last[@]+"${last[@]}"}
            echo
        done
    done; done
}

runs() {
    # ERM: plain training; whichever comes first also trains the teacher
    each ckd --alpha 0
    # methods without a teacher, while another core trains it. FairTune's search stands against tuning
    # everything and only the last layer, for which a rate is found sooner
    tune() { each fairtune "$@" ${source[@]+"${source[@]}"}; }
    if [ $tuned = no ]; then :
    elif [ $quick = yes ]; then tune --trials 4
    else
        tune
        for mask in all none; do tune --mask $mask --trials 4; done
    fi
    for script in $(grep -l 'needs_teacher = False' methods/*.py); do
        [ "$script" = methods/fairtune.py ] || each "$(basename "$script" .py)"
    done
    # re-balancing; then every method with a teacher at its usual settings
    each ckd --alpha 0 --balance
    for script in $(grep -L 'needs_teacher = False' methods/*.py); do
        each "$(basename "$script" .py)"
    done
    # does CKD's bias come from its temperature? the adversary without a teacher
    each ckd --temperature 1
    each adversarial_kd --alpha 0
    # GroupDRO's groups as in its own paper; FairDi where every cell is seen equally often,
    # and with all of its student trained in step 2
    each groupdro --by-class
    each fairdi --balance
    each fairdi --train-backbone
    # a softer teacher, a fairer student? T = 1 and 4, the default, stand above
    [ $quick = yes ] || for temperature in 2 10 20 40; do each ckd --temperature "$temperature"; done
    # what do FairDi's teachers add to its step 2, and BIRD's gates to its direct term?
    [ $quick = yes ] || { each fairdi --alpha 0; each bird --phi-lr 0; }
    # two classes: weaker, or everybody gets the same answer
    case $dataset in ham10000 | celeba) each bird --fair-weight 0.3 ;; esac
    [ "$dataset" != celeba ] || each bird --fair-weight 0.1
    if [ "$dataset" = ham10000 ]; then
        each adversarial_kd --adversary-weight 0.5
        each adversarial_kd --alpha 0 --adversary-weight 0.5
    fi
    # how strong an adversary? the slides' question; λ = 5, the default, stands above
    case $dataset in toy | wider | celeba) ;; *) return 0 ;; esac
    strengths='0 0.5 1 2 10 150'
    [ $quick = no ] || strengths='0 1 150'
    [ "${seeds:-3}" -lt 5 ] || strengths='0 0.1 0.5 1 2 10 15 20 50 150'  # as in the README
    for strength in $strengths; do each adversarial_kd --adversary-weight "$strength"; done
}

if [ $list = yes ]; then runs; exit; fi

# ----- running them -------------------------------------------------------------------------------

work=$(mktemp -d) && mkdir -p runs/logs && export work || exit 1
trap 'rm -rf "$work"' EXIT
runs >"$work/all" && python report.py --unfinished <"$work/all" >"$work/todo" || exit 1
if [ $tuned = no ]; then
    case " ${only[*]-fairtune} " in *" fairtune "*) echo "FairTune is left out: it needs --source-dir" ;; esac
fi
total=$(wc -l <"$work/todo") start=$(date +%s)
export total start
echo "$(wc -l <"$work/all") runs, $((total)) to do, $jobs at a time; what they print goes to runs/logs/"

clock() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }
one() {  # run a command; say how it ended and, from the time of those before, how long is left
    local begin=$(date +%s) log=${1#*methods/} finished now left=''
    log=runs/logs/$(printf '%s' "$log" | tr -c 'A-Za-z0-9._=-' _ | cut -c 1-150).log
    local end="done in"
    if ! bash -c "$1" </dev/null >"$log" 2>&1; then
        end="FAILED ($(tail -n 1 "$log")) after"
        echo "$1   # $log" >>"$work/failed"
    fi
    echo >>"$work/finished"
    finished=$(wc -l <"$work/finished") now=$(date +%s)
    if [ $((8 * finished)) -ge $((total)) ]; then  # the first ones make what others use
        left=", about $(clock $(((now - start) * (total - finished) / finished))) left"
    fi
    echo "[$((finished))/$((total))$left]" "$end $(clock $((now - begin))): ${1#OMP_NUM_THREADS=1 python }"
}
export -f one clock
[ ! -s "$work/todo" ] || tr '\n' '\0' <"$work/todo" | xargs -0 -n 1 -P "$jobs" bash -c 'one "$1"' _
python report.py || echo "python report.py" >>"$work/failed"
if [ -s "$work/failed" ]; then
    echo "$(($(wc -l <"$work/failed"))) failed:"
    cat "$work/failed"
    exit 1
fi
