/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * loadwatch: the host's eye on the test guest. It reads the guest's heartbeat and reports from two
 *FIFOs that the old and the new QEMU both write to, and answers what it saw on a control socket.
 *
 *	loadwatch --hb FIFO --report FIFO --ctl SOCK       the watcher; start it before QEMU
 *	loadwatch --ctl SOCK COMMAND [NAME]                a client of a running one
 *
 * It owns the two FIFOs (made if they are missing, left behind) and the socket (removed at the
 *end). It holds the FIFOs open for writing too, so that there is no end of file between two QEMUs.
 *If it dies the guest goes on, until the FIFO is full and QEMU waits in the guest's port write:
 *tests must not kill it first.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../load/now.h"
#include "control.h"
#include "watch.h"

#define FIFO_SIZE   (1 << 20)
#define MAX_CLIENTS 16

struct client {
	int fd; /* -1: free */
	size_t len;
	char line[256];
};

struct loadwatch {
	struct watch *watch;
	int epoll, hb, report, control, signals;
	struct client client[MAX_CLIENTS];
};

enum { SLOT_HB = MAX_CLIENTS, SLOT_REPORT, SLOT_CONTROL, SLOT_SIGNALS };

static int usage(void)
{
	fprintf(stderr, "usage: loadwatch [--hb FIFO] [--report FIFO] --ctl SOCK [--gap-ms N] "
			"[--span-ms N] [--period-us N] [--rt]\n"
			"       loadwatch --ctl SOCK status | mark NAME | window [NAME] | windows "
			"| gaps [NAME] | gap FROM_MS TO_MS\n"
			"       loadwatch --ctl SOCK wait-ready SECONDS\n");
	return 2;
}

static int open_fifo(const char *path)
{
	struct stat st;
	int fd;

	if (mkfifo(path, 0600) < 0 && errno != EEXIST)
		return -errno;
	fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) < 0 || !S_ISFIFO(st.st_mode)) {
		close(fd);
		return -EINVAL;
	}
	/* A quarter of an hour of ticks: no stall of ours may become one of the guest's. */
	fcntl(fd, F_SETPIPE_SZ, FIFO_SIZE);
	return fd;
}

static int add(struct loadwatch *lw, int fd, int slot)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.u32 = (uint32_t)slot };

	return epoll_ctl(lw->epoll, EPOLL_CTL_ADD, fd, &ev) < 0 ? -errno : 0;
}

static void accept_client(struct loadwatch *lw)
{
	int fd = accept4(lw->control, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

	if (fd < 0)
		return;
	for (int i = 0; i < MAX_CLIENTS; i++)
		if (lw->client[i].fd < 0 && add(lw, fd, i) == 0) {
			lw->client[i] = (struct client){ .fd = fd };
			return;
		}
	close(fd);
}

static int reply(struct loadwatch *lw, int fd, const char *command)
{
	struct json_object *o = answer(lw->watch, command, now_ns());
	const char *text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN);
	int r = control_send_all(fd, text, strlen(text));

	if (r == 0)
		r = control_send_all(fd, "\n", 1);
	json_object_put(o);
	return r;
}

static void last_word(struct loadwatch *lw)
{
	struct json_object *o = answer(lw->watch, "status", now_ns());

	puts(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
	json_object_put(o);
}

static void serve_client(struct loadwatch *lw, struct client *c)
{
	ssize_t n = recv(c->fd, c->line + c->len, sizeof(c->line) - c->len, 0);
	char *end;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0)
		goto drop;
	c->len += (size_t)n;
	while ((end = memchr(c->line, '\n', c->len))) {
		size_t used = (size_t)(end - c->line) + 1;

		*end = 0;
		if (reply(lw, c->fd, c->line) < 0)
			goto drop;
		c->len -= used;
		memmove(c->line, c->line + used, c->len);
	}
	if (c->len < sizeof(c->line))
		return;
drop:
	close(c->fd);
	c->fd = -1;
}

static void read_ticks(struct loadwatch *lw)
{
	uint8_t buf[4096];
	ssize_t n = read(lw->hb, buf, sizeof(buf));

	if (n > 0)
		watch_ticks(lw->watch, buf, (size_t)n, now_ns());
}

static void read_reports(struct loadwatch *lw)
{
	char buf[4096];
	ssize_t n = read(lw->report, buf, sizeof(buf));

	if (n > 0)
		watch_report_bytes(lw->watch, buf, (size_t)n, now_ns());
}

static int loop(struct loadwatch *lw)
{
	for (;;) {
		struct epoll_event ev[8];
		int n = epoll_wait(lw->epoll, ev, 8, -1);

		if (n < 0 && errno != EINTR)
			return -errno;
		/* The ticks first: what else is to be done must not make them look late. */
		for (int i = 0; i < n; i++)
			if (ev[i].data.u32 == SLOT_HB)
				read_ticks(lw);
		for (int i = 0; i < n; i++) {
			switch (ev[i].data.u32) {
			case SLOT_HB:
				break;
			case SLOT_REPORT:
				read_reports(lw);
				break;
			case SLOT_CONTROL:
				accept_client(lw);
				break;
			case SLOT_SIGNALS:
				return 0;
			default:
				serve_client(lw, &lw->client[ev[i].data.u32]);
			}
		}
	}
}

