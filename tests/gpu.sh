#!/usr/bin/env bash
# All that needs a GPU, in order of worth:   bash tests/gpu.sh --cifar FILE.tgz
#
#     --out FOLDER     where result files go (default: runs/gpu); what is there is not done again
#                      (a rehearsal: runs/gpu-smoke)
#     --minutes N      stop after N minutes (default: 25) and pack; the same command then goes on
#     --cifar PLACE    CIFAR-10: a folder as datasets/cifar10s.py reads it, or a packed one, .tgz
#     --device cpu --smoke      a rehearsal of every part; its numbers mean nothing
#
# A folder of small pictures is packed by: tar -C FOLDER -czf cifar10.tgz train test
set -u
out='' minutes=25 cifar='' device=cuda smoke=''
while [ $# -gt 0 ]; do case $1 in
    --smoke) smoke=--smoke ;;
    --out | --minutes | --cifar | --device) printf -v "${1#--}" %s "${2?"$1 needs a value"}" && shift ;;
    *) echo "gpu.sh: unknown option $1; see the top of this file" >&2; exit 2 ;;
esac; shift; done
[ -z "$cifar" ] || [ -e "$cifar" ] || { echo "gpu.sh: there is no $cifar: name a folder or a .tgz" >&2; exit 2; }
[ -z "$cifar" ] || cifar=$(cd "$(dirname "$cifar")" && pwd)/$(basename "$cifar")
out=${out:-$(dirname "$0")/../runs/gpu${smoke/--/-}}
for py in python python3; do "$py" -c 'import torch, torchvision' 2>/dev/null && break || py=''; done
[ "$py" ] || {
    echo "gpu.sh: Python with PyTorch is missing: pip install -r requirements.txt" >&2; exit 1
}
[ "$device" = cpu ] || "$py" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
    echo "gpu.sh: PyTorch finds no GPU here: try it with --device cpu --smoke" >&2; exit 1
}
trap 'exit 130' INT
mkdir -p "$out" && out=$(cd "$out" && pwd) && cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
end=$(($(date +%s) + 60 * minutes)) failed=0
part() {  # FILE COMMAND ...: run the command, unless its FILE is there or the time is over
    local file=$out/$1 left=$((end - $(date +%s)))
    [ ! -e "$file.done" ] || return 0
    [ $left -gt 5 ] || { echo "no time was left for $1"; return 0; }
    echo "== $1, $((left / 60)) minutes left"
    timeout --foreground $left "${@:2}" 2>&1 | tee -a "$file.log"
    case ${PIPESTATUS[0]} in  # 124: of timeout, and of xargs after a row that the time has ended
        0) touch "$file.done" ;;
        124) echo "$1 was stopped: the same command goes on with it" ;;
        *) failed=1 ;;
    esac
}

lines() {  # FILE JOBS COMMANDS: the lines of the file COMMANDS, JOBS at a time
    part "$1" xargs -a "$3" -d '\n' -P $2 -I{} bash -c 'line "$1"' _ {}
}
line() {  # COMMAND: until the time is over; 255 tells xargs to begin no other one
    local left=$((end - $(date +%s)))
    [ $left -gt 5 ] || return 255
    timeout --foreground $left bash -c "$1" || { [ $? != 124 ] || return 255; return 1; }
}
export -f line
export end PYTHONUNBUFFERED=1

# Are the numbers right? Losses of all scripts beside those on the CPU, and whole runs
part correct "$py" tests/gpu.py correct "$out/correct.json" --device $device $smoke
scripts=(methods/*.py) jobs=8 threads=2
[ -z "$smoke" ] || scripts=(methods/{ckd,swad}.py) jobs=2 threads=1
for script in "${scripts[@]}"; do
    [[ $script != *fairtune* ]] || "$py" -c 'import optuna' 2>/dev/null || continue  # its search
    printf '%q %s --smoke --device %s --out %q\n' "$py" "$script" $device "$out/whole"
done >"$out/commands"
OMP_NUM_THREADS=$threads lines whole $jobs "$out/commands"

loops() {  # NAME SETTINGS: the training loop beside others; five rounds, at 224 pixels three
    part "$1" "$py" tests/speed.py --device $device $smoke --batch-size 64 --rounds ${rounds:-5} \
        --steps ${steps:-93} --json "$out/$1.json" "${@:2}"
}
[ -z "$smoke" ] || rounds=1 steps=2
net=(--teacher resnet18 --student resnet18) b3=(--teacher efficientnet_b3 --student efficientnet_b0)
large=224
[ -z "$smoke" ] || net=(--teacher convnet4 --student convnet2) b3=("${net[@]}") large=64
for precision in float32 bf16; do
    loops resnet18-32-$precision "${net[@]}" --precision $precision
    rounds=${rounds:-3} loops resnet18-224-$precision "${net[@]}" --image-size $large --precision $precision
done

# CIFAR10-S, ResNet-18 to ResNet-18: the poster's seven rows (BIRD's header), then ours
rows=('ckd --alpha 0' ckd fitnet at 'adversarial_kd --alpha 0' mfd bird)
rows+=('ckd --alpha 0 --balance' 'ckd --teacher-balance' 'ckd --balance --teacher-balance')
rows+=(rkd ctkd kdpp adversarial_kd 'groupdro --by-class' swad fairdi)
few='--epochs 30 --teacher-epochs 30' seeds=5 first=${#rows[@]}
[ -z "$smoke" ] || few='--smoke --epochs 1 --teacher-epochs 1 --teacher convnet4 --student convnet2' seeds=1 first=2
if [ -f "$cifar" ]; then  # unpacked once: files of another time would be decoded again
    [ -e "$out/cifar10/whole" ] || {
        mkdir -p "$out/cifar10" && tar -xzf "$cifar" -C "$out/cifar10" && touch "$out/cifar10/whole"
    }
    cifar=$out/cifar10
fi
cifar10s() {  # SEED
    [ -n "$cifar" ] || return 0
    for row in "${rows[@]}"; do
        printf '%q methods/%s --dataset cifar10s --data-dir %q --device %s %s --seed %s --out %q\n' \
            "$py" "${row/ /.py }$([[ $row = *' '* ]] || echo .py)" "$cifar" $device "$few" $1 "$out/runs"
    done >"$out/commands-$1"
    head -n $first "$out/commands-$1" >"$out/commands"
    OMP_NUM_THREADS=$threads lines cifar10s-$1 $jobs "$out/commands"
}
cifar10s 0

for precision in float32 bf16; do
    rounds=${rounds:-3} loops b3-b0-224-$precision "${b3[@]}" --image-size $large --precision $precision
done
part rates "$py" tests/gpu.py rates "$out/rates.json" --device $device $smoke
part compiled "$py" tests/gpu.py compiled "$out/compiled.json" --device $device $smoke
masks=(--teacher unet16 --student unet16)
[ -z "$smoke" ] || masks=(--teacher unet4 --student unet2)
part masks "$py" methods/ckd.py --task segment --device $device $smoke "${masks[@]}" --out "$out/runs"
for ((seed = 1; seed < seeds; seed++)); do
    cifar10s $seed
done

# All that says something, in one small file
(cd "$out" && find . \( -name '*.json' -o -name '*.log' -o -name '*.done' \) ! -path './cifar10/*' | tar -czf results.tgz -T -)
[ -n "$cifar" ] || echo "CIFAR10-S was left out: it needs --cifar"
exit $failed
