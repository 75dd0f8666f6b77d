/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The bus on which systemd can be asked: the system's, or where no bus daemon runs
 * PID 1's own socket. Used by the daemon, which starts and restarts units, and by the
 * worker, which asks whose main process a source is. Owns nothing.
 */
#include "system_bus.h"

#include "cleanup.h"

#define PRIVATE_BUS "unix:path=/run/systemd/private"

int system_bus_open(sd_bus **ret_bus)
{
	_cleanup_(sd_bus_unrefp) sd_bus *bus = NULL;
	int r;

	if (sd_bus_open_system(ret_bus) >= 0)
		return 0;
	r = sd_bus_new(&bus);
	if (r >= 0)
		r = sd_bus_set_address(bus, PRIVATE_BUS);
	if (r >= 0)
		r = sd_bus_start(bus);
	if (r < 0)
		return r;
	*ret_bus = TAKE_PTR(bus);
	return 0;
}
