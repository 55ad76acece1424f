#!/usr/bin/env bash
# Installs what building and testing need on Debian; does nothing where all of it is there.
set -euo pipefail
packages=(gcc pkg-config libseccomp-dev busybox-static curl iproute2 nftables util-linux kmod cpio qemu-system-x86 e2fsprogs xfsprogs dbus-daemon)
command -v kubectl >/dev/null || packages+=(kubernetes-client)
command -v runc >/dev/null || packages+=(runc)
command -v containerd >/dev/null || packages+=(containerd containernetworking-plugins iptables)
command -v etcd >/dev/null || packages+=(etcd-server)
command -v docker-registry >/dev/null || packages+=(docker-registry)
missing=()
for package in "${packages[@]}"; do
    dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "setup: installing ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
# Package lists are needed to fetch the packages that images and kernels are made of.
apt-cache show busybox-static >/dev/null 2>&1 || apt-get update -qq
if ! command -v cargo >/dev/null; then
    echo "setup: cargo is missing: install Rust with rustup, then run this again" >&2
    exit 1
fi
# Both are built from source where they are missing, which takes minutes, once.
command -v cargo-nextest >/dev/null || cargo install --locked cargo-nextest
command -v cargo-deny >/dev/null || cargo install --locked --profile dev --no-default-features cargo-deny
