/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The reporter: one JSON line with everything that is known, every 250 ms.
 *
 * One thread, started by main(); it owns the output. It must never hold up the load, nor be held up
 * for long by a host that does not read: the output is non-blocking, at most two lines are kept,
 * and the newest wins. All numbers are totals since the start, so a line that was dropped loses
 * nothing but the moment; only the work per 100 ms is a series, and each line repeats enough of it
 * to bridge dropped ones.
 */
#include "report.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "now.h"

static int open_output(const char *path)
{
	struct termios t;
	int fd = open(path, O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	if (tcgetattr(fd, &t) == 0) {
		cfmakeraw(&t);
		tcsetattr(fd, TCSANOW, &t);
	}
	return fd;
}

/* "auto": the virtio-serial port, else the second serial line, else standard output. */
int report_open(const char *where, struct report_out *ret)
{
	int fd = -1;

	if (!strcmp(where, "auto")) {
		char path[80];

		if (vport_find(REPORT_PORT, path, sizeof(path)) == 0)
			fd = open_output(path);
		if (fd < 0)
			fd = open_output("/dev/ttyS1");
		/* A serial line that is not there opens well and fails when written to. */
		if (fd >= 0 && isatty(fd) && write(fd, "\n", 1) < 0 && errno != EAGAIN) {
			close(fd);
			fd = -1;
		}
		if (fd < 0)
			where = "stdout";
	}
	if (fd < 0 && !strcmp(where, "stdout"))
		fd = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
	else if (fd < 0 && strcmp(where, "none"))
		fd = open_output(where);
	if (fd < 0 && strcmp(where, "none"))
		return fd == -1 ? -errno : fd;

	memset(ret, 0, sizeof(*ret));
	ret->fd = fd;
	return 0;
}

void report_push(struct report_out *out)
{
	while (out->at < out->len) {
		ssize_t n = write(out->fd, out->line + out->at, out->len - out->at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return;
		out->at += (size_t)n;
		if (out->at == out->len && out->next_len) {
			memcpy(out->line, out->next, out->next_len);
			out->at = 0;
			out->len = out->next_len;
			out->next_len = 0;
		}
	}
}

void report_put(struct report_out *out, const char *line, size_t len)
{
	if (out->fd < 0 || len > REPORT_MAX)
		return;
	report_push(out);
	if (out->at < out->len && out->at > 0) {
		/* One is half out and must be finished, or the reader gets two lines in one. */
		if (out->next_len)
			count_add(&out->dropped, 1);
		memcpy(out->next, line, len);
		out->next_len = len;
	} else {
		if (out->at < out->len)
			count_add(&out->dropped, 1);
		memcpy(out->line, line, len);
		out->at = 0;
		out->len = len;
	}
	report_push(out);
}

struct text {
	char *buf;
	size_t at, size;
};

static void add(struct text *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void add(struct text *t, const char *fmt, ...)
{
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(t->buf + t->at, t->size - t->at, fmt, ap);
	va_end(ap);
	t->at += (size_t)n < t->size - t->at ? (size_t)n : t->size - t->at - 1;
}

static void add_quoted(struct text *t, const char *s)
{
	add(t, "\"");
	for (; *s; s++) {
		if (*s == '"' || *s == '\\')
			add(t, "\\%c", *s);
		else if ((unsigned char)*s >= 0x20)
			add(t, "%c", *s);
	}
	add(t, "\"");
}

static void add_slices(struct text *t, const struct load *l)
{
	const struct mem_stats *s = &l->mem;
	uint64_t end = atomic_load_explicit(&s->slice_now, memory_order_acquire),
		 first = count_get(&s->slice_first);
	uint64_t want = 3 * l->options.report_ms / SLICE_MS + 4;

	/* Half of the ring at most: the other half is what the writer may overwrite meanwhile. */
	if (want > N_SLICES / 2)
		want = N_SLICES / 2;
	if (end > first + want)
		first = end - want;
	add(t, ",\"slices\":{\"ms\":%d,\"first\":%lu,\"pages\":[", SLICE_MS, first);
	for (uint64_t i = first; i < end; i++)
		add(t, "%s%lu", i == first ? "" : ",", count_get(&s->slice[i % N_SLICES]));
	add(t, "]}");
}

static uint64_t pages_per_second(const struct load *l)
{
	const struct mem_stats *s = &l->mem;
	uint64_t end = atomic_load_explicit(&s->slice_now, memory_order_acquire),
		 first = count_get(&s->slice_first);
	uint64_t sum = 0, n = 1000 / SLICE_MS;

	if (end < first + n)
		return 0;
	for (uint64_t i = end - n; i < end; i++)
		sum += count_get(&s->slice[i % N_SLICES]);
	return sum;
}

size_t report_format(struct load *l, uint64_t seq, const char *state, uint64_t dropped, char *buf,
		     size_t size)
{
	struct text t = { .buf = buf, .size = size };
	uint64_t now = now_ns();

	add(&t,
	    "{\"load\":1,\"seq\":%lu,\"state\":\"%s\",\"guest_ms\":%lu.%03lu,\"uptime_ms\":%lu,"
	    "\"errors\":%lu,\"by_kind\":{",
	    seq, state, now / NSEC_PER_MSEC, now / NSEC_PER_USEC % 1000,
	    (now - l->start_ns) / NSEC_PER_MSEC, load_errors_total(l));
	for (int i = 0; i < N_LOAD_ERRORS; i++)
		add(&t, "%s\"%s\":%lu", i ? "," : "", load_error_name((enum load_error)i),
		    count_get(&l->errors[i]));
	add(&t, "},\"first_error\":");
	pthread_mutex_lock(&l->first_error_lock);
	add_quoted(&t, l->first_error);
	pthread_mutex_unlock(&l->first_error_lock);
	add(&t, ",\"parts\":{");
	for (int i = 0; i < N_LOAD_PARTS; i++)
		add(&t, "%s\"%s\":\"%s\"", i ? "," : "", load_part_name((enum load_part)i),
		    part_state_name(part_get(l, (enum load_part)i)));
	add(&t,
	    "},\"mem\":{\"mb\":%lu,\"locked\":%s,\"passes\":%lu,\"verified\":%lu,\"wrong\":%lu,"
	    "\"pages_per_s\":%lu}",
	    count_get(&l->mem.mb), count_get(&l->mem.locked) ? "true" : "false",
	    count_get(&l->mem.passes), count_get(&l->mem.verified),
	    count_get(&l->errors[ERROR_MEM]), pages_per_second(l));
	add(&t,
	    ",\"disk\":{\"blocks\":%lu,\"direct\":%s,\"written\":%lu,\"fsyncs\":%lu,\"verified\":%"
	    "lu,\"longest_fsync_us\":%lu}",
	    count_get(&l->disk.blocks), count_get(&l->disk.direct) ? "true" : "false",
	    count_get(&l->disk.written), count_get(&l->disk.fsyncs), count_get(&l->disk.verified),
	    count_get(&l->disk.longest_fsync_us));
	add(&t,
	    ",\"net\":{\"sent\":%lu,\"received\":%lu,\"connects\":%lu,\"longest_stall_us\":%lu}",
	    count_get(&l->net.sent), count_get(&l->net.received), count_get(&l->net.connects),
	    count_get(&l->net.longest_stall_us));
	add(&t,
	    ",\"clock\":{\"samples\":%lu,\"cpus\":%lu,\"mono_jump_us\":%lu,\"real_jump_us\":%lu,"
	    "\"tsc_jump\":%lu,\"step_us\":%lu}",
	    count_get(&l->clock.samples), count_get(&l->clock.cpus),
	    count_get(&l->clock.mono_jump_us), count_get(&l->clock.real_jump_us),
	    count_get(&l->clock.tsc_jump), count_get(&l->clock.step_us));
	add(&t,
	    ",\"hb\":{\"out\":\"%s\",\"period_us\":%lu,\"ticks\":%lu,\"late\":%lu,\"unsent\":%lu,"
	    "\"longest_gap_us\":%lu,\"longest_gap_at_ms\":%lu}",
	    hb_out_name((enum hb_out)count_get(&l->hb.out)), l->options.hb_us,
	    count_get(&l->hb.ticks), count_get(&l->hb.late), count_get(&l->hb.unsent),
	    count_get(&l->hb.longest_gap_us), count_get(&l->hb.longest_gap_at_ms));
	add_slices(&t, l);
	add(&t, ",\"dropped\":%lu}\n", dropped);
	return t.at;
}

static bool all_going(struct load *l)
{
	for (int i = 0; i < N_LOAD_PARTS; i++) {
		enum part_state s = part_get(l, (enum load_part)i);

		if (s != STATE_GOING && s != STATE_OFF)
			return false;
	}
	return true;
}

void *report_thread(void *arg)
{
	struct load *l = arg;
	struct report_out *out = calloc(1, sizeof(*out));
	char line[REPORT_MAX];
	uint64_t ready_ns = 0, next = now_ns(), deadline;
	unsigned inject = l->options.inject;
	bool last = false;
	int r = out ? report_open(l->options.report, out) : -ENOMEM;

	if (r < 0) {
		load_error(l, ERROR_SETUP, "reporting to %s: %s", l->options.report, strerror(-r));
		free(out);
		return NULL;
	}

	for (uint64_t seq = 0; !last; seq++) {
		const char *state = "starting";

		/* Asked before formatting: the last line then has all that the parts said at their
		 * end. */
		last = atomic_load(&l->finished);
		if (!ready_ns && all_going(l)) {
			ready_ns = now_ns();
			atomic_store(&l->ready, true);
		}
		if (ready_ns)
			state = "READY";
		if (last)
			state = "done";
		report_put(
			out, line,
			report_format(l, seq, state, count_get(&out->dropped), line, sizeof(line)));

		if (ready_ns && inject &&
		    now_ns() - ready_ns >= l->options.inject_ms * NSEC_PER_MSEC) {
			atomic_store(&l->inject, inject);
			inject = 0;
		}
		next += l->options.report_ms * NSEC_PER_MSEC;
		if (next < now_ns())
			next = now_ns() + l->options.report_ms * NSEC_PER_MSEC;
		/* Short naps: the end must not wait for a long interval. */
		while (!last && !atomic_load(&l->finished) && now_ns() < next) {
			uint64_t left = next - now_ns();

			sleep_ns(left < 50 * NSEC_PER_MSEC ? left : 50 * NSEC_PER_MSEC);
		}
	}

	/* A host that does not read gets one second for the last word. */
	deadline = now_ns() + NSEC_PER_SEC;
	while (out->at < out->len && now_ns() < deadline) {
		sleep_ns(10 * NSEC_PER_MSEC);
		report_push(out);
	}
	if (out->fd >= 0)
		close(out->fd);
	free(out);
	return NULL;
}
