#!/usr/bin/env bash
# Configures one machine, and starts its services: configure.sh MACHINE [ETCD_NODES]
# It does not wait for other machines.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
machine=$1
etcd_nodes=${2:-1}
lab=/etc/resolver-agent-lab.sh

# serve HOW UNIT... starts units, now and at each boot. If they run and files have changed since `before`, it runs
# `systemctl HOW` on them.
serve() {
    local how=$1 unit
    shift
    for unit in "$@"; do
        if ! systemctl is-enabled --quiet "$unit" || ! systemctl is-active --quiet "$unit"; then
            systemctl enable --quiet "$unit"
            systemctl start --no-block "$unit"
            changed "$unit: started"
        elif ((changes > before)); then
            systemctl "$how" --no-block "$unit"
            changed "$unit: $how"
        fi
    done
}

step 'files'
home=$(getent passwd postgres | cut -d: -f6)
release=$("$postgres_bin/postgres" --version | sed -E 's/[^0-9]*([0-9]+).*/\1/')
options=(--etcd-nodes "$etcd_nodes" --bin-dir "$postgres_bin" --home "$home" --release "$release")
[[ ! -e $postgres_extensions/citus.control ]] || options+=(--citus)
rendered=$scratch/files
mkdir "$rendered"
/opt/resolver-agent/bin/python "$here/render.py" "$rendered" "$machine" "${options[@]}"
if [[ -e $lab && $(grep ^etcd= "$lab") != $(grep ^etcd= "$rendered/lab.sh") ]]; then
    die "the members of etcd cannot be changed: set ETCD_NODES as before, or destroy the lab and create it again"
fi
put "$rendered/lab.sh" "$lab" 600
systemctl daemon-reload
# How many connections may wait in a room of the agent; CentOS 7 has 128.
if (($(</proc/sys/net/core/somaxconn) < 4096)); then
    echo 'net.core.somaxconn = 4096' >/etc/sysctl.d/90-resolver-agent.conf
    sysctl -q -p /etc/sysctl.d/90-resolver-agent.conf
fi

step 'etcd'
before=$changes
if [[ -e $rendered/etcd.conf ]]; then
    put "$rendered/etcd.conf" "$etcd_conf"
    serve restart etcd.service
elif systemctl is-enabled --quiet etcd.service || systemctl is-active --quiet etcd.service; then
    systemctl disable --quiet etcd.service
    systemctl stop etcd.service
    changed 'etcd.service: off'
fi

step 'agent'
before=$changes
put "$rendered/resolver-agent.yml" /etc/resolver-agent.yml
put "$rendered/resolver-agent.pgpass" /etc/resolver-agent.pgpass 600
serve start resolver-agent.socket
serve reload resolver-agent.service

step 'Patroni'
before=$changes
put "$rendered/patroni.yml" /etc/patroni.yml 600 postgres
put "$rendered/postgres.pgpass" "$home/.pgpass" 600 postgres
serve reload patroni.service

finish
