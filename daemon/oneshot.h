/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A timer that goes off once. Takes no memory: it may be armed for want of it. */
#ifndef UPGRADED_ONESHOT_H
#define UPGRADED_ONESHOT_H

#include <stdint.h>
#include <systemd/sd-event.h>

static inline void oneshot_arm(sd_event_source *timer, uint64_t in_us)
{
	(void)sd_event_source_set_time_relative(timer, in_us);
	(void)sd_event_source_set_enabled(timer, SD_EVENT_ONESHOT);
}

#endif
