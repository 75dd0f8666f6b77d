/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The way to talk with systemd over D-Bus: see system_bus.c. */
#ifndef UPGRADED_SYSTEM_BUS_H
#define UPGRADED_SYSTEM_BUS_H

#include <systemd/sd-bus.h>

/* *ret_bus is the caller's; what is sent over it may still wait for the connection. */
int system_bus_open(sd_bus **ret_bus);

#endif
