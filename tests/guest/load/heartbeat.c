/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The heartbeat: one byte to the debug console port every millisecond.
 *
 * One real-time thread, started by main(). The byte is the number of the tick modulo 256, so that the host
 * can measure how long the guest stood still (in the host's clock, which is the only one that did not
 * stop with it) and can tell whether a tick was lost or made twice on the way from one QEMU to another.
 * A tick that comes late is not made up for: the next one is a period later, and the numbers stay dense.
 *
 * Without an I/O port (an ordinary process, a kernel without ioperm) the ticks go nowhere and only
 * the longest gap in the guest's own clock is kept.
 */
#include <fcntl.h>
#include <sched.h>
#include <unistd.h>
#ifdef __x86_64__
#include <sys/io.h>
#endif

#include "load.h"
#include "now.h"

#define GOING_AFTER 100

/* How the byte leaves: by the port itself, by /dev/port, or not at all. */
struct heart_port {
	unsigned port;
	bool direct;
	int fd;
};

static struct heart_port port_open(uint64_t port)
{
	struct heart_port p = { .port = (unsigned)port, .fd = -1 };

	if (!port)
		return p;
#ifdef __x86_64__
	p.direct = ioperm(port, 1, 1) == 0;
#endif
	if (!p.direct)
		p.fd = open("/dev/port", O_WRONLY | O_CLOEXEC);
	return p;
}

static void port_write(const struct heart_port *p, uint8_t byte)
{
#ifdef __x86_64__
	if (p->direct) {
		outb(byte, (unsigned short)p->port);
		return;
	}
#endif
	if (p->fd >= 0 && pwrite(p->fd, &byte, 1, p->port) < 0)
		return;	/* the host sees the lost tick */
}

void *heartbeat_thread(void *arg)
{
	struct load *l = arg;
	struct hb_stats *s = &l->hb;
	const uint64_t period = l->options.hb_us * NSEC_PER_USEC;
	struct heart_port port = port_open(l->options.hb_port);
	struct sched_param rt = { .sched_priority = 50 };
	uint64_t due = now_ns() + period, last = 0;
	uint8_t skip = 0;

	sched_setscheduler(0, SCHED_FIFO, &rt);
	if (port.direct || port.fd >= 0)
		count_set(&s->port, port.port);

	for (uint64_t tick = 0; !load_stopping(l); tick++) {
		struct timespec ts = {
			.tv_sec = (time_t)(due / NSEC_PER_SEC), .tv_nsec = (long)(due % NSEC_PER_SEC),
		};
		uint64_t now;

		while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) != 0)
			if (load_stopping(l))
				break;
		if (inject_now(l, INJECT_HB))
			skip = 3;
		port_write(&port, (uint8_t)(tick + skip));

		now = now_ns();
		if (last && count_max(&s->longest_gap_us, (now - last) / NSEC_PER_USEC))
			count_set(&s->longest_gap_at_ms, (now - l->start_ns) / NSEC_PER_MSEC);
		last = now;
		count_set(&s->ticks, tick + 1);
		if (tick == GOING_AFTER)
			part_set(l, PART_HB, STATE_GOING);

		due += period;
		if (due <= now) {
			count_add(&s->late, 1);
			due = now + period;
		}
	}
	if (port.fd >= 0)
		close(port.fd);
	return NULL;
}
