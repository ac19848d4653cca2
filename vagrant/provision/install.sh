#!/usr/bin/env bash
# Installs what is the same on every machine: packages, Patroni, and the agent from this checkout.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
checkout=$(cd "$here/../.." && pwd)

# environment FOLDER STAMP REQUIREMENT... creates a virtual environment, or updates it if the stamp differs.
environment() {
    local folder=$1 stamp=$2
    shift 2
    if [[ ! -e $folder/made-from || $(<"$folder/made-from") != "$stamp" ]]; then
        rm -f "$folder/made-from"
        "$python" -m venv "$folder"
        "$folder/bin/pip" install --quiet --disable-pip-version-check "$@"
        echo "$stamp" >"$folder/made-from"
        changed "$folder"
    fi
}

step 'packages'
install_packages

step 'Python'
install_python

step 'etcd'
put "$here/etcd-lab.conf" /etc/systemd/system/etcd.service.d/lab.conf

step 'Patroni'
environment /opt/patroni "$(<"$here/requirements.txt")" --requirement "$here/requirements.txt"
link /opt/patroni/bin/patronictl /usr/local/bin/patronictl
put "$here/patroni.service" /etc/systemd/system/patroni.service

step 'agent'
# From a copy, because pip writes into the folder that it builds from; and with what its link leads to.
sources=$scratch/agent
mkdir "$sources"
cp -rL "$checkout/pyproject.toml" "$checkout/README.md" "$checkout/resolver_agent" "$sources"
find "$sources" -name __pycache__ -prune -exec rm -r {} +
stamp=$(cd "$sources" && find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum)
before=$changes
environment /opt/resolver-agent "$stamp" "$sources"
link /opt/resolver-agent/bin/resolver-agent /usr/local/bin/resolver-agent
put "$checkout/systemd/resolver-agent.service" /etc/systemd/system/resolver-agent.service
put "$checkout/systemd/resolver-agent.socket" /etc/systemd/system/resolver-agent.socket
if ((changes > before)) && systemctl is-active --quiet resolver-agent; then
    systemctl daemon-reload
    systemctl restart resolver-agent
fi

finish
