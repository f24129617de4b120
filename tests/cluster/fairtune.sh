#!/usr/bin/env bash
# FairTune's search in two tasks of a SLURM array, on one study: bash tests/cluster/fairtune.sh [FOLDER [KIND]],
# as root. Once the study is a journal file, once it is in Debian's PostgreSQL.
set -eu
cd "$(dirname "$0")/../.."
export work=${1:-$(mktemp -d)}
. tests/cluster/start_slurm.sh "$work"
python -c 'import psycopg2' 2>/dev/null || python -m pip install --quiet psycopg2-binary
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || apt-get install -y --no-install-recommends postgresql
bin=$(dirname "$(ls /usr/lib/postgresql/*/bin/initdb | tail -n 1)")
as_postgres() { su -s /bin/sh postgres -c "$1" >>"$work/log-postgres" 2>&1; }
install -d -o postgres "$work/postgres" && touch "$work/log-postgres" && chmod a+x "$work"
as_postgres "$bin/initdb -A trust $work/postgres"
as_postgres "$bin/pg_ctl -w -D $work/postgres -l $work/postgres/log -o '-p 54329 -k $work/postgres' start"
trap 'as_postgres "$bin/pg_ctl -D $work/postgres stop" || true; stop' EXIT

# one epoch, because which trials are pruned after their first depends on who is first
echo "OMP_NUM_THREADS=1 python methods/fairtune.py --smoke --epochs 1" >"$work/commands"
for kind in ${2:-journal postgresql}; do
    place=$work/journal
    [ $kind = journal ] || place=postgresql+psycopg2://postgres@localhost:54329/postgres
    rm -rf "$work/runs"
    sed "s|$| --out $work/runs --study-dir $place|" "$work/commands" >"$work/list"
    sbatch --wait --array=1-2 --output="$work/$kind-%a" --wrap "bash $work/list"
    for task in 1 2; do
        echo "$kind, task $task: $(grep -c '^trial [0-9] .* 1/1:' "$work/$kind-$task") trials"
    done
    python tests/cluster/same.py "$work/commands" "$work/runs" | tail -n 1
done
