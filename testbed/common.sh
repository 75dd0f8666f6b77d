# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash disable=SC2034,SC2016
#
# What the scripts of the emulated host share: progress lines, the cache, and a private apt.
#
# Sourced, never run. The cache maps the hash of everything that goes into a thing to the thing:
# a maker builds into a temporary name beside the final one and renames it at the end, under a lock,
# so a name that exists in the cache is whole, and two makers never build the same thing twice.
#
# The private apt asks the mirror this system already uses for the suites of the emulated host
# (trixie and its backports), with lists and sources of its own: the running system's suites,
# lists and packages stay as they are. The archive's signature is checked with the system's keyring.

testbed=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/upgraded
suite=trixie
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# A word on stderr, with the seconds since this script began.
say() { printf '%s: [%3ds] %s\n' "${0##*/}" "$SECONDS" "$*" >&2; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# lock NAME: held until this script ends (the descriptor stays open), waited for out loud.
lock() {
	mkdir -p "$cache"
	exec 9>"$cache/$1.lock"
	flock --nonblock 9 && return
	say "another process is making the $1, waiting for it"
	flock 9
}

# make_scratch: $scratch is a directory in the cache which goes when this script ends, however it ends,
# together with what runs in its background. A maker runs its long commands through "attend", so that a
# signal is acted on at once.
make_scratch() {
	mkdir -p "$cache"
	scratch=$(mktemp -d "$cache/${0##*/}.XXXXXX")
	trap clean_up EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM HUP
}
clean_up() {
	local status=$? jobs
	jobs=$(jobs -p)
	# shellcheck disable=SC2086	# some may be gone already: that is no reason to stop cleaning
	[ -z "$jobs" ] || { kill $jobs || true; wait || true; } 2>/dev/null
	rm -rf "$scratch"
	return "$status"
}
# It ends with this script even if that is killed: what went on would hold the lock for as long as it takes.
attend() { setpriv --pdeathsig TERM -- "$@" & wait $!; }

# still WORDS: a sign of life every minute, in the background, until this script ends.
still() {
	{
		trap 'kill "$nap"; exit' TERM
		while :; do
			sleep 60 &
			nap=$!
			wait "$nap"
			say "still $*"
		done
	} 9>&- &
}

# The mirror this system takes its own release from.
mirror() {
	local codename
	# shellcheck source=/dev/null
	codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
	apt-get indextargets 'Created-By: Packages' --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' |
		awk -v codename="$codename" '($2 == codename || $2 == "stable") && $3 == "main" { print $1; exit }'
}

# private_apt_begin DIR: fetch the package lists of the emulated host's suites into DIR.
# Then private_apt COMMAND... is apt-get, and private_apt_cache is apt-cache, on those lists.
private_apt_begin() { private_apt_lists deb "$1" "$suite" "$suite-backports"; }

# private_apt_sources DIR SUITE...: the same with the source packages of these suites.
private_apt_sources() { private_apt_lists deb-src "$@"; }

private_apt_lists() {
	local type=$1 uri from
	uri=$(mirror)
	[ -n "$uri" ] || die "no apt source here offers this release's main component; is this a Debian system?"
	private_apt_dir=$2
	shift 2
	mkdir -p "$private_apt_dir/lists/partial" "$private_apt_dir/archives/partial" "$private_apt_dir/parts"
	: >"$private_apt_dir/status"
	for from; do
		printf '%s [signed-by=%s] %s %s main\n' "$type" "$keyring" "$uri" "$from"
	done >"$private_apt_dir/parts/testbed.list"
	private_apt -qq update >&2
}
private_apt_options() {
	printf '%s\n' -o "Dir::Etc::sourcelist=/dev/null" -o "Dir::Etc::sourceparts=$private_apt_dir/parts" \
		-o "Dir::Etc::preferencesparts=/dev/null" -o "Dir::State::status=$private_apt_dir/status" \
		-o "Dir::State::Lists=$private_apt_dir/lists" -o "Dir::Cache=$private_apt_dir" \
		-o "APT::Architecture=amd64" -o "APT::Architectures=amd64" -o "Acquire::Languages=none" -o "APT::Sandbox::User=root"
}
private_apt() { mapfile -t apt_options < <(private_apt_options); apt-get "${apt_options[@]}" "$@"; }
private_apt_cache() { mapfile -t apt_options < <(private_apt_options); apt-cache "${apt_options[@]}" "$@"; }
