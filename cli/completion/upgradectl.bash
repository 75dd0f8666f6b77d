# SPDX-License-Identifier: GPL-2.0-or-later
# bash completion for upgradectl(1)
#
# Names of VMs are asked of the daemon; when it cannot be reached there are
# simply none, and nothing is printed.

_upgradectl_vms() {
	local option=()

	[[ -z $1 ]] || option=(--socket "$1")
	timeout 2 "${COMP_WORDS[0]}" "${option[@]}" list --json 2>/dev/null | sed -n 's/^      "name": "\([^"\\]*\)",$/\1/p'
}

# bash takes --vmm=PATH for three words; here it is two, as --vmm PATH is.
_upgradectl_words() {
	local i

	words=() cword=0
	for ((i = 0; i <= COMP_CWORD; i++)); do
		if [[ ${COMP_WORDS[i]} == = && ${words[cword]-} == --* ]]; then
			words[++cword]=""
		elif [[ ${COMP_WORDS[i-1]-} == = && -z ${words[cword]-x} ]]; then
			words[cword]=${COMP_WORDS[i]}
		else
			((i == 0)) || ((++cword))
			words[cword]=${COMP_WORDS[i]}
		fi
	done
}

_upgradectl() {
	local words cword
	_upgradectl_words
	local cur=${words[cword]} prev=${words[cword-1]}
	local common="--json --socket --no-color --help --version"
	local verbs="run adopt list show check upgrade abort watch history report metrics config forget"
	local socket="" verb="" names=0 i word

	COMPREPLY=()
	for ((i = 1; i < cword; i++)); do
		word=${words[i]}
		case $word in
		--socket)
			socket=${words[i+1]}
			((i++))
			;;
		--vmm|--qmp|--pid|--max-blackout|--timeout|--limit|-n|--max-parallel|--canary|--stop-after|--window|--root|--html|--work|--output) ((i++)) ;;
		--)
			# The rest is a command line of QEMU.
			COMPREPLY=($(compgen -f -- "$cur"))
			compopt -o filenames 2>/dev/null
			return
			;;
		-*) ;;
		*)
			if [[ -z $verb ]]; then
				verb=$word
			else
				((names++))
			fi
			;;
		esac
	done

	case $prev in
	--socket|--vmm|--qmp|--html|--work|--output|--root)
		COMPREPLY=($(compgen -f -- "$cur"))
		compopt -o filenames 2>/dev/null
		return
		;;
	--pid)
		COMPREPLY=($(compgen -W "$(pgrep '^qemu-' 2>/dev/null)" -- "$cur"))
		return
		;;
	--max-blackout|--timeout|--limit|-n|--max-parallel|--canary|--stop-after|--window) return ;;
	esac

	if [[ $cur == -* ]]; then
		case $verb in
		check) common+=" --vmm --verbose" ;;
		upgrade)
			common+=" --vmm --max-blackout --timeout --no-stage2 --no-wait --set-emulator --all --all-outdated --max-parallel --canary"
			common+=" --stop-after --window --again --dry-run"
			;;
		adopt) common+=" --pid --qmp" ;;
		history) common+=" --limit --phases" ;;
		report) common+=" --html --work" ;;
		list) common+=" --outdated" ;;
		metrics) common+=" --output" ;;
		config) common+=" --root" ;;
		esac
		COMPREPLY=($(compgen -W "$common" -- "$cur"))
	elif [[ -z $verb ]]; then
		COMPREPLY=($(compgen -W "$verbs" -- "$cur"))
	elif ((names == 0)) || [[ $verb == upgrade ]]; then
		case $verb in
		show|check|upgrade|abort|watch|history|report|forget)
			# Not by compgen -W, which would expand $(...) in a name.
			while IFS= read -r word; do
				[[ $word != "$cur"* ]] || COMPREPLY+=("$(printf '%q' "$word")")
			done < <(_upgradectl_vms "$socket")
			;;
		esac
	fi
}

complete -F _upgradectl upgradectl
