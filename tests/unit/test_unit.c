/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Whose unit a VMM is in, by the cgroups that systemd makes. */
#include "unit.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static void the_unit_is_the_service_that_it_is_in(void **state)
{
	static const struct {
		const char *cgroup, *unit;
		bool user;
	} table[] = {
		{ "0::/system.slice/my-vm.service\n", "my-vm.service", false },
		{ "0::/system.slice/my-vm.service/inner\n", "my-vm.service", false },
		{ "0::/system.slice/system-vm.slice/vm@a.b.service\n", "vm@a.b.service", false },
		{ "12:cpu:/x.service\n1:name=systemd:/system.slice/old.service\n0::/y.service\n",
		  "old.service", false },
		{ "4:memory:/x\n0::/system.slice/b.service\n", "b.service", false },
		{ "0::/\n", NULL, false },
		{ "0::/user.slice/user-0.slice/session-3.scope\n", NULL, false },
		{ "0::/machine.slice/machine-qemu\\x2d1\\x2dweb.scope/libvirt/emulator\n", NULL,
		  false },
		{ "0::/user.slice/user-1000.slice/user@1000.service/app.slice/vm.service\n",
		  "vm.service", true },
		{ "0::/user.slice/user-1000.slice/user@1000.service/app.slice/vm.scope\n", NULL,
		  false },
		{ "0::/user.slice/user-1000.slice/user@1000.service/init.scope\n", NULL, false },
		{ "0::/system.slice/a.service.d\n", NULL, false },
		{ "0::/.service\n", NULL, false },
		{ "", NULL, false },
		{ "nonsense", NULL, false },
	};

	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		char *unit = NULL;
		bool user = false;

		assert_int_equal(unit_of_cgroup(table[i].cgroup, &unit, &user), 0);
		if (!unit != !table[i].unit || (unit && strcmp(unit, table[i].unit) != 0) ||
		    (unit && user != table[i].user))
			fail_msg("%s is in %s%s", table[i].cgroup, unit ?: "no unit",
				 user ? " of a user" : "");
		free(unit);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_unit_is_the_service_that_it_is_in),
	};

	return cmocka_run_group_tests_name("unit", tests, NULL, NULL);
}
