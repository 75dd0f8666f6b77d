# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash disable=SC2154
#
# A small Debian of the emulated host's suite, to compile a source package in: its tools are new enough, and what comes
# out is linked with the libraries of the emulated host. Sourced after common.sh, never run; needs root, and $scratch
# (make_scratch).

# compile_root DIRECTORY PACKAGE...: $root is that Debian, with these packages; made in the cache if it is not there.
compile_root() {
	local sign
	root=$1
	shift
	[ ! -d "$root" ] || return 0
	say "making a Debian $suite to compile in (a minute or two)"
	still "making the Debian to compile in"
	sign=$!
	mkdir -p "$(dirname "$root")"
	attend mmdebstrap --mode=root --variant=minbase --architectures=amd64 --keyring="$keyring" \
		--aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' --include="$(IFS=,; echo "$*")" \
		"$suite" "$scratch/root" "deb [signed-by=$keyring] $(mirror) $suite main" >"$scratch/log" 2>&1 </dev/null || {
		tail -n 40 "$scratch/log" >&2
		die "mmdebstrap failed; the end of what it said stands above"
	}
	mkdir -p "$scratch/root/src" "$scratch/root/build"
	mv -T "$scratch/root" "$root"
	kill "$sign"
}

# inside COMMAND...: run it in the Debian $root, with the source $tree at /src and $objects at /build
inside() {
	# shellcheck disable=SC2016
	attend unshare --mount --pid --fork --kill-child bash -c '
		set -e
		mount --bind "$2" "$1/src"
		mount --bind "$3" "$1/build"
		mount -t proc proc "$1/proc"
		mount --rbind /dev "$1/dev"
		root=$1
		shift 3
		exec chroot "$root" env -i NICE="${NICE:-0}" PATH=/usr/bin:/bin:/usr/sbin:/sbin HOME=/build LANG=C.UTF-8 CCACHE_DISABLE=1 "$@"
	' - "$root" "$tree" "$objects" "$@" >&2
}
