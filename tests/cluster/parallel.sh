#!/usr/bin/env bash
# The list of run_all.sh through GNU parallel: bash tests/cluster/parallel.sh [FOLDER]
#
# Five smoke runs, two at a time. A second start finds all of them done (--joblog, --resume).
set -eu
cd "$(dirname "$0")/../.."
command -v parallel >/dev/null || apt-get install -y --no-install-recommends parallel
work=${1:-$(mktemp -d)}
mkdir -p "$work"

smoke='--smoke --epochs 1 --teacher-epochs 1 --teacher convnet4 --student convnet2'
bash run_all.sh --list --quick --only ckd rkd -- $smoke >"$work/commands"
sed "s|$| --out $work/runs|" "$work/commands" |
    parallel --will-cite --jobs 2 --joblog "$work/log" --resume-failed >"$work/output"
[ "$(awk 'NR > 1 && $7 == 0' "$work/log" | wc -l)" = "$(wc -l <"$work/commands")" ]  # all ended with 0
python tests/cluster/same.py "$work/commands" "$work/runs" | tail -n 1
