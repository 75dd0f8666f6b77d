#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# The interface of libupgraded is what libupgraded.abi says: no symbol more, none less, none renamed or in another
# version, each in the manual, and the soname stays. The sizes of its structs are held by test_vmm.c.
#
#	test_abi.sh LIBRARY LIST MANUAL
#
# A new function is added to lib/libupgraded.map in a new version, and to the list. Nothing else is ever changed there.
set -uo pipefail
library=$1 list=$2 manual=$3 failures=0

# no_trouble NAME TEXT: the test NAME, which fails when there is a TEXT
no_trouble() {
	echo "[ RUN      ] $1"
	if [ -z "$2" ]; then
		echo "[       OK ] $1"
	else
		printf '%s\n[  FAILED  ] %s\n' "$2" "$1"
		failures=1
	fi
}

symbols=$(nm -D --defined-only --with-symbol-versions "$library" | awk '$2 ~ /^[TDBRVW]$/ { print $3 }' | LC_ALL=C sort)
no_trouble symbols_are_those_of_the_list "$(diff -u "$list" - <<<"$symbols" 2>&1)"

soname=$(objdump -p "$library" | awk '$1 == "SONAME" { print $2 }')
no_trouble soname_is_0 "$([ "$soname" = libupgraded.so.0 ] || echo "the soname is '$soname'")"

no_trouble every_symbol_is_in_the_manual "$(while IFS=@ read -r symbol _; do
	grep -qF "$symbol(" "$manual" || echo "libupgraded(3) lacks $symbol"
done <"$list")"

exit $failures