static int fail(const char *what, const char *path, int r)
{
	fprintf(stderr, "loadwatch: %s %s: %s\n", what, path, strerror(-r));
	return 1;
}

static int serve(struct loadwatch *lw, const char *hb, const char *report, const char *ctl)
{
	sigset_t set;
	int r;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	lw->signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	lw->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (lw->signals < 0 || lw->epoll < 0)
		return fail("setting up", "", -errno);
	for (int i = 0; i < MAX_CLIENTS; i++)
		lw->client[i].fd = -1;

	r = add(lw, lw->signals, SLOT_SIGNALS);
	if (hb && r == 0) {
		lw->hb = open_fifo(hb);
		r = lw->hb < 0 ? lw->hb : add(lw, lw->hb, SLOT_HB);
		if (r < 0)
			return fail("opening the FIFO", hb, r);
	}
	if (report && r == 0) {
		lw->report = open_fifo(report);
		r = lw->report < 0 ? lw->report : add(lw, lw->report, SLOT_REPORT);
		if (r < 0)
			return fail("opening the FIFO", report, r);
	}
	lw->control = control_listen(ctl);
	r = lw->control < 0 ? lw->control : add(lw, lw->control, SLOT_CONTROL);
	if (r < 0)
		return fail("listening on", ctl, r);

	/* QEMU may be started now. */
	printf("{\"loadwatch\":\"ready\"}\n");
	fflush(stdout);

	r = loop(lw);
	unlink(ctl);
	last_word(lw);
	return r < 0 ? fail("waiting", "", r) : 0;
}

static int ask(const char *ctl, int argc, char **argv)
{
	char command[256], *text = NULL;
	int fd = control_connect(ctl), r;

	if (fd < 0)
		return fail("connecting to", ctl, fd);
	if (snprintf(command, sizeof(command), "%s%s%s", argv[0], argc > 1 ? " " : "",
		     argc > 1 ? argv[1] : "") >= (int)sizeof(command))
		return usage();
	r = control_ask(fd, command, &text);
	close(fd);
	if (r < 0)
		return fail("asking", ctl, r);
	puts(text);
	r = strncmp(text, "{\"error\":", 9) == 0;
	free(text);
	return r;
}

/* Asks until the guest says READY; 3 when the time is over. The last answer is printed. */
static int wait_ready(const char *ctl, const char *seconds)
{
	uint64_t deadline = now_ns() + strtoul(seconds, NULL, 10) * NSEC_PER_SEC;

	for (;;) {
		char *text = NULL;
		int fd = control_connect(ctl), r = fd;
		bool ready;

		if (fd >= 0) {
			r = control_ask(fd, "status", &text);
			close(fd);
		}
		ready = r == 0 && strstr(text, "\"state\":\"READY\"");
		if (ready || now_ns() >= deadline) {
			if (r < 0)
				return fail("asking", ctl, r);
			puts(text);
			free(text);
			return ready ? 0 : 3;
		}
		free(text);
		sleep_ns(100 * NSEC_PER_MSEC);
	}
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "hb", required_argument, NULL, 'h' },
		{ "report", required_argument, NULL, 'r' },
		{ "ctl", required_argument, NULL, 'c' },
		{ "gap-ms", required_argument, NULL, 'g' },
		{ "span-ms", required_argument, NULL, 's' },
		{ "period-us", required_argument, NULL, 'p' },
		{ "rt", no_argument, NULL, 'R' },
		{ 0 },
	};
	struct loadwatch lw = { 0 };
	const char *hb = NULL, *report = NULL, *ctl = NULL;
	struct sched_param rt = { .sched_priority = 60 };
	int c, r;

	r = watch_new(now_ns(), &lw.watch);
	if (r < 0)
		return fail("starting", "", r);
	while ((c = getopt_long(argc, argv, "+", options, NULL)) >= 0) {
		switch (c) {
		case 'h':
			hb = optarg;
			break;
		case 'r':
			report = optarg;
			break;
		case 'c':
			ctl = optarg;
			break;
		case 'g':
			lw.watch->gap_threshold_ns = strtoul(optarg, NULL, 10) * NSEC_PER_MSEC;
			break;
		case 's':
			lw.watch->span_ns = strtoul(optarg, NULL, 10) * NSEC_PER_MSEC;
			break;
		case 'p':
			lw.watch->ticks.period_ns = strtoul(optarg, NULL, 10) * NSEC_PER_USEC;
			break;
		case 'R':
			/* Late reads are accounted for, but less of them is better. */
			if (sched_setscheduler(0, SCHED_FIFO, &rt) < 0)
				fprintf(stderr, "loadwatch: --rt: %s\n", strerror(errno));
			break;
		default:
			return usage();
		}
	}
	if (!ctl)
		return usage();
	if (optind < argc && !strcmp(argv[optind], "wait-ready"))
		r = optind + 2 == argc ? wait_ready(ctl, argv[optind + 1]) : usage();
	else if (optind < argc)
		r = argc - optind <= 2 ? ask(ctl, argc - optind, argv + optind) : usage();
	else if (hb || report)
		r = serve(&lw, hb, report, ctl);
	else
		r = usage();
	watch_free(lw.watch);
	return r;
}
