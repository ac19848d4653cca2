# shellcheck shell=bash disable=SC2034,SC2154
# Sourced by lib.sh: what is specific to CentOS 7. It is no longer supported: its packages are in the vault, those of
# EPEL and PGDG in their archives. Its Python is too old, so a standalone one is installed that runs on glibc 2.17.

etcd_conf=/etc/etcd/etcd.conf
postgres_bin=/usr/pgsql-12/bin
postgres_extensions=/usr/pgsql-12/share/extension

uv_version=0.9.26
python_version=3.12.12

# The box's own repositories point to mirrors that no longer exist, so every call disables them.
lab_yum() {
    yum --quiet --assumeyes --disablerepo='*' "$@"
}

install_packages() {
    local package missing=()
    put_text /etc/yum.repos.d/lab.repo <<'REPOSITORIES'
[lab-os]
name=CentOS 7.9
baseurl=http://vault.centos.org/7.9.2009/os/$basearch/
gpgkey=file:///etc/pki/rpm-gpg/RPM-GPG-KEY-CentOS-7
gpgcheck=1

[lab-updates]
name=CentOS 7.9, updates
baseurl=http://vault.centos.org/7.9.2009/updates/$basearch/
gpgkey=file:///etc/pki/rpm-gpg/RPM-GPG-KEY-CentOS-7
gpgcheck=1

[lab-extras]
name=CentOS 7.9, extras
baseurl=http://vault.centos.org/7.9.2009/extras/$basearch/
gpgkey=file:///etc/pki/rpm-gpg/RPM-GPG-KEY-CentOS-7
gpgcheck=1

[lab-epel]
name=EPEL 7
baseurl=https://archives.fedoraproject.org/pub/archive/epel/7/$basearch/
gpgkey=https://archives.fedoraproject.org/pub/archive/epel/RPM-GPG-KEY-EPEL-7
gpgcheck=1

[lab-pgdg12]
name=PostgreSQL 12 for EL 7
baseurl=https://yum-archive.postgresql.org/12/redhat/rhel-7-$basearch/
gpgkey=https://download.postgresql.org/pub/repos/yum/keys/PGDG-RPM-GPG-KEY-RHEL7
gpgcheck=1
REPOSITORIES
    for package in postgresql12-server postgresql12-contrib citus_12 etcd; do
        rpm --quiet --query "$package" || missing+=("$package")
    done
    if ((${#missing[@]})); then
        # First update what HTTPS needs: the box's CA certificates are too old for the archives.
        lab_yum --enablerepo=lab-os,lab-updates update ca-certificates curl nss openssl
        lab_yum --enablerepo='lab-*' install "${missing[@]}"
        rpm --query "${missing[@]}"  # yum succeeds even if it found only one of them
        changed "packages: ${missing[*]}"
    fi
    if systemctl is-active --quiet firewalld; then
        systemctl disable firewalld
        systemctl stop firewalld
        changed "firewalld: off"
    fi
    # With NoNewPrivileges= the agent stays in systemd's own SELinux domain, and what that domain may do was never
    # tested. /var/log/audit/audit.log shows what would have been denied.
    if grep -qs '^SELINUX=enforcing' /etc/selinux/config; then
        setenforce 0
        sed -i 's/^SELINUX=enforcing/SELINUX=permissive/' /etc/selinux/config
        changed "SELinux: permissive"
    fi
    # Otherwise sudo finds no program in /usr/local/bin.
    put_text /etc/sudoers.d/lab 440 <<<'Defaults secure_path = /usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
}

install_python() {
    export UV_PYTHON_INSTALL_DIR=/opt/python
    local uv=/opt/uv/$uv_version/uv
    if [[ ! -x $uv ]]; then
        curl --fail --silent --show-error --location \
            "https://github.com/astral-sh/uv/releases/download/$uv_version/uv-x86_64-unknown-linux-musl.tar.gz" |
            tar -xz -C "$scratch" --strip-components=1
        put "$scratch/uv" "$uv" 755
    fi
    if ! "$uv" python find --no-project --managed-python "$python_version" &>/dev/null; then
        "$uv" python install --no-bin "$python_version"
        changed "Python $python_version in $UV_PYTHON_INSTALL_DIR"
    fi
    python=$("$uv" python find --no-project --managed-python "$python_version")
}
