# Sourced with a folder: starts munge, SLURM's controller and node daemon, and stops them at the end.
work=$1
mkdir -p "$work"/{state,spool}
[ "$(id -u)" = 0 ] || { echo "start_slurm.sh: SLURM's node daemon must be started as root" >&2; exit 1; }
command -v slurmctld slurmd munged sbatch >/dev/null ||
    apt-get install -y --no-install-recommends slurm-wlm munge
node=$(hostname -s) cores=$(nproc)
cat >"$work/slurm.conf" <<CONF
ClusterName=here
SlurmctldHost=$node(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/controller.pid
SlurmdPidFile=$work/node.pid
SlurmctldLogFile=$work/log-controller
SlurmdLogFile=$work/log-node
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=1
NodeName=$node NodeAddr=127.0.0.1 CPUs=$cores State=UNKNOWN
PartitionName=all Nodes=$node Default=YES State=UP
CONF
export SLURM_CONF=$work/slurm.conf
stop() {  # first the jobs, then the daemons, which write their numbers into files
    scancel --quiet --state=running && scancel --quiet --state=pending || true
    for _ in $(seq 20); do squeue --noheader | grep -q . || break; sleep 0.5; done
    for name in node controller munge; do
        [ ! -f "$work/$name.pid" ] || kill "$(cat "$work/$name.pid")" || true
    done
    for _ in $(seq 20); do ls "$work"/{node,controller}.pid 2>/dev/null | grep -q . || break; sleep 0.5; done
} 2>/dev/null
trap stop EXIT
munge -n >/dev/null 2>&1 || {  # it has one socket a machine, so it is started only where it is absent
    install -d -o munge -g munge /run/munge
    su -s /bin/sh munge -c "munged --pid-file=/run/munge/here.pid"
    ln -sf /run/munge/here.pid "$work/munge.pid"
}
slurmctld -i && slurmd
for _ in $(seq 60); do sinfo --noheader --states=idle --format=%n 2>/dev/null | grep -q . && break; sleep 1; done
sinfo
