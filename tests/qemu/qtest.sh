#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# QEMU's own tests with the patched QEMU, inside the emulated host: qtest.sh DIRECTORY [TEST]...
# DIRECTORY is what testbed/qemu --tests made. Migration between two guests of QEMU's own making, under KVM.

cp -a "$1" /var/tmp/qtest
shift
cd /var/tmp/qtest || exit 125
export QTEST_QEMU_BINARY=./qemu-system-x86_64 G_TEST_SLOW=1
failed=0

# Runs a program that speaks TAP. It must pass at least one test. What skips itself without a guest_memfd that can be
# mapped has one in our kernel.
tap()
{
	echo "== $*"
	{ "$@" --tap -k || echo "not ok: status $?"; } | tee /var/tmp/tap
	! grep -q '^not ok' /var/tmp/tap || failed=1
	if ! grep '^ok ' /var/tmp/tap | grep -qiv '# skip'; then
		echo "$1: not a single test passed"
		failed=1
	elif [ -n "${UPGRADED_EXPECT_TIER:-}" ] && grep -i 'gmem.*# skip' /var/tmp/tap; then
		echo "$1: skipped, but this kernel has what it needs"
		failed=1
	fi
}

tap tests/qtest/gmem-test
tap tests/qtest/qmp-cmd-test
# A path stands for the tests right below it, not for those further down.
if [ $# = 0 ]; then
	set -- /x86_64/migration/mode /x86_64/migration/mode/transfer /x86_64/migration/mode/exec \
		/x86_64/migration/precopy/unix /x86_64/migration/bad_dest /x86_64/migration/cancel/src/after
fi
for name; do
	tap tests/qtest/migration-test -m slow --full -p "$name"
done
exit $failed
