# shellcheck shell=bash
# Sourced by the other scripts. They go in steps, print what they change, and stop at the first error. A second run
# changes nothing.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
script=${0##*/}
step=start
changes=0
scratch=$(mktemp -d)
trap 'code=$?; rm -rf "$scratch"; ((code == 0)) || echo "$script: failed in the step: $step" >&2' EXIT

die() {
    echo "$script: $*" >&2
    exit 1
}

step() {
    step=$1
    echo "== $step"
}

changed() {
    changes=$((changes + 1))
    echo "changed: $*"
}

finish() {
    if ((changes)); then
        echo "$script: done, changes: $changes"
    else
        echo "$script: done, nothing changed"
    fi
}

# put SOURCE TARGET [MODE [OWNER]] installs a file, unless the same file is there already.
put() {
    local source=$1 target=$2 mode=${3:-644} owner=${4:-root}
    if ! cmp -s "$source" "$target" || [[ $(stat -c '%a %U' "$target") != "$mode $owner" ]]; then
        install -D -m "$mode" -o "$owner" -g "$(id -gn "$owner")" "$source" "$target"
        changed "$target"
    fi
}

# put_text TARGET [MODE] does the same with the text on standard input.
put_text() {
    cat >"$scratch/text"
    put "$scratch/text" "$@"
}

# link SOURCE TARGET makes a symbolic link, unless it is there already.
link() {
    if [[ $(readlink "$2" || :) != "$1" ]]; then
        ln -sfn "$1" "$2"
        changed "$2"
    fi
}

# Each operating system has a file for what differs. The file defines install_packages, install_python (which sets
# `python`), and the variables etcd_conf, postgres_bin and postgres_extensions.
ID='' VERSION_ID=''
# shellcheck source=/dev/null
. /etc/os-release
case "$ID $VERSION_ID" in
    'centos 7') system=centos7 ;;
    'debian 11' | 'debian 12') system=debian ;;
    *) die "$ID $VERSION_ID is not supported; it needs a file like debian.sh" ;;
esac
# shellcheck source=debian.sh
. "$here/$system.sh"
