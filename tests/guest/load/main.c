/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The load that runs in the test guest, as its only process (/init of the initramfs), or as an
 * ordinary process for its own tests.
 *
 * It starts the parts (memory writer, disk writer, TCP stream, clock watcher, heartbeat, reporter),
 * waits for the end, and says at the end what was wrong. It owns the context that all parts share.
 * As PID 1 it never returns: when the load is over the machine is turned off; were it to die, the
 * kernel would panic, the heartbeat would stop, and the host would see a guest that is gone.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "load.h"
#include "now.h"

#define STACK_SIZE (256 * 1024)

struct part {
	void *(*run)(void *);
	pthread_t thread;
	bool started;
};

/* Memory that is paged out, or a process that is killed for memory, would be a fault of the test.
 */
static void hold_memory(void)
{
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	if (fd >= 0) {
		if (write(fd, "-1000", 5) < 0)
			fprintf(stderr, "load: oom_score_adj: %s\n", strerror(errno));
		close(fd);
	}
	if (mlockall(MCL_CURRENT) < 0)
		fprintf(stderr, "load: mlockall: %s\n", strerror(errno));
}

static void start(struct load *l, struct part *p, enum load_part part, bool wanted)
{
	pthread_attr_t attr;
	int r;

	if (!wanted)
		return;
	part_set(l, part, STATE_STARTING);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK_SIZE);
	r = pthread_create(&p->thread, &attr, p->run, l);
	pthread_attr_destroy(&attr);
	if (r != 0) {
		part_set(l, part, STATE_FAILED);
		load_error(l, ERROR_SETUP, "starting %s: %s", load_part_name(part), strerror(r));
		return;
	}
	p->started = true;
}

/* Until the time is over or someone asks us to end; says READY on the console when it is so. */
static void wait_for_end(struct load *l, const sigset_t *signals)
{
	bool said = false;

	for (;;) {
		struct timespec ts = { .tv_nsec = 100 * 1000 * 1000 };
		int sig = sigtimedwait(signals, NULL, &ts);

		if (!said && atomic_load(&l->ready)) {
			fprintf(stderr, "load: READY\n");
			said = true;
		}
		/* A guest's PID 1 gets signals from nobody but the kernel (Ctrl-Alt-Del). */
		if (sig > 0)
			return;
		if (l->options.seconds &&
		    now_ns() - l->start_ns >= l->options.seconds * NSEC_PER_SEC)
			return;
	}
}

static int run(struct load *l)
{
	struct part parts[N_LOAD_PARTS] = {
		[PART_MEM] = { .run = mem_thread },	 [PART_DISK] = { .run = disk_thread },
		[PART_NET] = { .run = net_thread },	 [PART_CLOCK] = { .run = clock_thread },
		[PART_HB] = { .run = heartbeat_thread },
	};
	const struct load_options *o = &l->options;
	pthread_t reporter;
	sigset_t signals;
	bool reporting;

	/* Blocked before any thread starts: all threads inherit it, and only sigtimedwait() takes
	 * them. */
	sigemptyset(&signals);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &signals, NULL);

	reporting = pthread_create(&reporter, NULL, report_thread, l) == 0;
	start(l, &parts[PART_HB], PART_HB, o->hb);
	start(l, &parts[PART_CLOCK], PART_CLOCK, o->clock);
	start(l, &parts[PART_MEM], PART_MEM, o->mem_mb > 0);
	start(l, &parts[PART_DISK], PART_DISK, o->disk[0]);
	if (o->net[0]) {
		char name[32];
		int r = netif_up(o->net, name, sizeof(name));

		if (r < 0)
			load_error(l, ERROR_SETUP, "bringing up a network interface for %s: %s",
				   o->net, strerror(-r));
		else
			fprintf(stderr, "load: %s is %s\n", name, o->net);
	}
	start(l, &parts[PART_NET], PART_NET, o->peer[0]);

	wait_for_end(l, &signals);
	atomic_store(&l->stop, true);
	for (int i = 0; i < N_LOAD_PARTS; i++)
		if (parts[i].started)
			pthread_join(parts[i].thread, NULL);
	atomic_store(&l->finished, true);
	if (reporting)
		pthread_join(reporter, NULL);

	fprintf(stderr, "load: done, %lu errors%s%s\n", load_errors_total(l),
		l->first_error[0] ? ", the first: " : "", l->first_error);
	return load_errors_total(l) ? 1 : 0;
}

int main(int argc, char **argv)
{
	struct load *l = calloc(1, sizeof(*l));
	char cmdline[4096], bad[128];
	int r;

	if (!l)
		return 2;
	l->init = getpid() == 1;
	l->start_ns = now_ns();
	pthread_mutex_init(&l->first_error_lock, NULL);
	options_default(&l->options, l->init);

	if (l->init) {
		boot_mount();
		boot_modules(l);
		r = boot_cmdline(cmdline, sizeof(cmdline));
		if (r < 0)
			load_error(l, ERROR_SETUP, "reading the kernel command line: %s",
				   strerror(-r));
		else if (options_parse_cmdline(&l->options, cmdline, bad, sizeof(bad)) < 0)
			load_error(l, ERROR_SETUP, "not understood: %s", bad);
		hold_memory();
	} else {
		r = options_parse_argv(&l->options, argc, argv);
		if (r < 0) {
			fprintf(stderr,
				"load: not understood: %s (options are --KEY=VALUE, see "
				"README.md)\n",
				argv[-r]);
			return 2;
		}
	}

	r = run(l);
	if (l->init)
		boot_end();
	free(l);
	return r;
}
