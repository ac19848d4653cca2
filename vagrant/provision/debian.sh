# shellcheck shell=bash disable=SC2034
# Sourced by lib.sh: what is specific to Debian 12. PostgreSQL is Debian's own; Citus is used if it is installed.

python=/usr/bin/python3
etcd_conf=/etc/default/etcd
postgres_bin=/usr/lib/postgresql/15/bin
postgres_extensions=/usr/share/postgresql/15/extension

install_packages() {
    local package missing=()
    for package in postgresql-15 etcd-server python3-venv; do
        [[ $(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || :) == installed ]] ||
            missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    # Patroni creates the server.
    install -D -m 0644 /dev/stdin /etc/postgresql-common/createcluster.d/lab.conf <<<'create_main_cluster = false'
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -qq --no-install-recommends "${missing[@]}"
    changed "packages: ${missing[*]}"
}

install_python() {
    [[ -x $python ]]
}
