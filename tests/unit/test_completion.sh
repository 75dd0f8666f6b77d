#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Holds cli/completion/upgradectl.bash to what a user sees after Tab, and the
# man page to the man program. Arguments: the command, test_cli (the fake
# daemon), the completion, the man page.
set -u
command=$1 daemon=$2 completion=$3 page=$4
dir=$(mktemp -d)
failed=0
"$daemon" --serve "$dir/control.sock" &
pid=$!
trap 'kill "$pid"; wait "$pid" 2>/dev/null; rm -rf "$dir"' EXIT
for ((i = 0; i < 100; i++)); do
	[[ -S $dir/control.sock ]] && break
	sleep 0.1
done

export UPGRADED_SOCKET=$dir/control.sock
# shellcheck source=/dev/null
source "$completion"

# expect "word word ..." typed words, the last one being completed
expect() {
	local want=$1
	shift
	COMP_WORDS=("$command" "$@")
	COMP_CWORD=$#
	COMPREPLY=()
	_upgradectl 2>/dev/null
	if [[ "${COMPREPLY[*]}" != "$want" ]]; then
		echo "FAILED: $*: got '${COMPREPLY[*]}', not '$want'"
		failed=1
	fi
}

expect "run adopt list show check upgrade abort watch history report metrics config forget" ""
expect "adopt abort" a
expect "vm1" show v
expect "busy" upgrade b
expect "" list v
expect "" show vm1 v
expect "--json" show --js
expect "--max-blackout --max-parallel" upgrade vm1 --max
expect "" show --max
expect "" upgrade vm1 --timeout 1
expect "--all --all-outdated" upgrade --al
expect "busy" upgrade vm1 b
expect "" upgrade --all --canary v
expect "busy" --json --socket "$dir/control.sock" watch bus
expect "" --socket "$dir/nobody.sock" show v
expect "$dir/control.sock" --socket "$dir/con"
expect "$dir/control.sock" run vm1 -- "$dir/con"
# bash makes three words of --option=value.
expect "$dir/control.sock" upgrade vm1 --vmm = "$dir/con"
expect "vm1" upgrade --vmm = /bin/true vm1
expect "" show --socket = "$dir/nobody.sock" v
expect "vm1" show --socket = "$dir/control.sock" v

# A VM's name is never run.
stub=$dir/stub
# shellcheck disable=SC2016
printf '#!/bin/sh\ncat <<"END"\n      "name": "$(touch %s/pwned)",\nEND\n' "$dir" >"$stub"
chmod +x "$stub"
COMP_WORDS=("$stub" show '') COMP_CWORD=2 COMPREPLY=()
_upgradectl 2>/dev/null
if [[ -e $dir/pwned || ${#COMPREPLY[@]} -ne 1 ]]; then
	echo "FAILED: a hostile name was run, or not offered: ${COMPREPLY[*]}"
	failed=1
fi

if type man >/dev/null 2>&1; then
	warnings=$(LC_ALL=C.UTF-8 MANWIDTH=80 man --warnings -E UTF-8 -l "$page" 2>&1 >/dev/null)
	if [[ -n $warnings ]]; then
		echo "FAILED: $page: $warnings"
		failed=1
	fi
fi

# Every option that the command knows is offered and documented, and no other.
verbs=$("$command" --help | sed -n '/^Verbs:/,/^$/ s/^  \([a-z]*\) .*/\1/p')
offered=$(COMP_WORDS=("$command" '') COMP_CWORD=1; _upgradectl; printf '%s\n' "${COMPREPLY[@]}")
if [[ -z $verbs || $verbs != "$offered" ]]; then
	echo "FAILED: verbs of --help and of the completion differ:"
	diff <(echo "$verbs") <(echo "$offered")
	failed=1
fi
for verb in $verbs; do
	options=$("$command" "$verb" --help | grep -o -- '--[a-z][a-z0-9-]*' | sort -u | grep -v -- --usage)
	COMP_WORDS=("$command" "$verb" --)
	COMP_CWORD=2
	COMPREPLY=()
	# "--" alone at the cursor is the beginning of an option.
	_upgradectl 2>/dev/null
	offered=$(printf '%s\n' "${COMPREPLY[@]}" | sort -u)
	if [[ $options != "$offered" ]]; then
		echo "FAILED: $verb --help and the completion differ:"
		diff <(echo "$options") <(echo "$offered")
		failed=1
	fi
	for option in $options; do
		if ! grep -q -- "${option//-/\\\\-}" "$page"; then
			echo "FAILED: $option of $verb is not in $page"
			failed=1
		fi
	done
done
((failed)) || echo "completion and man page are as they should be"
exit "$failed"
