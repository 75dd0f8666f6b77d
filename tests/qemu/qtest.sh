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
for test in tests/qtest/gmem-test tests/qtest/qmp-cmd-test; do
	echo "== $test"
	$test --tap -k || failed=1
done
echo "== tests/qtest/migration-test"
if [ $# = 0 ]; then
	set -- /x86_64/migration/mode /x86_64/migration/precopy/unix /x86_64/migration/bad_dest /x86_64/migration/cancel
fi
for name; do
	tests/qtest/migration-test --tap -k -m slow --full -p "$name" || failed=1
done
exit $failed
