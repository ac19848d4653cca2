# shellcheck shell=bash disable=SC2034
# Sourced by lib.sh: what is specific to Debian 12, and to 11. PostgreSQL is Debian's own; Citus is used if it is
# installed. The Python of Debian 11 is too old: there you have to install one in /opt/python.

etcd_conf=/etc/default/etcd
case $VERSION_ID in
    11) python=/opt/python/bin/python3 postgres_release=13 packages=(etcd-server) ;;
    12) python=/usr/bin/python3 postgres_release=15 packages=(etcd-server python3-venv) ;;
esac
packages+=("postgresql-$postgres_release")
postgres_bin=/usr/lib/postgresql/$postgres_release/bin
postgres_extensions=/usr/share/postgresql/$postgres_release/extension

install_packages() {
    local package missing=()
    for package in "${packages[@]}"; do
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
