#!/usr/bin/env bash
# Makes all machines one cluster; runs on any of them: cluster.sh [SECONDS]
# It waits for the other machines for that many seconds, 900 by default.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
patience_s=${1:-900}
port='' database='' password='' names=()
declare -A hosts=() primary=()
# shellcheck source=/dev/null
. /etc/resolver-agent-lab.sh
export PGPASSWORD=$password PGCONNECT_TIMEOUT=5 PGOPTIONS='-c client_min_messages=warning'
coordinator=${names[0]} workers=("${names[@]:1}")

# sql HOSTS DATABASE OPTION... runs psql as the superuser on the first of these hosts that answers.
sql() {
    "$postgres_bin/psql" --no-psqlrc --quiet --tuples-only --no-align --set=ON_ERROR_STOP=1 \
        --dbname="host=$1 dbname=$2 port=$port user=postgres" "${@:3}"
}

# change NAME DATABASE OPTION... does the same on the primary behind a name; the output lists what was changed.
change() {
    local said
    said=$(sql "${primary[$1]}" "${@:2}")
    [[ -z $said ]] || changed "$1, $2: ${said//$'\n'/, }"
}

# wait_for COMMAND... runs a command again and again until it prints "t".
wait_for() {
    local said
    until said=$("$@" 2>&1) && [[ $said == t ]]; do
        ((SECONDS < patience_s)) || die "this did not happen within $patience_s s; the last answer: $said"
        sleep 0.5
    done
}

# fit prints "t" if the agent on this machine has no alert, otherwise its status.
fit() {
    local said
    if said=$(resolver-agent status); then
        echo t
    else
        echo "$said"
    fi
}

for name in "${names[@]}"; do
    step "$name has a primary, and standbys that stream from it"
    commas=${hosts[$name]//[!,]/}
    writable="postgres target_session_attrs=read-write"
    wait_for sql "${hosts[$name]}" "$writable" --command="
        SELECT count(*) = ${#commas} FROM pg_stat_replication
        WHERE state = 'streaming' AND application_name <> 'pg_basebackup'"
    primary[$name]=$(sql "${hosts[$name]}" "$writable" --command='SELECT host(inet_server_addr())')
done

stamp="role.sql $(sha256sum <"$here/../../systemd/role.sql" | cut -c 1-16)"
[[ -e $postgres_extensions/citus.control ]] && citus=on || citus=off
for name in "${names[@]}"; do
    step "$name has the database $database, and the roles"
    settings=(--set=database="$database" --set=password="$password" --set=stamp="$stamp" --set=citus="$citus")
    change "$name" postgres "${settings[@]}" --file="$here/sql/server.sql"
    change "$name" "$database" "${settings[@]}" --file="$here/sql/database.sql"
done

for name in "${names[@]}"; do
    for host in ${hosts[$name]//,/ }; do
        step "the agent of $host has written the names"
        wait_for sql "$host" postgres --command="
            SELECT bool_and(pg_read_file('/etc/hosts') ~ ('\n\S+\t' || name || '\t# (self|primary|standby)'))
              FROM unnest(string_to_array('${names[*]}', ' ')) AS name"
    done
done

step "the tables"
settings=(--set=coordinator="$coordinator" --set=workers="${workers[*]}" --set=port="$port" --set=password="$password")
if [[ $citus == on ]]; then
    change "$coordinator" "$database" "${settings[@]}" --file="$here/sql/citus.sql"
else
    for name in "${workers[@]}"; do
        change "$name" "$database" --file="$here/sql/plain_worker.sql"
    done
    change "$coordinator" "$database" "${settings[@]}" --file="$here/sql/plain.sql"
fi

step "resolver-agent status"
wait_for fit

step "resolver-agent doctor"
resolver-agent doctor

finish
