/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The heartbeat: one byte to the debug console port every millisecond, from when the load is under
 * way: before that, no more often than would keep the rest of a slow machine from getting there.
 *
 * One real-time thread, started by main(). The byte is the number of the tick modulo 256, so that
 * the host can measure how long the guest stood still (in the host's clock, which is the only one
 * that did not stop with it) and can tell whether a tick was lost or made twice on the way from one
 * QEMU to another. A tick that comes late is not made up for: the next one is a period later, and
 * the numbers stay dense.
 *
 * The port is written through /dev/port, or directly where the kernel has none (not the other way
 * round: outb in user space dies of a #GP in a nested guest of older TCG); and when the machine has
 * no debug console, or is none of the x86 kind, to the virtio-serial port org.upgraded.hb. Without any of them (an ordinary process) only the longest gap in the guest's
 * own clock is kept.
 */
#include <fcntl.h>
#include <sched.h>
#include <unistd.h>
#ifdef __x86_64__
#include <sys/io.h>
#endif

#include "load.h"
#include "now.h"

#define GOING_AFTER 25
#define WAITING_NS  (20 * NSEC_PER_MSEC)
#define HB_VPORT    "org.upgraded.hb"
#define DEBUGCON_ID 0xe9 /* what the debug console answers when it is read */

struct outlet {
	enum hb_out kind;
	unsigned port;
	int fd;
};

const char *hb_out_name(enum hb_out out)
{
	switch (out) {
	case HB_NONE:
		return "none";
	case HB_PORT:
		return "port";
	case HB_DEV_PORT:
		return "/dev/port";
	case HB_VIRTIO:
		return "virtio";
	}
	return "?";
}

static struct outlet outlet_open(uint64_t port)
{
	struct outlet o = { .kind = HB_NONE, .port = (unsigned)port, .fd = -1 };
	char path[80];
	uint8_t id;

	if (!port)
		return o;
	o.fd = open("/dev/port", O_RDWR | O_CLOEXEC);
	if (o.fd >= 0) {
		if (pread(o.fd, &id, 1, o.port) == 1 && id == DEBUGCON_ID) {
			o.kind = HB_DEV_PORT;
			return o;
		}
		close(o.fd);
		o.fd = -1;
	}
#ifdef __x86_64__
	if (ioperm(port, 1, 1) == 0 && inb((unsigned short)port) == DEBUGCON_ID) {
		o.kind = HB_PORT;
		return o;
	}
#endif
	if (vport_find(HB_VPORT, path, sizeof(path)) == 0) {
		o.fd = open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
		if (o.fd >= 0)
			o.kind = HB_VIRTIO;
	}
	return o;
}

/* False: the way out is blocked, and this number is still to be sent. */
static bool outlet_write(const struct outlet *o, uint8_t byte)
{
	switch (o->kind) {
	case HB_NONE:
		return true;
	case HB_PORT:
#ifdef __x86_64__
		outb(byte, (unsigned short)o->port);
#endif
		return true;
	case HB_DEV_PORT:
		return pwrite(o->fd, &byte, 1, o->port) == 1;
	case HB_VIRTIO:
		return write(o->fd, &byte, 1) == 1;
	}
	return false;
}

static uint64_t period(struct load *l)
{
	uint64_t ns = l->options.hb_us * NSEC_PER_USEC;

	return ns > WAITING_NS || atomic_load(&l->ready) ? ns : WAITING_NS;
}

void *heartbeat_thread(void *arg)
{
	struct load *l = arg;
	struct hb_stats *s = &l->hb;
	struct outlet out = outlet_open(l->options.hb_port);
	struct sched_param rt = { .sched_priority = 50 };
	uint64_t due = now_ns(), last = 0;
	uint8_t skip = 0;

	sched_setscheduler(0, SCHED_FIFO, &rt);
	count_set(&s->out, out.kind);

	for (uint64_t tick = 0; !load_stopping(l);) {
		struct timespec ts = {
			.tv_sec = (time_t)(due / NSEC_PER_SEC),
			.tv_nsec = (long)(due % NSEC_PER_SEC),
		};
		uint64_t now;

		while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) != 0)
			if (load_stopping(l))
				break;
		if (inject_now(l, INJECT_HB))
			skip = 3;
		if (outlet_write(&out, (uint8_t)(tick + skip)))
			tick++;
		else
			count_add(&s->unsent, 1);

		now = now_ns();
		if (last && count_max(&s->longest_gap_us, (now - last) / NSEC_PER_USEC))
			count_set(&s->longest_gap_at_ms, (now - l->start_ns) / NSEC_PER_MSEC);
		last = now;
		count_set(&s->ticks, tick);
		if (tick == GOING_AFTER)
			part_set(l, PART_HB, STATE_GOING);

		due += period(l);
		if (due <= now) {
			count_add(&s->late, 1);
			due = now + period(l);
		}
	}
	if (out.fd >= 0)
		close(out.fd);
	return NULL;
}
